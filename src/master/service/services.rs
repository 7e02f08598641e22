//! The processes of services: started as the generation's user in its pinned directory and environment, stopped by their
//! own signal, with their output in the log. Decides nothing.

use mio::Token;

use super::output::{Output, Pass};
use super::program::{self, Given, Start};
use super::readiness::Readiness;
use super::{EventQueue, Service};
use crate::children::{Proof, Who};
use crate::config::settings::ServiceSettings;
use crate::facts::outcome::Refusal;
use crate::shared::Shared;
use crate::sources::Source;
use crate::supervisor::services::{Event as ServiceEvent, ServiceId};
use crate::supervisor::worker::Exit;
use crate::supervisor::Event;
use forkmaster_wire::limits;
use forkmaster_wire::message::GenerationId;

pub struct ServiceProcess {
    pub(super) generation: GenerationId,
    pub(super) name: String,
    pub(super) stop_signal: i32,
    pub(super) output: Output,
    pub(super) token: Token,
    /// None: it has run for long.
    pub(super) start: Option<Start>,
}

impl Service {
    pub fn start_service(
        &mut self,
        generation: GenerationId,
        service: ServiceId,
        name: &str,
        shared: &mut Shared,
    ) -> Event {
        let event = match self.try_service(generation, service, name, shared) {
            Ok(pid) => ServiceEvent::Started { pid },
            Err(refusal) => ServiceEvent::Exited(Exit::NeverBorn(refusal)),
        };
        Event::Service { service, event }
    }

    fn try_service(
        &mut self,
        generation: GenerationId,
        service: ServiceId,
        name: &str,
        shared: &mut Shared,
    ) -> Result<i32, Refusal> {
        let processes = self.generations.get(&generation).ok_or_else(|| Refusal::new("its generation is gone"))?;
        let settings = &processes.settings;
        let is_it = |service: &&ServiceSettings| service.name == name;
        let of = settings.services.iter().find(is_it).ok_or_else(|| Refusal::new("it is not configured"))?;
        if of.ready_within.is_some() && self.readiness.is_none() {
            let made = Readiness::new(&mut shared.sources);
            self.readiness = Some(made.map_err(|error| {
                Refusal::new(format!("there is no socket for it to say that it is ready: {}", limits::explain(&error)))
            })?);
        }
        let listeners = processes.service_listeners.get(name).map_or(&[][..], |listeners| listeners);
        let sockets = shared.listeners.wire(listeners, &[]).into_iter().map(|(_, socket)| socket).collect();
        let asked = self.readiness.as_ref().filter(|_| of.ready_within.is_some());
        let given = Given {
            sockets,
            name,
            notify_socket: asked.map(|readiness| readiness.address.as_os_str()),
            no_new_privileges: settings.server.no_new_privileges,
        };
        let started = program::start(&of.command, settings, &given).map_err(|error| Refusal::new(error.to_string()))?;
        let who = Who::Service(service);
        let claimed = shared.children.claim(who, Proof::OwnChild { pid: started.pid });
        claimed.map_err(|claim| Refusal::new(format!("the books are wrong: {claim}")))?;
        let output = Output::new(started.output);
        let token = shared.sources.add(&output, Source::Service(service)).map_err(|error| {
            shared.children.disown(who);
            Refusal::new(format!("its output cannot be watched: {}", limits::explain(&error)))
        })?;
        let (name, stop_signal) = (of.name.clone(), of.stop_signal);
        let start = Some(started.start);
        self.services.insert(service, ServiceProcess { generation, name, stop_signal, output, token, start });
        Ok(started.pid)
    }

    /// Whoever has said that it is ready.
    pub fn read_readiness(&mut self, shared: &mut Shared, events: &mut EventQueue) {
        let Some(readiness) = &self.readiness else { return };
        let (ready, pass) = readiness.read();
        for sender in ready {
            if let Some(Who::Service(service)) = shared.children.leader_of(&sender) {
                events.push_back(Event::Service { service, event: ServiceEvent::Ready });
            }
        }
        if pass == Pass::More {
            shared.sources.mark_unread(readiness.token);
        }
    }

    /// Its own signal to it alone, since a program tells those that it has started; KILL to all of them.
    pub fn stop_service(&self, service: ServiceId, kill: bool, shared: &Shared) {
        let who = Who::Service(service);
        let signal = self.services.get(&service).map_or(libc::SIGTERM, |process| process.stop_signal);
        match kill {
            true => shared.children.signal_group(who, libc::SIGKILL),
            false => shared.children.signal(who, signal),
        };
    }

    pub fn read_service(&mut self, service: ServiceId, shared: &mut Shared) {
        let Some(process) = self.services.get_mut(&service) else { return };
        let (generation, name) = (process.generation, process.name.as_str());
        match process.output.read(|line| log::info!("service {name} gen={generation}: {line}")) {
            Pass::Empty => {}
            Pass::More => shared.sources.mark_unread(process.token),
            Pass::Ended => {
                shared.sources.remove(process.token, &process.output);
            }
        }
    }

    /// It has been reaped.
    pub fn service_ended(&mut self, service: ServiceId, exit: Exit, shared: &mut Shared) -> Event {
        let start = self.services.get(&service).and_then(|process| process.start.as_ref());
        let failure = start.and_then(Start::failure).map(|not_started| Refusal::new(not_started.to_string()));
        self.forget_service(service, shared);
        let exit = failure.map_or(exit, Exit::NeverBorn);
        Event::Service { service, event: ServiceEvent::Exited(exit) }
    }

    pub fn forget_service(&mut self, service: ServiceId, shared: &mut Shared) {
        let Some(ServiceProcess { generation, name, output, token, .. }) = self.services.remove(&service) else {
            return;
        };
        shared.sources.remove(token, &output);
        // What it has said at last stands in the log.
        let _said = output.finish(|line| log::info!("service {name} gen={generation}: {line}"));
    }
}
