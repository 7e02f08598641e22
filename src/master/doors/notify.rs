//! What the service manager hears, as sd_notify(3) has it: READY=1, RELOADING=1, STOPPING=1, STATUS=, WATCHDOG=1 and
//! EXTEND_TIMEOUT_USEC=. Its socket is never waited for. Where it is full, what must not be lost is kept, in order and
//! within a bound, and sent later. systemd counts on two rules. RELOADING=1 travels in one datagram with the time at
//! which the reload was taken. READY=1 follows it always, also where the reload was refused.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::{Duration, Instant};

use forkmaster_wire::scoreboard::monotonic_ns;
use sd_notify::NotifyState;

use crate::config::environment::Environment;
use crate::facts::standing::{Phase, Standing};

/// How long the manager is asked to wait on while something with a deadline of its own is done, and how often.
const EXTENSION: Duration = Duration::from_secs(15);
const EXTEND_EVERY: Duration = Duration::from_secs(5);

/// STATUS= alone is for people, who need no more than this.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Bytes of STATUS=: a refusal can be long, and a datagram should be short.
const STATUS_BYTES_MAX: usize = 512;

/// Datagrams that wait while the manager reads nothing. Its queue holds some hundreds (net.unix.max_dgram_qlen), so it
/// has not read for long, and only the latest states still matter to it.
const KEPT_MAX: usize = 8;

/// Nothing tells when a full queue has room again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

pub struct Notify {
    told: Told,
    outbox: Option<Outbox>,
    watchdog: Option<Watchdog>,
}

impl Notify {
    /// From the variables of the start. Without NOTIFY_SOCKET it does nothing.
    pub fn open(environment: &Environment) -> Notify {
        let variable = |name: &str| environment.get(OsStr::new(name)).filter(|value| !value.is_empty());
        let outbox = variable("NOTIFY_SOCKET").and_then(|name| {
            let opened = Outbox::open(name);
            opened
                .inspect_err(|error| log::warn!("NOTIFY_SOCKET={} is not used: {error}", Path::new(name).display()))
                .ok()
        });
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        // sd_watchdog_enabled(3): without WATCHDOG_PID it is meant for whoever reads it.
        let is_meant = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(std::process::id().into());
        let limit = number("WATCHDOG_USEC").filter(|usec| *usec > 0 && is_meant).map(Duration::from_micros);
        let watchdog = limit.filter(|_| outbox.is_some()).map(|limit| Watchdog { every: limit / 2, pinged: None });
        Notify { told: Told::default(), outbox, watchdog }
    }

    pub fn has_reader(&self) -> bool {
        self.outbox.is_some()
    }

    /// Tells what is new. To be called in every pass of the loop, for the watchdog asks whether that turns; and
    /// before whoever asked for a reload is answered, so that `systemctl` finds the unit in its new state.
    pub fn observe(&mut self, standing: &Standing, now: Instant) {
        let Some(outbox) = &mut self.outbox else { return };
        outbox.send_kept(now);
        if let Some(message) = self.told.state(standing, now) {
            outbox.send(Message::State(message), now);
        }
        if let Some(message) = self.told.status(standing, now) {
            outbox.send(Message::Passing(message), now);
        }
        if self.watchdog.as_mut().is_some_and(Watchdog::is_due) {
            outbox.send(Message::Passing(text(&[NotifyState::Watchdog])), now);
        }
    }

    /// RELOADING=1, whatever the service does: what follows is READY=1, from this binary or from the next.
    pub fn reloading(&mut self, standing: &Standing, now: Instant) {
        let standing = Standing { phase: Phase::Reloading, ..standing.clone() };
        self.observe(&standing, now);
    }

    /// When something is due although nothing happens.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let outbox = self.outbox.as_ref()?;
        let watchdog = self.watchdog.as_ref().map(|watchdog| now + watchdog.left());
        self.told.next_deadline().into_iter().chain(outbox.again_at).chain(watchdog).min()
    }
}

/// What the manager knows.
#[derive(Default)]
struct Told {
    phase: Phase,
    /// The reloads that it has heard of.
    reloads: u64,
    status: String,
    status_at: Option<Instant>,
    /// When it was last asked for more time; None: nothing is under way.
    extended_at: Option<Instant>,
}

impl Told {
    /// The state where it has changed, with its sentence.
    fn state(&mut self, standing: &Standing, now: Instant) -> Option<String> {
        let again = standing.phase == Phase::Reloading && standing.reloads != self.reloads;
        if self.phase == standing.phase && !again {
            return None;
        }
        self.phase = standing.phase;
        let states = match standing.phase {
            Phase::Starting => Vec::new(),
            Phase::Running => vec![NotifyState::Ready],
            Phase::Reloading => {
                // What was asked for until now is under way, and its outcome will be told.
                self.reloads = standing.reloads;
                vec![NotifyState::Reloading, NotifyState::MonotonicUsec(i128::from(monotonic_ns() / 1000))]
            }
            Phase::Stopping => vec![NotifyState::Stopping],
        };
        self.extended_at = (standing.phase != Phase::Running).then_some(now);
        Some(self.with_status(&states, standing, now))
    }

