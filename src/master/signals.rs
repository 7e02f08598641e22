//! Signals as readable bytes: a handler counts the signal and writes to a pipe that the event loop watches.
//! Standard signals coalesce, so a count says "at least"; HUP is level-triggered and CHLD reaps in a loop.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::signal::{pthread_sigmask, SigSet, SigmaskHow};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::low_level;

pub struct Signals {
    wake: UnixStream,
    write: Arc<OwnedFd>,
    arrived: Arc<Arrived>,
}

/// What came since it was last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub reload: bool,
    /// TERMs; the second one is in more of a hurry than the first.
    pub terms: u32,
    /// INT or QUIT.
    pub stop_now: bool,
    pub reopen: bool,
    pub upgrade: bool,
    /// TTIN minus TTOU.
    pub scale: i32,
    pub child: bool,
}

#[derive(Default)]
struct Arrived {
    hup: AtomicBool,
    term: AtomicU32,
    now: AtomicBool,
    usr1: AtomicBool,
    usr2: AtomicBool,
    ttin: AtomicU32,
    ttou: AtomicU32,
    chld: AtomicBool,
}

impl Signals {
    /// Installs the handlers. The first thing a master does: as PID 1 it has no default actions, and a TERM that
    /// comes before is ignored (signal(7), pid_namespaces(7)).
    pub fn install() -> io::Result<Signals> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        write.set_nonblocking(true)?;
        let write = Arc::new(OwnedFd::from(write));
        let arrived = Arc::new(Arrived::default());
        let signals = [SIGHUP, SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU, SIGCHLD, SIGWINCH];
        for signal in signals {
            let (write, arrived) = (Arc::clone(&write), Arc::clone(&arrived));
            let note = move || {
                arrived.note(signal);
                wake_loop(&write);
            };
            // SAFETY: the closure only touches atomics and calls send(2), which is async-signal-safe.
            unsafe { low_level::register(signal, note)? };
        }
        // Exec keeps the mask, and launchers block signals in their threads: TERM would never come, nor CHLD. Only now,
        // when each of them has a handler.
        SigSet::empty().thread_set_mask()?;
        Ok(Signals { wake, write, arrived })
    }

    pub fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        // For what came before.
        wake_loop(&self.write);
        registry.register(&mut SourceFd(&self.wake.as_raw_fd()), token, Interest::READABLE)
    }

    /// Whether the master was told to stop: for the start, which takes no signal yet.
    pub fn stop_is_asked(&mut self) -> bool {
        self.empty();
        self.arrived.term.load(Ordering::Relaxed) > 0 || self.arrived.now.load(Ordering::Relaxed)
    }

    /// Something came that is not yet taken, other than the end of a child.
    pub fn is_asked(&self) -> bool {
        let Arrived { hup, term, now, usr1, usr2, ttin, ttou, chld: _ } = &*self.arrived;
        let counts = [term, ttin, ttou].iter().any(|count| count.load(Ordering::Relaxed) > 0);
        counts || [hup, now, usr1, usr2].iter().any(|came| came.load(Ordering::Relaxed))
    }

    /// Empties the pipe, then takes what the handlers noted: a signal between the two wakes the loop once more.
    pub fn take(&mut self) -> Taken {
        self.empty();
        let arrived = &self.arrived;
        Taken {
            reload: arrived.hup.swap(false, Ordering::Relaxed),
            terms: arrived.term.swap(0, Ordering::Relaxed),
            stop_now: arrived.now.swap(false, Ordering::Relaxed),
            reopen: arrived.usr1.swap(false, Ordering::Relaxed),
            upgrade: arrived.usr2.swap(false, Ordering::Relaxed),
            scale: arrived.ttin.swap(0, Ordering::Relaxed) as i32 - arrived.ttou.swap(0, Ordering::Relaxed) as i32,
            child: arrived.chld.swap(false, Ordering::Relaxed),
        }
    }

    fn empty(&mut self) {
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(read) if read > 0) {}
    }
}

/// Blocks all signals of this thread; returns what was blocked before.
pub fn block_all() -> io::Result<SigSet> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    Ok(before)
}

/// Starts a thread that takes no signal. It inherits the mask: signals are for the main thread, and an upgrade that blocks
/// them there is to find them pending afterwards.
pub fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let before = block_all()?;
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    before.thread_set_mask()?;
    started.map(drop)
}

/// What becomes readable with a signal.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

fn wake_loop(write: &OwnedFd) {
    // SAFETY: the byte lives. A full socket already wakes the loop.
    unsafe { libc::send(write.as_raw_fd(), [0u8].as_ptr().cast(), 1, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
}

impl Arrived {
    fn note(&self, signal: i32) {
        match signal {
            SIGHUP => self.hup.store(true, Ordering::Relaxed),
            SIGTERM => {
                self.term.fetch_add(1, Ordering::Relaxed);
            }
            SIGINT | SIGQUIT => self.now.store(true, Ordering::Relaxed),
            SIGUSR1 => self.usr1.store(true, Ordering::Relaxed),
            SIGUSR2 => self.usr2.store(true, Ordering::Relaxed),
            SIGTTIN => {
                self.ttin.fetch_add(1, Ordering::Relaxed);
            }
            SIGTTOU => {
                self.ttou.fetch_add(1, Ordering::Relaxed);
            }
            SIGCHLD => self.chld.store(true, Ordering::Relaxed),
            // WINCH: a window resize must not stop workers.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn a_thread_that_is_started_here_takes_no_signal() {
        let (tell, told) = std::sync::mpsc::channel();
        start_thread("test", move || tell.send(SigSet::thread_get_mask()).unwrap()).unwrap();
        let of_the_thread = told.recv().unwrap().unwrap();
        assert!(of_the_thread.contains(Signal::SIGTERM) && of_the_thread.contains(Signal::SIGHUP));
        assert!(!SigSet::thread_get_mask().unwrap().contains(Signal::SIGTERM));
    }
}
