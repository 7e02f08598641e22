//! How something that was asked for ended: what whoever asked hears, and what `status` tells of the latest reload.
//! Plain data; it decides nothing and sends nothing.

use std::fmt;
use std::time::Duration;

use forkmaster_wire::message::{Failure, GenerationId, SlotIndex};
use serde::{Deserialize, Serialize};

use super::canary::Canary;
use super::note::WorkerName;
use super::snapshot::{LastReload, Word};
use crate::exit_code::ExitCode;

/// What was asked for, as refusals name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// The first generation of a master.
    Start,
    #[default]
    Reload,
    Rollback,
    Upgrade,
}

impl Verb {
    pub fn word(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Reload => "reload",
            Verb::Rollback => "rollback",
            Verb::Upgrade => "upgrade",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: String,
    /// The Python traceback, or nothing.
    pub details: String,
    /// What the master exits with where this ends a first start.
    #[serde(skip, default = "unavailable")]
    pub exit_code: ExitCode,
}

/// Of a refusal that is not the first start's.
fn unavailable() -> ExitCode {
    ExitCode::Unavailable
}

/// The answer to one ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A reload that was waited for has ended.
    Reload(Reload),
    /// A reload that nobody waits for has begun.
    Begun { generation: GenerationId },
    /// A worker serves.
    Ready,
    /// So many workers are wanted now; they serve where that was waited for.
    Scaled { workers: u32 },
    /// Another worker serves in this slot.
    Recycled { slot: SlotIndex, pid: Option<i32>, kept: Option<i32> },
    /// No request is in the application, and none is begun.
    Paused,
    /// All workers serve again.
    Resumed,
    /// What workers do.
    Dumped(Vec<Stacks>),
    /// It will be done.
    Asked,
    /// So many processes of a service run, or are wanted.
    ServiceScaled { processes: u32 },
    /// The master stops; the connection ends with it.
    Stopping,
    /// Not done.
    Refused(Refusal),
}

/// The Python stacks of one worker; no text where it did not tell them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stacks {
    pub worker: WorkerName,
    pub text: String,
}

/// How a reload (or the first start) ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    #[serde(default)]
    pub verb: Verb,
    /// None: refused before it had a number.
    pub generation: Option<GenerationId>,
    pub took: Duration,
    pub end: End,
    /// What its canary has shown.
    pub canary: Option<Box<Canary>>,
    /// How its rehearsal went.
    #[serde(default)]
    pub rehearsal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Committed,
    Refused(Refusal),
    /// A later reload came before this one was done.
    Superseded {
        by: GenerationId,
    },
    /// TERM came first.
    Stopped,
}

impl End {
    /// As `history`, metrics and hooks call it.
    pub fn word(&self) -> &'static str {
        match self {
            End::Committed => "committed",
            End::Refused(_) => "refused",
            End::Superseded { .. } => "superseded",
            End::Stopped => "stopped",
        }
    }
}

impl Refusal {
    pub fn new(reason: impl Into<String>) -> Refusal {
        Refusal { reason: reason.into(), details: String::new(), exit_code: ExitCode::Unavailable }
    }

    /// The master stops: nothing new is begun.
    pub fn stopping() -> Refusal {
        Refusal::new("the master was told to stop")
    }

    /// The details as the lines below a log line, or nothing.
    pub fn details_below(&self) -> String {
        match self.details.trim_end() {
            "" => String::new(),
            details => format!("\n{details}"),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal { details: failure.details, ..Refusal::new(failure.reason) }
    }
}

impl Reload {
    /// For `status`, and for whoever asked.
    pub fn shown(&self) -> LastReload {
        let (reason, details) = match &self.end {
            End::Committed => (String::new(), String::new()),
            End::Refused(refusal) => (refusal.reason.clone(), refusal.details.clone()),
            End::Superseded { by } => (format!("superseded by a later reload (generation {by})"), String::new()),
            End::Stopped => (Refusal::stopping().reason, String::new()),
        };
        let (ok, took_s) = (self.end == End::Committed, self.took.as_secs_f64());
        let (canary, rehearsal) = (self.canary.clone(), self.rehearsal.clone());
        let verb = Word::Borrowed(self.verb.word());
        LastReload { ok, verb, generation: self.generation, reason, details, took_s, canary, rehearsal }
    }
}
