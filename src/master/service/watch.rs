//! Looking at the scoreboard: which requests run beyond their limit, which workers give no sign of life. A worker
//! may be hostile, so every value is checked; at worst a worker escapes its own limit, or has its siblings replaced, whom
//! it could as well kill: all of them are one user's.

use std::sync::atomic::Ordering;
use std::time::Duration;

use forkmaster_wire::message::{ToWorker, WorkerId};
use forkmaster_wire::scoreboard::{monotonic_ns, Running, Scoreboard};

use super::slow::Looked;
use super::{name, room, EventQueue, Service};
use crate::clock::Clock;
use crate::config::settings::Server;
use crate::shared::Shared;
use crate::supervisor::pace::Room;
use crate::supervisor::worker::{Event as WorkerEvent, Stuck};
use crate::supervisor::Event;

/// A worker's event loop turns at least once a second; so long a silence means that it is stopped or broken.
pub const SILENT_AFTER: Duration = Duration::from_secs(30);

/// How often the board is looked at, at the most and at the least.
const EVERY_MAX: Duration = Duration::from_secs(1);
const EVERY_MIN: Duration = Duration::from_millis(50);

/// How often `max_rss` is looked at.
const RSS_EVERY: Duration = Duration::from_secs(5);

impl Service {
    /// Looks at the scoreboards, memory, and unanswered dumps, when it is time to. True: it has read files of the kernel,
    /// which takes more code than to look at a board.
    pub fn look_around(&mut self, shared: &Shared, events: &mut EventQueue) -> bool {
        let now = shared.clock.now();
        if now < self.look_at {
            return false;
        }
        let look_for_rss = now >= self.rss_at;
        let mut has_read = false;
        if look_for_rss {
            self.rss_at = now + RSS_EVERY;
            has_read = self.look_at_growth() || self.supervisor.kept().is_some();
            events.extend(self.memory_short());
        }
        let mut next = EVERY_MAX;
        for (id, worker) in &self.workers {
            let Some(processes) = self.generations.get(&worker.generation) else { continue };
            let Some(pid) = worker.pid else { continue };
            let server = &processes.settings.server;
            let slow_request = processes.settings.log.slow_request;
            next = next.min(every(server, slow_request));
            let mut report = |event| events.push_back(Event::Worker { worker: *id, event });
            let look = look(&processes.board, worker.cell, server, &shared.clock);
            // Its event loop answers for them; no Python is needed for that.
            for (running, ..) in look.stuck.iter().filter(|(running, ..)| !running.answered) {
                worker.tell(&ToWorker::Overdue { request: running.request });
            }
            if let Some((running, ..)) = look.stuck.first() {
                report(WorkerEvent::Stuck(Stuck::Request(running.request)));
            } else if look.silent {
                report(WorkerEvent::Stuck(Stuck::Silent));
            }
            let looked = Looked { id: *id, name: worker.name(), board: &processes.board, cell: worker.cell };
            if self.slow.look(looked, slow_request, &shared.clock, now, &mut self.noticed) {
                report(WorkerEvent::Slow);
            }
            if let Some(limit) = server.max_rss.filter(|_| look_for_rss) {
                has_read = true;
                if resident_bytes(pid).is_some_and(|resident| resident > limit) {
                    report(WorkerEvent::TooBig);
                }
            }
        }
        self.noticed.extend(self.slow.untold(now));
        self.look_at = now + next;
        has_read
    }
}

impl Service {
    /// What the template that is kept would leave, were it gone: its pages that are not of files. Some of them may be shared
    /// with workers that it has forked.
    pub fn kept_bytes(&self) -> u64 {
        let kept = self.supervisor.kept().and_then(|kept| self.generations.get(&kept.generation));
        kept.and_then(|processes| processes.template.as_ref()).map_or(0, |template| anonymous_bytes(template.pid))
    }

    /// A template is kept, and one more worker would not fit.
    fn memory_short(&self) -> Option<Event> {
        self.supervisor.kept()?;
        let room = self.room();
        let is_short = room.bytes.is_some_and(|bytes| bytes < room.worker_bytes);
        is_short.then(|| Event::MemoryShort { kept_bytes: self.kept_bytes() })
    }

    /// What the machine has left for workers, and what one takes.
    pub fn room(&self) -> Room {
        room::measure(self.worker_bytes())
    }

