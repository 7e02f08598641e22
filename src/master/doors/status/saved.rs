//! The listener of `[status] bind` over an exec, with the probes that are under way.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Token};
use serde::{Deserialize, Serialize};

use super::{Accepting, Client, Stage, StatusDoor, BOUNDS, CONNECTION_WITHIN};
use crate::config::passed::Passed;
use crate::doors::closer::Closer;
use crate::doors::conn::Conn;
use crate::listeners::{self, Listeners};
use crate::saved::{Claims, Kept};
use crate::sources::Sources;

const WHOSE: &str = "status";

#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    listeners: listeners::saved::Saved,
    clients: Vec<SavedClient>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedClient {
    token: usize,
    stage: SavedStage,
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

#[derive(Debug, Serialize, Deserialize)]
enum SavedStage {
    Head { first: Option<Vec<u8>>, bytes: usize },
    Answered,
}

impl StatusDoor {
    /// None: somebody waits for a page, and has it in a moment.
    pub fn save(&self, kept: &mut Kept) -> Option<Saved> {
        let mut clients = Vec::new();
        for (Token(token), client) in &self.clients {
            let stage = match &client.stage {
                Stage::Head { first, bytes } => SavedStage::Head { first: first.clone(), bytes: *bytes },
                Stage::Asked { .. } => return None,
                Stage::Answered => SavedStage::Answered,
            };
            kept.keep(name(*token), &client.conn);
            let (unread, unsent) = client.conn.bytes();
            clients.push(SavedClient { token: *token, stage, unread: unread.to_vec(), unsent: unsent.to_vec() });
        }
        Some(Saved { listeners: self.listeners.save(WHOSE, kept), clients })
    }

    pub fn restore(
        saved: Saved,
        passed: Vec<Passed>,
        sources: &mut Sources,
        now: Instant,
        claims: &mut Claims,
    ) -> io::Result<StatusDoor> {
        let listeners = Listeners::restore(saved.listeners, WHOSE, passed, claims)?;
        let mut accepting = Vec::new();
        for (id, socket) in listeners.all() {
            accepting.push(Accepting::watch(id, socket, sources)?);
        }
        // Which of the listeners a client came to is not known any more.
        let thread = accepting.iter().map(|from| &from.closer).find(|closer| matches!(closer, Closer::Thread(_)));
        let closer = thread.cloned().unwrap_or(Closer::Here);
        let mut clients = BTreeMap::new();
        for SavedClient { token, stage, unread, unsent } in saved.clients {
            let conn = Conn::new(claims.claim(&name(token))?, closer.clone(), BOUNDS, now).with_bytes(unread, unsent);
            let token = sources.token();
            let interest = Interest::READABLE | Interest::WRITABLE;
            sources.registry().register(&mut SourceFd(&conn.as_fd().as_raw_fd()), token, interest)?;
            let stage = match stage {
                SavedStage::Head { first, bytes } => Stage::Head { first, bytes },
                SavedStage::Answered => Stage::Answered,
            };
            clients.insert(token, Client { conn, stage, among_us: false, close_at: now + CONNECTION_WITHIN });
        }
        Ok(StatusDoor { listeners, accepting, clients, accept_at: None })
    }
}

fn name(token: usize) -> String {
    format!("status.client.{token}")
}
