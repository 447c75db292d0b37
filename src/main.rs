//! `keyward`: hardens the process, then does what the command line says.

mod cli;

use std::io::Write as _;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if let Err(cause) = keep_memory_private() {
        // Said, not fatal: some sandboxes refuse these calls, and Keyward works without them.
        let _ = writeln!(std::io::stderr(), "keyward: core dumps could not be switched off: {cause}");
    }
    // Each agent's connection takes a descriptor, and mostly one more upstream: take as many as the system gives.
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    // A page of 2 MiB is zeroed at once, while everybody waits, and most of it stays unused.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Only fails when there is one already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    cli::run()
}

/// A core dump holds tokens, and so does what a debugger of the same user reads.
fn keep_memory_private() -> rustix::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
