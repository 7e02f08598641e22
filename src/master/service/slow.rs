//! The slow log: requests that run for longer than `slow_request` without progress. Each has a line with its thread's
//! Python stack, another after twice the time, which says whether it has moved, and one at its end. It looks and
//! tells; it neither asks for stacks itself nor ends anything.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use forkmaster_wire::message::WorkerId;
use forkmaster_wire::scoreboard::{monotonic_ns, Running, Scoreboard};

use super::stacks;
use crate::clock::Clock;
use crate::facts::note::{Note, WorkerName};

/// So many requests at once, then one more each time: a database that hangs makes all requests slow, and a few of them
/// tell everything.
const REQUESTS_AT_ONCE: u32 = 10;
const ONE_MORE_EVERY: Duration = Duration::from_secs(6);

/// How often it is said how many had no line.
const UNTOLD_EVERY: Duration = Duration::from_secs(60);

/// A worker's cell, and what its log lines call it.
#[derive(Clone, Copy)]
pub struct Looked<'a> {
    pub id: WorkerId,
    pub name: WorkerName,
    pub board: &'a Scoreboard,
    pub cell: u32,
}

#[derive(Default)]
pub struct SlowLog {
    /// By worker and thread.
    requests: BTreeMap<(WorkerId, u32), Slow>,
    budget: Budget,
}

/// One slow request.
struct Slow {
    request: u64,
    started_ns: u64,
    /// `GET /reports/2024`
    text: String,
    stage: Stage,
    /// Its stack at the first look.
    stack: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There were too many.
    Untold,
    /// Its stack was asked for.
    First,
    ToldOnce,
    Second,
    ToldTwice,
}

impl SlowLog {
    /// Looks at one worker. True: its stacks are wanted.
    pub fn look(
        &mut self,
        at: Looked<'_>,
        limit: Option<Duration>,
        clock: &Clock,
        now: Instant,
        notes: &mut Vec<Note>,
    ) -> bool {
        let mut wanted = false;
        for thread in 0..at.board.threads() {
            let running = at.board.thread(at.cell, thread).running();
            let key = (at.id, thread);
            if let Some(slow) = self.requests.get(&key) {
                if running.as_ref().is_none_or(|running| running.request != slow.request) {
                    notes.extend(slow.ended(at, thread));
                    self.requests.remove(&key);
                }
            }
            let (Some(running), Some(limit)) = (running, limit) else { continue };
            let inside = inside(&running, clock);
            match self.requests.get_mut(&key) {
                None if inside >= limit => {
                    let stage = if self.budget.take(now) { Stage::First } else { Stage::Untold };
                    wanted |= stage == Stage::First;
                    let Running { request, started_ns, text, .. } = running;
                    self.requests.insert(key, Slow { request, started_ns, text, stage, stack: String::new() });
                }
                Some(slow) if slow.stage == Stage::ToldOnce && inside >= limit * 2 => {
                    slow.stage = Stage::Second;
                    wanted = true;
                }
                None | Some(_) => {}
            }
        }
        wanted
    }

    /// A worker's stacks have come, or nothing has (None), neither from itself nor from faulthandler.
    pub fn on_stacks(&mut self, at: Looked<'_>, text: Option<&str>, clock: &Clock, notes: &mut Vec<Note>) {
        for ((_, thread), slow) in self.requests.range_mut((at.id, 0)..=(at.id, u32::MAX)) {
            let told = match slow.stage {
                Stage::First => Stage::ToldOnce,
                Stage::Second => Stage::ToldTwice,
                Stage::Untold | Stage::ToldOnce | Stage::ToldTwice => continue,
            };
            let cell = at.board.thread(at.cell, *thread);
            // It may have ended meanwhile, and then that is told next.
            let Some(running) = cell.running().filter(|running| running.request == slow.request) else { continue };
            let own = text.zip(cell.ident()).and_then(|(text, ident)| stacks::of_thread(text, ident));
            // Whoever holds the lock is another thread, perhaps one without a request.
            let stack = if running.waits_for_lock { text.map(str::to_owned) } else { own };
            let stack = stack.unwrap_or_default();
            let moved = (told == Stage::ToldTwice).then(|| stack != slow.stack);
            notes.push(Note::Slow {
                worker: at.name,
                request: running.text.clone(),
                id: running.id.clone(),
                client: running.client,
                after_s: clock.lasted(super::watch::age(&running)).as_secs_f64(),
                waits_for_lock: running.waits_for_lock,
                moved,
                // Once is enough.
                stack: if moved == Some(false) { String::new() } else { stack.clone() },
            });
            slow.stage = told;
            slow.stack = stack;
        }
    }

    /// The worker is gone; what it took along has been told by whoever noticed.
    pub fn forget(&mut self, id: WorkerId) {
        self.requests.retain(|(worker, _), _| *worker != id);
    }

    /// From time to time: how many slow requests had no line.
    pub fn untold(&mut self, now: Instant) -> Option<Note> {
        self.budget.untold(now).map(|requests| Note::SlowUntold { requests })
    }
}

impl Slow {
    fn ended(&self, at: Looked<'_>, thread: u32) -> Option<Note> {
        if self.stage == Stage::Untold {
            return None;
        }
        let end = at.board.thread(at.cell, thread).ended(self.request);
        let after_ns = end.map_or_else(monotonic_ns, |end| end.ended_ns).saturating_sub(self.started_ns);
        Some(Note::SlowEnded {
            worker: at.name,
            request: self.text.clone(),
            after_s: Duration::from_nanos(after_ns).as_secs_f64(),
            status: end.map(|end| end.status),
        })
    }
}

