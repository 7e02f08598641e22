//! The connection table: a fixed number of slots, each with the state of the connection in it.
//!
//! Free -> Waiting -> Dispatched -> Waiting (keep-alive), Flushing (bytes still queued) or Lingering -> Free.
//! Waiting or Dispatched -> Leaving (it goes to another worker) -> Free, or Waiting again.
//! Only the loop changes a state. In `Dispatched` the request is with the app side (or on its way); everywhere else the
//! slot has it, and only then its socket may be closed. The reading half never leaves the slot.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::proto::response::Asked;
use crate::proto::Version;
use crate::serve::base::names::Token;
use crate::serve::base::pace::Window;
use crate::serve::conn::reader::Reader;
use crate::serve::conn::request::Request;
use crate::serve::conn::write_half::WriteHalf;
use crate::serve::io::epoll::Interest;

#[derive(Debug)]
pub enum SlotState {
    /// The last request's memory waits for the next connection.
    Free(Option<Box<Request>>),
    /// For a request or the rest of one; which, its timer says.
    Waiting(Box<Request>),
    /// In the run queue, or with an app thread.
    Dispatched,
    /// Answered, and the answer is not all sent.
    Flushing(Box<Request>),
    /// Out of the epoll set, for another worker to take; nothing is read from it any more.
    Leaving(Box<Request>),
    /// FIN was sent then; what the client still sends is read and dropped.
    Lingering(Box<Request>, Instant),
}

#[derive(Debug)]
pub struct Slot {
    pub token: Token,
    /// Where the connection came in.
    pub listener: u32,
    pub write_half: Arc<WriteHalf>,
    pub socket: Option<OwnedFd>,
    /// How epoll knows the socket; None: not at all.
    pub interest: Option<Interest>,
    /// Stays here while the request is with the app side.
    pub reader: Reader,
    /// It waits for the next turn, once.
    pub runnable: bool,
    /// A file thread reads what is to be sent next.
    pub awaits_file: bool,
    /// Whether the other end is a proxy of ours; None: nobody had to know yet.
    pub is_proxy: Option<bool>,
    /// What the client takes while bytes are queued.
    pub ack_window: Window,
    /// What its latest request asked for, and when that was complete: the request itself is with the app side.
    pub asked: Asked,
    pub ready_at: Instant,
    pub state: SlotState,
}

impl Slot {
    fn new(token: Token, write_half: WriteHalf, now: Instant) -> Slot {
        Slot {
            token,
            listener: 0,
            write_half: Arc::new(write_half),
            socket: None,
            interest: None,
            reader: Reader::new(now),
            runnable: false,
            awaits_file: false,
            is_proxy: None,
            ack_window: Window::begin(now, 0),
            asked: Asked { version: Version::Http11, head: false, keep_alive: false },
            ready_at: now,
            state: SlotState::Free(None),
        }
    }
}

/// Slots are made when they are first needed: a process that never has many connections at a time does not pay for them.
#[derive(Debug)]
pub struct Table {
    slots: Vec<Slot>,
    /// The slot that became free last is taken first: its buffers are there and warm.
    free: Vec<u32>,
    slots_max: usize,
}

impl Table {
    pub fn new(connections: usize) -> Table {
        Table { slots: Vec::with_capacity(connections), free: Vec::with_capacity(connections), slots_max: connections }
    }

