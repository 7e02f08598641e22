//! What the process was told, and what follows from it. Decides only: the loop carries out the effects.

use std::sync::Arc;
use std::time::Duration;

use super::maintenance::Page;

/// From a handle to the loop.
#[derive(Debug)]
pub enum Command {
    Serve,
    Drain {
        keep: Vec<u32>,
    },
    /// As `Drain`, while the successors are not yet told to serve.
    Yield,
    CloseListeners(Vec<u32>),
    /// Another release serves in this one's place.
    StandAside,
    Stop {
        idle: Duration,
    },
    /// Whoever commands is gone, in the middle of anything.
    Orphaned,
    Retire,
    Pause,
    /// None: a line of text.
    Maintenance(Option<Arc<Page>>),
    Look,
}

/// What the process was told last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not yet told to serve.
    Paused,
    Serving,
    /// Finishing what was begun; ends when no connection is left.
    Draining,
    /// As `Draining`, and it does not end yet: its successors are about to be told to serve, by somebody who may be gone before
    /// that.
    Yielding,
    /// As `Draining`, and what waits for whoever is free is left to others, also at the end: it has never served, or another
    /// release serves in its place.
    Aside,
    /// As `Aside`, and requests that have not begun go to another worker or get 503.
    Retiring,
    /// Told to pause: what was begun is finished, and nothing is begun until it is told to serve again. Connections lie in
    /// the handoff queue, or wait here for room in it. It does not end.
    Held,
    /// As `Held`, and whoever comes is answered with 503 rather than held.
    Maintenance,
}

/// What becomes of listeners.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    Resume,
    /// Somebody was woken for a connection, and may be gone: whether one waits is looked up.
    Look,
    /// They stay open, and nobody listens to them any more.
    PauseAllBut(Vec<u32>),
    /// Emptied first, where this process was accepting from them.
    Close(Vec<u32>),
    CloseAll,
    /// Nobody was accepting from them, and whoever waits there is answered first.
    ResumeAndCloseAll,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Report {
    Nothing,
    Serving,
    Draining,
    /// `Draining`, when nothing will be accepted any more.
    DrainingOnceQuiet,
    /// `Paused`, when no request is under way any more.
    PausedOnceQuiet,
    /// Clients are turned away; what is due of a pause stays due.
    Maintenance,
}

/// How long idle connections stay.
#[derive(Debug, PartialEq, Eq)]
pub enum Keepalive {
    Unchanged,
    AsConfigured,
    /// The service stops.
    AtMost(Duration),
}

/// What becomes of the connections that other workers could have.
#[derive(Debug, PartialEq, Eq)]
pub enum Handoff {
    Unchanged,
    /// They stay, and those of others are taken.
    Receive,
    /// They go to others, except those from these listeners, which no other worker has.
    GiveAllBut(Vec<u32>),
    /// They go to the queue, and what does not go is held here, unread: nobody takes anything from the queue meanwhile.
    HoldBack,
    /// The service ends: they stay, and those that lie in the queue are taken too.
    Empty,
    /// They stay, and none of others is taken.
    Nothing,
}

/// What a command comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Effects {
    pub listeners: Change,
    /// Connections are taken from now on, or no longer; then every answer says `Connection: close`, unless the connection
    /// goes to another worker.
    pub accepting: Option<bool>,
    pub keepalive: Keepalive,
    pub report: Report,
    /// Requests that wait for a thread are taken back, and refused.
    pub recall: bool,
    pub handoff: Handoff,
}