/// How long a request has been within the application without progress, as `request_timeout` counts it.
fn inside(running: &Running, clock: &Clock) -> Duration {
    match running.entered_ns {
        0 => Duration::ZERO,
        entered => clock.lasted(Duration::from_nanos(monotonic_ns().saturating_sub(entered))),
    }
}

/// How many slow requests may have lines.
#[derive(Default)]
struct Budget {
    used: u32,
    /// When one was last given back.
    since: Option<Instant>,
    untold: u32,
    told_at: Option<Instant>,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let back = (now.saturating_duration_since(since).as_secs() / ONE_MORE_EVERY.as_secs()) as u32;
        self.used = self.used.saturating_sub(back);
        self.since = Some(if self.used == 0 { now } else { since + ONE_MORE_EVERY * back });
        if self.used >= REQUESTS_AT_ONCE {
            self.untold += 1;
            self.told_at.get_or_insert(now);
            return false;
        }
        self.used += 1;
        true
    }

    fn untold(&mut self, now: Instant) -> Option<u32> {
        let told_at = self.told_at.filter(|told_at| now.saturating_duration_since(*told_at) >= UNTOLD_EVERY);
        told_at?;
        self.told_at = None;
        Some(std::mem::take(&mut self.untold)).filter(|untold| *untold > 0)
    }
}

#[cfg(test)]
mod tests {
    use forkmaster_wire::message::{GenerationId, SlotIndex};

    use super::*;

    const NAME: WorkerName = WorkerName { generation: GenerationId(1), slot: SlotIndex(0), pid: Some(7) };
    const LIMIT: Option<Duration> = Some(Duration::from_secs(10));
    const DUMP: &str =
        "Thread MainThread (77), most recent call last:\n  File \"app.py\", line 3, in view\n    wait()\n";

    struct Bench {
        board: Scoreboard,
        log: SlowLog,
        clock: Clock,
        now: Instant,
    }

    impl Bench {
        fn new() -> Bench {
            Bench {
                board: Scoreboard::create(1, 2).unwrap(),
                log: SlowLog::default(),
                clock: Clock::new(),
                now: Instant::now(),
            }
        }

        fn begin(&self, thread: u32, number: u64, ago: Duration) {
            let began = monotonic_ns() - ago.as_nanos() as u64;
            let cell = self.board.thread(0, thread);
            cell.is_thread(77);
            cell.begin(number, began, b"GET", b"/slow");
            cell.got_lock();
        }

        fn look(&mut self) -> (bool, Vec<String>) {
            let at = Looked { id: WorkerId(1), name: NAME, board: &self.board, cell: 0 };
            let mut notes = Vec::new();
            let wanted = self.log.look(at, LIMIT, &self.clock, self.now, &mut notes);
            (wanted, notes.iter().map(Note::to_string).collect())
        }

        fn told(&mut self, text: Option<&str>) -> Vec<String> {
            let at = Looked { id: WorkerId(1), name: NAME, board: &self.board, cell: 0 };
            let mut notes = Vec::new();
            self.log.on_stacks(at, text, &self.clock, &mut notes);
            notes.iter().map(Note::to_string).collect()
        }
    }

    #[test]
    fn a_slow_request_is_looked_at_twice_and_its_end_is_told() {
        let mut bench = Bench::new();
        bench.begin(1, 5, Duration::from_secs(9));
        assert_eq!(bench.look(), (false, vec![]));
        bench.begin(1, 6, Duration::from_secs(11));
        assert!(bench.look().0 && !bench.look().0);
        let first = bench.told(Some(DUMP)).concat();
        assert!(first.contains("slow request \"GET /slow\" runs for 11.0s in the application"), "{first}");
        assert!(first.ends_with("in view\n    wait()"), "{first}");
        assert!(bench.told(Some(DUMP)).is_empty() && !bench.look().0);
        // Twice the time; the number is the same.
        bench.begin(1, 6, Duration::from_secs(21));
        assert!(bench.look().0);
        let second = bench.told(Some(DUMP)).concat();
        assert!(second.contains("21.0s") && second.contains("where it was"), "{second}");
        bench.board.thread(0, 1).end(200, monotonic_ns());
        assert_eq!(
            bench.look().1,
            ["worker gen=1 slot=0 pid=7 slow request \"GET /slow\" ended after=11.0s status=200"]
        );
        assert_eq!(bench.look(), (false, vec![]));
    }

    #[test]
    fn a_request_that_waits_for_the_lock_shows_all_threads() {
        let mut bench = Bench::new();
        bench.begin(0, 1, Duration::from_secs(12));
        bench.board.thread(0, 0).want_lock(monotonic_ns() - 12_000_000_000);
        assert!(bench.look().0);
        let other = DUMP.replace("77", "78");
        let told = bench.told(Some(&other)).concat();
        assert!(told.contains("waits for the interpreter's lock") && told.contains("wait()"), "{told}");
        let mut silent = Bench::new();
        silent.begin(0, 1, Duration::from_secs(12));
        assert!(silent.look().0);
        assert!(silent.told(None).concat().contains("its stack cannot be had"));
    }

    #[test]
    fn many_slow_requests_cost_a_few_lines() {
        let mut bench = Bench::new();
        let mut wanted = 0;
        for number in 0..30 {
            bench.begin(0, number, Duration::from_secs(12));
            wanted += u32::from(bench.look().0);
        }
        assert_eq!(wanted, REQUESTS_AT_ONCE);
        assert_eq!(bench.log.untold(bench.now), None);
        bench.now += UNTOLD_EVERY;
        assert_eq!(bench.log.untold(bench.now), Some(Note::SlowUntold { requests: 20 }));
        assert_eq!(bench.log.untold(bench.now), None);
        bench.begin(0, 31, Duration::from_secs(12));
        assert!(bench.look().0);
    }
}
