//! What a canary and the workers beside it have counted since it serves. The first requests of each worker are left out: they
//! fill caches and open connections. Those that the application never answered count from the first one on. What a worker has
//! counted stays when it is gone. It judges nothing.

use std::collections::BTreeMap;

use forkmaster_wire::message::{GenerationId, WorkerId};
use forkmaster_wire::scoreboard::{Scoreboard, STATUS_CLASSES};

use super::measures::of_cell;
use super::{watch, Service};
use crate::facts::measures::Totals;
use crate::supervisor::verdict::Counts;
use crate::supervisor::Event;

/// The requests of a worker that say nothing.
const FIRST: u64 = 20;

/// 5xx.
const FAILED: usize = STATUS_CLASSES - 1;

/// Two generations side by side.
#[derive(Default)]
pub struct Trial {
    /// The new one and the old one. None: there is no canary.
    of: Option<(GenerationId, GenerationId)>,
    workers: BTreeMap<WorkerId, Watched>,
    /// Of workers that are gone.
    gone: BTreeMap<GenerationId, Counts>,
}

struct Watched {
    generation: GenerationId,
    /// What it had counted when it was first looked at.
    first: Totals,
    /// What it had counted when its first requests were over.
    warm: Option<Totals>,
}

impl Watched {
    fn look(&mut self, now: &Totals) -> Counts {
        if self.warm.is_none() && now.requests >= FIRST {
            self.warm = Some(*now);
        }
        let since = |earlier: &Totals, count: fn(&Totals) -> u64| count(now).saturating_sub(count(earlier));
        let unseen = |totals: &Totals| totals.shed.saturating_add(totals.lost);
        let all = |totals: &Totals| totals.requests.saturating_add(totals.shed).saturating_add(totals.lost);
        let cut = |totals: &Totals| totals.timed_out.saturating_add(totals.shed).saturating_add(totals.lost);
        let counts = Counts { answered: since(&self.first, all), cut: since(&self.first, cut), ..Counts::default() };
        let Some(warm) = &self.warm else { return counts };
        // An exception is answered with 500, unless the head was sent before.
        let raised = since(warm, |totals| totals.status[FAILED]).max(since(warm, |totals| totals.errors));
        Counts {
            compared: since(warm, all),
            failed: raised.saturating_add(since(warm, unseen)),
            latency: now.latency.since(&warm.latency),
            ..counts
        }
    }
}

impl Trial {
    fn look(&mut self, worker: WorkerId, generation: GenerationId, now: &Totals) -> Counts {
        let watched = self.workers.entry(worker).or_insert(Watched { generation, first: *now, warm: None });
        watched.look(now)
    }

    /// Its cell will be another's.
    pub fn worker_gone(&mut self, worker: WorkerId, board: &Scoreboard, cell: u32) {
        let Some(mut watched) = self.workers.remove(&worker) else { return };
        // The others were answered in the application's place.
        let lost = watch::running(board, cell).filter(|running| !running.answered).count() as u64;
        let counts = watched.look(&Totals { lost, ..of_cell(board, cell) });
        self.gone.entry(watched.generation).or_default().add(&counts);
    }
}

impl Service {
    /// What both have counted; from the first time on that it is asked of these two.
    pub fn compare(&mut self, generation: GenerationId, against: GenerationId) -> Event {
        if self.trial.of != Some((generation, against)) {
            self.trial = Trial { of: Some((generation, against)), ..Trial::default() };
        }
        let mut counts: BTreeMap<GenerationId, Counts> = self.trial.gone.clone();
        for (id, worker) in &self.workers {
            let of = worker.generation;
            if of != generation && of != against {
                continue;
            }
            let Some(processes) = self.generations.get(&of) else { continue };
            let mut seen = self.trial.look(*id, of, &of_cell(&processes.board, worker.cell));
            seen.running_us = longest_us(&processes.board, worker.cell);
            counts.entry(of).or_default().add(&seen);
        }
        let mut of = |which| Box::new(counts.remove(&which).unwrap_or_default());
        Event::Compared { generation, old: of(against), new: of(generation) }
    }
}

/// For how long the oldest of the requests runs that nobody has answered yet.
fn longest_us(board: &Scoreboard, cell: u32) -> u64 {
    let running = watch::running(board, cell).filter(|running| !running.answered);
    running.map(|running| watch::age(&running).as_micros() as u64).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use forkmaster_wire::scoreboard::Finished;

    fn answer(board: &Scoreboard, cell: u32, requests: u32, status: u16) {
        for _ in 0..requests {
            board.cell(cell).finished(Finished { status, latency_ns: 1_000_000, queued_ns: 0 });
        }
    }

    #[test]
    fn the_first_requests_of_each_worker_are_left_out_and_those_of_the_gone_stay() {
        let board = Scoreboard::create(3, 1).unwrap();
        let (mut trial, generation, worker) = (Trial::default(), GenerationId(2), WorkerId(7));
        let look = |trial: &mut Trial| trial.look(worker, generation, &of_cell(&board, 0));
        assert_eq!(look(&mut trial), Counts::default());
        answer(&board, 0, 15, 500);
        assert_eq!((look(&mut trial).answered, look(&mut trial).compared), (15, 0));
        answer(&board, 0, 15, 500);
        // From here on.
        assert_eq!((look(&mut trial).answered, look(&mut trial).compared), (30, 0));
        answer(&board, 0, 8, 200);
        answer(&board, 0, 2, 503);
        board.cell(0).errors.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let seen = look(&mut trial);
        assert_eq!((seen.answered, seen.compared, seen.failed), (40, 10, 2));
        assert_eq!(seen.latency.buckets.iter().sum::<u64>(), 10);
        answer(&board, 0, 1, 200);
        trial.worker_gone(worker, &board, 0);
        assert_eq!(trial.gone[&generation].compared, 11);
        // One that was there before and is warm is counted from the first look on.
        answer(&board, 1, 50, 200);
        assert_eq!(trial.look(WorkerId(8), generation, &of_cell(&board, 1)), Counts::default());
        answer(&board, 1, 5, 200);
        assert_eq!(trial.look(WorkerId(8), generation, &of_cell(&board, 1)).compared, 5);
        // What the application never answered counts from the first one on: cut, shed, and lost with its worker.
        let look = |trial: &mut Trial| trial.look(WorkerId(10), generation, &of_cell(&board, 2));
        assert_eq!(look(&mut trial), Counts::default());
        answer(&board, 2, 1, 504);
        board.cell(2).timed_out.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        board.cell(2).shed.fetch_add(2, std::sync::atomic::Ordering::Relaxed);
        let seen = look(&mut trial);
        assert_eq!((seen.answered, seen.cut, seen.compared), (3, 3, 0));
        answer(&board, 2, 20, 200);
        look(&mut trial);
        board.cell(2).shed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let seen = look(&mut trial);
        assert_eq!((seen.answered, seen.cut, seen.compared, seen.failed), (24, 4, 1, 1));
        board.thread(2, 0).begin(7, 1, b"GET", b"/");
        assert!(longest_us(&board, 2) > 0);
        let before = trial.gone[&generation];
        trial.worker_gone(WorkerId(10), &board, 2);
        let gone = trial.gone[&generation];
        assert_eq!((gone.cut - before.cut, gone.failed - before.failed, gone.compared - before.compared), (5, 2, 2));
        // Nobody asked after it.
        trial.worker_gone(WorkerId(9), &board, 1);
        assert_eq!(trial.gone.len(), 1);
    }
}
