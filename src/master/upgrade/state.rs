//! What travels from one binary to the next: one object in a sealed memfd. Fields that a binary does not know are skipped, and
//! a field that is added needs a default, so that two versions understand each other in both directions. What cannot be
//! understood has another `FORMAT`, and is refused in words before anything is given up.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use forkmaster_wire::handoff::Queue;
use forkmaster_wire::mutant::{self, Mutant};
use forkmaster_wire::scoreboard::Scoreboard;
use forkmaster_wire::{json, large};
use serde::{Deserialize, Serialize};

use crate::config::process_context::ProcessContext;
use crate::config::settings::LogTarget;
use crate::config::Source as ConfigSource;
use crate::doors::{self, Doors};
use crate::listeners;
use crate::logs::{self, ErrorLog, LogFile};
use crate::pidfile::{self, PidFile};
use crate::saved::{Claims, Kept};
use crate::service::{self, Service};
use crate::shared::{Ends, Shared};
use crate::supervisor::upgrade::Asked;

/// It changes with what an older or newer binary could not understand.
const FORMAT: u32 = 1;

/// All that is carried.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// The version of the program that wrote it.
    pub from: String,
    /// By these names the master has known its current directory and its program since it was started. `$PWD` leads
    /// elsewhere by now where it goes through a link that a deploy has flipped.
    #[serde(default)]
    cwd: Option<PathBuf>,
    #[serde(default)]
    executable: Option<PathBuf>,
    /// Who waits for it.
    asker: Option<u64>,
    descriptors: BTreeMap<String, RawFd>,
    /// What the service manager has passed. These have their numbers for good, and nobody owns them.
    passed: Vec<RawFd>,
    frozen: Duration,
    log: logs::saved::Saved<LogTarget>,
    pidfile: Option<pidfile::Saved>,
    listeners: listeners::saved::Saved,
    doors: doors::Saved,
    service: service::saved::Saved,
}

/// The part that all versions share.
#[derive(Serialize, Deserialize)]
struct Frame {
    format: u32,
    from: String,
    /// What workers of the old binary read and write: another layout would be misread.
    scoreboard: [u64; 2],
    wire: u32,
}

/// What a master is made of again.
pub struct Restored {
    pub shared: Shared,
    pub service: Service,
    pub doors: Doors,
    pub pidfile: Option<PidFile>,
    pub from: String,
    pub asker: Option<u64>,
}

/// The parts of a master that are saved.
pub struct Parts<'a> {
    pub shared: &'a Shared,
    pub service: &'a Service,
    pub doors: &'a Doors,
    pub pidfile: Option<&'a PidFile>,
}

impl Frame {
    fn ours() -> Frame {
        let from = env!("CARGO_PKG_VERSION").to_owned();
        let format = if mutant::is(Mutant::UpgradeRefusesState) { FORMAT + 1 } else { FORMAT };
        Frame { format, from, scoreboard: Scoreboard::layout(), wire: forkmaster_wire::WIRE_VERSION }
    }

    fn check(&self) -> Result<(), String> {
        let ours = Frame::ours();
        let (old, new) = (&self.from, &ours.from);
        let restart = "restart the service to change between the two";
        if self.format != ours.format {
            let (theirs, ours) = (self.format, ours.format);
            return Err(format!("{new} reads states of format {ours} and {old} writes format {theirs}; {restart}"));
        }
        if (self.scoreboard, self.wire) != (ours.scoreboard, ours.wire) {
            return Err(format!("{new} does not understand the workers of {old}; {restart}"));
        }
        Ok(())
    }
}

impl State {
    /// None: something is under way after all.
    pub fn save(parts: &Parts<'_>, asked: Asked) -> Option<State> {
        let Parts { shared, service, doors, pidfile } = parts;
        if !shared.children.can_be_taken_over() {
            return None;
        }
        // JSON has no other names.
        let utf8 = |path: &PathBuf| path.to_str().is_some();
        let mut kept = Kept::default();
        let [sender, receiver] = shared.queue.ends();
        kept.keep("queue.sender", sender);
        kept.keep("queue.receiver", receiver);
        kept.keep("lifeline", &shared.lifeline.0);
        if !mutant::is(Mutant::UpgradeLosesLifeline) {
            kept.keep("lifeline.held", &shared.lifeline.1);
        }
        let (log, listeners) = (shared.log.save(&mut kept), shared.listeners.save("listener", &mut kept));
        let (doors, service) = (doors.save(&mut kept)?, service.save(&mut kept)?);
        let pidfile = pidfile.map(|pidfile| pidfile.save(&mut kept));
        Some(State {
            from: env!("CARGO_PKG_VERSION").to_owned(),
            cwd: Some(shared.context.cwd.clone()).filter(utf8),
            executable: shared.context.executable.clone().filter(utf8),
            asker: asked.asker.map(|ask| ask.0),
            descriptors: kept.into_names(),
            passed: shared.listeners.passed().collect(),
            frozen: shared.clock.frozen(),
            log,
            pidfile,
            listeners,
            doors,
            service,
        })
    }

