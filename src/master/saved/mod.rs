//! What an upgrade in place carries from one binary to the next, in the form that it travels in: moments that mean the same in
//! both, and file descriptors by name. Each room saves and restores its own part; this one knows none of them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use forkmaster_wire::scoreboard::monotonic_ns;
use serde::{Deserialize, Deserializer, Serialize};

/// Nanoseconds of CLOCK_MONOTONIC, which exec does not change: an `Instant` means nothing outside its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(u64);

/// The same moment in both, read once: the distances between moments stay what they are.
fn anchor() -> (Instant, u64) {
    static ANCHOR: OnceLock<(Instant, u64)> = OnceLock::new();
    *ANCHOR.get_or_init(|| (Instant::now(), monotonic_ns()))
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Moment {
        let (at, ns) = anchor();
        let (before, after) = (at.saturating_duration_since(instant), instant.saturating_duration_since(at));
        Moment(ns.saturating_add(nanoseconds(after)).saturating_sub(nanoseconds(before)))
    }
}

/// A client's timeout may be longer than the 584 years that fit.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl From<Moment> for Instant {
    fn from(moment: Moment) -> Instant {
        let (at, ns) = anchor();
        let after = Duration::from_nanos(moment.0.saturating_sub(ns));
        let before = Duration::from_nanos(ns.saturating_sub(moment.0));
        // Before the machine was started there is no moment.
        (at + after).checked_sub(before).unwrap_or(at)
    }
}

/// Descriptors that are to live over the exec, by what they are.
#[derive(Debug, Default)]
pub struct Kept(BTreeMap<String, RawFd>);

impl Kept {
    pub fn keep(&mut self, name: impl Into<String>, descriptor: impl AsFd) {
        let name = name.into();
        debug_assert!(!self.0.contains_key(&name), "two descriptors are called {name}");
        self.0.insert(name, descriptor.as_fd().as_raw_fd());
    }

    pub fn into_names(self) -> BTreeMap<String, RawFd> {
        self.0
    }
}

/// The same on the other side. What nobody claims is closed when it is dropped.
#[derive(Debug, Default)]
pub struct Claims(BTreeMap<String, OwnedFd>);

impl Claims {
    /// # Safety
    /// Nobody else in this process knows these numbers.
    pub unsafe fn of(names: &BTreeMap<String, RawFd>) -> io::Result<Claims> {
        let mut claims = Claims::default();
        for (name, number) in names {
            set_close_on_exec(*number, true).map_err(|error| named(name, &error))?;
            // SAFETY: it is open, as the line above has found, and the caller says that it is nobody else's.
            claims.0.insert(name.clone(), unsafe { OwnedFd::from_raw_fd(*number) });
        }
        Ok(claims)
    }

    pub fn claim(&mut self, name: &str) -> io::Result<OwnedFd> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("the state has no descriptor called {name}"));
        self.0.remove(name).ok_or_else(missing)
    }

    /// One that need not be there.
    pub fn claim_if_there(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// What nobody has claimed.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Whether an exec closes it.
pub fn set_close_on_exec(descriptor: RawFd, closes: bool) -> io::Result<()> {
    // SAFETY: fcntl with a number that may not be open: it then fails with EBADF and nothing else.
    let result = unsafe { libc::fcntl(descriptor, libc::F_SETFD, if closes { libc::FD_CLOEXEC } else { 0 }) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// By this name, since serde would borrow a `&str` from what is read.
pub type Constant = &'static str;

/// A text that is a constant where it was first written. It lives as long as the process, which reads it once.
pub fn constant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Constant, D::Error> {
    String::deserialize(deserializer).map(|text| &*text.leak())
}

/// The same of counters by name.
pub fn constant_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<&'static str, u64>, D::Error> {
    let counters = BTreeMap::<String, u64>::deserialize(deserializer)?;
    Ok(counters.into_iter().map(|(name, count)| (&*name.leak(), count)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_instant_when_it_comes_back() {
        let now = Instant::now();
        for instant in [now, now + Duration::from_secs(60), now - Duration::from_millis(1)] {
            let text = serde_json::to_string(&Moment::from(instant)).unwrap();
            let read: Moment = serde_json::from_str(&text).unwrap();
            assert_eq!(Instant::from(read), instant);
        }
        // Longer than any number of nanoseconds.
        let late = Instant::from(Moment::from(now + Duration::from_secs(1 << 40)));
        assert!(late > now + Duration::from_secs(1 << 32));
        // Of CLOCK_MONOTONIC, not of this process.
        assert!(Moment::from(Instant::now()).0.abs_diff(monotonic_ns()) < 1_000_000_000);
    }

    #[test]
    fn descriptors_are_claimed_once_by_their_names_and_the_others_are_closed() {
        let (one, other) = nix::unistd::pipe().unwrap();
        let mut kept = Kept::default();
        kept.keep("one", &one);
        kept.keep("other", &other);
        let names = kept.into_names();
        let number = other.as_raw_fd();
        std::mem::forget((one, other));
        // SAFETY: their owners were forgotten.
        let mut claims = unsafe { Claims::of(&names) }.unwrap();
        let claimed = claims.claim("one").unwrap();
        let flags = nix::fcntl::fcntl(&claimed, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, libc::FD_CLOEXEC);
        assert!(claims.claim("one").is_err() && claims.claim_if_there("none").is_none());
        assert_eq!(claims.names().collect::<Vec<_>>(), ["other"]);
        drop(claims);
        // SAFETY: only asks for its flags.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_GETFD) }, -1);
        let gone = BTreeMap::from([("gone".to_owned(), number)]);
        // SAFETY: nobody knows it.
        assert!(unsafe { Claims::of(&gone) }.unwrap_err().to_string().starts_with("gone: "));
    }
}
