//! What happened, as data. `Display` is the line of the log, word for word an interface; `Serialize` is the same for
//! programs. A note decides nothing and writes nothing.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use forkmaster_wire::message::{GenerationId, SlotIndex};
use log::Level;
use serde::Serialize;

use super::canary::Canary;
use super::outcome::{Refusal, Verb};
use super::rehearsal::Rehearsal;

/// A worker as log lines name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerName {
    pub generation: GenerationId,
    pub slot: SlotIndex,
    /// Not known until it was forked.
    pub pid: Option<i32>,
}

/// A process of a service as log lines name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceName {
    pub name: String,
    pub generation: GenerationId,
    pub number: u32,
    pub pid: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Note {
    /// A generation's state has changed; `from` is empty for a new one.
    Generation {
        generation: GenerationId,
        from: Option<&'static str>,
        to: &'static str,
    },
    /// It has served before.
    NoCandidate {
        generation: GenerationId,
    },
    /// The candidate is ready.
    Proved {
        generation: GenerationId,
        after_ms: u64,
    },
    Superseded {
        generation: GenerationId,
        by: GenerationId,
    },
    /// A reload ended without effect. Without a number it was refused before it had a generation.
    Refused {
        verb: Verb,
        generation: Option<GenerationId>,
        refusal: Refusal,
    },
    /// How it takes over: so many workers at once, out of how many, and what one costs. 0 bytes: not measured.
    Rolling {
        generation: GenerationId,
        at_once: u32,
        of: u32,
        boots: u32,
        bytes_each: u64,
        bytes_free: Option<u64>,
    },
    /// How its candidate has answered what the old generation answered.
    Rehearsal(Rehearsal),
    /// Its canary serves beside the old workers.
    CanaryServes {
        generation: GenerationId,
        workers: u32,
        hold_s: f64,
    },
    /// What it has shown, and what follows from it.
    CanaryJudged {
        generation: GenerationId,
        verdict: String,
        why: String,
        canary: Option<Box<Canary>>,
    },
    /// There is no room for its next worker until processes of these generations have ended.
    Waiting {
        generation: GenerationId,
        leaving: usize,
        of: Vec<GenerationId>,
        max_processes: Option<u32>,
        /// The limit of open files, where that bound follows from it.
        open_files: Option<NonZeroU32>,
    },
    /// A limit of the machine lets no worker be made. It is tried again.
    NoRoom {
        generation: GenerationId,
        refusal: Refusal,
    },
    /// Leftover processes whose time has become short.
    LeftoversCut {
        generation: GenerationId,
        processes: usize,
        within_s: f64,
        why: String,
    },
    /// HUP after TERM.
    ReloadIgnored,
    /// It rolls although the predecessor could not take its places back: its template is gone or does not answer.
    NoWayBack {
        generation: GenerationId,
        predecessor: GenerationId,
        killed: bool,
    },

    /// A template's state has changed.
    Template {
        generation: GenerationId,
        from: &'static str,
        to: &'static str,
    },
    /// It forks for another generation than the one that has started it.
    TemplateMoves {
        generation: GenerationId,
        from: GenerationId,
    },
    /// It was kept for a rollback, and its memory is needed.
    KeptGivenUp {
        generation: GenerationId,
        bytes: u64,
    },
    TemplateGone {
        generation: GenerationId,
        from: &'static str,
        cause: String,
        expected: bool,
    },
    /// It could not be started again.
    TemplateFailed {
        generation: GenerationId,
        refusal: Refusal,
    },
    TemplateLate {
        generation: GenerationId,
        limit_s: f64,
    },
    TemplateStillLoads {
        generation: GenerationId,
        after_s: f64,
    },
    TemplateBroken {
        generation: GenerationId,
        reason: String,
    },
    TemplateDoesNotFork {
        generation: GenerationId,
        limit_s: f64,
    },
    TemplateWontDie {
        generation: GenerationId,
    },

    /// A worker's state has changed; `from` is empty for a new one.
    Worker {
        worker: WorkerName,
        from: Option<&'static str>,
        to: &'static str,
        after_ms: u64,
    },
    WorkerGone {
        worker: WorkerName,
        from: &'static str,
        cause: String,
        age_s: f64,
        expected: bool,
    },
    /// It has drained and does not end.
    WaitsForThreads {
        worker: WorkerName,
        threads: Vec<String>,
    },
    WorkerLeaves {
        worker: WorkerName,
        reason: String,
    },
    /// A worker of a rolling generation.
    BootFailed {
        worker: WorkerName,
        count: u32,
        max: u32,
        refusal: Refusal,
    },
    /// A worker of the generation that serves.
    BootFailedAgain {
        worker: WorkerName,
        next_s: f64,
        refusal: Refusal,
    },
    /// A worker of either that was ready and had not served.
    Lost {
        worker: WorkerName,
        next_s: Option<f64>,
        refusal: Refusal,
    },
    /// It reached `max_requests` and the like.
    Due {
        worker: WorkerName,
        why: &'static str,
    },
    StillBoots {
        worker: WorkerName,
        after_s: f64,
    },
    DidNotServe {
        worker: WorkerName,
    },
    DidNotConfirm {
        worker: WorkerName,
    },
    NotFinished {
        worker: WorkerName,
    },
    WontDie {
        worker: WorkerName,
    },
    /// It served nothing any more, and did not end.
    Held {
        worker: WorkerName,
        threads: Vec<String>,
        limit_s: f64,
    },

    /// A request runs for longer than `slow_request` without progress.
    Slow {
        worker: WorkerName,
        request: String,
        /// Empty: requests have none.
        id: String,
        client: Option<IpAddr>,
        after_s: f64,
        waits_for_lock: bool,
        /// At the second look: whether it is somewhere else than at the first.
        moved: Option<bool>,
        /// Of its thread; of all threads where it waits for the interpreter's lock. Empty: as before, or not to be had.
        stack: String,
    },
    SlowEnded {
        worker: WorkerName,
        request: String,
        after_s: f64,
        /// Not known where the next request has ended since.
        status: Option<u16>,
    },
    /// There were too many of them.
    SlowUntold {
        requests: u32,
    },

    Scaled {
        by: i32,
        wanted: u32,
    },
    /// `by` is empty where a number was asked for.
    ScaleRefused {
        by: Option<i32>,
        refusal: Refusal,
    },
    /// The state of a service's process has changed.
    Service {
        service: ServiceName,
        from: Option<&'static str>,
        to: &'static str,
    },
    /// It has ended; `next_s` where it begins again.
    ServiceGone {
        service: ServiceName,
        from: &'static str,
        cause: String,
        next_s: Option<f64>,
    },
    /// A run of a service that runs every so often has ended.
    ServiceRan {
        service: ServiceName,
        cause: String,
        ok: bool,
        took_s: f64,
        next_s: f64,
    },
    /// A run was due while another one was there; so many altogether.
    ServiceSkipped {
        name: String,
        skipped: u64,
    },
    ServiceScaled {
        name: String,
        wanted: u32,
    },
    /// It has not said that it is ready.
    ServiceLate {
        service: ServiceName,
        within_s: f64,
    },
    /// It did not stop within its `stop_timeout`.
    ServiceKilled {
        service: ServiceName,
    },
    ServiceWontDie {
        service: ServiceName,
    },
    /// Requests are held back from now on.
    Pausing,
    /// The last one has left the application.
    Paused {
        after_ms: u64,
    },
    /// Clients get 503 from now on.
    Maintenance {
        after_ms: u64,
    },
    Resumed {
        after_ms: u64,
    },
    /// An operator's pause came to nothing.
    PauseRefused {
        refusal: Refusal,
    },
    /// This binary serves on where that one was executed.
    Upgraded {
        from: String,
        to: String,
        executable: PathBuf,
    },
    /// The old binary serves on.
    UpgradeRefused {
        refusal: Refusal,
    },
    /// A reload that was asked for waits until this one has ended.
    ReloadWaits {
        generation: GenerationId,
    },
    /// TERM while a command runs.
    StopWaits,
    Stopping,
    /// So many processes still had requests, so many others only had not ended.
    GracefulOver {
        running: usize,
        idle: usize,
    },
    /// A rule that always holds does not.
    Broken {
        text: String,
    },
}