    /// Slots that were ever used: their indices are below.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.open() == self.slots_max
    }

    pub fn write_half(&self, index: u32) -> &Arc<WriteHalf> {
        &self.slots[index as usize].write_half
    }

    pub fn slot(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// The slot that an event means, unless its connection has ended meanwhile.
    pub fn current(&mut self, token: Token) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(token.index as usize)?;
        (slot.token == token && !matches!(slot.state, SlotState::Free(_))).then_some(slot)
    }

    /// Its request is in the run queue, or with an app thread.
    pub fn is_dispatched(&self, token: Token) -> bool {
        let slot = self.slots.get(token.index as usize).filter(|slot| slot.token == token);
        slot.is_some_and(|slot| matches!(slot.state, SlotState::Dispatched))
    }

    /// No request has been begun that the application has not answered. What waits for a client that takes its answer
    /// slowly is no matter of the application's any more. `turned_away`: whoever comes is, and has begun nothing.
    pub fn nothing_under_way(&self, turned_away: bool) -> bool {
        self.slots.iter().all(|slot| match &slot.state {
            SlotState::Free(_) | SlotState::Flushing(_) | SlotState::Leaving(_) | SlotState::Lingering(..) => true,
            // While connections are held back only those of them wait here that are in the middle of a request.
            SlotState::Waiting(_) => turned_away,
            SlotState::Dispatched => false,
        })
    }

    /// The connection whose request the app side calls by this number.
    pub fn with_request(&self, number: u64) -> Option<Token> {
        let slot = self.slots.iter().find(|slot| slot.write_half.number() == number)?;
        self.is_dispatched(slot.token).then_some(slot.token)
    }

    /// Whether an event of this connection may mean many bytes.
    pub fn is_heavy(&self, token: Token) -> bool {
        let slot = self.slots.get(token.index as usize).filter(|slot| slot.token == token);
        slot.is_some_and(|slot| match &slot.state {
            SlotState::Waiting(_) => slot.reader.is_in_body(),
            // With an app thread, and there may be a queue.
            SlotState::Dispatched | SlotState::Flushing(_) | SlotState::Lingering(..) => true,
            SlotState::Leaving(_) | SlotState::Free(_) => false,
        })
    }

    #[cfg(test)]
    pub fn received_bytes(&mut self) -> u64 {
        self.slots.iter().map(|slot| slot.reader.received().unsigned_abs()).sum()
    }

    /// What the requests of connections that are idle or have ended have of memory, and how many there are.
    #[cfg(test)]
    pub fn kept_bytes(&mut self) -> (usize, usize) {
        let requests = self.slots.iter_mut().filter_map(|slot| match &mut slot.state {
            SlotState::Waiting(request) | SlotState::Free(Some(request)) => Some(request.kept_bytes()),
            SlotState::Free(None)
            | SlotState::Dispatched
            | SlotState::Flushing(_)
            | SlotState::Leaving(_)
            | SlotState::Lingering(..) => None,
        });
        requests.fold((0, 0), |(bytes, count), more| (bytes + more, count + 1))
    }

    /// Takes a free slot and the buffers that lie in it. Its state is `Dispatched` until the caller sets another.
    pub fn take(
        &mut self,
        socket: OwnedFd,
        now: Instant,
        make: impl FnOnce() -> WriteHalf,
    ) -> Option<(&mut Slot, Option<Box<Request>>)> {
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None if self.slots.len() == self.slots_max => return None,
            None => {
                let token = Token { index: self.slots.len() as u32, generation: 0 };
                self.slots.push(Slot::new(token, make(), now));
                self.slots.len() - 1
            }
        };
        let slot = &mut self.slots[index];
        slot.socket = Some(socket);
        slot.interest = None;
        slot.runnable = false;
        slot.awaits_file = false;
        slot.is_proxy = None;
        let buffers = match std::mem::replace(&mut slot.state, SlotState::Dispatched) {
            SlotState::Free(buffers) => buffers,
            SlotState::Waiting(_)
            | SlotState::Dispatched
            | SlotState::Flushing(_)
            | SlotState::Leaving(_)
            | SlotState::Lingering(..) => {
                unreachable!("a slot in the free list is free")
            }
        };
        Some((slot, buffers))
    }

    /// Frees the slot of a connection; its socket, to be closed by the caller.
    pub fn release(&mut self, request: Box<Request>) -> Option<OwnedFd> {
        let index = request.token.index;
        let slot = &mut self.slots[index as usize];
        slot.token.generation = slot.token.next_generation();
        slot.state = SlotState::Free(Some(request));
        self.free.push(index);
        slot.socket.take()
    }
}
