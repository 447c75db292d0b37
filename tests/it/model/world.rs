//! What the instances share: one account's row, the provider, the time, and a book of what happened.

use std::collections::BTreeSet;

use shuttle::rand::{Rng, thread_rng};

use super::{Broken, Flaw};

/// A refresh token: its place in [`Provider::refresh`].
pub type Token = usize;
/// One process of an instance; a restart is another one.
pub type Pid = usize;

/// How long a lease lasts, in ticks: a few steps of its owner.
const LEASE: u64 = 8;
/// How long an access token lives.
const LIFE: u64 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Connected,
    Degraded,
    Disconnected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    ProviderUnavailable,
    RefreshRejected,
    LostInWindow,
}

/// The account's row, as far as a refresh reads and writes it.
#[derive(Clone, Debug)]
pub struct Row {
    pub generation: u64,
    pub status: Status,
    pub reason: Option<Reason>,
    pub access: usize,
    pub dead_at: u64,
    pub refresh: Token,
    /// `lease_owner`, `lease_until`.
    lease: Option<(Pid, u64)>,
    /// `refresh_started_at is not null`.
    started: bool,
    removed: bool,
}

/// What the provider gives.
#[derive(Clone, Copy)]
pub struct Tokens {
    pub access: usize,
    pub refresh: Option<Token>,
}

/// A row of `token_candidates`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub token: Token,
    /// It came in place of the refresh token of this generation.
    pub successor_of: Option<u64>,
}

pub enum Taken {
    Won { maybe_spent: bool },
    Held,
    Gone,
}

pub enum Removed {
    Done,
    Moved,
    NotFound,
}

/// What becomes of a refresh token that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It stays.
    None,
    /// It is good until its successor is used; used again, it gives another successor, and the earlier one dies.
    Grace,
    /// It dies.
    Strict,
    /// It dies, and using it again kills all.
    Family,
}

struct Refresh {
    parent: Option<Token>,
    /// Who got it.
    given_to: Pid,
    alive: bool,
}

struct Provider {
    rotation: Rotation,
    refresh: Vec<Refresh>,
    next_access: usize,
}

impl Provider {
    /// RFC 6749 §6, by the rotation's rules. `None`: `invalid_grant`.
    fn exchange(&mut self, token: Token, by: Pid) -> Option<Tokens> {
        if !self.refresh[token].alive {
            if self.rotation == Rotation::Family {
                self.refresh.iter_mut().for_each(|each| each.alive = false);
            }
            return None;
        }
        match self.rotation {
            Rotation::None => {}
            Rotation::Strict | Rotation::Family => self.refresh[token].alive = false,
            Rotation::Grace => {
                let parent = self.refresh[token].parent;
                for (id, each) in self.refresh.iter_mut().enumerate() {
                    each.alive &= parent != Some(id) && each.parent != Some(token);
                }
            }
        }
        self.next_access += 1;
        let refresh = (self.rotation != Rotation::None).then(|| {
            self.refresh.push(Refresh { parent: Some(token), given_to: by, alive: true });
            self.refresh.len() - 1
        });
        Some(Tokens { access: self.next_access, refresh })
    }
}

/// A provider call that gave tokens.
struct Call {
    token: Token,
    generation: u64,
    by: Pid,
    /// Made without a lease, or what it gave is not known or no good: another one with the same token is no mistake.
    excused: bool,
}

/// What happened, for the properties.
#[derive(Default)]
struct Book {
    calls: Vec<Call>,
    /// Access tokens that were committed.
    published: BTreeSet<usize>,
    /// Refresh tokens that were committed, in the row or as a candidate.
    stored: BTreeSet<Token>,
    revoked: BTreeSet<Token>,
    /// Refresh tokens whose answer never came.
    unheard: BTreeSet<Token>,
    /// Processes that crashed, or whose flight broke off.
    died: BTreeSet<Pid>,
    /// An owner that lives was frozen past its lease, and another one took it.
    lapsed: bool,
    changes: Vec<Status>,
    told: Vec<Status>,
    /// How often an account that had ended was given another refresh token.
    revived: usize,
    disconnected_by_person: bool,
}

