//! Who is told of what the server does. The implementations belong to the process around it.

use std::time::Duration;

use super::refused::Refused;

/// Why a connection did not go to another process, or could not be taken from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoffRefusal {
    /// The queue was full, and the connection waits for room.
    Full,
    /// It came with something that cannot be used, or without its descriptor, and is lost.
    Unusable,
}

/// Why a connection goes to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Giving {
    /// This process will end.
    Leaving,
    /// A whole request would wait here for a thread.
    Shared,
    /// It is idle, and this process has no place for a new one.
    Crowded,
}

/// How the answer to a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum How {
    /// All of it was handed to the kernel.
    #[default]
    Complete,
    /// The client was gone before.
    ClientLeft,
    /// The client took too little for too long (`write_timeout`).
    WriteTimeout,
    /// The application failed after the head had gone out, or a file that it gave could not be read; and the client can tell.
    Cut,
    /// It took too long, and the client was answered in place of the application.
    TimedOut,
    /// The application has not seen the request. All of the answer that says so was handed to the kernel.
    Refused,
}

/// An answer's end: its last byte was handed to the kernel, or nobody will send it any more.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub how: How,
    /// Since the request was complete.
    pub took: Duration,
    /// Of the body, as far as they were handed to the kernel. Lines that a chunked body would have had in between count as
    /// bytes that were not.
    pub body_bytes: u64,
}

/// What the loop tells of itself while it runs; implementations must be cheap and never block.
pub trait Metrics: Send + Sync {
    /// The loop turned; at least once a second.
    fn heartbeat(&self);
    fn accepted(&self);
    /// A connection was given to another process.
    fn given(&self, _why: Giving) {}
    /// One was taken from another process.
    fn adopted(&self) {}
    /// App threads of other processes that have nothing to do, as far as is known.
    fn free_siblings(&self) -> usize {
        usize::MAX
    }
    /// Other processes none of whose app threads has anything to do.
    fn idle_siblings(&self) -> usize {
        self.free_siblings()
    }
    /// Another process has a place for one more connection, where each has so many.
    fn has_room_elsewhere(&self, _connections_max: usize) -> bool {
        false
    }
    fn handoff_refused(&self, _why: HandoffRefusal) {}
    fn connections(&self, open: usize);
    /// An answer has ended; `record` is what the app side has left with its request (`Exchange::leave_record`).
    fn ended(&self, _record: &mut [u8], _ending: Ending) {}
    /// Puts into `record` what is to be told of the request with this number (`Exchange::set_number`), should it be answered
    /// in place of the app side, which has it, and into `id` what was set with `Exchange::set_id`. False: it is there no more.
    fn describe(&self, _number: u64, _record: &mut Vec<u8>, _id: &mut Vec<u8>) -> bool {
        true
    }
    /// It was answered so. Nothing else will be told of it.
    fn overtaken(&self, _number: u64, _record: &mut [u8], _ending: Ending) {}
    /// A request was refused, since it had waited too long for a thread.
    fn shed(&self) {}
    /// A request is refused. Puts into `record` what is to be told of it when its answer has ended (`ended`), if anything.
    fn refused(&self, _refused: &Refused<'_>, _record: &mut Vec<u8>) {}
    /// Connections are taken from now on, or no longer.
    fn accepting(&self, _accepting: bool) {}
    /// Another process at the same listeners has less to do than this one with so many connections: then that one shall
    /// be woken before this one.
    fn is_ahead(&self, _open: usize) -> bool {
        false
    }
}

/// What the loop reports back, each at most once per command, from the loop's thread; must never block.
pub trait Reports: Send + Sync {
    /// `Handle::serve` was carried out: listeners are registered.
    fn serving(&self);
    /// `drain`, `stop` or `retire` was carried out as far as accepting is concerned.
    fn draining(&self);
    /// `pause` was carried out: no request is under way, and none is begun until `serve`.
    fn paused(&self) {}
    /// `maintenance` was carried out: clients are turned away.
    fn maintenance(&self) {}
}
