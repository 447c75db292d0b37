//! One process: what `src/accounts` does, step by step. Between two steps anything may happen: other tasks, a crash.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use shuttle::future::{AbortHandle, JoinHandle, spawn_local, yield_now};
use tokio::sync::watch;

use super::Flaw;
use super::world::{Candidate, Pid, Reason, Removed, Row, Status, Taken, Token, Tokens, World};

/// How many looks an instance waits for another one's lease.
const PATIENCE: u64 = 40;

/// `flight::Why`, without those that differ in time only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Dead,
    Doubted(u64),
    Troubled,
    Unresolved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub generation: u64,
    access: usize,
    dead_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    Disconnected,
    Unavailable,
    Gone,
}

pub type Answer = Result<Bearer, TokenError>;

/// What the token endpoint says, as `oauth::Error` has it.
enum Asked {
    Tokens(Tokens),
    Transient {
        ambiguous: bool,
    },
    Rejected,
    /// New tokens, but only the refresh token is any good.
    Unusable {
        refresh: Token,
    },
}

type Flight = watch::Receiver<Option<Answer>>;

/// `accounts::Accounts`, with one account.
pub struct Process {
    me: Pid,
    world: Rc<RefCell<World>>,
    flaw: Option<Flaw>,
    /// `cache::Slot`.
    slot: Cell<Option<Answer>>,
    /// `World::standing`, as last seen.
    standing: Cell<u64>,
    /// `Flights::by_account`.
    flight: RefCell<Option<Flight>>,
    /// The last flight's task, and whether its first line was reached.
    flying: RefCell<Option<AbortHandle>>,
    begun: Cell<bool>,
    /// What dies with it.
    tasks: RefCell<Vec<AbortHandle>>,
    frozen: watch::Sender<bool>,
    crashed: Cell<bool>,
}

impl Process {
    pub fn start(me: Pid, world: &Rc<RefCell<World>>) -> Rc<Self> {
        let (world, flaw) = (Rc::clone(world), world.borrow().flaw);
        let (slot, standing, flight, flying, begun, tasks, frozen, crashed) = Default::default();
        Rc::new(Self { me, world, flaw, slot, standing, flight, flying, begun, tasks, frozen, crashed })
    }

    /// One atomic step: a transaction, or a message that arrives. Whatever waits is overtaken here.
    async fn step<T>(&self, act: impl FnOnce(&mut World) -> T) -> T {
        yield_now().await;
        // A frozen process stays where it is until it thaws; a crashed one for ever.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
        act(&mut self.world.borrow_mut())
    }

