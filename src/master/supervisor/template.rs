//! A generation's template in the eyes of the master: its states, each with its own deadline, and the one place
//! where they change. It forks the workers and serves nothing; its death touches no worker.
//!
//! | State | Event | Next | What is done |
//! |---|---|---|---|
//! | Starting | loaded | Ready | |
//! | Starting | failed | Stopping | refused while proving; else a line |
//! | Starting | loads for long | Starting | its stacks, by signal |
//! | Starting | deadline | Killed | refused while proving; else it starts again |
//! | Ready | told to fork | Forking | a few at a time, so that messages and descriptors have room on their way |
//! | Forking | a worker was born | Ready, or Forking with a new deadline | |
//! | Forking | deadline | Dumping | its stacks, by signal |
//! | Dumping | deadline | Killed | refused while proving; else it starts again |
//! | Starting, Ready, Forking, Dumping | says that it is broken | Killed | refused while proving; else it starts again |
//! | Ready, Forking, Dumping | its channel is closed | Lost | |
//! | Lost, Stopping | deadline | Killed | |
//! | Killed | deadline | Backoff or Gone | given up: the kernel does not let it die; refused while proving without a candidate |
//! | any | exit | Backoff; Gone where no worker is wanted any more | |
//! | Backoff | deadline | Starting | |

use std::time::{Duration, Instant};

use forkmaster_wire::message::GenerationId;

use super::dump::STACKS_WITHIN;
use super::generation::State;
use super::worker::{next_look, Exit, State as WorkerState};
use super::{Action, Phase, Supervisor, EXIT_WITHIN, KILLED_WITHIN};
use crate::facts::note::Note;
use crate::facts::outcome::Refusal;

/// A fork is a matter of milliseconds. Whoever forks nothing for so long is stopped, or waits in a fork handler.
const FORK_WITHIN: Duration = Duration::from_secs(5);

/// Workers that boot take the processors from it. Among 400 of them on two processors its turn comes once a second
/// (sched(7): a slice is some milliseconds), and a fork takes several turns.
const FORK_EACH: Duration = Duration::from_millis(50);

/// A stopped template has nothing to finish.
const STOP_WITHIN: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// A load that takes long is looked at on the way.
    Starting {
        began: Instant,
        deadline: Instant,
        look_at: Option<Instant>,
        /// The interpreter runs the server's code: what comes before are `.pth` files and sitecustomize.
        hello: bool,
    },
    /// It can fork. `since` marks this life of it.
    Ready {
        since: Instant,
    },
    /// It was told to fork and has not yet; each birth sets the deadline of the next.
    Forking {
        since: Instant,
        deadline: Instant,
        limit: Duration,
    },
    /// It does not fork: its stacks are being written.
    Dumping {
        since: Instant,
        kill_at: Instant,
        limit: Duration,
    },
    /// Its channel is closed: it should be gone in a moment.
    Lost {
        kill_at: Instant,
    },
    /// It died; the next start waits.
    Backoff {
        until: Instant,
    },
    /// Told to stop.
    Stopping {
        kill_at: Instant,
    },
    /// SIGKILL was sent, once.
    Killed {
        give_up: Instant,
    },
    Gone,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Hello,
    Loaded,
    Failed(Refusal),
    Pong {
        ping: u64,
    },
    /// It says that it cannot fork any more, or what it says makes no sense.
    Broken {
        reason: String,
    },
    /// Its channel is closed. The exit status follows, unless the application closed descriptors that are not its.
    ChannelLost,
    Exited(Exit),
}

impl Template {
    /// It is being executed, and has so long to load.
    pub fn starting(now: Instant, boot_timeout: Duration) -> Template {
        let deadline = now + boot_timeout;
        Template::Starting { began: now, deadline, look_at: next_look(now, now, deadline), hello: false }
    }

    /// The word for log lines and `status`.
    pub fn word(&self) -> &'static str {
        match self {
            Template::Starting { .. } => "starting",
            Template::Ready { .. } => "ready",
            Template::Forking { .. } => "forking",
            Template::Dumping { .. } => "dumping",
            Template::Lost { .. } => "lost",
            Template::Backoff { .. } => "resting",
            Template::Stopping { .. } => "stopping",
            Template::Killed { .. } => "killed",
            Template::Gone => "gone",
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match *self {
            Template::Starting { deadline, look_at, .. } => {
                Some(look_at.map_or(deadline, |look_at| look_at.min(deadline)))
            }
            Template::Forking { deadline, .. } => Some(deadline),
            Template::Backoff { until } => Some(until),
            Template::Dumping { kill_at, .. } | Template::Stopping { kill_at } | Template::Lost { kill_at } => {
                Some(kill_at)
            }
            Template::Killed { give_up } => Some(give_up),
            Template::Ready { .. } | Template::Gone => None,
        }
    }

