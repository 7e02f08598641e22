//! Files that a refused reload has made and that are to go. Whoever opens logs sees to it first that they are gone: it
//! would otherwise open a file that is removed a moment later.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::files::Made;

/// Opening waits no longer than this for a removal that hangs (NFS); its own files may lie elsewhere.
const AWAITED_FOR: Duration = Duration::from_secs(1);

#[derive(Clone, Default)]
pub struct Removals(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    to_do: Vec<Made>,
    /// A thread is at it.
    running: bool,
}

impl Removals {
    pub fn add(&self, made: Vec<Made>) {
        self.lock().to_do.extend(made);
    }

    /// Removes what there is. It may wait for a disk.
    pub fn carry_out(&self) {
        let free = self.0.done.wait_timeout_while(self.lock(), AWAITED_FOR, |state| state.running);
        let (mut state, timeout) = free.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return;
        }
        state.running = true;
        let to_do = std::mem::take(&mut state.to_do);
        drop(state);
        drop(to_do);
        self.lock().running = false;
        self.0.done.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
