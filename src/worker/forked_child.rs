//! What happens when the application forks. The child is no worker: it must not keep the listeners and connections open,
//! talk to the master, or count in the worker's name.
//!
//! The handlers are libc's (pthread_atfork(3)), so that a fork by C code counts as one by `os.fork()` does. vfork(2) and
//! posix_spawn(3) run none, and need none: their child does nothing but exec, which closes what is ours. Code that calls
//! clone(2) itself is beyond reach.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::Arc;

use crate::worker::Worker;

/// The worker that this process is. Null in a template: its forks are workers.
static WORKER: AtomicPtr<Worker> = AtomicPtr::new(ptr::null_mut());

/// From now on forks are the application's.
pub fn watch_forks(worker: &Arc<Worker>) -> io::Result<()> {
    // Never freed: a process is a worker until it ends.
    WORKER.store(Arc::into_raw(Arc::clone(worker)).cast_mut(), Ordering::Release);
    // SAFETY: the handlers are part of this library, which is never unloaded.
    match unsafe { libc::pthread_atfork(Some(prepare), None, Some(in_child)) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn worker() -> Option<&'static Worker> {
    // SAFETY: null, or from `Arc::into_raw` and never freed.
    unsafe { WORKER.load(Ordering::Acquire).as_ref() }
}

extern "C" fn prepare() {
    if let Some(worker) = worker() {
        worker.will_fork();
    }
}

extern "C" fn in_child() {
    // Nothing may unwind into libc; the panic hook aborts before anything could.
    if let Some(worker) = worker() {
        worker.forget_in_child();
    }
}