impl Mode {
    pub fn obey(self, command: Command) -> (Mode, Effects) {
        let ends = |listeners, report| Effects {
            listeners,
            accepting: Some(false),
            keepalive: Keepalive::Unchanged,
            report,
            recall: false,
            handoff: Handoff::Unchanged,
        };
        match command {
            Command::Serve => {
                let listeners = Change::Resume;
                let keepalive = Keepalive::AsConfigured;
                let (report, handoff) = (Report::Serving, Handoff::Receive);
                let effects = Effects { listeners, accepting: Some(true), keepalive, report, recall: false, handoff };
                (Mode::Serving, effects)
            }
            Command::Drain { keep } => {
                let handoff = Handoff::GiveAllBut(keep.clone());
                let effects = ends(Change::PauseAllBut(keep), Report::Draining);
                (self.drained(), Effects { handoff, ..effects })
            }
            Command::Yield => {
                let mode = match self.drained() {
                    Mode::Draining => Mode::Yielding,
                    other => other,
                };
                let handoff = Handoff::GiveAllBut(Vec::new());
                (mode, Effects { handoff, ..ends(Change::PauseAllBut(Vec::new()), Report::Draining) })
            }
            Command::CloseListeners(which) => {
                let effects = ends(Change::Close(which), Report::Nothing);
                (self, Effects { accepting: None, ..effects })
            }
            Command::StandAside => {
                let mode = match self {
                    Mode::Draining | Mode::Yielding | Mode::Aside => Mode::Aside,
                    // It serves, or will be told more.
                    Mode::Paused | Mode::Serving | Mode::Retiring | Mode::Held | Mode::Maintenance => self,
                };
                let effects = ends(Change::Close(Vec::new()), Report::Nothing);
                (mode, Effects { accepting: None, ..effects })
            }
            Command::Stop { idle } => {
                let listeners = match self {
                    Mode::Held => Change::ResumeAndCloseAll,
                    Mode::Paused
                    | Mode::Serving
                    | Mode::Draining
                    | Mode::Yielding
                    | Mode::Aside
                    | Mode::Retiring
                    | Mode::Maintenance => Change::CloseAll,
                };
                self.stop(listeners, idle)
            }
            Command::Orphaned => {
                let listeners = match self {
                    // Its successors may not have been told to serve.
                    Mode::Held | Mode::Yielding => Change::ResumeAndCloseAll,
                    Mode::Paused
                    | Mode::Serving
                    | Mode::Draining
                    | Mode::Aside
                    | Mode::Retiring
                    | Mode::Maintenance => Change::CloseAll,
                };
                self.stop(listeners, Duration::ZERO)
            }
            Command::Retire => {
                let effects = ends(Change::PauseAllBut(Vec::new()), Report::Draining);
                (Mode::Retiring, Effects { recall: true, handoff: Handoff::GiveAllBut(Vec::new()), ..effects })
            }
            Command::Pause => match self {
                // Also whoever was told to drain, where the successor has failed.
                Mode::Paused
                | Mode::Serving
                | Mode::Draining
                | Mode::Yielding
                | Mode::Aside
                | Mode::Held
                | Mode::Maintenance => {
                    let effects = ends(Change::PauseAllBut(Vec::new()), Report::PausedOnceQuiet);
                    (Mode::Held, Effects { handoff: Handoff::HoldBack, ..effects })
                }
                // It will be killed, and begins nothing anyway.
                Mode::Retiring => {
                    let nothing = ends(Change::Close(Vec::new()), Report::Nothing);
                    (self, Effects { accepting: None, ..nothing })
                }
            },
            Command::Maintenance(_) => match self {
                Mode::Held | Mode::Maintenance => {
                    let (accepting, keepalive) = (Some(true), Keepalive::Unchanged);
                    let (listeners, report, handoff) = (Change::Resume, Report::Maintenance, Handoff::Receive);
                    let effects = Effects { listeners, accepting, keepalive, report, recall: false, handoff };
                    (Mode::Maintenance, effects)
                }
                // It was told something else since.
                Mode::Paused | Mode::Serving | Mode::Draining | Mode::Yielding | Mode::Aside | Mode::Retiring => {
                    let nothing = ends(Change::Close(Vec::new()), Report::Nothing);
                    (self, Effects { accepting: None, ..nothing })
                }
            },
            Command::Look => {
                let effects = ends(Change::Look, Report::Nothing);
                (self, Effects { accepting: None, ..effects })
            }
        }
    }

    fn stop(self, listeners: Change, idle: Duration) -> (Mode, Effects) {
        let handoff = match self {
            Mode::Serving | Mode::Draining | Mode::Yielding | Mode::Held | Mode::Maintenance => Handoff::Empty,
            // A request of others would get an answer of a release that is not meant to serve, or 503.
            Mode::Paused | Mode::Aside | Mode::Retiring => Handoff::Nothing,
        };
        let effects = Effects {
            listeners,
            accepting: Some(false),
            keepalive: Keepalive::AtMost(idle),
            report: Report::DrainingOnceQuiet,
            recall: false,
            handoff,
        };
        (self.drained(), effects)
    }

    /// A process that will be killed begins nothing more, whatever it is told besides.
    fn drained(self) -> Mode {
        match self {
            Mode::Retiring => Mode::Retiring,
            Mode::Paused | Mode::Aside => Mode::Aside,
            Mode::Serving | Mode::Draining | Mode::Yielding | Mode::Held | Mode::Maintenance => Mode::Draining,
        }
    }

