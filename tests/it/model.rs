//! A model of the refresh, checked under many schedules: the single flight in one process, and lease, generation and
//! candidates between instances. Each step names what it mirrors in `src/accounts` and `src/store`.
//!
//! ```text
//! scene (this file) ──▶ process.rs: callers, flights, refreshes ──▶ world.rs: row, candidates, provider, time, book
//!                                                                             └─ the book says what is broken
//! ```
//! A step is a transaction, or a message that arrives; before each one anything else may happen, for as long as it likes.
//! Leases lapse because an instance is frozen, or just not scheduled while the others' waiting makes time pass.
//!
//! Checked at rest, after a few rounds of the keeper without trouble: see [`Broken`]. Each [`Flaw`] takes one safeguard
//! away, and must be found: so the model is known to see what it is there to see. The schedules come from a fixed seed.
//!
//! Left out: backoff, margins and `refresh.wait` (when something is tried, not what it does), reconnecting, sealing, and
//! a store that can't be read.

mod process;
mod world;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use shuttle::future::{block_on, spawn_local, yield_now};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

use process::{Process, TokenError, Why};
use world::{Rotation, World};

/// A safeguard that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A flight goes by the row that its caller read before (row 37 of the table of answers).
    SpendsWhatTheWaiterSaw,
    /// A flight runs inside the caller who began it.
    CallersOwnFlights,
    /// A flight is taken down by its last line, not on every way out.
    TakenDownLast,
    /// New tokens are published before they are stored.
    PublishesFirst,
    /// Everybody gets the lease.
    NoLease,
    /// The row is not read again inside the lease.
    NoRereadInLease,
    /// New tokens are stored whatever the generation is.
    SavesWithoutComparing,
    /// A disconnect moves no generation, and nobody looks whether the row was removed.
    NoFence,
    /// Bad news counts from anybody, whatever the generation is.
    NewsAtAnyTime,
    /// Bad news counts from an instance that lost its lease, and over `disconnected`.
    NewsFromAnybody,
    /// A status is told without having changed.
    TellsEachTime,
    /// Tokens that lost their race are thrown away.
    NoCandidates,
    /// Candidates are kept, and never tried.
    CandidatesUntried,
    /// A lease leaves no mark of the refresh that began.
    NoCrashMark,
    /// The mark goes with the lease, whatever was heard.
    MarkGoesWithLease,
    /// Nobody looks whether a candidate's account was still there.
    KeepsWithoutLooking,
    /// A refresh token that came in place of the current one is tried after it.
    SuccessorsLast,
    /// An account ends beside a candidate that has just come, and one that comes later does not bring it back.
    EndsForGood,
    /// An account that ended is back, and the other instances are not told.
    RevivesInSilence,
    /// Recovery is told by the row as it was when the refresh began.
    RecoveryByOldRow,
}

/// A property that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// A refresh token was spent twice though no lease lapsed, nobody crashed and every answer was heard and good (I5).
    SpentTwice,
    /// A caller who stayed got no answer, or a bad one for no reason (I5, I7).
    Unanswered,
    /// A flight is up that nobody flies.
    Leaked,
    /// An access token was used that is not stored (I6).
    Unstored,
    /// A refresh token was received, and is neither stored nor revoked (I7, I9).
    Forgotten,
    /// An account is not connected though a known refresh token is alive, or none is without a crash in the window (I8).
    Lost,
    /// An account was lost in the window, and nobody says so (I8).
    Mislabelled,
    /// An account ended twice, and nothing new came between (I11).
    EndedTwice,
    /// A person's disconnect did not last (row 30).
    Resurrected,
    /// A status changed without an event, or was told twice (I11).
    Mistold,
}

thread_local! {
    static FOUND: Cell<Option<Broken>> = const { Cell::new(None) };
}

impl Broken {
    #[track_caller]
    fn found(self) {
        FOUND.set(Some(self));
        panic!("{self:?}");
    }
}

#[derive(Clone, Copy)]
enum Scene {
    OneProcess,
    Cluster,
}

const SEED: u64 = 0x6b65_7977_6172_6421;