    pub fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let handle = spawn_local(task);
        self.tasks.borrow_mut().push(handle.abort_handle());
        handle
    }

    /// `SIGSTOP`, or `SIGCONT`.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.send_if_modified(|now| !self.crashed.get() && std::mem::replace(now, frozen) != frozen);
    }

    /// `kill -9`: no task takes another step.
    pub fn crash(&self) {
        self.freeze(true);
        self.crashed.set(true);
        self.world.borrow_mut().died(self.me);
        let tasks = self.tasks.take();
        tasks.iter().for_each(AbortHandle::abort);
    }

    /// The flight that is up breaks off, as by a panic.
    pub fn break_off(&self) {
        let flying = self.flying.borrow().clone().filter(|_| self.begun.get() && self.is_flying());
        if let Some(flying) = flying {
            self.world.borrow_mut().died(self.me);
            flying.abort();
        }
    }

    /// No flight is up.
    pub fn is_at_rest(&self) -> bool {
        self.flight.borrow().is_none()
    }

    /// A flight's task runs.
    pub fn is_flying(&self) -> bool {
        self.flying.borrow().as_ref().is_some_and(|task| !task.is_finished())
    }

    fn flawed(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

/// `token.rs`.
impl Process {
    /// `Accounts::token`, and what an agent does with the answer.
    pub async fn token(self: Rc<Self>) -> Answer {
        let answer = match self.at_hand() {
            Some(answer) => answer,
            None => Rc::clone(&self).wait_for(Why::Dead).await,
        };
        if let Ok(bearer) = answer {
            self.step(|world| world.used(bearer.access)).await;
        }
        answer
    }

    /// `Accounts::at_hand`.
    fn at_hand(&self) -> Option<Answer> {
        let now = self.world.borrow().now;
        self.slot.get().filter(|held| held.is_ok_and(|bearer| now < bearer.dead_at) || held.is_err())
    }

    /// `Accounts::wait_for`. Leaving early is dropping this.
    pub async fn wait_for(self: Rc<Self>, why: Why) -> Answer {
        let seen =
            if self.flawed(Flaw::SpendsWhatTheWaiterSaw) { self.step(|world| world.tokens()).await } else { None };
        loop {
            let (mut flight, mine) = self.join(why, seen.clone()).await;
            let landed = flight.wait_for(Option::is_some).await.map(|landed| *landed);
            let Ok(Some(outcome)) = landed else { return Err(TokenError::Unavailable) };
            let satisfied = match (outcome, why) {
                (Ok(bearer), Why::Doubted(generation)) => bearer.generation > generation,
                _ => true,
            };
            if mine || satisfied {
                return outcome;
            }
        }
    }

    /// `Accounts::step_due`: what a crash left behind is resolved at once.
    pub async fn step_due(self: Rc<Self>) {
        if self.step(|world| world.is_unresolved()).await {
            let _ = self.wait_for(Why::Unresolved).await;
        }
    }
}

/// `watch.rs`.
impl Process {
    /// `Accounts::step_watch`.
    pub fn step_watch(&self) {
        let standing = self.world.borrow().standing;
        if self.standing.replace(standing) != standing && self.slot.get().is_some_and(|held| held.is_err()) {
            self.slot.set(None);
        }
    }
}

/// `flight.rs`.
impl Process {
    /// `Accounts::join`: the flight that is up, or a new one (`true`).
    async fn join(self: &Rc<Self>, why: Why, seen: Option<Row>) -> (Flight, bool) {
        yield_now().await;
        if let Some(flight) = &*self.flight.borrow() {
            return (flight.clone(), false);
        }
        let (landing, flight) = watch::channel(None);
        *self.flight.borrow_mut() = Some(flight.clone());
        let process = Rc::clone(self);
        let flying = async move {
            process.begun.set(true);
            let down = (!process.flawed(Flaw::TakenDownLast)).then(|| TakeDown(Rc::clone(&process)));
            let outcome = process.fly(why, seen).await;
            drop(down);
            *process.flight.borrow_mut() = None;
            landing.send_replace(Some(outcome));
        };
        if self.flawed(Flaw::CallersOwnFlights) {
            flying.await;
        } else {
            self.begun.set(false);
            let handle = self.spawn(flying).abort_handle();
            *self.flying.borrow_mut() = Some(handle);
        }
        (flight, true)
    }
}

struct TakeDown(Rc<Process>);

impl Drop for TakeDown {
    fn drop(&mut self) {
        *self.0.flight.borrow_mut() = None;
    }
}

/// `publish.rs`.
impl Process {
    /// `Accounts::settle`.
    fn settle(&self, row: &Row, why: Why) -> Option<Answer> {
        if row.status == Status::Disconnected {
            self.slot.set(Some(Err(TokenError::Disconnected)));
            return Some(Err(TokenError::Disconnected));
        }
        let enough = match why {
            Why::Dead => true,
            Why::Doubted(generation) => row.generation > generation,
            Why::Troubled => row.status == Status::Connected,
            Why::Unresolved => false,
        };
        if enough { self.publish(row).map(Ok) } else { None }
    }

    /// `Accounts::publish`. `None`: the token is dead.
    fn publish(&self, row: &Row) -> Option<Bearer> {
        let bearer = Bearer { generation: row.generation, access: row.access, dead_at: row.dead_at };
        let lives = self.world.borrow().now < row.dead_at;
        lives.then(|| self.slot.set(Some(Ok(bearer))))?;
        Some(bearer)
    }
}

/// `refresh.rs`.
impl Process {
    /// `Accounts::fly`.
    async fn fly(&self, why: Why, seen: Option<Row>) -> Answer {
        let row = match seen {
            Some(row) => row,
            None => self.row().await?,
        };
        if let Some(answer) = self.settle(&row, why) {
            return answer;
        }
        let (maybe_spent, row) = match self.lease(why, row).await {
            Ok(won) => won,
            Err(answer) => return answer,
        };
        let mut spent = maybe_spent;
        let answer = self.renew(&row, &mut spent).await;
        self.step(|world| world.release_lease(self.me, spent)).await;
        answer.unwrap_or_else(|| self.fallback(&row))
    }

    /// `Accounts::row`.
    async fn row(&self) -> Result<Row, TokenError> {
        let row = self.step(|world| world.tokens()).await;
        row.ok_or_else(|| self.gone())
    }

    fn gone(&self) -> TokenError {
        self.slot.set(None);
        TokenError::Gone
    }

    /// `Accounts::fallback`.
    fn fallback(&self, row: &Row) -> Answer {
        self.publish(row).ok_or(TokenError::Unavailable)
    }

    /// `Accounts::lease`.
    async fn lease(&self, why: Why, mut row: Row) -> Result<(bool, Row), Answer> {
        let asked_at = row.generation;
        let rereads = !self.flawed(Flaw::SpendsWhatTheWaiterSaw) && !self.flawed(Flaw::NoRereadInLease);
        for _ in 0..PATIENCE {
            match self.step(|world| world.take_lease(self.me)).await {
                Taken::Won { maybe_spent } if rereads => {
                    row = self.row().await.map_err(Err)?;
                    let Some(answer) = self.moved_on(&row, why, asked_at) else { return Ok((maybe_spent, row)) };
                    self.step(|world| world.release_lease(self.me, maybe_spent)).await;
                    return Err(answer);
                }
                Taken::Won { maybe_spent } => return Ok((maybe_spent, row)),
                Taken::Held => {
                    // A sleep: time passes.
                    self.step(|world| world.now += 1).await;
                    row = self.row().await.map_err(Err)?;
                    if let Some(answer) = self.moved_on(&row, why, asked_at) {
                        return Err(answer);
                    }
                }
                Taken::Gone => return Err(Err(self.gone())),
            }
        }
        Err(self.fallback(&row))
    }

    /// `Accounts::moved_on`.
    fn moved_on(&self, row: &Row, why: Why, asked_at: u64) -> Option<Answer> {
        self.settle(row, if row.generation > asked_at { Why::Dead } else { why })
    }

    /// `Accounts::overtaken`.
    async fn overtaken(&self) -> Answer {
        let row = self.row().await?;
        self.settle(&row, Why::Dead).unwrap_or(Err(TokenError::Unavailable))
    }

    /// `Accounts::renew`, with `spend` and `passing`.
    async fn renew(&self, row: &Row, spent: &mut bool) -> Option<Answer> {
        for (before, (token, candidate)) in self.spendables(row).await.into_iter().enumerate() {
            // `is_leased`: the first call is made in a lease that was just taken.
            if before > 0 && !self.step(|world| world.renew_lease(self.me)).await {
                return Some(self.overtaken().await);
            }
            match self.ask(token, row.generation).await {
                Asked::Tokens(tokens) => {
                    let kept = self.keep(row, tokens).await;
                    self.tried(candidate).await;
                    *spent = false;
                    return Some(kept);
                }
                Asked::Rejected => {
                    self.tried(candidate).await;
                    match self.row().await {
                        Ok(newer) if newer.generation == row.generation => {}
                        Ok(newer) => {
                            let settled = self.settle(&newer, Why::Dead);
                            return Some(settled.unwrap_or(Err(TokenError::Unavailable)));
                        }
                        Err(error) => return Some(Err(error)),
                    }
                }
                Asked::Unusable { refresh } => {
                    *spent = true;
                    let successor = !self.flawed(Flaw::SuccessorsLast);
                    self.keep_candidate(refresh, successor.then_some(row.generation)).await;
                    self.tried(candidate).await;
                    return self.degrade(row).await;
                }
                Asked::Transient { ambiguous } => {
                    *spent |= ambiguous;
                    return self.degrade(row).await;
                }
            }
        }
        let reason = if *spent { Reason::LostInWindow } else { Reason::RefreshRejected };
        Some(self.end(row, reason, spent).await)
    }

    /// `Accounts::spendables`: what came in place of the current one, that one, and the others.
    async fn spendables(&self, row: &Row) -> Vec<(Token, Option<Candidate>)> {
        let mut candidates = self.step(|world| world.candidates()).await;
        candidates.retain(|_| !self.flawed(Flaw::CandidatesUntried));
        let (successors, others): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|kept| kept.successor_of == Some(row.generation));
        let kept = |candidate: Candidate| (candidate.token, Some(candidate));
        let current = [(row.refresh, None)];
        successors.into_iter().map(kept).chain(current).chain(others.into_iter().map(kept)).collect()
    }

    /// `Accounts::tried`.
    async fn tried(&self, candidate: Option<Candidate>) {
        if let Some(candidate) = candidate {
            self.step(|world| world.delete_candidate(candidate)).await;
        }
    }

    /// `oauth::Client::refresh`, `while_leased`.
    async fn ask(&self, token: Token, generation: u64) -> Asked {
        if !self.step(World::is_reached).await {
            return Asked::Transient { ambiguous: false };
        }
        let given = self.step(|world| world.exchange(self.me, token, generation)).await;
        self.step(|world| world.renew_lease(self.me)).await;
        if !self.step(|world| world.is_heard(self.me, given)).await {
            return Asked::Transient { ambiguous: true };
        }
        match given {
            None => Asked::Rejected,
            Some(Tokens { refresh: Some(refresh), .. }) if !self.world.borrow_mut().is_usable(self.me) => {
                Asked::Unusable { refresh }
            }
            Some(tokens) => Asked::Tokens(tokens),
        }
    }
}

