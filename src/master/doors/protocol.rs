//! What is said over the control socket: one JSON object a line in each direction. Both ends use these types, and the
//! two may be of different versions, since a deploy replaces the client before the master. So within one `VERSION` the
//! protocol only grows: unknown fields are skipped, missing ones have a default, and what a master does not know it
//! refuses by name. Nothing here does input or output.

use forkmaster_wire::json;
use forkmaster_wire::message::{GenerationId, SlotIndex};
use forkmaster_wire::text;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::facts::history::Entry;
use crate::facts::note::WorkerName;
use crate::facts::outcome;
use crate::facts::snapshot::{LastReload, Snapshot, Word};

/// In every answer. A request without it is of version 1, and has none in that version: the first masters refused what they
/// did not know.
pub const VERSION: u32 = 1;

/// The largest answer: a status with thousands of workers, or the stacks of all. The master keeps so much for a client that does
/// not read.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    Status,
    /// Answered when the new generation has committed or was refused; at once without `wait`.
    Reload {
        #[serde(default = "yes")]
        wait: bool,
        /// Also what was rolled back from.
        #[serde(default, skip_serializing_if = "is_no")]
        force: bool,
    },
    /// The same, with requests held back while this command runs between the last request of the old release and the first
    /// of the new one; no words: nothing is run. A verb of its own, so that an older master refuses it and does not reload
    /// without the command.
    ReloadPaused {
        #[serde(default)]
        force: bool,
        #[serde(default)]
        argv: Vec<String>,
        timeout_ms: u64,
    },
    /// The same, and clients get 503 once the pause has lasted so long: with this page, a path as the master sees it, or a line of
    /// text.
    ReloadPausedAnswering {
        #[serde(default)]
        force: bool,
        #[serde(default)]
        argv: Vec<String>,
        timeout_ms: u64,
        after_ms: u64,
        #[serde(default)]
        page: Option<String>,
    },
    /// A reload with a canary of so many workers, 0: without one, whatever the settings say. A verb of its own for the same
    /// reason.
    ReloadCanary {
        #[serde(default = "yes")]
        wait: bool,
        #[serde(default)]
        force: bool,
        workers: u32,
        #[serde(default)]
        hold_ms: Option<u64>,
    },
    /// The canary has shown enough: its generation takes over. Answered like a reload.
    Promote {
        #[serde(default = "yes")]
        wait: bool,
    },
    /// The canary has shown enough: its generation is given up.
    Abandon,
    /// Finish what runs and begin nothing. Answered when no request is in the application any more.
    Pause {
        timeout_ms: u64,
    },
    /// The same, and clients get 503 as with `ReloadPausedAnswering`. A verb of its own: an older master would hold them.
    PauseAnswering {
        timeout_ms: u64,
        after_ms: u64,
        #[serde(default)]
        page: Option<String>,
    },
    /// Answered when the workers serve again.
    Resume,
    /// A new generation as an earlier one was, the one before this one where none is named; answered like a reload.
    Rollback {
        #[serde(default = "yes")]
        wait: bool,
        #[serde(default)]
        to: Option<GenerationId>,
    },
    /// What is remembered of deploys, and what the generations do that serve or drain.
    History,
    /// Answered when a worker serves.
    WaitReady,
    /// So many workers more or fewer; answered with how many are wanted, when they serve or at once.
    Scale {
        by: i32,
        #[serde(default)]
        wait: bool,
    },
    /// So many workers; 0: none, and the sockets are held. Answered like `scale`.
    ScaleTo {
        workers: u32,
        #[serde(default)]
        wait: bool,
    },
    /// A successor for the worker of a slot; answered when it serves, or at once.
    Recycle {
        slot: SlotIndex,
        #[serde(default)]
        wait: bool,
    },
    /// The same, and the old worker stays alive out of service for so long. A verb of its own: an older master would end it.
    RecycleKept {
        slot: SlotIndex,
        keep_ms: u64,
        #[serde(default)]
        wait: bool,
    },
    /// Another binary takes over; answered by that one, or with the reason why not. `timeout_ms`: for a quiet moment and the
    /// new binary's word.
    Upgrade {
        timeout_ms: u64,
    },
    /// So many processes of a service, or so many more or fewer; answered with how many are wanted, when they run or at once.
    ScaleService {
        name: String,
        #[serde(default)]
        by: Option<i32>,
        #[serde(default)]
        to: Option<u32>,
        #[serde(default)]
        wait: bool,
    },
    /// New processes for those of a service, or for the one with this number; answered when they run, or at once.
    RecycleService {
        name: String,
        #[serde(default)]
        number: Option<u32>,
        #[serde(default)]
        wait: bool,
    },
    /// Answered when the logs were opened again.
    ReopenLogs,
    /// The Python stacks of the workers, or of those in one slot.
    Dump {
        #[serde(default)]
        slot: Option<SlotIndex>,
    },
    /// Answered at once; then a line for each event, until the master ends.
    Events,
    /// Answered at once; the connection ends with the master.
    Stop {
        #[serde(default)]
        now: bool,
    },
}

