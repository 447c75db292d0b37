//! Who is on this SQLite store: a lock file beside it, `keyward.db.lock`, that every instance holds shared for as long as
//! its store is open. Whoever gets it alone knows that all leases in the store are those of dead instances, and ends
//! them: a restart after a crash then refreshes at once instead of waiting for the leases' time.
//!
//! ```text
//! try the lock alone ── got it: nobody lives here ──▶ end every lease ──▶ let go ──┐
//!   └─ taken: somebody does; leases end by their time ─────────────────────────────┴──▶ hold it shared
//! ```
//! Letting go and taking it shared are two steps, and another instance may come between them and end every lease too:
//! nothing is lost, for only an instance that holds the lock shared takes leases. The kernel lets go of the lock when a
//! process dies, however it dies; a frozen process keeps it.
//!
//! Postgres has no such file: instances run on several machines there, and a dead one's leases end by their time (6 s).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long another instance may take to open the store (it migrates meanwhile).
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const LOOK: Duration = Duration::from_millis(10);

/// An instance that is opening a store.
pub(super) struct Arrival {
    file: File,
    alone: bool,
}

/// An instance that is on a store, until this is dropped.
pub(super) struct Presence(File);

impl Arrival {
    /// Looks whether anybody is on the store of this file, which must be there.
    pub(super) fn at(database: &Path) -> io::Result<Self> {
        // The file itself, whatever links lead to it: SQLite puts its own files beside that one too.
        let mut path = std::fs::canonicalize(database)?.into_os_string();
        path.push(".lock");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let alone = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            // A file system without locks. Nobody there can be known to be alone, so leases end by their time.
            Err(TryLockError::Error(cause)) if cause.kind() == io::ErrorKind::Unsupported => {
                tracing::warn!(%cause, "the store's folder can't hold locks; after a crash, accounts wait for their leases to end");
                false
            }
            Err(TryLockError::Error(cause)) => return Err(cause),
        };
        Ok(Self { file, alone })
    }

    /// Nobody else is on the store, and nobody comes before [`Arrival::stay`].
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }

    /// From here on others are no longer alone.
    pub(super) async fn stay(self) -> io::Result<Presence> {
        if self.alone {
            // Turning one kind of lock into the other in one step is not the same on every system.
            self.file.unlock()?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.file.try_lock_shared() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                Err(TryLockError::WouldBlock) => {
                    let message = "another keyward has been opening this store for too long; see what holds it up";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
                Err(TryLockError::Error(cause)) if cause.kind() == io::ErrorKind::Unsupported => break,
                Err(TryLockError::Error(cause)) => return Err(cause),
            }
        }
        Ok(Presence(self.file))
    }
}

impl Presence {
    /// Leaves before the last clone of the store is dropped: it is closed and can do nothing any more.
    pub(super) fn leave(&self) {
        // What can't be unlocked is unlocked with the process's end.
        let _ = self.0.unlock();
    }
}
