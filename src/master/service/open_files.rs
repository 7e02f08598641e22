//! Open files: what the master needs of them for its workers, and how many workers the limit (RLIMIT_NOFILE, getrlimit(2)) has
//! room for. Decides nothing: the supervisor keeps to the bounds, so that nobody meets the limit half-way.

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use crate::config::settings::Settings;

/// A worker: its channel, the pipe for its stacks, its pidfd.
const OF_WORKER: u64 = 3;

/// A process of a service: its output, the pipe of an exec that failed, its pidfd.
const OF_SERVICE_PROCESS: u64 = 3;

/// A generation: its scoreboard, its logs, and of its template the channel, the pipe of an exec that failed, the pidfd.
const OF_GENERATION: u64 = 6;

/// The one that serves, and the one that is to.
const GENERATIONS: u64 = 2;

/// The master itself, on Linux 6.18 with a control socket, a pid file and a service manager.
const OF_MASTER: u64 = 24;

/// For what comes and goes: files that are read, a command, a new binary (16), clients of the control socket and of
/// `[status] bind` (8), and a generation that still drains or is kept for `rollback`. Where the limit is small, a quarter of
/// it: then clients are turned away sooner for lack of descriptors.
const SPARE: u64 = 16 + 8 + OF_GENERATION;

/// `Spawn` carries the worker's end of its channel, the scoreboard, its end of the pipe for stacks, the two ends of the
/// handoff queue, and the listeners.
const IN_SPAWN: u64 = 5;

/// What is on its way to a template is open there, too, beside what the application opens; and the handoff queue may have a
/// quarter of the user's descriptors on their way.
const PART_IN_FLIGHT: u64 = 4;

/// Messages that lie in a template's channel at most. A Spawn with its descriptors is charged with some 800 bytes, and
/// 280 of them fill the socket's buffer of 212,992 bytes (socket(7), SO_SNDBUF).
const UNBORN_MAX: u64 = 64;

/// Workers hold a descriptor a connection; the soft limit of 1024 is for select(2)'s sake (getrlimit(2)), which
/// nothing here uses.
pub fn raise_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        if soft < hard {
            if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                log::warn!("the limit of open files stays at {soft}: {error}");
            }
        }
    }
}

/// Open files of a master with so many worker processes.
fn needed(settings: &Settings, workers: u64) -> u64 {
    beside_workers(settings) + SPARE + OF_WORKER * workers
}

fn beside_workers(settings: &Settings) -> u64 {
    let services = settings.services.iter();
    let listeners = settings.server.bind.len()
        + settings.status.bind.len()
        + services.clone().map(|service| service.bind.len()).sum::<usize>();
    // Those of the old generation stop while those of the new one start.
    let processes: u64 = services.map(|service| u64::from(service.count)).sum::<u64>() * 2;
    OF_MASTER + listeners as u64 + OF_GENERATION * GENERATIONS + OF_SERVICE_PROCESS * processes
}

/// Worker processes that there is room for.
pub fn workers_max(settings: &Settings, limit: u64) -> u32 {
    let left = limit.saturating_sub(beside_workers(settings) + SPARE.min(limit / 4));
    u32::try_from(left / OF_WORKER).unwrap_or(u32::MAX)
}

/// Workers that a template may have been told to fork and has not yet.
pub fn unborn_max(listeners: usize, limit: Option<u64>) -> u16 {
    let fit = limit.map_or(UNBORN_MAX, |limit| limit / PART_IN_FLIGHT / (IN_SPAWN + listeners as u64));
    fit.clamp(1, UNBORN_MAX) as u16
}

/// What the limit means for these settings.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Enough,
    /// New workers of a reload do not all fit beside the old ones.
    InTurns(String),
    /// Not even one fits beside the old ones, so that no release could be proved.
    TooFew(String),
}

pub fn verdict(settings: &Settings, limit: Option<u64>) -> Verdict {
    let Some(limit) = limit else { return Verdict::Enough };
    let workers = settings.server.workers;
    let fit = workers_max(settings, limit);
    let raise = format!(
        "raise it to {0} for reloads that take over at once: LimitNOFILE={0} in the unit, `ulimit -n {0}` in a shell",
        needed(settings, u64::from(workers) * 2)
    );
    if fit >= workers * 2 || settings.server.max_processes.is_some_and(|max| max <= fit) {
        Verdict::Enough
    } else if fit > workers {
        let beside = fit - workers;
        Verdict::InTurns(format!(
            "[server] workers = {workers}: the limit of {limit} open files has room for {beside} new workers beside the old \
             ones in a reload, so they change places in turns; {raise}"
        ))
    } else {
        let least = needed(settings, u64::from(workers) + 1);
        Verdict::TooFew(format!(
            "[server] workers = {workers}: the master needs {least} open files for them and the one that proves a release, and \
             its limit is {limit}; {raise}, or have fewer workers"
        ))
    }
}