fn yes() -> bool {
    true
}

fn is_empty(word: &Word) -> bool {
    word.is_empty()
}

fn is_no(value: &bool) -> bool {
    !value
}

/// The words that `command` may be.
const COMMANDS: [&str; 24] = [
    "status",
    "reload",
    "reload_paused",
    "reload_paused_answering",
    "reload_canary",
    "promote",
    "abandon",
    "pause",
    "pause_answering",
    "resume",
    "rollback",
    "history",
    "wait_ready",
    "scale",
    "scale_to",
    "recycle",
    "recycle_kept",
    "upgrade",
    "scale_service",
    "recycle_service",
    "reopen_logs",
    "dump",
    "events",
    "stop",
];

/// What a master answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Reply {
    Status(Box<Snapshot>),
    /// The outcome of a reload, good or bad.
    Reload(Reloaded),
    Proving(Proving),
    Ready {},
    Done(Done),
    Scaled(Scaled),
    Recycled(Recycled),
    ServiceScaled(ServiceScaled),
    Dumped(Dumped),
    History(History),
    Stopping(Stopping),
    Upgraded(Upgraded),
    Refused(Refused),
}

/// A reload has begun, and its outcome is not waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proving {
    pub generation: GenerationId,
}

/// How a reload ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reloaded {
    #[serde(flatten)]
    pub last: LastReload,
    /// The word for the service: what has taken over does not serve where that is paused. Empty: an older master.
    #[serde(default)]
    pub state: Word,
}

/// Done, and how the service stands, as above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    #[serde(skip_serializing_if = "is_empty")]
    pub state: Word,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaled {
    pub workers: u32,
    /// As above.
    #[serde(default)]
    pub state: Word,
}

/// So many processes of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceScaled {
    pub processes: u32,
}

/// The worker that serves in the slot now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recycled {
    pub slot: SlotIndex,
    pub pid: Option<i32>,
    /// The old one, where it stays alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_pid: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dumped {
    pub workers: Vec<Stacks>,
}

/// What one worker does: the Python stacks of its threads, or nothing where it did not tell them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stacks {
    pub generation: GenerationId,
    pub slot: SlotIndex,
    pub pid: Option<i32>,
    #[serde(default)]
    pub stacks: String,
    /// There was more than an answer about so many workers has room for. About one alone it has room for all.
    #[serde(default)]
    pub cut: bool,
}

/// What all stacks of an answer may take in JSON: it has to fit into what a client may leave unread.
const STACKS_BYTES_MAX: usize = ANSWER_BYTES_MAX - ANSWER_BYTES_MAX / 8;

impl Dumped {
    /// Each worker has the same room. What does not fit is cut at its end: of each thread the newest frames come first.
    pub fn of(workers: &[outcome::Stacks]) -> Dumped {
        let each = STACKS_BYTES_MAX / workers.len().max(1);
        let stacks = |of: &outcome::Stacks| {
            let WorkerName { generation, slot, pid } = of.worker;
            let end = text::fitting(of.text.chars(), each);
            Stacks { generation, slot, pid, stacks: of.text[..end].to_owned(), cut: end < of.text.len() }
        };
        Dumped { workers: workers.iter().map(stacks).collect() }
    }
}

/// Oldest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct History {
    pub entries: Vec<Entry>,
}

/// As a reader of another version sees it: entries that it does not know are skipped.
#[derive(Debug, Deserialize)]
pub struct HistoryRead {
    pub entries: Vec<serde_json::Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    pub pid: u32,
}

/// The new binary serves, in the process of the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    pub from: String,
    pub to: String,
    pub pid: u32,
}