    /// Into a memfd that nobody can change any more. Some hundred kilobytes for a thousand workers.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        let frame = serde_json::to_vec(&Frame::ours()).map_err(io::Error::other)?;
        let state = serde_json::to_vec(self).map_err(io::Error::other)?;
        // The frame is the first field of the state's object: serde's `flatten` and a `Value` between would each make the code
        // that writes a state once more.
        large::seal(&[b"{\"frame\":", &frame[..], b",", &state[1..]].concat())
    }

    /// Reads it from there, or says why it cannot be taken over.
    pub fn read(number: RawFd) -> Result<State, String> {
        let unreadable = |error: &dyn std::fmt::Display| format!("the state cannot be read: {error}");
        // SAFETY: asks for its flags only; a number that is not open gives an error.
        if number <= 2 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            return Err(unreadable(&format!("descriptor {number} is not one that was handed over")));
        }
        // SAFETY: it is open, and nobody but whoever executed this program knows it.
        let state = unsafe { OwnedFd::from_raw_fd(number) };
        let text = large::read(state).map_err(|error| unreadable(&error))?;
        State::parse(&text)
    }

    fn parse(text: &[u8]) -> Result<State, String> {
        #[derive(Deserialize)]
        struct Framed {
            frame: Frame,
        }
        let unreadable = |error: serde_json::Error| format!("the state cannot be read: {error}");
        let Framed { frame } = json::read(text).map_err(unreadable)?;
        frame.check()?;
        json::read(text).map_err(unreadable)
    }

    /// Descriptors that live over the exec, the state's own besides.
    pub fn numbers(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.descriptors.values().chain(&self.passed).copied()
    }

    /// What this process was started with is what the one before was started with.
    pub fn context(&self, gathered: ProcessContext) -> ProcessContext {
        ProcessContext {
            cwd: self.cwd.clone().unwrap_or(gathered.cwd),
            executable: self.executable.clone().or(gathered.executable),
            ..gathered
        }
    }

    /// A copy of what each process of the service holds, to find them by where the state cannot be taken over.
    pub fn lifeline(&self) -> Option<OwnedFd> {
        let number = *self.descriptors.get("lifeline").filter(|number| **number > 2)?;
        // SAFETY: no memory is involved; a number that is not open gives an error.
        let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
        // SAFETY: the kernel has just made it for us.
        (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })
    }

    /// Makes everything of it again. What nobody has claimed is closed.
    pub fn restore(self, source: ConfigSource, context: ProcessContext, log: LogFile) -> io::Result<Restored> {
        // SAFETY: the binary before has kept them for this one, and nobody has looked at them yet.
        let mut claims = unsafe { Claims::of(&self.descriptors) }?;
        let settings = self.service.settings();
        log.turn_to(ErrorLog::restore(self.log, &mut claims)?);
        log.set_level(settings.log.level);
        log.set_form(settings.log.form);
        let queue = Queue::from_ends(claims.claim("queue.sender")?, claims.claim("queue.receiver")?);
        let held = match claims.claim_if_there("lifeline.held") {
            Some(held) => held,
            None => nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?.1,
        };
        let ends = Ends { queue, lifeline: (claims.claim("lifeline")?, held) };
        let mut shared = Shared::restore(context, log, self.frozen, ends, self.listeners, &mut claims)?;
        let now = shared.clock.now();
        let doors = Doors::restore(self.doors, &shared.context, &mut shared.sources, now, &mut claims)?;
        let service = Service::restore(self.service, source, &mut shared, &mut claims)?;
        let pidfile = self.pidfile.map(|pidfile| PidFile::restore(pidfile, &mut claims)).transpose()?;
        for name in claims.names() {
            log::info!("descriptor {name} of {} is not known here, and closed", self.from);
        }
        Ok(Restored { shared, service, doors, pidfile, from: self.from, asker: self.asker })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What 0.1.0 has written, of a service with everything that there is.
    const OF_0_1_0: &str = include_str!("../../../tests/states/0.1.0.json");

    /// The layout of the scoreboard belongs to the build that wrote it.
    fn state(change: impl FnOnce(&mut serde_json::Value)) -> Result<State, String> {
        let mut state: serde_json::Value = serde_json::from_str(OF_0_1_0).unwrap();
        state["frame"] = serde_json::json!(Frame::ours());
        change(&mut state);
        State::parse(state.to_string().as_bytes())
    }

    /// Where this fails, a field that is new lacks its `#[serde(default)]` (CONTRIBUTING.md, "something that an upgrade in
    /// place carries"), or one has another meaning.
    #[test]
    fn what_an_older_binary_has_written_is_read() {
        let read = state(|_| {}).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((read.from.as_str(), read.asker), ("0.1.0", Some(2)));
        assert!(read.descriptors.contains_key("lifeline.held") && read.pidfile.is_some());
        // And it is written again as it was.
        let again = serde_json::to_value(&read).unwrap();
        let mut before: serde_json::Value = serde_json::from_str(OF_0_1_0).unwrap();
        before.as_object_mut().unwrap().remove("frame");
        let lost: Vec<&String> = before.as_object().unwrap().keys().filter(|key| again[*key].is_null()).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }

    #[test]
    fn what_a_newer_binary_adds_is_skipped_and_what_it_changes_is_refused() {
        assert!(state(|state| state["service"]["generation"]["who_knows"] = 1.into()).is_ok());
        let refused = |change: fn(&mut serde_json::Value)| state(change).err().unwrap_or_default();
        assert!(refused(|state| state["frame"]["format"] = 9.into()).contains("writes format 9"));
        assert!(refused(|state| state["frame"]["wire"] = 9.into()).contains("does not understand the workers of"));
        assert!(refused(|state| state["service"] = 1.into()).contains("the state cannot be read: "));
    }

    #[test]
    fn a_number_that_nobody_has_handed_over_is_no_state() {
        for number in [-1, 0, 2, 1 << 20] {
            assert!(State::read(number).err().unwrap_or_default().contains("was handed over"), "{number}");
        }
    }
}
