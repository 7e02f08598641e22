//! Listeners over an exec: the sockets and what is known of them. What was bound for a generation that does not serve yet is
//! not saved, since there is none then.

use std::collections::BTreeMap;
use std::io;

use forkmaster_wire::message::ListenerId;
use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::unix::Placed;
use super::{Listener, ListenerState, Listeners};
use crate::config::passed::Passed;
use crate::config::settings::Bind;
use crate::saved::{Claims, Kept};

#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    listeners: Vec<SavedListener>,
    id_next: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedListener {
    id: ListenerId,
    bind: Bind,
    address: String,
    stage: Stage,
}

#[derive(Debug, Serialize, Deserialize)]
enum Stage {
    Listening { backlog: u32, file: Option<Placed> },
    Inherited,
}

impl Listeners {
    /// `whose`: two rooms have listeners.
    pub fn save(&self, whose: &str, kept: &mut Kept) -> Saved {
        let mut listeners = Vec::new();
        for (id, listener) in &self.listeners {
            let stage = match &listener.stage {
                ListenerState::Bound { .. } => continue,
                ListenerState::Listening { backlog, file } => {
                    Stage::Listening { backlog: *backlog, file: file.clone() }
                }
                ListenerState::Inherited => Stage::Inherited,
            };
            kept.keep(name(whose, *id), &listener.socket);
            let (bind, address) = (listener.bind.clone(), listener.address.clone());
            listeners.push(SavedListener { id: *id, bind, address, stage });
        }
        Saved { listeners, id_next: self.id_next }
    }

    pub fn restore(saved: Saved, whose: &str, passed: Vec<Passed>, claims: &mut Claims) -> io::Result<Listeners> {
        let mut listeners = BTreeMap::new();
        for SavedListener { id, bind, address, stage } in saved.listeners {
            let socket = Socket::from(claims.claim(&name(whose, id))?);
            let stage = match stage {
                Stage::Listening { backlog, file } => ListenerState::Listening { backlog, file },
                Stage::Inherited => ListenerState::Inherited,
            };
            listeners.insert(id, Listener { bind, address, socket, stage });
        }
        Ok(Listeners { listeners, id_next: saved.id_next, ..Listeners::new(passed) })
    }

    /// Descriptors that the service manager has passed. They have their numbers for good.
    pub fn passed(&self) -> impl Iterator<Item = i32> + '_ {
        self.passed.iter().map(|passed| passed.fd)
    }
}

fn name(whose: &str, id: ListenerId) -> String {
    format!("{whose}.{}", id.0)
}