/// No, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    pub reason: String,
    /// The Python traceback, or nothing.
    pub details: String,
}

impl Refused {
    pub fn because(reason: impl Into<String>) -> Refused {
        Refused { reason: reason.into(), details: String::new() }
    }
}

/// The options that ask for a maintenance.
fn answering(after_ms: u64, page: Option<&str>) -> String {
    let max = if after_ms > 0 { format!(" --max {after_ms}ms") } else { String::new() };
    let page = page.map_or_else(String::new, |page| format!(" --maintenance {page}"));
    max + &page
}

/// The part that all requests share.
#[derive(Deserialize)]
struct RequestFrame {
    #[serde(default = "version")]
    v: u32,
    command: String,
}

/// The part that all answers share.
#[derive(Deserialize)]
struct ReplyFrame {
    #[serde(default)]
    ok: bool,
}

fn version() -> u32 {
    VERSION
}

impl Request {
    /// What it would change, in words for the log. None: it only looks.
    pub fn changes(&self) -> Option<String> {
        Some(match self {
            Request::Status | Request::History | Request::WaitReady | Request::Dump { .. } | Request::Events => {
                return None
            }
            Request::Reload { force: false, .. } => "reload".to_owned(),
            Request::Reload { force: true, .. } => "reload --force".to_owned(),
            Request::ReloadPaused { argv, .. } => format!("reload --pause -- {}", argv.join(" ")),
            Request::ReloadPausedAnswering { argv, after_ms, page, .. } => {
                format!("reload --pause{} -- {}", answering(*after_ms, page.as_deref()), argv.join(" "))
            }
            Request::ReloadCanary { workers, force, .. } => {
                format!("reload --canary {workers}{}", if *force { " --force" } else { "" })
            }
            Request::Promote { .. } => "promote".to_owned(),
            Request::Abandon => "abandon".to_owned(),
            Request::Pause { .. } => "pause".to_owned(),
            Request::PauseAnswering { after_ms, page, .. } => format!("pause{}", answering(*after_ms, page.as_deref())),
            Request::Resume => "resume".to_owned(),
            Request::Rollback { to: None, .. } => "rollback".to_owned(),
            Request::Rollback { to: Some(to), .. } => format!("rollback --to {to}"),
            Request::Scale { by, .. } => format!("scale {by:+}"),
            Request::ScaleTo { workers, .. } => format!("scale {workers}"),
            Request::Recycle { slot, .. } => format!("recycle {slot}"),
            Request::Upgrade { .. } => "upgrade".to_owned(),
            Request::RecycleKept { slot, keep_ms, .. } => format!("recycle {slot} --keep {}s", keep_ms / 1000),
            Request::ScaleService { name, by: Some(by), .. } => format!("scale {name} {by:+}"),
            Request::ScaleService { name, by: None, to, .. } => format!("scale {name} {}", to.unwrap_or_default()),
            Request::RecycleService { name, number: None, .. } => format!("recycle {name}"),
            Request::RecycleService { name, number: Some(number), .. } => format!("recycle {name}:{number}"),
            Request::ReopenLogs => "reopen-logs".to_owned(),
            Request::Stop { now: false } => "stop".to_owned(),
            Request::Stop { now: true } => "stop --now".to_owned(),
        })
    }

    /// What it wants that nobody may who may only look. None: it changes nothing, and shows no code of the application.
    pub fn beyond_looking(&self) -> Option<String> {
        match self {
            Request::Dump { .. } => Some("dump".to_owned()),
            other => other.changes(),
        }
    }

    /// It asks for another generation.
    pub fn deploys(&self) -> bool {
        matches!(
            self,
            Request::Reload { .. }
                | Request::ReloadPaused { .. }
                | Request::ReloadPausedAnswering { .. }
                | Request::ReloadCanary { .. }
                | Request::Rollback { .. }
        )
    }

    /// The line that asks, with its end.
    pub fn to_line(&self) -> String {
        format!("{}\n", json::value(self))
    }