pub struct World {
    pub now: u64,
    pub flaw: Option<Flaw>,
    /// How many answers may still go wrong.
    pub troubles: u32,
    /// How often an account that had ended came back: `standing_at`.
    pub standing: u64,
    row: Row,
    candidates: Vec<Candidate>,
    revocations: Vec<Token>,
    provider: Provider,
    book: Book,
}

impl World {
    /// An account whose access token is dead.
    pub fn new(rotation: Rotation, flaw: Option<Flaw>) -> Self {
        let first = Refresh { parent: None, given_to: 0, alive: true };
        let row = Row {
            generation: 1,
            status: Status::Connected,
            reason: None,
            access: 0,
            dead_at: 0,
            refresh: 0,
            lease: None,
            started: false,
            removed: false,
        };
        let book = Book { stored: BTreeSet::from([0]), ..Book::default() };
        let provider = Provider { rotation, refresh: vec![first], next_access: 0 };
        let (candidates, revocations) = (Vec::new(), Vec::new());
        Self { now: 1, flaw, troubles: 0, standing: 0, row, candidates, revocations, provider, book }
    }

    /// Whether something goes wrong here.
    fn trouble(&mut self) -> bool {
        let strikes = self.troubles > 0 && thread_rng().gen_ratio(1, 4);
        self.troubles -= u32::from(strikes);
        strikes
    }