impl Scene {
    /// Plays it under this many random schedules, until something breaks.
    fn play(self, flaw: Option<Flaw>, rounds: usize) -> Option<Broken> {
        self.play_with(RandomScheduler::new_from_seed(SEED, rounds), flaw)
    }

    fn play_with(self, scheduler: impl Scheduler + 'static, flaw: Option<Flaw>) -> Option<Broken> {
        let mut config = Config::new();
        config.stack_size = 0x4_0000;
        config.failure_persistence = FailurePersistence::None;
        config.ungraceful_shutdown_config.immediately_return_on_panic = true;
        let runner = Runner::new(scheduler, config);
        let run = catch_unwind(AssertUnwindSafe(|| {
            runner.run(move || match self {
                Self::OneProcess => block_on(one_process(flaw)),
                Self::Cluster => block_on(cluster(flaw)),
            })
        }));
        let panic = run.err()?;
        Some(FOUND.take().unwrap_or_else(|| resume_unwind(panic)))
    }
}

fn world(flaw: Option<Flaw>) -> Rc<RefCell<World>> {
    let rotations = [Rotation::None, Rotation::Grace, Rotation::Strict, Rotation::Family];
    let rotation = rotations[thread_rng().gen_range(0..rotations.len())];
    Rc::new(RefCell::new(World::new(rotation, flaw)))
}

/// Lets others go first, up to so many times.
async fn linger(most: u32) {
    for _ in 0..thread_rng().gen_range(0..=most) {
        yield_now().await;
    }
}

/// Callers of one process find a dead token. One of them may leave, or the flight break off.
async fn one_process(flaw: Option<Flaw>) {
    let world = world(flaw);
    let process = Process::start(1, &world);
    let breaks = thread_rng().gen_ratio(1, 4);
    let mut callers: Vec<_> = (0..4).map(|_| spawn_local(arrive(Rc::clone(&process)))).collect();
    let leaver = spawn_local(arrive(Rc::clone(&process)));
    linger(12).await;
    leaver.abort();
    if breaks {
        process.break_off();
    }
    callers.push(spawn_local(Rc::clone(&process).token()));
    for caller in callers {
        let answered = caller.await.is_ok_and(|answer| answer.is_ok());
        if !answered && !breaks {
            Broken::Unanswered.found();
        }
    }
    // It left, or was answered before.
    let _ = leaver.await;
    if !breaks && world.borrow().calls() > 1 {
        Broken::SpentTwice.found();
    }
    rest(&world, &[process]).await;
}

/// An agent, or a request whose token an upstream refused.
async fn arrive(process: Rc<Process>) -> process::Answer {
    linger(8).await;
    if thread_rng().gen_bool(0.5) { process.token().await } else { process.wait_for(Why::Doubted(1)).await }
}

/// Two or three instances, one of which may crash and come back, a person who may disconnect the account, and a few
/// answers that go wrong.
async fn cluster(flaw: Option<Flaw>) {
    let world = world(flaw);
    world.borrow_mut().troubles = thread_rng().gen_range(0..=2);
    let mut processes: Vec<_> = (1..=thread_rng().gen_range(2..=3)).map(|me| Process::start(me, &world)).collect();
    let mut tasks: Vec<_> =
        processes.iter().flat_map(|process| [process, process].map(|p| p.spawn(work(Rc::clone(p))))).collect();
    for process in &processes {
        tasks.push(spawn_local(freeze(Rc::clone(process), Rc::clone(&world))));
    }
    if thread_rng().gen_bool(0.25) {
        tasks.push(spawn_local(person(Process::start(8, &world))));
    }
    if thread_rng().gen_bool(0.5) {
        linger(30).await;
        processes.remove(0).crash();
        let restarted = Process::start(9, &world);
        tasks.push(restarted.spawn(Rc::clone(&restarted).step_due()));
        tasks.push(restarted.spawn(work(Rc::clone(&restarted))));
        processes.push(restarted);
    }
    for task in tasks {
        // One of a process that crashed says so.
        let _ = task.await;
    }
    rest(&world, &processes).await;
}

/// A caller who gets a token, and finds that an upstream refuses it.
async fn work(process: Rc<Process>) {
    linger(8).await;
    if let Ok(bearer) = Rc::clone(&process).token().await {
        let _ = process.wait_for(Why::Doubted(bearer.generation)).await;
    }
}