impl Note {
    pub fn level(&self) -> Level {
        match self {
            Note::TemplateGone { expected, .. } | Note::WorkerGone { expected, .. } => match expected {
                true => Level::Info,
                false => Level::Error,
            },
            Note::Template { from, to, .. } if matches!((*from, *to), ("ready", "forking") | ("forking", "ready")) => {
                Level::Debug
            }
            Note::Rehearsal(rehearsal) => rehearsal.level(),
            Note::Generation { .. }
            | Note::NoCandidate { .. }
            | Note::Proved { .. }
            | Note::Superseded { .. }
            | Note::Template { .. }
            | Note::TemplateMoves { .. }
            | Note::Worker { .. }
            | Note::WorkerLeaves { .. }
            | Note::Due { .. }
            | Note::Rolling { .. }
            | Note::CanaryServes { .. }
            | Note::CanaryJudged { .. }
            | Note::Scaled { .. }
            | Note::Service { .. }
            | Note::ServiceGone { next_s: None, .. }
            | Note::ServiceRan { ok: true, .. }
            | Note::ServiceScaled { .. }
            | Note::Pausing
            | Note::Paused { .. }
            | Note::Maintenance { .. }
            | Note::Resumed { .. }
            | Note::Upgraded { .. }
            | Note::ReloadWaits { .. }
            | Note::StopWaits
            | Note::Stopping => Level::Info,
            Note::ReloadIgnored
            | Note::StillBoots { .. }
            | Note::TemplateStillLoads { .. }
            | Note::KeptGivenUp { .. }
            | Note::NoWayBack { .. }
            | Note::DidNotConfirm { .. }
            | Note::NotFinished { .. }
            | Note::ScaleRefused { .. }
            | Note::UpgradeRefused { .. }
            | Note::PauseRefused { .. }
            | Note::ServiceKilled { .. }
            | Note::ServiceLate { .. }
            | Note::WaitsForThreads { .. }
            | Note::ServiceSkipped { .. }
            | Note::Waiting { .. }
            | Note::NoRoom { .. }
            | Note::LeftoversCut { .. }
            | Note::Held { .. }
            | Note::Slow { .. }
            | Note::SlowEnded { .. }
            | Note::SlowUntold { .. }
            | Note::GracefulOver { .. } => Level::Warn,
            Note::Refused { .. }
            | Note::TemplateFailed { .. }
            | Note::TemplateLate { .. }
            | Note::TemplateBroken { .. }
            | Note::TemplateDoesNotFork { .. }
            | Note::TemplateWontDie { .. }
            | Note::BootFailed { .. }
            | Note::BootFailedAgain { .. }
            | Note::Lost { .. }
            | Note::DidNotServe { .. }
            | Note::WontDie { .. }
            | Note::ServiceGone { next_s: Some(_), .. }
            | Note::ServiceRan { ok: false, .. }
            | Note::ServiceWontDie { .. }
            | Note::Broken { .. } => Level::Error,
        }
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerName { generation, slot, pid } = self;
        match pid {
            Some(pid) => write!(f, "worker gen={generation} slot={slot} pid={pid}"),
            None => write!(f, "worker gen={generation} slot={slot} pid=?"),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServiceName { name, generation, number, pid } = self;
        let pid = pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        write!(f, "service {name} gen={generation} number={number} pid={pid}")
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Generation { generation, from: None, to } => write!(f, "generation gen={generation} -> {to}"),
            Note::Generation { generation, from: Some(from), to } => {
                write!(f, "generation gen={generation} {from} -> {to}")
            }
            Note::NoCandidate { generation } => {
                write!(f, "generation gen={generation} has served before: its workers boot without a candidate")
            }
            Note::Proved { generation, after_ms } => {
                write!(f, "generation gen={generation} proved after={after_ms}ms")
            }
            Note::Superseded { generation, by } => write!(f, "generation gen={generation} superseded by gen={by}"),
            Note::Refused { generation: Some(generation), refusal, .. } => {
                write!(f, "generation gen={generation} refused: {}{}", refusal.reason, refusal.details_below())
            }
            Note::Refused { verb, generation: None, refusal } => {
                write!(f, "{verb} refused, nothing has changed: {}{}", refusal.reason, refusal.details_below())
            }
            Note::Rolling { generation, at_once, of, boots, bytes_each, bytes_free } => {
                write!(f, "generation gen={generation} rolling: {} at once", (*at_once).max(1))?;
                if let (1.., Some(free)) = (bytes_each, bytes_free) {
                    write!(f, " ({} each, {} free)", Size(*bytes_each), Size(*free))?;
                }
                if at_once < of && bytes_free.is_some() {
                    write!(f, ": not all {of} fit beside the old ones")?;
                }
                if boots < at_once {
                    write!(f, ", {boots} boot at a time")?;
                }
                Ok(())
            }
            Note::Rehearsal(rehearsal) => rehearsal.fmt(f),
            Note::CanaryServes { generation, workers, hold_s } => {
                write!(f, "canary gen={generation} serves: {workers} workers beside the old ones for {hold_s:.1}s")
            }
            Note::CanaryJudged { generation, verdict, why, canary } => {
                write!(f, "canary gen={generation} {verdict}: {why}")?;
                canary.iter().try_for_each(|canary| write!(f, "\n{}", canary.to_string().trim_end()))
            }
            Note::NoRoom { generation, refusal } => {
                write!(f, "generation gen={generation} tries again to make a worker: {}", refusal.reason)
            }
            Note::Waiting { generation, leaving, of, max_processes, open_files } => {
                write!(f, "generation gen={generation} waits for room for a worker")?;
                match (max_processes, open_files) {
                    (Some(max), Some(limit)) => write!(f, " ({limit} open files have room for {max})")?,
                    (Some(max), None) => write!(f, " (max_processes = {max})")?,
                    (None, _) => {}
                }
                write!(f, ": {leaving} processes leave")?;
                for generation in of {
                    write!(f, " gen={generation}")?;
                }
                Ok(())
            }
            Note::LeftoversCut { generation, processes, within_s, why } => write!(
                f,
                "leftovers gen={generation}: {processes} processes have graceful_timeout ({within_s:.1}s) to finish, then \
                 their requests are cut: {why}"
            ),
            Note::ReloadIgnored => f.write_str("reload ignored: the master was told to stop"),
            Note::NoWayBack { generation, predecessor, killed } => {
                let what = if *killed { "does not answer: killed;" } else { "is not there:" };
                write!(f, "template gen={predecessor} {what} gen={generation} rolls without a way back")
            }

            Note::Template { generation, from, to } => write!(f, "template gen={generation} {from} -> {to}"),
            Note::TemplateMoves { generation, from } => {
                write!(f, "template gen={from} forks for gen={generation} from now on")
            }
            Note::KeptGivenUp { generation, bytes } => write!(
                f,
                "template gen={generation} is kept no longer, since memory is short ({}): a rollback starts it anew",
                Size(*bytes)
            ),
            Note::TemplateGone { generation, from, cause, .. } => {
                write!(f, "template gen={generation} {from} -> gone cause=\"{cause}\"")
            }
            Note::TemplateFailed { generation, refusal } => write!(
                f,
                "template gen={generation} failed: {}; its workers cannot be replaced until it starts{}",
                refusal.reason,
                refusal.details_below()
            ),
            Note::TemplateLate { generation, limit_s } => {
                write!(f, "template gen={generation} not loaded within boot_timeout ({limit_s:.1}s): killed")
            }
            Note::TemplateStillLoads { generation, after_s } => {
                write!(f, "template gen={generation} still loads after {after_s:.0}s; its stacks follow")
            }
            Note::TemplateBroken { generation, reason } => {
                write!(f, "template gen={generation} is broken: {reason}; killed")
            }
            Note::TemplateDoesNotFork { generation, limit_s } => write!(
                f,
                "template gen={generation} does not fork: killed. It forked nothing for {limit_s:.1}s: it is stopped, \
                 or a fork handler of the application waits"
            ),
            Note::TemplateWontDie { generation } => {
                write!(f, "template gen={generation} is still there after SIGKILL (state D?): given up")
            }

            Note::Worker { worker, from: None, to, .. } => write!(f, "{worker} -> {to}"),
            Note::Worker { worker, from: Some(from), to, after_ms } => {
                write!(f, "{worker} {from} -> {to} after={after_ms}ms")
            }
            Note::WorkerGone { worker, from, cause, age_s, .. } => {
                write!(f, "{worker} {from} -> gone cause=\"{cause}\" age={age_s:.3}s")
            }
            Note::WaitsForThreads { worker, threads } => {
                let threads = threads.join(", ");
                write!(f, "{worker} drained; its interpreter waits for threads that are no daemons: {threads}")
            }
            Note::WorkerLeaves { worker, reason } => write!(f, "{worker} leaves: {reason}"),
            Note::BootFailed { worker, count, max, refusal } => {
                write!(f, "{worker} failed to boot ({count} of {max}): {}{}", refusal.reason, refusal.details_below())
            }
            Note::BootFailedAgain { worker, next_s, refusal } => write!(
                f,
                "{worker} failed to boot, next try in {next_s:.1}s: {}{}",
                refusal.reason,
                refusal.details_below()
            ),
            Note::Lost { worker, next_s, refusal } => {
                write!(f, "{worker} lost")?;
                next_s.map_or(Ok(()), |next_s| write!(f, ", next try in {next_s:.1}s"))?;
                write!(f, ": {}{}", refusal.reason, refusal.details_below())
            }
            Note::Due { worker, why } => write!(f, "{worker} reached {why}: replacing it"),
            Note::StillBoots { worker, after_s } => {
                write!(f, "{worker} still imports or proves the application after {after_s:.0}s; its stacks follow")
            }
            Note::DidNotServe { worker } => write!(f, "{worker} did not begin to serve: killed"),
            Note::DidNotConfirm { worker } => write!(f, "{worker} did not confirm that it stopped accepting"),
            Note::NotFinished { worker } => write!(f, "{worker} has not finished in time: killed"),
            Note::WontDie { worker } => {
                write!(f, "{worker} is still there after SIGKILL (state D?): given up")
            }

            Note::Held { worker, threads, limit_s } if threads.is_empty() => write!(
                f,
                "{worker} served nothing any more, but the interpreter did not end within graceful_timeout \
                 ({limit_s:.1}s): killed"
            ),
            Note::Held { worker, threads, limit_s } => {
                let (verb, threads) = (if threads.len() == 1 { "is not a daemon" } else { "are not daemons" }, quoted(threads));
                write!(
                    f,
                    "{worker} served nothing any more, but did not end within graceful_timeout ({limit_s:.1}s), since \
                     {threads} {verb}: killed"
                )
            }

            Note::Slow { worker, request, id, client, after_s, waits_for_lock, moved, stack } => {
                write!(f, "{worker} slow request \"{request}\"")?;
                if !id.is_empty() {
                    write!(f, " id={id}")?;
                }
                if let Some(client) = client {
                    write!(f, " of {client}")?;
                }
                let place = if *waits_for_lock { "waits for the interpreter's lock" } else { "in the application" };
                write!(f, " runs for {after_s:.1}s {place}")?;
                match (moved, stack.as_str()) {
                    (Some(false), _) => f.write_str(", where it was at the first look"),
                    (None | Some(true), "") => f.write_str("; its stack cannot be had"),
                    (None, stack) => write!(f, ":\n{stack}"),
                    (Some(true), stack) => write!(f, "; it has moved:\n{stack}"),
                }
            }
            Note::SlowEnded { worker, request, after_s, status } => {
                write!(f, "{worker} slow request \"{request}\" ended after={after_s:.1}s")?;
                status.map_or(Ok(()), |status| write!(f, " status={status}"))
            }
            Note::SlowUntold { requests } => write!(f, "{requests} more slow requests had no line"),

            Note::Scaled { by, wanted } => write!(f, "scaled by {by:+}: {wanted} workers wanted"),
            Note::ScaleRefused { by: Some(by), refusal } => write!(f, "not scaled by {by:+}: {}", refusal.reason),
            Note::ScaleRefused { by: None, refusal } => write!(f, "not scaled: {}", refusal.reason),
            Note::Service { service, from: None, to } => write!(f, "{service} -> {to}"),
            Note::Service { service, from: Some(from), to } => write!(f, "{service} {from} -> {to}"),
            Note::ServiceGone { service, from, cause, next_s: None } => {
                write!(f, "{service} {from} -> gone cause=\"{cause}\"")
            }
            Note::ServiceGone { service, from, cause, next_s: Some(next_s) } => {
                write!(f, "{service} {from} -> resting cause=\"{cause}\": it begins again in {next_s:.1}s")
            }
            Note::ServiceRan { service, cause, ok: _, took_s, next_s } => {
                write!(f, "{service} running -> waiting cause=\"{cause}\" after={took_s:.1}s: it runs again in {next_s:.1}s")
            }
            Note::ServiceSkipped { name, skipped } => {
                write!(f, "service {name}: a run is due and another one is not over: skipped, {skipped} so far")
            }
            Note::ServiceScaled { name, wanted } => write!(f, "service {name}: {wanted} processes wanted"),
            Note::ServiceLate { service, within_s } => {
                write!(f, "{service} has not said that it is ready within {within_s:.1}s; it may still do so")
            }
            Note::ServiceKilled { service } => write!(f, "{service} did not stop within stop_timeout: killed"),
            Note::ServiceWontDie { service } => {
                write!(f, "{service} is still there after SIGKILL (state D?): given up")
            }
            Note::Pausing => f.write_str("pausing: what runs is finished, nothing is begun, clients wait"),
            Note::Upgraded { from, to, executable } => {
                write!(f, "upgraded from {from} to {to}, {}", executable.display())
            }
            Note::UpgradeRefused { refusal } => {
                write!(f, "not upgraded: {}{}", refusal.reason, refusal.details_below())
            }
            Note::Paused { after_ms } => write!(f, "paused after={after_ms}ms: no request is in the application"),
            Note::Maintenance { after_ms } => {
                write!(f, "maintenance after={after_ms}ms: clients get 503 and wait no longer")
            }
            Note::Resumed { after_ms } => write!(f, "resumed after={after_ms}ms"),
            Note::PauseRefused { refusal } => write!(f, "not paused: {}", refusal.reason),
            Note::ReloadWaits { generation } => {
                write!(f, "reload waits: the command of gen={generation} may be half-way through its work")
            }
            Note::StopWaits => f.write_str("stopping: the command has graceful_timeout to end first"),
            Note::Stopping => f.write_str("stopping: finishing what was begun"),
            Note::GracefulOver { running: 0, idle } => {
                write!(f, "graceful_timeout is over: killing {idle} processes that serve nothing and do not end")
            }
            Note::GracefulOver { .. } => f.write_str("graceful_timeout is over: cutting what still runs"),
            Note::Broken { text } => write!(f, "internal error: {text}"),
        }
    }
}

/// Bytes as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1024 * 1024;
        match self.0 {
            bytes if bytes < 1024 * MIB => write!(f, "{} MiB", bytes / MIB),
            bytes => write!(f, "{:.1} GiB", bytes as f64 / (1024 * MIB) as f64),
        }
    }
}

/// thread 'a', thread 'b'
fn quoted(threads: &[String]) -> String {
    threads.iter().map(|name| format!("thread '{name}'")).collect::<Vec<_>>().join(", ")
}