    fn flawed(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

/// The store: each method is one transaction.
impl World {
    /// `Store::tokens`. `None`: removed.
    pub fn tokens(&self) -> Option<Row> {
        (!self.row.removed).then(|| self.row.clone())
    }

    /// `Store::take_lease`.
    pub fn take_lease(&mut self, me: Pid) -> Taken {
        if self.row.removed {
            return Taken::Gone;
        }
        if let Some((owner, until)) = self.row.lease
            && !self.flawed(Flaw::NoLease)
        {
            if until > self.now {
                return Taken::Held;
            }
            self.book.lapsed |= !self.book.died.contains(&owner);
            self.excuse(owner);
        }
        let maybe_spent = self.row.started;
        self.row.lease = Some((me, self.now + LEASE));
        self.row.started = !self.flawed(Flaw::NoCrashMark);
        Taken::Won { maybe_spent }
    }

    /// `Store::renew_lease`.
    pub fn renew_lease(&mut self, me: Pid) -> bool {
        let ours = self.is_owner(me) && !self.row.removed;
        if ours {
            self.row.lease = Some((me, self.now + LEASE));
        }
        ours
    }

    fn is_owner(&self, me: Pid) -> bool {
        self.row.lease.is_some_and(|(owner, _)| owner == me)
    }

    /// `Store::release_lease`.
    pub fn release_lease(&mut self, me: Pid, spent: bool) {
        if self.is_owner(me) {
            self.row.lease = None;
            self.row.started &= spent && !self.flawed(Flaw::MarkGoesWithLease);
        }
    }

    /// `Store::unresolved_refreshes`.
    pub fn is_unresolved(&self) -> bool {
        let row = &self.row;
        let free = row.lease.is_none_or(|(_, until)| until <= self.now);
        row.started && free && !row.removed && row.status != Status::Disconnected
    }

    /// `Store::save_tokens`. `Err`: unknown whether it was saved.
    pub fn save_tokens(&mut self, generation: u64, tokens: Tokens, seen: Status) -> Result<bool, ()> {
        if self.trouble() {
            if thread_rng().gen_bool(0.5) {
                self.saved(generation, tokens, seen);
            }
            return Err(());
        }
        Ok(self.saved(generation, tokens, seen))
    }

    fn saved(&mut self, generation: u64, tokens: Tokens, seen: Status) -> bool {
        if !self.is_at(generation, Flaw::SavesWithoutComparing) {
            return false;
        }
        // Told by the row as it is now.
        let seen = if self.flawed(Flaw::RecoveryByOldRow) { seen } else { self.row.status };
        if seen != Status::Connected {
            self.book.told.push(Status::Connected);
        }
        self.revive();
        self.change(Status::Connected, None);
        let refresh = tokens.refresh.unwrap_or(self.row.refresh);
        self.row = Row {
            generation: self.row.generation + 1,
            access: tokens.access,
            dead_at: self.now + LIFE,
            refresh,
            lease: None,
            started: false,
            removed: false,
            ..self.row
        };
        self.book.published.insert(tokens.access);
        self.book.stored.insert(refresh);
        true
    }

    /// `Store::note_failure`. `false`: this is not for us to say any more.
    pub fn note_failure(&mut self, me: Pid, generation: u64) -> bool {
        let counts = self.counts(me, generation);
        if counts {
            self.tell(Status::Degraded, Reason::ProviderUnavailable);
        }
        counts
    }

    /// `Store::end_account`. `false` as for [`World::note_failure`], and beside a candidate that is still to be tried.
    pub fn end_account(&mut self, me: Pid, generation: u64, reason: Reason) -> bool {
        let hopeless = self.candidates.is_empty() || self.flawed(Flaw::EndsForGood);
        let counts = self.counts(me, generation) && (hopeless || self.flawed(Flaw::CandidatesUntried));
        if counts {
            self.tell(Status::Disconnected, reason);
        }
        counts
    }

    /// Bad news counts from whoever holds the lease, and never over `disconnected`.
    fn counts(&self, me: Pid, generation: u64) -> bool {
        let ours = self.is_owner(me) || self.flawed(Flaw::NewsFromAnybody) || self.flawed(Flaw::NewsAtAnyTime);
        let ended = self.row.status == Status::Disconnected && !self.flawed(Flaw::NewsFromAnybody);
        self.is_at(generation, Flaw::NewsAtAnyTime) && ours && !ended
    }

    fn tell(&mut self, status: Status, reason: Reason) {
        if self.row.status != status || self.row.reason != Some(reason) || self.flawed(Flaw::TellsEachTime) {
            self.book.told.push(status);
        }
        self.change(status, Some(reason));
    }

    /// `where generation = $2 and removed_at is null`.
    fn is_at(&self, generation: u64, unless: Flaw) -> bool {
        (self.row.generation == generation || self.flawed(unless)) && (!self.row.removed || self.flawed(Flaw::NoFence))
    }

    fn change(&mut self, status: Status, reason: Option<Reason>) {
        if self.row.status != status || self.row.reason != reason && status != Status::Connected {
            self.book.changes.push(status);
        }
        (self.row.status, self.row.reason) = (status, reason);
    }

    /// An account that ended is back: `standing_at`, which the instances watch.
    fn revive(&mut self) {
        let ended = self.row.status == Status::Disconnected;
        self.book.revived += usize::from(ended);
        self.standing += u64::from(ended && !self.flawed(Flaw::RevivesInSilence));
    }

    /// `Store::insert_candidate`, `insert_successor`. `false`: the account is gone. One that has ended has hope again.
    pub fn insert_candidate(&mut self, token: Token, successor_of: Option<u64>) -> bool {
        if self.row.removed || self.flawed(Flaw::NoCandidates) {
            return !self.row.removed;
        }
        if self.row.status == Status::Disconnected && !self.flawed(Flaw::EndsForGood) {
            self.revive();
            self.tell(Status::Degraded, Reason::ProviderUnavailable);
        }
        self.candidates.push(Candidate { token, successor_of });
        self.book.stored.insert(token);
        true
    }

    /// `Store::candidates`: newest first.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.candidates.iter().rev().copied().collect()
    }

    /// `Store::delete_candidate`.
    pub fn delete_candidate(&mut self, candidate: Candidate) {
        self.candidates.retain(|each| *each != candidate);
    }

    /// `Store::disconnect`: what was read goes, with jobs that revoke it; or nothing does.
    pub fn disconnect(&mut self, read: &Row, candidates: &[Candidate]) -> Removed {
        if self.row.removed {
            return Removed::NotFound;
        }
        if self.row.generation != read.generation || self.candidates.iter().any(|each| !candidates.contains(each)) {
            return Removed::Moved;
        }
        self.candidates.clear();
        self.revocations.push(read.refresh);
        self.revocations.extend(candidates.iter().map(|each| each.token));
        let generation = read.generation + u64::from(!self.flawed(Flaw::NoFence));
        self.row = Row { generation, lease: None, started: false, removed: true, ..read.clone() };
        self.book.disconnected_by_person = true;
        Removed::Done
    }
}

/// The provider, as it is called.
impl World {
    /// A refresh reaches the provider. `None`: refused.
    pub fn exchange(&mut self, me: Pid, token: Token, generation: u64) -> Option<Tokens> {
        let leased = self.row.lease.is_some_and(|(owner, until)| owner == me && until > self.now);
        let given = self.provider.exchange(token, me);
        let mut before = self.book.calls.iter().filter(|call| call.token == token && call.generation == generation);
        if leased && before.any(|call| !call.excused) {
            Broken::SpentTwice.found();
        }
        if given.is_some() {
            self.book.calls.push(Call { token, generation, by: me, excused: !leased });
        }
        given
    }

