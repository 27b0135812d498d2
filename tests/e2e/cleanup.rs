//! What must not outlive this process, and how it is undone.
//!
//! Everything that leaves a trace on the machine (a namespace, a running program, a temporary folder, a moved file) is
//! made inside [`make`], which also says how to undo it. The undo runs when the [`Undo`] is dropped; when a signal
//! asks this process to end, the handler runs every undo that is left, newest first, and exits. `kill -9` can't be
//! caught: the next run finds what is left by its name, which carries the process id (`lab::sweep`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

type Action = Box<dyn FnOnce() + Send>;

static ACTIONS: Mutex<Vec<(u64, Action)>> = Mutex::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);
static ENDING: AtomicBool = AtomicBool::new(false);

/// Exit status after a signal: what a shell reports for a program that Ctrl-C ended.
pub const INTERRUPTED: i32 = 130;

/// Runs its undo once, when it is dropped, unless the signal handler came first.
#[must_use = "dropping it undoes at once"]
pub struct Undo(u64);

impl Undo {
    /// There is nothing left to undo.
    pub fn forget(self) {
        actions().retain(|(id, _)| *id != self.0);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let action = {
            let mut actions = actions();
            let found = actions.iter().position(|(id, _)| *id == self.0);
            found.map(|at| actions.remove(at).1)
        };
        if let Some(action) = action {
            action();
        }
    }
}

/// Makes something that leaves a trace. `maker` returns it with its undo. A signal waits until the pair exists, so
/// there is no moment at which the trace is there and nobody knows of it.
///
/// # Errors
/// Whatever `maker` returns; then nothing is registered.
pub fn make<T, E, U: FnOnce() + Send + 'static>(maker: impl FnOnce() -> Result<(T, U), E>) -> Result<(T, Undo), E> {
    let mut actions = actions();
    if ENDING.load(Ordering::SeqCst) {
        drop(actions);
        wait_for_the_end();
    }
    let (made, undo) = maker()?;
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    actions.push((id, Box::new(undo)));
    Ok((made, Undo(id)))
}

/// Installs the handler of SIGINT, SIGTERM and SIGHUP. Call it once, first thing.
///
/// # Errors
/// When a handler is installed already.
pub fn on_signals() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        eprintln!("\ninterrupted: cleaning up");
        run_all();
        std::process::exit(INTERRUPTED);
    })?;
    Ok(())
}

/// Runs what is left, newest first, and lets nothing new be made: the process is about to exit.
pub fn run_all() {
    ENDING.store(true, Ordering::SeqCst);
    run_left();
}

/// Runs what is left, newest first.
pub fn run_left() {
    // Bound first: the lock must be free while an undo runs, for the undo of a thread that is just ending may wait.
    while let Some((_, action)) = { actions().pop() } {
        action();
    }
}

/// True once a signal has started the end: errors from then on are consequences and need not be reported.
#[must_use]
pub fn ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Parks this thread while the signal handler cleans up and exits.
pub fn wait_for_the_end() -> ! {
    loop {
        std::thread::park();
    }
}

fn actions() -> MutexGuard<'static, Vec<(u64, Action)>> {
    // A panic while the lock was held leaves the list whole: push and pop don't panic half way.
    ACTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}