    /// Since when it has been able to fork, if it is.
    pub fn ready_since(&self) -> Option<Instant> {
        match *self {
            Template::Ready { since } | Template::Forking { since, .. } | Template::Dumping { since, .. } => {
                Some(since)
            }
            Template::Starting { .. }
            | Template::Lost { .. }
            | Template::Backoff { .. }
            | Template::Stopping { .. }
            | Template::Killed { .. }
            | Template::Gone => None,
        }
    }

    /// Takes another worker to fork.
    pub fn takes_spawns(&self) -> bool {
        match self {
            Template::Ready { .. } | Template::Forking { .. } => true,
            Template::Starting { .. }
            | Template::Dumping { .. }
            | Template::Lost { .. }
            | Template::Backoff { .. }
            | Template::Stopping { .. }
            | Template::Killed { .. }
            | Template::Gone => false,
        }
    }
}

impl Supervisor {
    /// The one place where a template's state changes, and its log line.
    fn change_template(&mut self, at: usize, to: Template, exit: Option<&Exit>) {
        let generation = &mut self.generations[at];
        let (id, from) = (generation.id, generation.template.word());
        let expected = matches!(generation.template, Template::Stopping { .. } | Template::Killed { .. });
        generation.template = to;
        let to = generation.template.word();
        match exit {
            Some(exit) => {
                let cause = exit.to_string();
                self.note(Note::TemplateGone { generation: id, from, cause, expected });
            }
            None if from != to => self.note(Note::Template { generation: id, from, to }),
            None => {}
        }
    }

    pub(super) fn on_template(&mut self, id: GenerationId, event: Event, now: Instant) {
        let Some(at) = self.index(id) else { return };
        let proving = self.generations[at].state == State::Proving;
        use Template as T;
        match (self.generations[at].template.clone(), event) {
            (T::Starting { began, deadline, look_at, .. }, Event::Hello) => {
                self.change_template(at, T::Starting { began, deadline, look_at, hello: true }, None);
            }
            (T::Starting { .. }, Event::Loaded) => self.change_template(at, T::Ready { since: now }, None),
            (T::Starting { .. }, Event::Failed(refusal)) => {
                self.change_template(at, T::Stopping { kill_at: now + EXIT_WITHIN }, None);
                if proving {
                    self.refuse(id, refusal, now);
                } else {
                    self.note(Note::TemplateFailed { generation: id, refusal });
                }
            }
            (T::Ready { .. } | T::Forking { .. } | T::Dumping { .. }, Event::Pong { ping }) => self.on_pong(ping, now),
            (
                T::Starting { .. } | T::Ready { .. } | T::Forking { .. } | T::Dumping { .. },
                Event::Broken { reason },
            ) => {
                self.kill_template(at, now);
                self.note(Note::TemplateBroken { generation: id, reason: reason.clone() });
                if proving {
                    self.refuse(id, Refusal::new(format!("the template is broken: {reason}")), now);
                }
            }
            (
                T::Starting { .. }
                | T::Ready { .. }
                | T::Forking { .. }
                | T::Dumping { .. }
                | T::Lost { .. }
                | T::Backoff { .. }
                | T::Stopping { .. }
                | T::Killed { .. }
                | T::Gone,
                Event::Exited(exit),
            ) => self.on_template_exit(at, exit, now),
            (T::Starting { began, deadline, hello, .. }, Event::ChannelLost) => {
                let deadline = deadline.min(now + EXIT_WITHIN);
                self.change_template(at, T::Starting { began, deadline, look_at: None, hello }, None);
            }
            (T::Ready { .. } | T::Forking { .. } | T::Dumping { .. }, Event::ChannelLost) => {
                self.change_template(at, T::Lost { kill_at: now + EXIT_WITHIN }, None);
                self.roll_without_a_way_back(id, now);
            }
            // A message that was on its way when the template was told to stop, or came twice.
            (
                T::Ready { .. }
                | T::Forking { .. }
                | T::Dumping { .. }
                | T::Lost { .. }
                | T::Backoff { .. }
                | T::Stopping { .. }
                | T::Killed { .. }
                | T::Gone,
                Event::Hello | Event::Loaded | Event::Failed(_),
            )
            | (
                T::Starting { .. }
                | T::Lost { .. }
                | T::Backoff { .. }
                | T::Stopping { .. }
                | T::Killed { .. }
                | T::Gone,
                Event::Pong { .. },
            )
            | (
                T::Lost { .. } | T::Backoff { .. } | T::Stopping { .. } | T::Killed { .. } | T::Gone,
                Event::Broken { .. } | Event::ChannelLost,
            ) => {}
        }
    }