/// `outcome.rs`.
impl Process {
    /// `Accounts::keep`.
    async fn keep(&self, row: &Row, tokens: Tokens) -> Answer {
        if self.flawed(Flaw::PublishesFirst) {
            let mut unstored = row.clone();
            (unstored.access, unstored.dead_at) = (tokens.access, u64::MAX);
            self.publish(&unstored);
        }
        if !self.save(row, tokens).await
            && let Some(refresh) = tokens.refresh
        {
            // `lost`.
            self.keep_candidate(refresh, None).await;
        }
        self.overtaken().await
    }

    /// `Accounts::save`. `false`: the account has moved on.
    async fn save(&self, row: &Row, tokens: Tokens) -> bool {
        loop {
            match self.step(|world| world.save_tokens(row.generation, tokens, row.status)).await {
                Ok(true) => return true,
                // An earlier try may have failed without telling that it was stored.
                Ok(false) => {
                    return self.step(|world| world.tokens()).await.is_some_and(|now| now.access == tokens.access);
                }
                Err(()) => {}
            }
        }
    }

    /// `Accounts::keep_candidate`, `keep_successor`. A token of an account that went meanwhile is given up.
    async fn keep_candidate(&self, refresh: Token, successor_of: Option<u64>) {
        let kept = self.step(|world| world.insert_candidate(refresh, successor_of)).await;
        if !kept && !self.flawed(Flaw::KeepsWithoutLooking) {
            self.step(|world| world.revoke(refresh)).await;
        }
    }

    /// `Accounts::degrade`. The row's answer when it has moved on.
    async fn degrade(&self, row: &Row) -> Option<Answer> {
        let noted = self.step(|world| world.note_failure(self.me, row.generation)).await;
        if noted { None } else { Some(self.overtaken().await) }
    }

    /// `Accounts::end`. The mark goes when the end is stored.
    async fn end(&self, row: &Row, reason: Reason, spent: &mut bool) -> Answer {
        if self.step(|world| world.end_account(self.me, row.generation, reason)).await {
            *spent = false;
            self.slot.set(Some(Err(TokenError::Disconnected)));
            return Err(TokenError::Disconnected);
        }
        self.overtaken().await
    }
}

/// `disconnect.rs`.
impl Process {
    /// `Accounts::disconnect_task`: a person disconnects the account.
    pub async fn disconnect(self: Rc<Self>) {
        while let Some(row) = self.step(|world| world.tokens()).await {
            let candidates = self.step(|world| world.candidates()).await;
            match self.step(|world| world.disconnect(&row, &candidates)).await {
                Removed::Done | Removed::NotFound => break,
                Removed::Moved => {}
            }
        }
        self.slot.set(None);
    }
}
