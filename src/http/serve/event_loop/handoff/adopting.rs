//! Taking connections from the queue. They come in by the same door as those of listeners, within the same budget: never
//! more than there are free threads for, and none while the table is full.

use std::path::PathBuf;
use std::sync::Arc;

use crate::serve::base::address::Local;
use crate::serve::base::handoff::{Luggage, Taken};
use crate::serve::base::observers::HandoffRefusal;
use crate::serve::base::settings::ACCEPT_PAUSE;
use crate::serve::event_loop::accepting::Outcome;
use crate::serve::event_loop::listeners::Origin;
use crate::serve::event_loop::EventLoop;

use super::Handoff;

impl Handoff {
    pub fn receive(&mut self, receives: bool) {
        self.receives = receives;
    }
}

impl EventLoop {
    /// Takes one connection from the queue.
    pub(in crate::serve::event_loop) fn adopt_one(&mut self) -> Outcome {
        if self.table.is_full() || self.listeners.admission.is_paused(self.now) {
            return Outcome::Stalled;
        }
        let Some(queue) = self.handoff.queue.as_mut().filter(|_| self.handoff.receives) else { return Outcome::Empty };
        let mut bytes = self.inputs.take();
        let taken = queue.take(&mut bytes);
        if !matches!(taken, Taken::NoDescriptor) {
            self.handoff.short = false;
        }
        match taken {
            Taken::Connection { socket, luggage } => {
                self.listeners.admission.accepted();
                let Luggage { listener, peer, local, secure, awaits_proxy, forked, limits, waits_since } = luggage;
                if forked {
                    self.shared.copies.set_forked();
                }
                let local = match local {
                    Some(address) => Arc::new(Local::Inet(address)),
                    None => self.listeners.local(listener).unwrap_or_else(|| Arc::new(Local::Unix(PathBuf::new()))),
                };
                let origin = Origin { listener, peer, local, proxy: awaits_proxy };
                let Some(mut request) = self.open_slot(socket, origin) else { return Outcome::Stalled };
                request.secure = secure;
                request.waits_since = waits_since;
                request.moved = waits_since.is_some();
                let slot = self.table.slot(request.token.index);
                // Its address is given up: nobody will know it when this worker ends.
                slot.write_half.set_last(!self.listeners.has(listener));
                slot.reader.refill(bytes, limits);
                self.metrics.adopted();
                self.receive(request);
                return Outcome::Taken;
            }
            Taken::Empty => {
                self.handoff.ready = false;
                self.listeners.admission.found_none();
            }
            Taken::Unusable => self.metrics.handoff_refused(HandoffRefusal::Unusable),
            Taken::NoDescriptor => {
                if !std::mem::replace(&mut self.handoff.short, true) {
                    log::warn!("no free descriptor: connections of other workers are left to others");
                }
                self.listeners.admission.pause(self.now + ACCEPT_PAUSE);
                self.inputs.keep(bytes);
                return Outcome::Stalled;
            }
            Taken::Broken => self.queue_lost(),
        }
        self.inputs.keep(bytes);
        Outcome::Empty
    }
}
