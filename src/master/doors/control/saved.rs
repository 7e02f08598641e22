//! The control socket over an exec, with everybody who is connected: nobody hears an end that is none.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::Interest;
use serde::{Deserialize, Serialize};

use super::{Client, ClientId, Control, TurnedAway, Waiting, BOUNDS};
use crate::config::settings::Reader;
use crate::doors::conn::Conn;
use crate::doors::peer::Peer;
use crate::doors::rights::Rights;
use crate::doors::socket_file::{self, SocketFile};
use crate::saved::{Claims, Kept};
use crate::sources::{Sources, CONTROL};

#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    socket: socket_file::Saved,
    /// Who may look.
    #[serde(default)]
    readers: Vec<Reader>,
    clients: Vec<SavedClient>,
    last: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedClient {
    id: u64,
    waiting: Waiting,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    lost: u64,
}

impl Control {
    pub fn save(&self, kept: &mut Kept) -> Saved {
        let mut clients = Vec::new();
        for (ClientId(id), client) in &self.clients {
            kept.keep(name(*id), &client.conn);
            let (unread, unsent) = client.conn.bytes();
            let (unread, unsent) = (unread.to_vec(), unsent.to_vec());
            clients.push(SavedClient { id: *id, waiting: client.waiting, unread, unsent, lost: client.lost });
        }
        let readers = self.rights.readers().to_vec();
        Saved { socket: self.socket.save(kept), readers, clients, last: self.last }
    }

    pub fn restore(saved: Saved, sources: &mut Sources, now: Instant, claims: &mut Claims) -> io::Result<Control> {
        let socket = SocketFile::restore(saved.socket, claims)?;
        sources.registry().register(&mut SourceFd(&socket.as_fd().as_raw_fd()), CONTROL, Interest::READABLE)?;
        let rights = Rights::new(nix::unistd::geteuid().as_raw(), &saved.readers);
        let mut clients = BTreeMap::new();
        for SavedClient { id, waiting, unread, unsent, lost } in saved.clients {
            let descriptor = claims.claim(&name(id))?;
            // As it was when the client came.
            let Ok(peer) = Peer::of(&descriptor) else { continue };
            let Some(may) = rights.of(peer, &descriptor) else { continue };
            let conn = Conn::new(descriptor, socket.closer().clone(), BOUNDS, now).with_bytes(unread, unsent);
            let token = sources.token();
            let interest = Interest::READABLE | Interest::WRITABLE;
            sources.registry().register(&mut SourceFd(&conn.as_fd().as_raw_fd()), token, interest)?;
            clients.insert(ClientId(id), Client { conn, peer, may, token, waiting, lost });
        }
        Ok(Control {
            socket,
            clients,
            last: saved.last,
            rights,
            turned_away: TurnedAway::default(),
            look_at: None,
            said_lost: false,
        })
    }
}

fn name(id: u64) -> String {
    format!("control.client.{id}")
}
