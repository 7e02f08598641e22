//! The ways in: whoever asks the master something comes through one of these. `Doors` is all of them as the loop sees
//! them: it accepts, reads and writes, and hands over what is asked. It answers nothing by itself.

pub mod closer;
pub mod conn;
pub mod control;
pub mod events;
pub mod metrics;
pub mod notify;
pub mod notify_fd;
pub mod page;
pub mod peer;
pub mod protocol;
pub mod rights;
pub mod socket_file;
pub mod status;

use std::io;
use std::time::{Duration, Instant};

use mio::Token;
use serde::{Deserialize, Serialize};

use crate::config::passed;
use crate::config::process_context::ProcessContext;
use crate::config::settings::{self, Bind};
use crate::facts::note::Note;
use crate::facts::standing::Standing;
use crate::listeners::{ListenError, Listeners};
use crate::saved::{Claims, Kept};
use crate::sources::{Sources, CONTROL};

use control::{Accepted, ClientId, Control, Waiting};
use notify::Notify;
use notify_fd::NotifyFd;
use peer::Peer;
use protocol::{Refused, Reply, Request};
use status::{Answer, Page, StatusDoor};

/// The doors over an exec. The service manager is told the state of the service anew.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    control: Option<control::saved::Saved>,
    status: Option<status::saved::Saved>,
}

/// Without a free descriptor no client can be accepted, and nothing tells when there is one.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_secs(1);

pub struct Doors {
    /// None: it is switched off, or there is no place for it.
    control: Option<Control>,
    accept_at: Option<Instant>,
    /// None: nothing is to be listened on for it.
    status: Option<StatusDoor>,
    notify: Notify,
    /// None: nobody waits for a newline, or it has been written.
    notify_fd: Option<NotifyFd>,
}

/// What somebody wants to know, or to have done.
pub enum Asked {
    Request(ClientId, Result<Request, Refused>),
    Page(Token, Page),
}

impl Doors {
    pub fn open(control: &settings::Control, context: &ProcessContext, sources: &Sources) -> io::Result<Doors> {
        let notify = Notify::open(&context.environment);
        let control = Control::open(&control.socket, &control.readers, sources.registry())?;
        Ok(Doors { control, accept_at: None, status: None, notify, notify_fd: None })
    }

    /// None: somebody has not been answered, and is in a moment.
    pub fn save(&self, kept: &mut Kept) -> Option<Saved> {
        let status = match &self.status {
            Some(status) => Some(status.save(kept)?),
            None => None,
        };
        Some(Saved { control: self.control.as_ref().map(|control| control.save(kept)), status })
    }

    pub fn restore(
        saved: Saved,
        context: &ProcessContext,
        sources: &mut Sources,
        now: Instant,
        claims: &mut Claims,
    ) -> io::Result<Doors> {
        let notify = Notify::open(&context.environment);
        let passed = passed::sockets(&context.environment, std::process::id());
        let control = saved.control.map(|control| Control::restore(control, sources, now, claims)).transpose()?;
        let status =
            saved.status.map(|status| StatusDoor::restore(status, passed, sources, now, claims)).transpose()?;
        Ok(Doors { control, accept_at: None, status, notify, notify_fd: None })
    }

    /// Tells the service manager that this process is about to become another one, which tells it when it is ready.
    pub fn tell_upgrade(&mut self, standing: &Standing, now: Instant) {
        self.notify.reloading(standing, now);
    }

    /// Listens for probes, which are to hear that the service starts.
    pub fn open_status(
        &mut self,
        binds: &[Bind],
        context: &ProcessContext,
        sources: &mut Sources,
    ) -> Result<(), ListenError> {
        let passed = passed::sockets(&context.environment, std::process::id());
        self.status = StatusDoor::open(binds, Listeners::new(passed), sources)?;
        Ok(())
    }

    /// Whoever started this process waits for a newline on this descriptor.
    pub fn open_notify_fd(&mut self, number: u32) -> Result<(), String> {
        self.notify_fd = Some(NotifyFd::open(number)?);
        Ok(())
    }

    /// There is a service manager that wants to hear how the service stands.
    pub fn have_a_manager(&self) -> bool {
        self.notify.has_reader() || self.notify_fd.is_some()
    }

    /// Tells the service manager how the service stands.
    pub fn tell_manager(&mut self, standing: &Standing, now: Instant) {
        if let Some(waiting) = self.notify_fd.take_if(|_| standing.ready) {
            waiting.tell();
        }
        self.notify.observe(standing, now);
    }