    /// Whether the request gets through.
    pub fn is_reached(&mut self) -> bool {
        !self.trouble()
    }

    /// Whether the answer gets through. One that doesn't may have spent the token.
    pub fn is_heard(&mut self, me: Pid, given: Option<Tokens>) -> bool {
        let heard = !self.trouble();
        if !heard {
            self.excuse(me);
            self.book.unheard.extend(given.and_then(|tokens| tokens.refresh));
        }
        heard
    }

    /// Whether an answer has the access token that it must have. The token it was for may be tried again, as the last.
    pub fn is_usable(&mut self, me: Pid) -> bool {
        let usable = !self.trouble();
        if !usable {
            self.excuse(me);
        }
        usable
    }

    /// RFC 7009, at a provider that ends this one token only.
    pub fn revoke(&mut self, token: Token) {
        self.provider.refresh[token].alive = false;
        self.book.revoked.insert(token);
    }
}

/// The book.
impl World {
    /// A process is gone, or a flight of it.
    pub fn died(&mut self, who: Pid) {
        self.book.died.insert(who);
        self.excuse(who);
    }

    fn excuse(&mut self, who: Pid) {
        self.book.calls.iter_mut().filter(|call| call.by == who).for_each(|call| call.excused = true);
    }

    /// How many provider calls gave tokens.
    pub fn calls(&self) -> usize {
        self.book.calls.len()
    }

    pub fn is_connected(&self) -> bool {
        self.row.status == Status::Connected && !self.row.removed
    }

    /// Somebody gets this access token to use.
    pub fn used(&self, access: usize) {
        if !self.book.published.contains(&access) {
            Broken::Unstored.found();
        }
    }

    /// All that began has ended, and a time without trouble has passed.
    pub fn check_at_rest(&mut self) {
        std::mem::take(&mut self.revocations).into_iter().for_each(|token| self.revoke(token));
        let (row, book) = (&self.row, &self.book);
        let told_once = |status| count(&book.told, status) == count(&book.changes, status);
        if ![Status::Connected, Status::Degraded, Status::Disconnected].into_iter().all(told_once) {
            Broken::Mistold.found();
        }
        if count(&book.changes, Status::Disconnected) > 1 + book.revived {
            Broken::EndedTwice.found();
        }
        let mut lost = book.unheard.clone();
        for (token, refresh) in self.provider.refresh.iter().enumerate() {
            if !book.stored.contains(&token) && !book.revoked.contains(&token) && !lost.contains(&token) {
                if !book.died.contains(&refresh.given_to) {
                    Broken::Forgotten.found();
                }
                lost.insert(token);
            }
        }
        if book.disconnected_by_person {
            if !row.removed {
                Broken::Resurrected.found();
            }
            return;
        }
        let rotates = matches!(self.provider.rotation, Rotation::Strict | Rotation::Family);
        let excused = !lost.is_empty() && rotates || book.lapsed;
        let known_alive = self
            .candidates
            .iter()
            .map(|each| each.token)
            .chain([row.refresh])
            .any(|token| self.provider.refresh[token].alive);
        match row.status {
            Status::Connected => {}
            Status::Disconnected if excused && !known_alive => {
                if row.reason != Some(Reason::LostInWindow) && !book.lapsed {
                    Broken::Mislabelled.found();
                }
            }
            Status::Degraded | Status::Disconnected => Broken::Lost.found(),
        }
    }
}

fn count(all: &[Status], status: Status) -> usize {
    all.iter().filter(|each| **each == status).count()
}