    /// Reads a line. What cannot be done is refused in words for the person who asked.
    pub fn from_line(text: &[u8]) -> Result<Request, Refused> {
        let this = concat!("this master is ", env!("CARGO_PKG_VERSION"));
        let frame: RequestFrame =
            json::read(text).map_err(|error| Refused::because(format!("not a request: {error}")))?;
        if frame.v != VERSION {
            let text = format!("{this} and speaks version {VERSION} of the control protocol, not {}", frame.v);
            return Err(Refused::because(text));
        }
        if !COMMANDS.contains(&frame.command.as_str()) {
            return Err(Refused::because(format!("{this} and does not know `{}`", frame.command)));
        }
        json::read(text)
            .map_err(|error| Refused::because(format!("{this} and cannot read this `{}`: {error}", frame.command)))
    }
}

impl Reply {
    fn is_ok(&self) -> bool {
        match self {
            Reply::Status(_) | Reply::Proving(_) | Reply::Ready {} | Reply::Done(_) => true,
            Reply::Scaled(_) | Reply::Recycled(_) | Reply::Dumped(_) | Reply::Stopping(_) => true,
            Reply::History(_) | Reply::ServiceScaled(_) | Reply::Upgraded(_) => true,
            Reply::Reload(reloaded) => reloaded.last.ok,
            Reply::Refused(_) => false,
        }
    }

    /// The line that answers, with its end.
    pub fn to_line(&self) -> String {
        let mut reply = json::value(self);
        (reply["ok"], reply["v"]) = (self.is_ok().into(), VERSION.into());
        format!("{reply}\n")
    }
}

