//! Asks for a pause with a page for its clients: a chore reads the page, and then the supervisor is asked. Whoever asked hears
//! why where it cannot be read, and nothing is paused.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forkmaster_wire::message::Page;

use super::Service;
use crate::chores::{Chore, ChoreId};
use crate::shared::Shared;
use crate::supervisor::asks::{Ask, AskId};
use crate::supervisor::maintenance::MaintenancePlan;
use crate::supervisor::Event;

/// An ask that lacks its maintenance.
pub type AskWith = Box<dyn FnOnce(MaintenancePlan) -> Ask>;

#[derive(Default)]
pub struct Pages {
    /// Each is bounded by its chore's deadline, and one client asks for one thing at a time.
    read: Vec<Reading>,
    refused: Vec<(AskId, String)>,
}

struct Reading {
    chore: ChoreId,
    asker: AskId,
    after: Duration,
    ask: AskWith,
}

impl Pages {
    pub fn is_idle(&self) -> bool {
        self.read.is_empty()
    }
}

impl Service {
    pub fn read_page(&mut self, asker: AskId, after: Duration, path: PathBuf, ask: AskWith, shared: &mut Shared) {
        let chore = shared.chores.give(Chore::ReadPage(path), shared.clock.now());
        self.pages.read.push(Reading { chore, asker, after, ask });
    }

    /// None: the chore was another one, or has failed.
    pub fn on_page(&mut self, chore: ChoreId, read: Result<Page, String>) -> Option<Event> {
        let at = self.pages.read.iter().position(|reading| reading.chore == chore)?;
        let Reading { asker, after, ask, .. } = self.pages.read.remove(at);
        match read {
            Ok(page) => {
                let ask = ask(MaintenancePlan { after, page: Some(Arc::new(page)) });
                Some(Event::Ask { asker: Some(asker), ask })
            }
            Err(reason) => {
                log::warn!("not paused: {reason}");
                self.pages.refused.push((asker, reason));
                None
            }
        }
    }

    /// The chore reads a page.
    pub fn reads_page(&self, chore: ChoreId) -> bool {
        self.pages.read.iter().any(|reading| reading.chore == chore)
    }

    /// Whose page could not be read, and why.
    pub fn take_pageless(&mut self) -> Vec<(AskId, String)> {
        std::mem::take(&mut self.pages.refused)
    }
}