    /// Something is asked already: `asked` has it without a wait.
    pub fn has_pending(&self) -> bool {
        let pages = self.status.as_ref().is_some_and(|status| !status.asked().is_empty());
        pages || self.control.as_ref().is_some_and(Control::has_pending)
    }

    /// When `asked` is to be called, though nobody asks, at the latest.
    pub fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let control = self.control.as_ref().and_then(Control::next_deadline);
        let status = self.status.as_ref().and_then(StatusDoor::next_deadline);
        let notify = self.notify.next_deadline(now);
        self.accept_at.into_iter().chain(control).chain(status).chain(notify).min()
    }

    /// Accepts some of the control socket's clients.
    pub fn accept(&mut self, sources: &mut Sources, now: Instant) {
        let Some(control) = &mut self.control else { return };
        self.accept_at = match control.accept(sources, now) {
            Accepted::All => None,
            Accepted::More => {
                sources.mark_unread(CONTROL);
                None
            }
            Accepted::NoDescriptor => Some(now + ACCEPT_AGAIN_AFTER),
        };
    }

    /// Somebody takes an interest in the service: its control socket should be where clients look for it.
    pub fn look_for_control(&mut self, sources: &mut Sources, now: Instant) {
        if let Some(control) = &mut self.control {
            control.look_for_file(sources, now);
        }
    }

    pub fn accept_status(&mut self, sources: &mut Sources, now: Instant) {
        if let Some(status) = &mut self.status {
            status.accept(sources, now);
        }
    }

    /// Reads and writes what is possible, if it is a client's.
    pub fn ready(&mut self, token: Token, now: Instant) {
        if let Some(status) = &mut self.status {
            status.ready(token, now);
        }
        let Some(control) = &mut self.control else { return };
        if let Some(client) = control.client(token) {
            control.ready(client, now);
        }
    }

    /// What is asked, one request a client: others have their turn before its next one. Whose time is over is closed.
    pub fn asked(&mut self, sources: &mut Sources, now: Instant) -> Vec<Asked> {
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept(sources, now);
        }
        let mut asked = Vec::new();
        if let Some(control) = &mut self.control {
            control.expire(now);
            control.tick(sources, now);
            for client in control.pending() {
                asked.extend(control.next_request(client).map(|request| Asked::Request(client, request)));
            }
        }
        if let Some(status) = &mut self.status {
            status.expire(now);
            if status.should_accept(now) {
                status.accept(sources, now);
            }
            asked.extend(status.asked().into_iter().map(|(client, page)| Asked::Page(client, page)));
        }
        asked
    }

    pub fn answer(&mut self, client: ClientId, reply: &Reply, now: Instant) {
        if let Some(control) = &mut self.control {
            control.answer(client, reply, now);
        }
    }

    /// From now on this client hears of every event. False: there are enough who do.
    #[must_use]
    pub fn listen(&mut self, client: ClientId, now: Instant) -> bool {
        self.control.as_mut().is_some_and(|control| control.listen(client, now))
    }

    /// For those who listen.
    pub fn tell(&mut self, note: &Note, now: Instant) {
        if let Some(control) = self.control.as_mut().filter(|control| control.has_listeners()) {
            control.tell(&events::line(note), now);
        }
    }

    pub fn show(&mut self, client: Token, answer: &Answer, now: Instant) {
        if let Some(status) = &mut self.status {
            status.answer(client, answer, now);
        }
    }

    /// Who asks, as the kernel says.
    pub fn peer(&self, client: ClientId) -> Option<Peer> {
        self.control.as_ref().and_then(|control| control.peer(client))
    }

    pub fn wait(&mut self, client: ClientId, waiting: Waiting) {
        if let Some(control) = &mut self.control {
            control.wait(client, waiting);
        }
    }

    /// Closes them. Where this process is pid 1, its end kills whoever is in its namespace; clients leave before that.
    pub fn close(self) {
        match self.control {
            Some(control) if std::process::id() == 1 => control.part(),
            control => drop(control),
        }
    }

    /// Clients whose request is being done.
    pub fn waiting(&self) -> Vec<ClientId> {
        let waiting = self.control.iter().flat_map(|control| control.waiting(|waiting| waiting == Waiting::Answer));
        waiting.map(|(client, _)| client).collect()
    }
}