/// Reads the answer to a request whose good answer is a `T`.
pub fn read_reply<T: DeserializeOwned>(line: &str) -> Result<T, Refused> {
    let unreadable =
        |error: serde_json::Error| Refused::because(format!("the master's answer cannot be read: {error}"));
    let frame: ReplyFrame = json::read(line.as_bytes()).map_err(unreadable)?;
    if frame.ok {
        return json::read(line.as_bytes()).map_err(unreadable);
    }
    let refused: Refused = json::read(line.as_bytes()).map_err(unreadable)?;
    match refused.reason.is_empty() {
        true => Err(Refused::because("no reason given")),
        false => Err(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Request, String> {
        Request::from_line(line.as_bytes()).map_err(|refused| refused.reason)
    }

    /// As found: the stacks of more than 64 workers were too much for an answer, and whoever asked got none.
    #[test]
    fn the_stacks_of_all_workers_fit_into_an_answer() {
        let of = |slot: u32, text: String| outcome::Stacks {
            worker: WorkerName { generation: GenerationId(1), slot: SlotIndex(slot), pid: Some(4711) },
            text,
        };
        let long = "  File \"app.py\", line 7, in f\n".repeat(3000);
        for text in [long.clone(), "\u{1}".repeat(100_000), "é".repeat(50_000)] {
            let workers: Vec<outcome::Stacks> = (0..500).map(|slot| of(slot, text.clone())).collect();
            let dumped = Dumped::of(&workers);
            assert!(dumped.workers.iter().all(|worker| worker.cut && text.starts_with(&worker.stacks)));
            assert!(!dumped.workers[0].stacks.is_empty());
            let line = Reply::Dumped(dumped).to_line();
            assert!(line.len() < ANSWER_BYTES_MAX, "{}", line.len());
        }
        let one = Dumped::of(&[of(0, long.clone())]);
        assert_eq!((one.workers[0].stacks.as_str(), one.workers[0].cut), (long.as_str(), false));
    }

    #[test]
    fn a_request_is_read_back() {
        let requests = [
            Request::Status,
            Request::Reload { wait: false, force: true },
            Request::ReloadPaused { force: false, argv: vec!["true".to_owned()], timeout_ms: 60_000 },
            Request::ReloadPausedAnswering {
                force: true,
                argv: vec!["true".to_owned()],
                timeout_ms: 60_000,
                after_ms: 10_000,
                page: None,
            },
            Request::ReloadCanary { wait: true, force: false, workers: 1, hold_ms: Some(120_000) },
            Request::Promote { wait: true },
            Request::Abandon,
            Request::Pause { timeout_ms: 30_000 },
            Request::PauseAnswering { timeout_ms: 30_000, after_ms: 0, page: Some("/srv/503.html".to_owned()) },
            Request::Resume,
            Request::Rollback { wait: true, to: Some(GenerationId(41)) },
            Request::History,
            Request::WaitReady,
            Request::Scale { by: -1, wait: false },
            Request::ScaleTo { workers: 0, wait: true },
            Request::Recycle { slot: SlotIndex(2), wait: true },
            Request::RecycleKept { slot: SlotIndex(2), keep_ms: 600_000, wait: true },
            Request::Upgrade { timeout_ms: 60_000 },
            Request::ScaleService { name: "celery".to_owned(), by: None, to: Some(2), wait: true },
            Request::RecycleService { name: "celery".to_owned(), number: Some(1), wait: false },
            Request::ReopenLogs,
            Request::Dump { slot: None },
            Request::Events,
            Request::Stop { now: true },
        ];
        for (request, command) in requests.into_iter().zip(COMMANDS) {
            let line = request.to_line();
            assert!(line.contains(&format!("\"command\":\"{command}\"")) && !line.contains("\"v\":"), "{line}");
            assert_eq!(read(&line), Ok(request));
        }
    }

    /// Lines as clients of other versions write them.
    #[test]
    fn requests_of_older_and_newer_clients_are_understood() {
        let cases = [
            // 0.1.0 before the version travelled.
            (r#"{"command":"reload","wait":true}"#, Request::Reload { wait: true, force: false }),
            (r#"{"command":"status"}"#, Request::Status),
            (r#"{"v":1,"command":"reload","wait":false}"#, Request::Reload { wait: false, force: false }),
            (r#"{"v":1,"command":"rollback"}"#, Request::Rollback { wait: true, to: None }),
            (r#"{"v":1,"command":"wait_ready"}"#, Request::WaitReady),
            (r#"{"v":1,"command":"scale","by":2}"#, Request::Scale { by: 2, wait: false }),
            // Later ones: a field more, or one that has become optional.
            (r#"{"v":1,"command":"status","requests":true}"#, Request::Status),
            (r#"{"v":1,"command":"reload","canary":{"workers":1}}"#, Request::Reload { wait: true, force: false }),
            (r#"{"v":1,"command":"stop","who":"deploy"}"#, Request::Stop { now: false }),
        ];
        for (line, request) in cases {
            assert_eq!(read(line), Ok(request), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let cases = [
            (r#"{"v":1,"command":"teleport"}"#, "this master is 0.1.0 and does not know `teleport`"),
            (r#"{"v":9,"command":"wait_ready"}"#, "speaks version 1 of the control protocol, not 9"),
            (r#"{"v":1,"command":"stop","now":"yes"}"#, "cannot read this `stop`"),
            (r#"{"command":7}"#, "not a request"),
            ("[]", "not a request"),
            ("", "not a request"),
        ];
        for (line, reason) in cases {
            let refused = read(line).unwrap_err();
            assert!(refused.contains(reason), "{line}: {refused}");
        }
    }

    #[test]
    fn answers_keep_their_shape() {
        let last = LastReload { ok: true, generation: Some(GenerationId(4)), took_s: 0.5, ..LastReload::default() };
        let cases = [
            (Reply::Ready {}, r#"{"ok":true,"v":1}"#),
            (Reply::Stopping(Stopping { pid: 7 }), r#"{"ok":true,"pid":7,"v":1}"#),
            (Reply::Proving(Proving { generation: GenerationId(2) }), r#"{"generation":2,"ok":true,"v":1}"#),
            (Reply::Refused(Refused::because("no")), r#"{"details":"","ok":false,"reason":"no","v":1}"#),
            (
                Reply::Reload(Reloaded { last, state: Word::Borrowed("paused") }),
                r#"{"details":"","generation":4,"ok":true,"reason":"","state":"paused","took_s":0.5,"v":1,"verb":""}"#,
            ),
        ];
        for (reply, line) in cases {
            assert_eq!(reply.to_line().trim_end(), line);
        }
    }

    /// Lines as masters of other versions write them.
    #[test]
    fn answers_of_older_and_newer_masters_are_understood() {
        let stopping = read_reply::<Stopping>(r#"{"ok":true,"pid":7,"v":1,"within_s":25}"#);
        assert_eq!(stopping, Ok(Stopping { pid: 7 }));
        let refused = |line: &str| read_reply::<LastReload>(line).unwrap_err();
        assert_eq!(refused(r#"{"ok":false,"reason":"no"}"#), Refused::because("no"));
        assert_eq!(refused(r#"{"ok":false,"reason":"no","details":"why","exit_code":69}"#).details, "why");
        assert_eq!(refused("{}").reason, "no reason given");
        assert!(refused("[1").reason.contains("cannot be read"));
    }
}
