//! The state of a service at one moment, as plain data: what `status` shows and metrics will count. The field names
//! are an interface for programs. Durations are in seconds, sizes in bytes. Both ends of the control socket use these
//! types, and the two may be of different versions: fields that a reader does not know are skipped, and what is
//! missing has its default. Nothing here looks anything up.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;

use forkmaster_wire::message::{GenerationId, SlotIndex};
use serde::{Deserialize, Serialize};

use super::canary::Canary;

/// The name of a state. Text and no enum: another version may have a state more.
pub type Word = Cow<'static, str>;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    pub name: Option<String>,
    pub version: String,
    /// By which name this program was called; an upgrade executes what is there.
    pub executable: Option<PathBuf>,
    pub pid: u32,
    pub state: Word,
    /// A worker serves, and the master was not told to stop.
    pub ready: bool,
    /// Since the start.
    pub uptime_s: f64,
    pub generations: Vec<Generation>,
    pub listeners: Vec<Listener>,
    /// The totals of all processes, also of those that are gone.
    pub requests: u64,
    pub accepted: u64,
    pub errors: u64,
    /// Requests that got 504, since they took too long.
    pub timed_out: u64,
    /// Requests that had waited too long for a thread, and got 503.
    pub shed: u64,
    /// Requests that got 503 because of a maintenance.
    pub turned_away: u64,
    /// Requests that ended with their worker, which died or was killed.
    pub lost: u64,
    pub handoffs: Handoffs,
    /// Where they are; none before the first start, and from a master that does not tell.
    pub logs: Option<Logs>,
    /// The template that is kept for a rollback, or was; none where none is kept.
    pub kept: Option<Kept>,
    pub last_reload: Option<LastReload>,
    /// The latest refusal in full, until a reload is good.
    pub last_refusal: Option<LastReload>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    pub generation: GenerationId,
    #[serde(default)]
    pub state: Word,
    #[serde(default)]
    pub release: PathBuf,
    pub venv: Option<PathBuf>,
    /// The version; none until the interpreter has said it.
    pub python: Option<String>,
    #[serde(default)]
    pub preload: bool,
    #[serde(default)]
    pub in_place: bool,
    /// No temporary directory is writable: large request bodies have only memory.
    #[serde(default)]
    pub bodies_in_memory: bool,
    #[serde(default)]
    pub age_s: f64,
    #[serde(default)]
    pub workers_wanted: u32,
    /// The same, or what it would be were they not switched off.
    #[serde(default)]
    pub workers_when_on: u32,
    /// What its reload waits for right now.
    pub waiting: Option<String>,
    /// What its canary has shown; none where there was no canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Box<Canary>>,
    #[serde(default)]
    pub template: Template,
    #[serde(default)]
    pub workers: Vec<Worker>,
    #[serde(default)]
    pub services: Vec<ServiceProcess>,
}

/// A process of a `[[service]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceProcess {
    pub name: String,
    /// From 0, within its service.
    pub number: u32,
    pub pid: Option<i32>,
    pub state: Word,
    /// How often it was started again.
    pub restarts: u32,
    /// The addresses of the sockets that it was handed.
    pub listeners: Vec<String>,
    /// Only of one that runs every so often.
    pub runs: Option<Runs>,
}

/// The runs of a service that runs every so often; they are counted over deploys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Runs {
    pub every_s: f64,
    pub next_s: f64,
    pub ended: u64,
    /// Of those that have ended.
    pub failed: u64,
    /// They were due while another one ran.
    pub skipped: u64,
    /// How the last one has ended: `exit code 0`, `SIGKILL`.
    pub last: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Template {
    pub pid: Option<i32>,
    pub state: Word,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    pub slot: SlotIndex,
    pub pid: Option<i32>,
    #[serde(default)]
    pub state: Word,
    #[serde(default)]
    pub age_s: f64,
    #[serde(default)]
    pub requests: u64,
    /// App threads inside the application.
    #[serde(default)]
    pub busy: u32,
    #[serde(default)]
    pub connections: u32,
    /// Memory that it shares with nobody: what one more worker costs. Measured by itself, twice a minute; 0: not yet, or
    /// the kernel does not say.
    #[serde(default)]
    pub private_bytes: u64,
    /// The same with its share of what several share.
    #[serde(default)]
    pub pss_bytes: u64,
    /// All that it has in memory.
    #[serde(default)]
    pub resident_bytes: u64,
    /// What it runs now, the oldest first.
    #[serde(default)]
    pub running: Vec<Running>,
}