    /// The sentence where it has changed, and a request for more time where something is under way.
    fn status(&mut self, standing: &Standing, now: Instant) -> Option<String> {
        let is_due =
            |last: Option<Instant>, every| last.is_none_or(|last| now.saturating_duration_since(last) >= every);
        let extend = standing.phase != Phase::Running && is_due(self.extended_at, EXTEND_EVERY);
        if extend {
            self.extended_at = Some(now);
        }
        let speak = is_due(self.status_at, STATUS_EVERY) && sentence(standing) != self.status;
        (extend || speak).then(|| self.with_status(&[], standing, now))
    }

    fn with_status(&mut self, states: &[NotifyState], standing: &Standing, now: Instant) -> String {
        (self.status, self.status_at) = (sentence(standing), Some(now));
        let mut message = text(states) + &text(&[NotifyState::Status(&self.status)]);
        if standing.phase != Phase::Running {
            message += &text(&[NotifyState::ExtendTimeoutUsec(EXTENSION.as_micros() as u32)]);
        }
        message
    }

    fn next_deadline(&self) -> Option<Instant> {
        let underway = self.phase != Phase::Running;
        self.extended_at.filter(|_| underway).map(|extended_at| extended_at + EXTEND_EVERY)
    }
}

/// One line, and not a long one: a line's end would begin another assignment.
fn sentence(standing: &Standing) -> String {
    let whole = standing.to_string();
    let line: String = whole.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    let mut end = line.len().min(STATUS_BYTES_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line[..end].to_owned()
}

fn text(states: &[NotifyState]) -> String {
    states.iter().map(|state| format!("{state}\n")).collect()
}

/// What becomes of a message that cannot be sent now.
enum Message {
    /// The manager waits for it: it is kept.
    State(String),
    /// It is told again, or does not matter any more.
    Passing(String),
}

struct Outbox {
    socket: UnixDatagram,
    to: SocketAddr,
    kept: VecDeque<String>,
    again_at: Option<Instant>,
}

impl Outbox {
    /// sd_notify(3): a path, or an abstract name written with an `@`.
    fn open(name: &OsStr) -> io::Result<Outbox> {
        let to = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "it is neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Outbox { socket, to, kept: VecDeque::new(), again_at: None })
    }

    fn send(&mut self, message: Message, now: Instant) {
        match message {
            Message::State(text) => {
                self.kept.push_back(text);
                if self.kept.len() > KEPT_MAX {
                    self.kept.pop_front();
                }
                self.again_at.get_or_insert(now);
                self.send_kept(now);
            }
            Message::Passing(text) if self.kept.is_empty() => drop(self.socket.send_to_addr(text.as_bytes(), &self.to)),
            Message::Passing(_) => {}
        }
    }

    fn send_kept(&mut self, now: Instant) {
        if self.again_at.is_none_or(|again_at| again_at > now) {
            return;
        }
        while let Some(text) = self.kept.front() {
            if let Err(error) = self.socket.send_to_addr(text.as_bytes(), &self.to) {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.again_at = Some(now + AGAIN_AFTER);
                    return;
                }
                // Nobody is there: sd_notify(3) says that the return value is best ignored.
                log::debug!("the service manager does not hear: {error}");
            }
            self.kept.pop_front();
        }
        self.again_at = None;
    }
}

/// It counts real time: systemd does not know for how long this process was frozen.
struct Watchdog {
    every: Duration,
    pinged: Option<Instant>,
}

impl Watchdog {
    fn is_due(&mut self) -> bool {
        let is_due = self.left().is_zero();
        if is_due {
            self.pinged = Some(Instant::now());
        }
        is_due
    }

