//! Commands at moments of the service's life: `[hooks] on_ready`, `on_reload`, `on_exit`. One runs at a time, in the order of
//! the moments. Nothing waits for one but the end of the master, and that no longer than `command_timeout`. How a command
//! ends is logged and decides nothing.
//!
//! | State | Event | Next |
//! |---|---|---|
//! | Idle | a moment that has a command | Running (deadline) |
//! | Running | its exit | Idle |
//! | Running | deadline, or a hurried end | Killed (deadline), with what it has started |
//! | Killed | its exit, or deadline | Idle |

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use forkmaster_wire::limits;
use forkmaster_wire::message::GenerationId;

use super::birth::{Program, NOT_EXECUTED, NOT_FOUND};
use super::child::Entering;
use super::Service;
use crate::children::{HookId, Proof, Who};
use crate::config::settings::{Commands, Identity, Settings};
use crate::facts::outcome::{End, Reload};
use crate::shared::Shared;
use crate::supervisor::worker::Exit;

/// Moments that wait for an earlier command: reloads may follow each other faster than their commands end.
const WAITING_MAX: usize = 16;

/// After SIGKILL only the kernel itself can keep a process.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Hooks {
    /// What holds: of the generation that committed last, and before that of the first.
    setting: Option<Setting>,
    state: State,
    waiting: VecDeque<Moment>,
    pub(super) last: u64,
    pub(super) was_ready: bool,
}

/// What commands are run by.
struct Setting {
    commands: Commands,
    name: String,
    release: PathBuf,
    environment: Vec<(OsString, OsString)>,
    identity: Option<Identity>,
    umask: Option<u32>,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Running {
        id: HookId,
        shown: String,
        began: Instant,
        by: Instant,
    },
    Killed {
        id: HookId,
        shown: String,
        by: Instant,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Ready,
    Reload,
    Exit,
}

struct Moment {
    hook: Hook,
    generation: Option<GenerationId>,
    result: String,
    reason: String,
}

impl Service {
    /// These settings are the service's from now on.
    pub fn set_hooks(&mut self, settings: &Settings) {
        let (app, server) = (&settings.app, &settings.server);
        self.hooks.setting = Some(Setting {
            commands: settings.hooks.commands.clone(),
            name: settings.name.clone(),
            release: app.release.clone(),
            environment: app.environment.clone(),
            identity: server.identity.clone(),
            umask: server.umask,
        });
    }

    /// A reload has ended.
    pub fn hook_reload(&mut self, reload: &Reload) {
        let reason = match &reload.end {
            End::Refused(refusal) => refusal.reason.clone(),
            End::Superseded { by } => format!("superseded by generation {by}"),
            End::Committed | End::Stopped => String::new(),
        };
        let (generation, result) = (reload.generation, reload.end.word().to_owned());
        self.hooks.note(Moment { hook: Hook::Reload, generation, result, reason });
    }

    /// The master will end with this code.
    pub fn hook_exit(&mut self, code: i32) {
        // What has not begun by now is of no use any more.
        self.hooks.waiting.clear();
        let moment = Moment { hook: Hook::Exit, generation: None, result: code.to_string(), reason: String::new() };
        self.hooks.note(moment);
    }

    /// Once a pass of the loop: what is due, begins or is over.
    pub fn run_hooks(&mut self, shared: &mut Shared) {
        if !self.hooks.was_ready && self.supervisor.is_ready() {
            self.hooks.was_ready = true;
            let generation = self.supervisor.serving().map(|generation| generation.id);
            let result = "ready".to_owned();
            self.hooks.note(Moment { hook: Hook::Ready, generation, result, reason: String::new() });
        }
        let now = shared.clock.now();
        match &self.hooks.state {
            State::Running { shown, by, .. } if *by <= now => {
                let limit = self.hooks.setting.as_ref().map_or(0.0, |setting| setting.commands.timeout.as_secs_f64());
                log::error!("{shown} has not ended within command_timeout ({limit:.1}s): killed");
                self.kill_hook(shared);
            }
            State::Killed { id, shown, by } if *by <= now => {
                log::error!("{shown} is still there after SIGKILL (state D?): given up");
                shared.children.give_up(Who::Hook(*id));
                self.hooks.state = State::Idle;
            }
            State::Idle | State::Running { .. } | State::Killed { .. } => {}
        }
        while matches!(self.hooks.state, State::Idle) {
            let Some(moment) = self.hooks.waiting.pop_front() else { break };
            let shown = moment.shown();
            if let Err(error) = self.hooks.begin(&moment, shared) {
                log::error!("{shown} cannot be started: {}", limits::explain(&error));
            }
        }
    }

