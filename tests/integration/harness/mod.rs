//! What the tests act with: a directory with releases (`Site`), the running binary (`Master`), raw HTTP clients
//! (`client`, `load`) and a look at the processes (`process`).
//!
//! ```ignore
//! let site = Site::with_releases("reload", 2);
//! let master = site.start();
//! site.flip("2");
//! master.reload();
//! assert_eq!(master.connect().get_ok("/").release(), "2");
//! master.stop_clean();
//! ```
//!
//! Nothing here sleeps to hope: `wait_for` looks for a fact until a deadline. A test that fails prints the
//! configuration, the logs, the commands that it ran, the last answer, `status --json` and the processes.

pub mod cgroup;
pub mod client;
pub mod freezer;
mod journal;
pub mod load;
pub mod machine;
pub mod master;
pub mod process;
pub mod random;
pub mod site;

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a fact may take that normally takes milliseconds, on a machine that builds something else meanwhile.
pub const WAIT: Duration = Duration::from_secs(30);

/// How often a fact is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// Waits for a fact and returns it; fails the test after `WAIT`.
#[track_caller]
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match wait_within(WAIT, look) {
        Some(fact) => fact,
        None => panic!("waited {} s for {what}", WAIT.as_secs()),
    }
}

/// Waits for a fact; None when it is not there after `limit`.
pub fn wait_within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        // Whether time is up is asked before the look: a test thread that was not scheduled for long still gets
        // one look after it.
        let late = Instant::now() >= deadline;
        if let Some(fact) = look() {
            return Some(fact);
        }
        if late {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

/// Runs a test once without and once with `preload = true`; a failure says which. The argument is the value of
/// `app.preload`.
pub fn for_each_preload(test: impl Fn(&str)) {
    for preload in ["false", "true"] {
        let said = SayIfPanicking(preload);
        test(preload);
        drop(said);
    }
}

/// Says where the loop was when a test failed in it.
struct SayIfPanicking(&'static str);

impl Drop for SayIfPanicking {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("that was with preload = {}", self.0);
        }
    }
}

/// A share of the machine. Ordinary tests take one of `SHARES`; a test that measures time or makes heavy load takes
/// all of them and so runs alone.
pub struct Share {
    count: usize,
}

const SHARES: usize = 4;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Share {
    pub fn one() -> Share {
        Share::take(1)
    }

    pub fn all() -> Share {
        Share::take(SHARES)
    }

    fn take(count: usize) -> Share {
        let mut taken = taken();
        while *taken + count > SHARES {
            taken = FREED.wait(taken).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *taken += count;
        Share { count }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *taken() -= self.count;
        FREED.notify_all();
    }
}

fn taken() -> MutexGuard<'static, usize> {
    // A failed test poisons the lock, the count in it is right all the same.
    TAKEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