/// Stops a process for longer than its lease lasts, or not at all.
async fn freeze(process: Rc<Process>, world: Rc<RefCell<World>>) {
    if thread_rng().gen_bool(0.5) {
        linger(30).await;
        process.freeze(true);
        world.borrow_mut().now += thread_rng().gen_range(10..30);
        linger(60).await;
        process.freeze(false);
    }
}

async fn person(process: Rc<Process>) {
    linger(60).await;
    process.disconnect().await;
}

/// Waits until all is quiet, lets the keeper and an agent come by, and looks at what is there.
async fn rest(world: &Rc<RefCell<World>>, processes: &[Rc<Process>]) {
    world.borrow_mut().troubles = 0;
    for process in processes {
        while !process.is_at_rest() && process.is_flying() {
            yield_now().await;
        }
        if !process.is_at_rest() {
            Broken::Leaked.found();
        }
    }
    for me in 10..13 {
        world.borrow_mut().now += 100;
        let keeper = Process::start(me, world);
        Rc::clone(&keeper).step_due().await;
        let _ = Rc::clone(&keeper).wait_for(Why::Troubled).await;
        if keeper.token().await == Err(TokenError::Unavailable) {
            Broken::Unanswered.found();
        }
    }
    world.borrow_mut().check_at_rest();
    for process in processes {
        process.step_watch();
        let answer = Rc::clone(process).token().await;
        if answer.is_ok() != world.borrow().is_connected() {
            Broken::Unanswered.found();
        }
    }
}

#[test]
fn one_flight_serves_every_caller_of_a_process() {
    assert_eq!(Scene::OneProcess.play(None, 1_500), None);
    assert_eq!(Scene::OneProcess.play_with(PctScheduler::new_from_seed(SEED, 4, 500), None), None);
}

#[test]
fn instances_that_freeze_and_crash_lose_no_account() {
    assert_eq!(Scene::Cluster.play(None, 3_000), None);
    assert_eq!(Scene::Cluster.play_with(PctScheduler::new_from_seed(SEED, 6, 500), None), None);
}

#[test]
fn a_process_without_a_safeguard_is_found_out() {
    let flaws = [
        (Flaw::SpendsWhatTheWaiterSaw, Broken::SpentTwice),
        (Flaw::CallersOwnFlights, Broken::Unanswered),
        (Flaw::TakenDownLast, Broken::Leaked),
        (Flaw::PublishesFirst, Broken::Unstored),
    ];
    assert_eq!(flaws.map(|(flaw, _)| (flaw, Scene::OneProcess.play(Some(flaw), 2_000))), flaws.map(found));
}

#[test]
fn instances_without_a_safeguard_are_found_out() {
    let flaws = [
        (Flaw::NoLease, Broken::Lost),
        (Flaw::NoRereadInLease, Broken::SpentTwice),
        (Flaw::SavesWithoutComparing, Broken::Lost),
        (Flaw::NoFence, Broken::Resurrected),
        (Flaw::NewsAtAnyTime, Broken::Lost),
        (Flaw::TellsEachTime, Broken::Mistold),
        (Flaw::NoCandidates, Broken::Forgotten),
        (Flaw::CandidatesUntried, Broken::Lost),
        (Flaw::NoCrashMark, Broken::Mislabelled),
        (Flaw::MarkGoesWithLease, Broken::Mislabelled),
        (Flaw::KeepsWithoutLooking, Broken::Forgotten),
        (Flaw::SuccessorsLast, Broken::Lost),
        (Flaw::EndsForGood, Broken::Lost),
        (Flaw::NewsFromAnybody, Broken::EndedTwice),
        (Flaw::RevivesInSilence, Broken::Unanswered),
        (Flaw::RecoveryByOldRow, Broken::Mistold),
    ];
    assert_eq!(flaws.map(|(flaw, _)| (flaw, Scene::Cluster.play(Some(flaw), 6_000))), flaws.map(found));
}

fn found((flaw, broken): (Flaw, Broken)) -> (Flaw, Option<Broken>) {
    (flaw, Some(broken))
}