    /// What a worker that serves takes, as they say on the scoreboard: the one in the middle. 0: none has said it yet.
    fn worker_bytes(&self) -> u64 {
        let serving = self.supervisor.serving().into_iter().flat_map(|generation| &generation.workers);
        let said = serving.filter(|worker| worker.is_serving()).filter_map(|worker| {
            let worker = self.workers.get(&worker.id)?;
            let board = &self.generations.get(&worker.generation)?.board;
            Some(board.cell(worker.cell).private_bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
        });
        let mut bytes: Vec<u64> = said.collect();
        bytes.sort_unstable();
        bytes.get(bytes.len() / 2).copied().unwrap_or(0)
    }

    /// The requests that these workers run, a line each, also in the log.
    pub fn name_running(&self, workers: &[WorkerId]) -> String {
        let mut text = String::new();
        for worker in workers.iter().filter_map(|id| self.workers.get(id)) {
            let Some(processes) = self.generations.get(&worker.generation) else { continue };
            for running in running(&processes.board, worker.cell) {
                let line =
                    format!("{} runs \"{}\" since {:.1}s", name(worker), running.text, age(&running).as_secs_f64());
                log::warn!("{line}");
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }
}

/// What one look at a worker's cell shows.
pub struct Look {
    /// Requests beyond their limit, the oldest first, with the time in the application and the limit.
    pub stuck: Vec<(Running, Duration, Duration)>,
    /// Other running requests.
    pub others: u32,
    pub silent: bool,
}

/// How often to look, so that a limit is noticed soon after it has passed.
pub fn every(server: &Server, slow_request: Option<Duration>) -> Duration {
    let limits = server.request_timeouts.iter().map(|(_, limit)| *limit).chain([server.request_timeout, slow_request]);
    let shortest = limits.flatten().min().unwrap_or(EVERY_MAX * 4);
    (shortest / 4).clamp(EVERY_MIN, EVERY_MAX)
}

pub fn look(board: &Scoreboard, cell: u32, server: &Server, clock: &Clock) -> Look {
    let now = monotonic_ns();
    let since = |then: u64| clock.lasted(Duration::from_nanos(now.saturating_sub(then)));
    let mut look = Look { stuck: Vec::new(), others: 0, silent: false };
    for running in running(board, cell) {
        let inside = if running.entered_ns == 0 { Duration::ZERO } else { since(running.entered_ns) };
        match limit(server, &running.text) {
            Some(limit) if inside > limit => look.stuck.push((running, inside, limit)),
            Some(_) | None => look.others += 1,
        }
    }
    look.stuck.sort_unstable_by_key(|(running, ..)| running.started_ns);
    // 0: it has not begun to beat.
    let beat = board.cell(cell).heartbeat_ns.load(Ordering::Relaxed);
    look.silent = beat != 0 && since(beat) > SILENT_AFTER;
    look
}

/// All running requests of a process.
pub fn running(board: &Scoreboard, cell: u32) -> impl Iterator<Item = Running> + '_ {
    (0..board.threads()).filter_map(move |thread| board.thread(cell, thread).running())
}

/// How long a request has been running.
pub fn age(running: &Running) -> Duration {
    Duration::from_nanos(monotonic_ns().saturating_sub(running.started_ns))
}

/// Does this very request still run?
pub fn still_runs(board: &Scoreboard, cell: u32, stuck: Stuck) -> bool {
    match stuck {
        Stuck::Request(number) => running(board, cell).any(|running| running.request == number),
        Stuck::Silent => true,
    }
}

/// The limit for `GET /reports/2024`: the longest prefix wins (they are sorted so), else the general one.
fn limit(server: &Server, request: &str) -> Option<Duration> {
    let path = request.split_once(' ').map_or("", |(_, path)| path);
    let prefix = server.request_timeouts.iter().find(|(prefix, _)| path.starts_with(prefix.as_str()));
    prefix.map_or(server.request_timeout, |(_, limit)| *limit)
}

/// Memory of a process that is not of a file; 0 when it is gone. proc_pid_statm(5).
pub fn anonymous_bytes(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = statm.split_ascii_whitespace().skip(1).filter_map(|pages| pages.parse::<u64>().ok());
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * page_bytes()
}

/// Resident memory of a process; None when it is gone. proc_pid_statm(5).
pub fn resident_bytes(pid: i32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * page_bytes())
}

fn page_bytes() -> u64 {
    // SAFETY: sysconf(3) with a valid name.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u64 }
}