    fn on_template_exit(&mut self, at: usize, exit: Exit, now: Instant) {
        let id = self.generations[at].id;
        let was = self.generations[at].template.clone();
        self.change_template(at, Template::Gone, Some(&exit));
        // The signal for its stacks has ended it, too.
        let hung = match was {
            Template::Dumping { limit, .. } => Some(limit),
            Template::Starting { .. }
            | Template::Ready { .. }
            | Template::Forking { .. }
            | Template::Lost { .. }
            | Template::Backoff { .. }
            | Template::Stopping { .. }
            | Template::Killed { .. }
            | Template::Gone => None,
        };
        if let Some(limit) = hung {
            self.note(Note::TemplateDoesNotFork { generation: id, limit_s: limit.as_secs_f64() });
        }
        match self.generations[at].state {
            State::Proving => {
                let died = || exit.refusal("the process died while it booted");
                self.refuse(id, hung.map_or_else(died, does_not_fork), now);
            }
            // Its workers live on; it is started again from the pinned release.
            State::Rolling { .. } | State::Serving => {
                if let Exit::NeverBorn(refusal) = &exit {
                    self.note(Note::TemplateFailed { generation: id, refusal: refusal.clone() });
                }
                self.start_template_again(at, &was, now);
                self.count_failed_boot(at, exit.refusal("its template died"), now);
            }
            State::Draining | State::Kept | State::Abandoned => {}
        }
    }

    fn start_template_again(&mut self, at: usize, was: &Template, now: Instant) {
        if !matches!(self.phase, Phase::Running | Phase::Delaying { .. }) {
            return;
        }
        let generation = &mut self.generations[at];
        let pause = match was.ready_since() {
            Some(since) => generation.template_backoff.after_death(now.saturating_duration_since(since)),
            None => generation.template_backoff.after_failed_boot(),
        };
        let id = generation.id;
        self.change_template(at, Template::Backoff { until: now + pause }, None);
        self.roll_without_a_way_back(id, now);
    }

    pub(super) fn expire_template(&mut self, at: usize, now: Instant) {
        let generation = &self.generations[at];
        let (id, proving) = (generation.id, generation.state == State::Proving);
        if generation.template.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        match generation.template.clone() {
            Template::Starting { began, deadline, hello, .. } if deadline > now => {
                let after_s = now.saturating_duration_since(began).as_secs_f64();
                self.note(Note::TemplateStillLoads { generation: id, after_s });
                self.actions.push(Action::DumpTemplate { generation: id });
                let look_at = next_look(began, now, deadline);
                self.change_template(at, Template::Starting { began, deadline, look_at, hello }, None);
            }
            Template::Starting { began, deadline, .. } if deadline != began + generation.plan.boot_timeout => {
                let reason = "it closed its channel, and did not end".to_owned();
                self.kill_template(at, now);
                self.note(Note::TemplateBroken { generation: id, reason: reason.clone() });
                if proving {
                    self.refuse(id, Refusal::new(format!("the template is broken: {reason}")), now);
                }
            }
            Template::Starting { hello, .. } => {
                let limit_s = generation.plan.boot_timeout.as_secs_f64();
                self.kill_template(at, now);
                self.note(Note::TemplateLate { generation: id, limit_s });
                if proving {
                    let why = match hello {
                        true => "its stacks are in the log",
                        false => {
                            "Python did not come to run anything of the server: a .pth file, sitecustomize or usercustomize \
                             hangs, or the disk that it reads"
                        }
                    };
                    let reason = format!("not loaded within boot_timeout ({limit_s:.1}s); {why}");
                    self.refuse(id, Refusal::new(reason), now);
                }
            }
            Template::Forking { since, limit, .. } => {
                self.actions.push(Action::DumpTemplate { generation: id });
                self.change_template(at, Template::Dumping { since, kill_at: now + STACKS_WITHIN, limit }, None);
            }
            Template::Dumping { limit, .. } => {
                self.note(Note::TemplateDoesNotFork { generation: id, limit_s: limit.as_secs_f64() });
                self.kill_template(at, now);
                if proving {
                    self.refuse(id, does_not_fork(limit), now);
                }
            }
            Template::Backoff { .. } => {
                let starting = Template::starting(now, generation.plan.boot_timeout);
                self.change_template(at, starting, None);
                self.actions.push(Action::StartTemplate { generation: id });
            }
            Template::Stopping { .. } | Template::Lost { .. } => self.kill_template(at, now),
            Template::Killed { .. } => {
                self.note(Note::TemplateWontDie { generation: id });
                self.actions.push(Action::GiveUpTemplate { generation: id });
                let was = self.generations[at].template.clone();
                self.change_template(at, Template::Gone, None);
                match self.generations[at].state {
                    State::Rolling { .. } | State::Serving => self.start_template_again(at, &was, now),
                    // `fill` refuses it where it has no candidate.
                    State::Proving | State::Draining | State::Kept | State::Abandoned => {}
                }
            }
            Template::Ready { .. } | Template::Gone => {}
        }
    }

