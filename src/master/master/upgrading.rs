//! The master on its way to another binary: what that waits for besides a quiet supervisor, and where it arrives. All of it
//! happens at the top of the loop, where no event and no action is on its way.

use std::io;
use std::time::Duration;

use super::{Look, Master};
use crate::config::process_context::ProcessContext;
use crate::config::Source as ConfigSource;
use crate::doors::control::ClientId;
use crate::doors::protocol::{Reply, Upgraded};
use crate::facts::note::Note;
use crate::facts::outcome::Refusal;
use crate::footprint;
use crate::logs::LogFile;
use crate::signals::{self, Signals};
use crate::sources::SIGNALS;
use crate::supervisor::upgrade::{Asked, Event as UpgradeEvent};
use crate::supervisor::worker::Exit;
use crate::supervisor::Event;
use crate::upgrade::attempt::{self, Attempt};
use crate::upgrade::exec::Step;
use crate::upgrade::state::{Parts, Restored, State};

/// A chore takes milliseconds. A thread that does not come back hangs in the kernel, perhaps, and an exec would wait for it.
const CHORE_WITHIN: Duration = Duration::from_secs(1);

/// How often the loop looks whether the way is clear.
pub(super) const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Master {
    /// Goes on where another binary was executed.
    pub fn take_over(
        state: State,
        source: ConfigSource,
        context: ProcessContext,
        log: LogFile,
        signals: Signals,
    ) -> io::Result<Master> {
        let Restored { shared, service, doors, pidfile, from, asker } = state.restore(source, context, log)?;
        signals.register(shared.sources.registry(), SIGNALS)?;
        let mut master = Master::of(shared, service, signals, doors);
        master.keep_pidfile(pidfile);
        // Children may have ended while there were no handlers.
        master.reap_again = true;
        let to = env!("CARGO_PKG_VERSION").to_owned();
        let executable = master.shared.context.executable.clone().unwrap_or_default();
        master.note(&Note::Upgraded { from: from.clone(), to: to.clone(), executable });
        // Whoever asked finds the service manager told.
        master.tell_manager();
        if let Some(asker) = asker {
            let pid = std::process::id();
            master.answer(ClientId(asker), Reply::Upgraded(Upgraded { from, to, pid }));
        }
        footprint::let_go_of_what_a_deploy_took();
        Ok(master)
    }

    /// Does what is due for an upgrade and possible now. Does not return where the step is taken.
    pub(super) fn upgrade(&mut self) {
        if matches!(self.look, Look::Due) {
            if let Some(refusal) = self.look() {
                self.tell(Event::Upgrade(UpgradeEvent::Tried(Err(refusal))));
            }
        }
        if let Some(asked) = self.service.supervisor.may_be_taken_over() {
            if let Some(refusal) = self.step(asked) {
                self.tell(Event::Upgrade(UpgradeEvent::Failed(refusal)));
            }
        }
    }

    /// Nobody waits for the new binary's word any more.
    pub(super) fn end_look(&mut self) {
        if let Look::Running(attempt) = std::mem::take(&mut self.look) {
            attempt.end(&mut self.shared);
        }
    }

    /// The new binary has looked.
    pub(super) fn look_ended(&mut self, exit: &Exit) -> Option<Event> {
        match std::mem::take(&mut self.look) {
            Look::Running(attempt) => Some(Event::Upgrade(UpgradeEvent::Tried(attempt.ended(exit, &mut self.shared)))),
            // The exit of an earlier one.
            other @ (Look::Off | Look::Due) => {
                self.look = other;
                None
            }
        }
    }

    pub(super) fn read_look(&mut self) {
        match &mut self.look {
            Look::Running(attempt) => attempt.read(&mut self.shared),
            Look::Off | Look::Due => {}
        }
    }

    fn state(&self, asked: Asked) -> Option<State> {
        let Master { shared, service, doors, pidfile, .. } = self;
        State::save(&Parts { shared, service, doors, pidfile: pidfile.as_ref() }, asked)
    }

    /// Has the new binary look at a copy of the state. Some: it cannot, and why.
    fn look(&mut self) -> Option<Refusal> {
        let asked = self.service.supervisor.asked_for_upgrade()?;
        if self.service.develops() {
            return Some(Refusal::new("`forkmaster dev` is not upgraded in place; end it and start it again"));
        }
        // None: something is under way, and the next turn of the loop tries again.
        let state = self.state(asked)?;
        self.look = Look::Off;
        match Attempt::start(&state, &mut self.shared) {
            Ok(attempt) => {
                self.look = Look::Running(attempt);
                self.tell(Event::Upgrade(UpgradeEvent::Begun));
                None
            }
            Err(refusal) => Some(refusal),
        }
    }

    /// Becomes the new binary, unless something is in the way. Some: it will not be.
    fn step(&mut self, asked: Asked) -> Option<Refusal> {
        let now = self.shared.clock.now();
        match self.shared.chores.busy() {
            Some((_, Some(since))) if now.saturating_duration_since(since) < CHORE_WITHIN => return None,
            Some((what, _)) => {
                let limit_s = CHORE_WITHIN.as_secs();
                return Some(Refusal::new(format!(
                    "{what} takes longer than {limit_s} s, and an exec would wait for it"
                )));
            }
            None => {}
        }
        let is_busy = self.service.has_hooks_left() || !self.service.prepares_nothing() || self.reap_again;
        if is_busy || self.doors.has_pending() || self.shared.sources.has_unread() {
            return None;
        }
        let before = match signals::block_all() {
            Ok(before) => before,
            Err(error) => return Some(Refusal::new(format!("signals cannot be blocked: {error}"))),
        };
        // Those that came before are this binary's to obey.
        let refusal = match self.signals.is_asked() {
            true => None,
            false => self.become_it(asked),
        };
        if let Err(error) = before.thread_set_mask() {
            log::error!("signals stay blocked: {error}");
        }
        refusal
    }

    fn become_it(&mut self, asked: Asked) -> Option<Refusal> {
        let executable = match attempt::executable(&self.shared.context) {
            Ok(executable) => executable.to_owned(),
            Err(refusal) => return Some(refusal),
        };
        // None: something is under way after all, and the next turn of the loop tries again.
        let state = self.state(asked)?;
        log::info!("executing {}", executable.display());
        let (standing, now) = (self.service.standing(), self.shared.clock.now());
        self.doors.tell_upgrade(&standing, now);
        // What has no room there within a moment is lost, as at the end.
        let _all = self.service.last_lines.flush();
        let _all = self.shared.log.flush();
        let error = match Step::new(&executable, &state) {
            // One that came until here has a handler, which the new binary would know nothing of.
            Ok(_) if self.signals.is_asked() => return None,
            Ok(step) => step.take(),
            Err(error) => error,
        };
        Some(Refusal::new(format!("{} cannot be executed: {error}", executable.display())))
    }
}