    /// Ends when no connection is left.
    pub fn is_ending(self) -> bool {
        match self {
            Mode::Draining | Mode::Aside | Mode::Retiring => true,
            Mode::Paused | Mode::Serving | Mode::Yielding | Mode::Held | Mode::Maintenance => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retiring_process_stays_so_until_it_serves_again() {
        let (mode, effects) = Mode::Serving.obey(Command::Retire);
        assert_eq!(mode, Mode::Retiring);
        assert!(effects.recall && effects.accepting == Some(false));
        assert_eq!(effects.listeners, Change::PauseAllBut(Vec::new()));
        for command in [Command::Drain { keep: vec![1] }, Command::Stop { idle: Duration::ZERO }] {
            let (mode, effects) = mode.obey(command);
            assert_eq!(mode, Mode::Retiring);
            assert!(!effects.recall);
        }
        let (mode, effects) = mode.obey(Command::Serve);
        assert_eq!((mode, effects.accepting, effects.report), (Mode::Serving, Some(true), Report::Serving));
        assert_eq!(effects.handoff, Handoff::Receive);
        assert_eq!(effects.keepalive, Keepalive::AsConfigured);
    }

    #[test]
    fn stop_reports_once_nothing_is_accepted() {
        let idle = Duration::from_secs(1);
        let (mode, effects) = Mode::Serving.obey(Command::Stop { idle });
        assert_eq!((mode, effects.report), (Mode::Draining, Report::DrainingOnceQuiet));
        assert_eq!((effects.listeners, effects.keepalive), (Change::CloseAll, Keepalive::AtMost(idle)));
        assert!(mode.is_ending() && !Mode::Serving.is_ending());
        assert_eq!(effects.handoff, Handoff::Empty);
        assert_eq!(Mode::Paused.obey(Command::Stop { idle }).1.handoff, Handoff::Nothing);
        // Its release was given up before, which is a drain.
        let (mode, effects) = Mode::Paused.obey(Command::Drain { keep: Vec::new() });
        assert_eq!((mode, effects.accepting, mode.is_ending()), (Mode::Aside, Some(false), true));
        assert_eq!(mode.obey(Command::Stop { idle }).1.handoff, Handoff::Nothing);
        assert_eq!(mode.obey(Command::Stop { idle }).0, Mode::Aside);
    }

    #[test]
    fn whoever_stands_aside_takes_nothing_at_the_end() {
        let idle = Duration::from_secs(1);
        for (mode, aside) in [
            (Mode::Yielding, Mode::Aside),
            (Mode::Draining, Mode::Aside),
            (Mode::Aside, Mode::Aside),
            (Mode::Retiring, Mode::Retiring),
        ] {
            let (mode, effects) = mode.obey(Command::StandAside);
            assert_eq!((mode, effects.accepting, effects.handoff), (aside, None, Handoff::Unchanged));
            for command in [Command::Stop { idle }, Command::Orphaned] {
                let (after, effects) = mode.obey(command);
                assert_eq!((after, effects.handoff, effects.listeners), (aside, Handoff::Nothing, Change::CloseAll));
            }
        }
        for mode in [Mode::Paused, Mode::Serving, Mode::Held, Mode::Maintenance] {
            assert_eq!(mode.obey(Command::StandAside).0, mode);
        }
        assert_eq!(Mode::Aside.obey(Command::Serve).0, Mode::Serving);
    }

    #[test]
    fn whoever_yields_stays_until_its_successors_serve() {
        let (mode, effects) = Mode::Serving.obey(Command::Yield);
        assert_eq!((mode, effects.accepting, effects.report), (Mode::Yielding, Some(false), Report::Draining));
        assert_eq!(effects.handoff, Handoff::GiveAllBut(Vec::new()));
        assert!(!mode.is_ending());
        assert!(mode.obey(Command::StandAside).0.is_ending());
        let idle = Duration::ZERO;
        for command in [Command::Drain { keep: Vec::new() }, Command::Stop { idle }, Command::Orphaned] {
            assert_eq!(mode.obey(command).0, Mode::Draining);
        }
        assert_eq!(mode.obey(Command::Serve).0, Mode::Serving);
        assert_eq!(mode.obey(Command::Pause).0, Mode::Held);
        for (before, after) in [
            (Mode::Paused, Mode::Aside),
            (Mode::Retiring, Mode::Retiring),
            (Mode::Held, Mode::Yielding),
            (Mode::Draining, Mode::Yielding),
        ] {
            assert_eq!(before.obey(Command::Yield).0, after);
        }
    }

    #[test]
    fn an_orphan_that_has_yielded_accepts_what_waits() {
        let (_, effects) = Mode::Yielding.obey(Command::Orphaned);
        assert_eq!((effects.listeners, effects.handoff), (Change::ResumeAndCloseAll, Handoff::Empty));
        assert_eq!(effects.keepalive, Keepalive::AtMost(Duration::ZERO));
        let (_, effects) = Mode::Draining.obey(Command::Orphaned);
        assert_eq!((effects.listeners, effects.handoff), (Change::CloseAll, Handoff::Empty));
    }

    #[test]
    fn a_paused_process_serves_again_or_ends_and_one_that_ends_is_not_paused() {
        let (mode, effects) = Mode::Serving.obey(Command::Pause);
        assert_eq!((mode, effects.accepting, effects.report), (Mode::Held, Some(false), Report::PausedOnceQuiet));
        assert_eq!((effects.handoff, effects.recall, mode.is_ending()), (Handoff::HoldBack, false, false));
        assert_eq!(mode.obey(Command::Pause).0, Mode::Held);
        assert_eq!(mode.obey(Command::Serve).0, Mode::Serving);
        assert_eq!(mode.obey(Command::Drain { keep: Vec::new() }).0, Mode::Draining);
        let (_, stops) = mode.obey(Command::Stop { idle: Duration::ZERO });
        assert_eq!((stops.listeners, stops.handoff), (Change::ResumeAndCloseAll, Handoff::Empty));
        assert_eq!(mode.obey(Command::Retire).0, Mode::Retiring);
        assert_eq!(Mode::Draining.obey(Command::Pause).0, Mode::Held);
        let (mode, effects) = Mode::Retiring.obey(Command::Pause);
        assert_eq!((mode, effects.accepting, effects.report), (Mode::Retiring, None, Report::Nothing));
    }

    #[test]
    fn a_maintenance_takes_connections_and_follows_a_pause_only() {
        let (mode, effects) = Mode::Held.obey(Command::Maintenance(None));
        assert_eq!((mode, effects.accepting, effects.report), (Mode::Maintenance, Some(true), Report::Maintenance));
        assert_eq!((effects.listeners, effects.handoff, mode.is_ending()), (Change::Resume, Handoff::Receive, false));
        // Another page.
        assert_eq!(mode.obey(Command::Maintenance(None)).0, Mode::Maintenance);
        // Back to a pause that holds.
        let (held, effects) = mode.obey(Command::Pause);
        assert_eq!((held, effects.handoff), (Mode::Held, Handoff::HoldBack));
        let (_, stops) = mode.obey(Command::Stop { idle: Duration::ZERO });
        assert_eq!((stops.listeners, stops.handoff), (Change::CloseAll, Handoff::Empty));
        assert_eq!(mode.obey(Command::Drain { keep: Vec::new() }).0, Mode::Draining);
        assert_eq!(mode.obey(Command::Serve).0, Mode::Serving);
        for other in [Mode::Paused, Mode::Serving, Mode::Draining, Mode::Retiring] {
            let (after, effects) = other.obey(Command::Maintenance(None));
            assert_eq!((after, effects.accepting, effects.report), (other, None, Report::Nothing));
        }
    }

    #[test]
    fn looking_changes_nothing_else() {
        for mode in [Mode::Paused, Mode::Serving, Mode::Draining, Mode::Aside, Mode::Retiring] {
            let (after, effects) = mode.obey(Command::Look);
            assert_eq!((after, effects.accepting, effects.report), (mode, None, Report::Nothing));
            assert_eq!((effects.listeners, effects.keepalive), (Change::Look, Keepalive::Unchanged));
            assert_eq!((effects.handoff, effects.recall), (Handoff::Unchanged, false));
        }
    }

    /// A listener that is given up says nothing about the others.
    #[test]
    fn closing_listeners_changes_no_mode() {
        for mode in
            [Mode::Paused, Mode::Serving, Mode::Draining, Mode::Aside, Mode::Retiring, Mode::Held, Mode::Maintenance]
        {
            let (after, effects) = mode.obey(Command::CloseListeners(vec![3]));
            assert_eq!((after, effects.accepting, effects.report), (mode, None, Report::Nothing));
            assert_eq!((effects.listeners, effects.keepalive), (Change::Close(vec![3]), Keepalive::Unchanged));
        }
    }
}