    /// Derives from the workers that are not born yet whether the template forks. `birth`: one of them was born just
    /// now, or never will be.
    pub(super) fn watch_forks(&mut self, at: usize, birth: bool, now: Instant) {
        let unborn = self.generations[at].unborn();
        let booting = self.generations.iter().flat_map(|generation| &generation.workers);
        let booting = booting.filter(|worker| matches!(worker.state, WorkerState::Starting { .. })).count();
        let limit = FORK_WITHIN.max(FORK_EACH * booting as u32);
        let forking = |since| Template::Forking { since, deadline: now + limit, limit };
        match self.generations[at].template {
            Template::Ready { since } if unborn > 0 => self.change_template(at, forking(since), None),
            Template::Forking { since, .. } | Template::Dumping { since, .. } if unborn == 0 => {
                self.change_template(at, Template::Ready { since }, None);
            }
            Template::Forking { since, .. } | Template::Dumping { since, .. } if birth => {
                self.change_template(at, forking(since), None);
            }
            Template::Starting { .. }
            | Template::Ready { .. }
            | Template::Forking { .. }
            | Template::Dumping { .. }
            | Template::Lost { .. }
            | Template::Backoff { .. }
            | Template::Stopping { .. }
            | Template::Killed { .. }
            | Template::Gone => {}
        }
    }

    pub(super) fn stop_template(&mut self, at: usize, now: Instant) {
        let id = self.generations[at].id;
        match self.generations[at].template {
            Template::Starting { .. } | Template::Dumping { .. } | Template::Lost { .. } => {
                self.kill_template(at, now);
            }
            Template::Ready { .. } | Template::Forking { .. } => {
                self.change_template(at, Template::Stopping { kill_at: now + STOP_WITHIN }, None);
                self.actions.push(Action::StopTemplate { generation: id });
            }
            Template::Backoff { .. } => self.change_template(at, Template::Gone, None),
            Template::Stopping { .. } | Template::Killed { .. } | Template::Gone => {}
        }
    }

    /// SIGKILL, at most once in a template's life.
    pub(super) fn kill_template(&mut self, at: usize, now: Instant) {
        let id = self.generations[at].id;
        match self.generations[at].template {
            Template::Starting { .. }
            | Template::Ready { .. }
            | Template::Forking { .. }
            | Template::Dumping { .. }
            | Template::Lost { .. }
            | Template::Stopping { .. } => {
                self.change_template(at, Template::Killed { give_up: now + KILLED_WITHIN }, None);
                self.actions.push(Action::KillTemplate { generation: id });
            }
            Template::Backoff { .. } => self.change_template(at, Template::Gone, None),
            Template::Killed { .. } | Template::Gone => {}
        }
    }
}

fn does_not_fork(limit: Duration) -> Refusal {
    let limit_s = limit.as_secs_f64();
    Refusal::new(format!(
        "the template did not fork for {limit_s:.1}s: it is stopped, or a fork handler of the application waits"
    ))
}