/// A template that lives on, so that a rollback need not start it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Whom it goes back to.
    pub generation: u32,
    /// Memory was short, and it is gone.
    pub given_up: bool,
    /// What its end leaves, or has left.
    pub bytes: u64,
    /// It is kept for so long yet.
    pub left_s: f64,
}

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logs {
    pub error: Place,
    /// None: there is no access log.
    pub access: Option<Place>,
}

/// A path, or the name of a stream: `stderr`, `stdout`. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Place(pub String);

impl Place {
    pub fn path(&self) -> Option<PathBuf> {
        self.0.starts_with('/').then(|| PathBuf::from(&self.0))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request that an app thread works on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    pub method: String,
    /// Without the query, and cut where it is long.
    pub path: String,
    pub age_s: f64,
    /// The client's address; none until its request has been read by the application's side.
    pub client: Option<String>,
}

/// Connections that went from worker to worker: totals of all processes. What was given and not taken lies in the queue, or
/// was lost with a worker that was killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Handoffs {
    pub given: u64,
    /// Of those given: a request waited there, and no thread was free.
    pub shared: u64,
    pub taken: u64,
    /// How often a worker found the queue full and waited.
    pub queue_full: u64,
    /// They came and could not be used.
    pub lost: u64,
}

impl Handoffs {
    pub fn add(&mut self, other: Handoffs) {
        self.join(other, u64::saturating_add);
    }

    /// Those that were given and not shared: their worker leaves.
    pub fn left(&self) -> u64 {
        self.given.saturating_sub(self.shared)
    }

    /// The larger of each, also of those that left: they are shown by themselves, and must not go back. A worker counts one
    /// that it shares in two steps, and it may be read between the two.
    pub fn raise(&mut self, other: Handoffs) {
        let left = self.left().max(other.left());
        self.join(other, u64::max);
        self.given = left.saturating_add(self.shared);
    }

    fn join(&mut self, other: Handoffs, join: impl Fn(u64, u64) -> u64) {
        let Handoffs { given, shared, taken, queue_full, lost } = *self;
        *self = Handoffs {
            given: join(given, other.given),
            shared: join(shared, other.shared),
            taken: join(taken, other.taken),
            queue_full: join(queue_full, other.queue_full),
            lost: join(lost, other.lost),
        };
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listener {
    pub address: String,
}

/// How the latest reload (or the start) ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastReload {
    pub ok: bool,
    /// `start`, `reload`, `rollback`, `upgrade`; empty where the master does not tell.
    pub verb: Word,
    /// None: refused before it had a number.
    pub generation: Option<GenerationId>,
    pub reason: String,
    /// The Python traceback, or nothing.
    pub details: String,
    pub took_s: f64,
    /// What its canary has shown; none where there was no canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Box<Canary>>,
    /// How its rehearsal went; none where there was no rehearsal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_another_version_can_be_read() {
        let newer = r#"{"v":1,"ok":true,"name":"shop","version":"0.9.0","pid":7,"state":"paused","ready":false,"paused_since_s":3,
            "generations":[{"generation":4,"state":"kept","kept_until_s":9,"release":"/srv/1","venv":null,"python":"3.15.0",
                "workers":[{"slot":0,"pid":9,"state":"serving","age_s":1.5,"requests":3,"cpu_s":2}]}]}"#;
        let snapshot: Snapshot = serde_json::from_str(newer).unwrap();
        assert_eq!((snapshot.state.as_ref(), snapshot.pid), ("paused", 7));
        let generation = &snapshot.generations[0];
        assert_eq!((generation.generation, generation.workers[0].requests), (GenerationId(4), 3));
        let older = r#"{"state":"running","ready":true}"#;
        let snapshot: Snapshot = serde_json::from_str(older).unwrap();
        assert!(snapshot.ready && snapshot.generations.is_empty() && snapshot.name.is_none());
    }

    /// As found: the counter of those whose worker leaves went back by one where it was read while one was shared.
    #[test]
    fn what_left_does_not_go_back_while_one_that_is_shared_is_counted() {
        let read = |given, shared| Handoffs { given, shared, ..Handoffs::default() };
        let mut shown = read(10, 5);
        shown.raise(read(10, 6));
        assert_eq!((shown.left(), shown.shared), (5, 6));
        shown.raise(read(11, 6));
        assert_eq!((shown.left(), shown.shared, shown.given), (5, 6, 11));
        shown.raise(read(12, 6));
        assert_eq!((shown.left(), shown.given), (6, 12));
    }
}