    fn left(&self) -> Duration {
        self.pinged.map_or(Duration::ZERO, |pinged| self.every.saturating_sub(pinged.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use forkmaster_wire::message::GenerationId;

    use super::*;
    use crate::facts::outcome::Verb;

    fn standing(phase: Phase, reloads: u64) -> Standing {
        Standing { phase, reloads, serving: Some((GenerationId(1), 2, 2)), ..Standing::default() }
    }

    fn words(message: Option<String>) -> Vec<String> {
        let message = message.unwrap_or_default();
        message.lines().map(|line| line.split('=').next().unwrap_or("").to_owned()).collect()
    }

    #[test]
    fn each_state_is_told_once_and_ready_follows_every_reload() {
        let now = Instant::now();
        let mut told = Told::default();
        assert_eq!(told.state(&standing(Phase::Starting, 0), now), None);
        assert_eq!(words(told.state(&standing(Phase::Running, 0), now)), ["READY", "STATUS"]);
        assert_eq!(told.state(&standing(Phase::Running, 0), now), None);
        let reloading = ["RELOADING", "MONOTONIC_USEC", "STATUS", "EXTEND_TIMEOUT_USEC"];
        assert_eq!(words(told.state(&standing(Phase::Reloading, 1), now)), reloading);
        assert_eq!(told.state(&standing(Phase::Reloading, 1), now), None);
        // A HUP meanwhile: `systemctl reload` waits for a RELOADING=1 that is younger than its signal.
        assert_eq!(words(told.state(&standing(Phase::Reloading, 2), now)), reloading);
        assert_eq!(words(told.state(&standing(Phase::Running, 2), now)), ["READY", "STATUS"]);
        assert_eq!(
            words(told.state(&standing(Phase::Stopping, 2), now)),
            ["STOPPING", "STATUS", "EXTEND_TIMEOUT_USEC"]
        );
        assert_eq!(told.state(&standing(Phase::Stopping, 2), now), None);
    }

    #[test]
    fn more_time_is_asked_for_while_something_is_under_way() {
        let began = Instant::now();
        let mut told = Told::default();
        let starting = Standing::default();
        assert_eq!(words(told.status(&starting, began)), ["STATUS", "EXTEND_TIMEOUT_USEC"]);
        assert_eq!(told.status(&starting, began + EXTEND_EVERY - Duration::from_millis(1)), None);
        assert_eq!(told.next_deadline(), Some(began + EXTEND_EVERY));
        assert_eq!(words(told.status(&starting, began + EXTEND_EVERY)), ["STATUS", "EXTEND_TIMEOUT_USEC"]);
        assert_eq!(words(told.state(&standing(Phase::Running, 0), began)), ["READY", "STATUS"]);
        assert_eq!(
            (told.status(&standing(Phase::Running, 0), began + EXTEND_EVERY), told.next_deadline()),
            (None, None)
        );
    }

    #[test]
    fn a_sentence_is_one_short_line() {
        let refused = Some((Verb::Reload, format!("bad\nREADY=1 {}", "é".repeat(600))));
        let standing = Standing { phase: Phase::Running, refused, ..standing(Phase::Running, 0) };
        let sentence = sentence(&standing);
        assert!(sentence.len() <= STATUS_BYTES_MAX && !sentence.contains('\n'), "{sentence}");
    }

    #[test]
    fn a_manager_that_reads_nothing_is_not_waited_for_and_hears_the_latest_states_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let mut outbox = Outbox::open(path.as_os_str()).unwrap();
        let began = Instant::now();
        let mut sent = 0;
        while outbox.kept.is_empty() {
            outbox.send(Message::State(format!("STATUS={sent}\n")), began);
            sent += 1;
            assert!(sent < 100_000);
        }
        for more in 0..20 {
            outbox.send(Message::State(format!("MORE={more}\n")), began);
            outbox.send(Message::Passing("WATCHDOG=1\n".to_owned()), began);
        }
        assert_eq!((outbox.kept.len(), outbox.kept.back().map(String::as_str)), (KEPT_MAX, Some("MORE=19\n")));
        assert!(began.elapsed() < Duration::from_secs(5));
        manager.set_nonblocking(true).unwrap();
        let mut bytes = [0; 64];
        while manager.recv(&mut bytes).is_ok() {}
        // Not before its time, since the loop turns often.
        outbox.send_kept(began + AGAIN_AFTER / 2);
        assert!(manager.recv(&mut bytes).is_err());
        outbox.send_kept(began + AGAIN_AFTER);
        assert!(outbox.kept.is_empty() && outbox.again_at.is_none());
        let mut last = 0;
        while let Ok(length) = manager.recv(&mut bytes) {
            last = length;
        }
        assert_eq!(&bytes[..last], b"MORE=19\n");
    }

    #[test]
    fn a_manager_that_is_not_there_costs_nothing() {
        let mut outbox = Outbox::open(OsStr::new("/nonexistent/notify")).unwrap();
        outbox.send(Message::State("READY=1\n".to_owned()), Instant::now());
        assert!(outbox.kept.is_empty());
        assert!(Outbox::open(OsStr::new("vsock:2:1")).is_err());
    }

    #[test]
    fn the_watchdog_is_meant_for_the_process_that_it_names() {
        let open = |variables: &[(&str, &str)]| {
            let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            Notify::open(&environment.collect()).watchdog.map(|watchdog| watchdog.every)
        };
        let ours = std::process::id().to_string();
        let socket = ("NOTIFY_SOCKET", "@forkmaster-test");
        let half = Some(Duration::from_secs(15));
        assert_eq!(open(&[socket, ("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", &ours)]), half);
        assert_eq!(open(&[socket, ("WATCHDOG_USEC", "30000000")]), half);
        assert_eq!(open(&[socket, ("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "1")]), None);
        assert_eq!(open(&[socket, ("WATCHDOG_USEC", "soon")]), None);
        assert_eq!(open(&[("WATCHDOG_USEC", "30000000")]), None);
    }
}