    /// Reaped.
    pub fn hook_ended(&mut self, id: HookId, exit: &Exit, now: Instant) {
        match &self.hooks.state {
            State::Running { id: running, shown, began, .. } if *running == id => {
                let after = now.saturating_duration_since(*began).as_millis();
                match exit {
                    Exit::Code(0) => log::info!("{shown} ended after={after}ms"),
                    Exit::Code(NOT_FOUND) => {
                        log::error!("{shown} failed: exit code 127 (no such command) after={after}ms")
                    }
                    Exit::Code(NOT_EXECUTED) => {
                        log::error!("{shown} failed: exit code 126 (it may not be executed) after={after}ms");
                    }
                    other => log::error!("{shown} failed: {other} after={after}ms"),
                }
            }
            State::Killed { id: killed, .. } if *killed == id => {}
            State::Idle | State::Running { .. } | State::Killed { .. } => return,
        }
        self.hooks.state = State::Idle;
    }

    /// The end is in a hurry.
    pub fn end_hooks(&mut self, shared: &mut Shared) {
        self.hooks.waiting.clear();
        if let State::Running { shown, .. } = &self.hooks.state {
            log::warn!("{shown}: killed, since the end is in a hurry");
            self.kill_hook(shared);
        }
    }

    /// One runs, or will.
    pub fn has_hooks_left(&self) -> bool {
        !matches!(self.hooks.state, State::Idle) || !self.hooks.waiting.is_empty()
    }

    fn kill_hook(&mut self, shared: &mut Shared) {
        if let State::Running { id, shown, .. } = std::mem::take(&mut self.hooks.state) {
            shared.children.signal_group(Who::Hook(id), libc::SIGKILL);
            self.hooks.state = State::Killed { id, shown, by: shared.clock.now() + ENDS_WITHIN };
        }
    }
}

impl Hooks {
    /// When the state must change by itself.
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Idle => None,
            State::Running { by, .. } | State::Killed { by, .. } => Some(*by),
        }
    }

    fn note(&mut self, moment: Moment) {
        if self.setting.as_ref().is_none_or(|setting| setting.command(moment.hook).is_empty()) {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            if let Some(dropped) = self.waiting.pop_front() {
                log::warn!("{} is left out: {WAITING_MAX} others wait", dropped.shown());
            }
        }
        self.waiting.push_back(moment);
    }

    fn begin(&mut self, moment: &Moment, shared: &mut Shared) -> io::Result<()> {
        let Some(setting) = &self.setting else { return Ok(()) };
        let mut environment = setting.environment.clone();
        let told: [(&str, OsString); 7] = [
            ("FORKMASTER_HOOK", moment.hook.word().into()),
            ("FORKMASTER_HOOK_RESULT", moment.result.clone().into()),
            ("FORKMASTER_HOOK_REASON", moment.reason.clone().into()),
            ("FORKMASTER_HOOK_GENERATION", moment.generation.map_or(String::new(), |id| id.to_string()).into()),
            ("FORKMASTER_HOOK_RELEASE", setting.release.clone().into()),
            ("FORKMASTER_HOOK_NAME", setting.name.clone().into()),
            ("FORKMASTER_HOOK_PID", std::process::id().to_string().into()),
        ];
        environment.retain(|(name, _)| told.iter().all(|(ours, _)| name != ours));
        environment.extend(told.map(|(name, value)| (name.into(), value)));
        let words = setting.command(moment.hook);
        let entering = Entering::new(setting.identity.as_ref(), setting.umask, &setting.release, &[])?.or_root();
        let environment = environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
        // What went wrong shows in its exit code.
        let pid = Program::new(words, environment, &setting.release, entering)?.without_input()?.start()?.pid;
        self.last += 1;
        let (id, began) = (HookId(self.last), shared.clock.now());
        shared
            .children
            .claim(Who::Hook(id), Proof::OwnChild { pid })
            .map_err(|claim| io::Error::other(claim.to_string()))?;
        let shown = format!("{} pid={pid}", moment.shown());
        log::info!("{shown} began");
        self.state = State::Running { id, shown, began, by: began + setting.commands.timeout };
        Ok(())
    }
}

impl Setting {
    fn command(&self, hook: Hook) -> &[String] {
        match hook {
            Hook::Ready => &self.commands.on_ready,
            Hook::Reload => &self.commands.on_reload,
            Hook::Exit => &self.commands.on_exit,
        }
    }
}

impl Hook {
    fn word(self) -> &'static str {
        match self {
            Hook::Ready => "on_ready",
            Hook::Reload => "on_reload",
            Hook::Exit => "on_exit",
        }
    }
}

impl Moment {
    /// For log lines.
    fn shown(&self) -> String {
        let generation = self.generation.map_or(String::new(), |generation| format!(" gen={generation}"));
        format!("hook {}{generation} result={}", self.hook.word(), self.result)
    }
}
