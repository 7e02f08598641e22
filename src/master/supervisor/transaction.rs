//! A reload as a transaction: prove, roll, commit; or refuse and abandon, and the predecessor is as before.
//!
//! How a reload can end, and where (`Outcome` is what the asker hears):
//!
//! | Outcome | Because | Where |
//! |---|---|---|
//! | refused, no generation | the configuration or an address is wrong | `on_configured` |
//! | refused | the template fails, dies, hangs, breaks or does not fork while it proves | `template` |
//! | refused | the candidate fails, dies, leaves or is not ready within `boot_timeout` | `reports::boot_failed` |
//! | refused | the candidate answers otherwise than the old generation, hangs or dies over it | `rehearsal` |
//! | refused | `max_processes` leaves no room for a candidate, or for a worker while it rolls | `leftovers` |
//! | refused | a new listener cannot be opened, or not in time | `rolling::on_listeners_refused`, `expire_step` |
//! | refused | three boots or new workers fail while it rolls, or one as it takes over | `reports::count_failed_boot` |
//! | refused | it had no candidate, and each of its workers has failed | `reports::count_failed_boot` |
//! | refused | requests do not end, the command fails or is late, or the release does not answer after it (`--pause`) | `pause` |
//! | refused | the canary is worse, one of it dies, an operator abandons it, or there can be none | `canary` |
//! | refused | no worker changed places within a step's time | `rolling::expire_step` |
//! | superseded | a later reload | `on_configured` |
//! | stopped | TERM, `stop` | `stop` |
//! | committed | every slot serves and no older worker accepts | `commit` |

use std::time::Instant;

use forkmaster_wire::message::{GenerationId, ListenerId};

use super::asks::AskId;
use super::backoff::Backoff;
use super::generation::{Generation, Plan, Slot, State};
use super::kept::Keep;
use super::pace::Boot;
use super::rehearsal::Rehearsal;
use super::template::Template;
use super::worker::{State as WorkerState, Worker};
use super::{Action, Event, Phase, Supervisor};
use crate::facts::note::Note;
use crate::facts::outcome::{End, Refusal, Verb};

impl Supervisor {
    /// The configuration of a reload was read, or that of the first start.
    pub(super) fn on_configured(
        &mut self,
        verb: Verb,
        askers: &[AskId],
        began: Instant,
        result: Result<(GenerationId, Plan), Refusal>,
        now: Instant,
    ) {
        if self.is_commanding() {
            return self.delay(Event::Configured { verb, askers: askers.to_vec(), began, result });
        }
        match result {
            Ok((id, plan)) => {
                for asker in askers {
                    self.reload_begun(*asker, id);
                }
                self.begin(id, verb, plan, began, now);
            }
            Err(refusal) => self.reload_refused(verb, askers, refusal, now.saturating_duration_since(began)),
        }
    }

    fn begin(&mut self, id: GenerationId, verb: Verb, plan: Plan, began: Instant, now: Instant) {
        self.listeners.extend(plan.listeners.iter().copied());
        if self.phase != Phase::Running {
            self.conclude(id, verb, began, End::Stopped, now);
            let close = self.take_unused_listeners();
            self.actions.push(Action::Abandon { generation: id, close });
            self.actions.push(Action::Forget { generation: id });
            return;
        }
        let current = self.in_transaction().map(|generation| generation.id);
        let template = Template::starting(now, plan.boot_timeout);
        let origin = plan.origin.unwrap_or(id);
        // It is there before the current one is abandoned: what both have bound stays open.
        self.generations.push(Generation {
            id,
            verb,
            pause: plan.pause.as_deref().cloned(),
            maintenance: None,
            canary: plan.canary.as_deref().copied(),
            tried: None,
            rehearsal: Rehearsal::Off,
            rehearsed: None,
            plan,
            state: State::Proving,
            began,
            template,
            keep: Keep::No,
            origin,
            lender: None,
            template_backoff: Backoff::default(),
            slots: vec![Slot::default()],
            workers: Vec::new(),
            candidate: Boot::default(),
            condemned: false,
            denied: 0,
            blocked: None,
            no_room: None,
        });
        if let Some(current) = current {
            self.note(Note::Superseded { generation: current, by: id });
            self.abandon(current, End::Superseded { by: id }, now);
        }
        self.note(Note::Generation { generation: id, from: None, to: State::Proving.word() });
        let Some(at) = self.index(id) else { return };
        self.plan_rehearsal(at);
        if !self.fork_from_kept(at, now) {
            self.actions.push(Action::StartTemplate { generation: id });
        }
    }

    /// The reload failed: the asker hears why, and the predecessor is as before. At first start there is none, and
    /// the master exits with the refusal's code.
    pub(super) fn refuse(&mut self, id: GenerationId, refusal: Refusal, now: Instant) {
        let exit_code = i32::from(refusal.exit_code);
        let verb = self.index(id).map(|at| self.generations[at].verb).unwrap_or_default();
        self.note(Note::Refused { verb, generation: Some(id), refusal: refusal.clone() });
        self.abandon(id, End::Refused(refusal), now);
        if self.serving().is_none() {
            self.end(exit_code, now);
        }
    }

