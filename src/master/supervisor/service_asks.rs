//! What operators ask of services, by their names: more or fewer processes, and new ones in place of those that run. What
//! was scaled survives reloads, as with workers.

use std::time::Instant;

use super::asks::{Amount, AskId, On};
use super::services::{Readiness, Service, ServiceId, ServicePlan, State};
use super::Supervisor;
use crate::facts::note::Note;
use crate::facts::outcome::{Outcome, Refusal};

/// The most processes of a service, as for the setting `count`. More would be a mistake.
const PROCESSES_MAX: u32 = 64;

impl ServicePlan {
    /// One that runs every so often runs once at a time.
    fn processes_max(&self) -> u32 {
        if self.every.is_some() {
            1
        } else {
            PROCESSES_MAX
        }
    }
}

impl Supervisor {
    /// How many processes of a service are wanted: as configured, and what operators have added or taken away since.
    pub fn wanted_processes(&self, plan: &ServicePlan) -> u32 {
        let (extra, off) = self.books.get(&plan.name).map_or((0, false), |book| (book.extra, book.off));
        match off {
            true => 0,
            false => (i64::from(plan.count) + i64::from(extra)).clamp(1, plan.processes_max().into()) as u32,
        }
    }

    pub(super) fn on_scale_service(&mut self, asker: Option<AskId>, name: &str, amount: Amount, wait: bool) {
        let plan = match self.service_plan(name) {
            Ok(plan) => plan,
            Err(refusal) => return self.answer(asker, Outcome::Refused(refusal)),
        };
        let (before, most) = (self.wanted_processes(&plan), plan.processes_max());
        let wanted = match amount {
            // Steps end at one, as those of workers: only a number switches the last one off.
            Amount::By(by) if before > 0 || by > 0 => (i64::from(before) + i64::from(by)).max(1),
            Amount::By(_) => 0,
            Amount::To(to) => i64::from(to),
        };
        if wanted > i64::from(most) {
            let reason = match plan.every {
                Some(_) => format!("{name} runs every so often, one run at a time"),
                None => format!("{wanted} processes are too many for a service; at most {most}"),
            };
            return self.answer(asker, Outcome::Refused(Refusal::new(reason)));
        }
        let wanted = wanted as u32;
        if let Some(book) = self.books.get_mut(name) {
            book.off = wanted == 0;
            if wanted > 0 {
                book.extra = wanted as i32 - plan.count as i32;
            }
        }
        self.note(Note::ServiceScaled { name: name.to_owned(), wanted });
        match wait {
            true => self.wait(asker, On::ServiceScaled { name: name.to_owned(), wanted }),
            false => self.answer(asker, Outcome::ServiceScaled { processes: wanted }),
        }
    }

    pub(super) fn on_recycle_service(
        &mut self,
        asker: Option<AskId>,
        name: &str,
        number: Option<u32>,
        wait: bool,
        now: Instant,
    ) {
        let plan = match self.service_plan(name) {
            Ok(plan) => plan,
            Err(refusal) => return self.answer(asker, Outcome::Refused(refusal)),
        };
        let meant = |service: &&Service| {
            self.is_serving(service.generation)
                && service.name == name
                && number.is_none_or(|number| service.number == number)
        };
        let ids: Vec<ServiceId> = self.services().iter().filter(meant).map(|service| service.id).collect();
        if ids.is_empty() {
            let wanted = self.wanted_processes(&plan);
            let reason = match number {
                Some(number) if wanted > 0 => {
                    format!("{name} has no process {number}; {wanted} are wanted, numbered from 0")
                }
                Some(_) | None => format!("no process of {name} is wanted; `scale {name} 1` brings one"),
            };
            return self.answer(asker, Outcome::Refused(Refusal::new(reason)));
        }
        let mut old = Vec::new();
        for id in ids {
            let Some(at) = self.services().iter().position(|service| service.id == id) else { continue };
            match self.services()[at].state {
                State::Waiting if self.has_run_under_way(name) => {
                    let reason = format!("a run of {name} is not over, and there is one at a time");
                    return self.answer(asker, Outcome::Refused(Refusal::new(reason)));
                }
                State::Waiting => self.run_service(at, now),
                State::Running { .. } | State::Resting { .. } | State::Stopping { .. } | State::Killed { .. } => {
                    old.push(id);
                    self.stop_service(at, now);
                }
            }
        }
        match wait {
            true => self.wait(asker, On::ServiceRecycled { name: name.to_owned(), number, old }),
            false => self.answer(asker, Outcome::Asked),
        }
    }