    /// Undoes a transaction. What serves of the abandoned generation is drained by `settle` as the predecessor's
    /// slots come back, so that capacity never falls for it.
    pub(super) fn abandon(&mut self, id: GenerationId, end: End, now: Instant) {
        let Some(at) = self.index(id) else { return };
        let Generation { verb, began, .. } = self.generations[at];
        self.conclude(id, verb, began, end, now);
        self.change_generation(at, State::Abandoned);
        self.end_of_rehearsal(at, now);
        self.give_back_template(at, now);
        let close = self.take_unused_listeners();
        self.actions.push(Action::Abandon { generation: id, close });
        self.end_who_does_not_serve(at, now);
        let Some(at) = self.serving_index() else { return };
        // Whoever drains from now on has its whole time again.
        self.generations[at].condemned = false;
        for slot in 0..self.generations[at].slots.len() {
            // Whoever else still drains in this slot had been replaced before.
            let Some(worker) = self.generations[at].slots[slot].yielded.take() else { continue };
            let state = self.generations[at].worker(worker).map(|worker| &worker.state);
            if matches!(state, Some(WorkerState::Closing { .. } | WorkerState::Draining { .. })) {
                self.serve(at, worker, now);
            }
        }
        // Who yielded and is not called back.
        self.have_drained_stand_aside(at);
    }

    /// Others serve in the place of whoever was drained.
    fn have_drained_stand_aside(&mut self, at: usize) {
        let drained =
            |worker: &&Worker| matches!(worker.state, WorkerState::Closing { .. } | WorkerState::Draining { .. });
        let drained = self.generations[at].workers.iter().filter(drained);
        self.actions.extend(drained.map(|worker| Action::StandAside { worker: worker.id }));
    }

    /// Every slot of the generation serves and nobody else accepts: it is the one from now on.
    pub(super) fn commit(&mut self, at: usize, now: Instant) {
        let id = self.generations[at].id;
        let predecessor = self.serving_index();
        if let Some(predecessor) = predecessor {
            self.change_generation(predecessor, State::Draining);
        }
        self.keep_previous(at, predecessor, now);
        if let Some(predecessor) = predecessor {
            self.end_who_does_not_serve(predecessor, now);
            self.have_drained_stand_aside(predecessor);
        }
        self.change_generation(at, State::Serving);
        let close = self.take_unused_listeners();
        self.actions.push(Action::Commit { generation: id, close });
        let Generation { verb, began, .. } = self.generations[at];
        self.conclude(id, verb, began, End::Committed, now);
    }

    /// A generation's workers that were to serve later will not.
    fn end_who_does_not_serve(&mut self, at: usize, now: Instant) {
        for worker in self.generations[at].workers.clone() {
            match worker.state {
                WorkerState::Starting { .. } | WorkerState::Lost { .. } => self.kill(at, worker.id, now),
                WorkerState::Ready => self.drain(at, worker.id, now),
                WorkerState::Opening { .. }
                | WorkerState::Serving { .. }
                | WorkerState::Pausing { .. }
                | WorkerState::Paused { .. }
                | WorkerState::Kept { .. }
                | WorkerState::Closing { .. }
                | WorkerState::Draining { .. }
                | WorkerState::Terminating { .. }
                | WorkerState::Finishing { .. }
                | WorkerState::Exiting { .. }
                | WorkerState::Killed { .. } => {}
            }
        }
    }

    /// Listeners that neither the generation that serves nor one in a transaction has. Whoever calls this closes them.
    fn take_unused_listeners(&mut self) -> Vec<ListenerId> {
        let users = [self.serving(), self.in_transaction()].into_iter().flatten();
        let used: Vec<ListenerId> = users.flat_map(|generation| generation.plan.listeners.iter().copied()).collect();
        let unused = self.listeners.iter().filter(|listener| !used.contains(listener)).copied().collect();
        self.listeners.retain(|listener| used.contains(listener));
        unused
    }

    /// Listeners that a generation's workers accept from and that whoever follows them does not have: they go on with
    /// them until the commit, since nobody else would serve who connects there.
    pub(super) fn without_heir(&self, at: usize) -> Vec<ListenerId> {
        let generation = &self.generations[at];
        // Until workers change places, the heir is the next worker of the generation that serves.
        let successor = self.exchanging().filter(|successor| successor.id != generation.id);
        let Some(heir) = successor.or(self.serving()) else { return Vec::new() };
        let open = generation.plan.listeners.iter().filter(|listener| self.listeners.contains(listener));
        open.filter(|listener| !heir.plan.listeners.contains(listener)).copied().collect()
    }
}