    /// None: it is waited for.
    pub(super) fn service_scaled(&self, name: &str, wanted: u32) -> Option<Outcome> {
        let plan = match self.service_plan(name) {
            Ok(plan) => plan,
            Err(refusal) => return Some(Outcome::Refused(refusal)),
        };
        let now = self.wanted_processes(&plan);
        if now != wanted {
            return Some(Outcome::Refused(Refusal::new(format!("superseded: {now} processes are wanted now"))));
        }
        self.settled(&plan, None).map(|settled| match settled {
            Ok(()) => Outcome::ServiceScaled { processes: wanted },
            Err(refusal) => Outcome::Refused(refusal),
        })
    }

    /// None: it is waited for.
    pub(super) fn service_recycled(&self, name: &str, number: Option<u32>, old: &[ServiceId]) -> Option<Outcome> {
        let plan = match self.service_plan(name) {
            Ok(plan) => plan,
            Err(refusal) => return Some(Outcome::Refused(refusal)),
        };
        let gone = old.iter().all(|id| self.services().iter().all(|service| service.id != *id));
        self.settled(&plan, number)
            .filter(|_| gone)
            .map(|settled| settled.map_or_else(Outcome::Refused, |()| Outcome::Asked))
    }

    /// As many processes as are wanted run, and are ready, or wait for their time. `number`: only this one counts. None: not yet.
    /// An error: one of them has ended, or is not ready in its time, and nobody knows when it will be.
    fn settled(&self, plan: &ServicePlan, number: Option<u32>) -> Option<Result<(), Refusal>> {
        let of_it = |service: &&Service| {
            self.is_serving(service.generation)
                && service.name == plan.name
                && number.is_none_or(|number| service.number == number)
        };
        let processes: Vec<&Service> = self.services().iter().filter(of_it).collect();
        for service in &processes {
            let what = match (service.state, service.readiness) {
                (State::Resting { .. }, _) => "has ended, and rests before it begins again",
                (State::Running { .. }, Readiness::Late) => "has not said that it is ready",
                (State::Running { .. } | State::Waiting | State::Stopping { .. } | State::Killed { .. }, _) => continue,
            };
            let reason = format!("process {} of {} {what}; the log says more", service.number, plan.name);
            return Some(Err(Refusal::new(reason)));
        }
        let runs = |service: &&Service| match (service.state, service.readiness) {
            (State::Running { .. }, Readiness::Unasked | Readiness::Ready) => service.pid.is_some(),
            (State::Running { .. }, Readiness::Awaited { .. } | Readiness::Late) => false,
            (State::Waiting, _) => true,
            (State::Resting { .. } | State::Stopping { .. } | State::Killed { .. }, _) => false,
        };
        let wanted = if number.is_some() { 1 } else { self.wanted_processes(plan) as usize };
        (processes.iter().all(runs) && processes.len() == wanted).then_some(Ok(()))
    }

    /// Of a service that runs every so often, also one of the generation before.
    fn has_run_under_way(&self, name: &str) -> bool {
        self.services().iter().any(|service| service.name == name && service.state != State::Waiting)
    }

    fn service_plan(&self, name: &str) -> Result<ServicePlan, Refusal> {
        let plans = self.serving().map_or(&[][..], |generation| &*generation.plan.services);
        if let Some(plan) = plans.iter().find(|plan| plan.name == name) {
            return Ok(plan.clone());
        }
        let names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
        Err(Refusal::new(match names.is_empty() {
            true => "the generation that serves has no [[service]]".to_owned(),
            false => format!("there is no service {name}; there is {}", names.join(", ")),
        }))
    }
}
