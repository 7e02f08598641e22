//! The sending side of a connection, shared between the app thread that answers and the loop that drains.
//!
//! While nothing is queued the app thread sends straight to the socket, without a lock. What the socket does not
//! take is queued under the lock (`write_queue`), and from then on all bytes go through the queue, which only the loop
//! empties. Only the app thread sets `queued`, only the loop clears it, and both do so under the lock.
//!
//! Who gives the answer is decided once for each request, by one compare-and-swap of `answerer`: normally the app side, just
//! before its head goes out; or the loop, for a request that takes too long. The other one sends nothing from then on, so
//! that two answers never mix.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::serve::base::budget::Charge;
use crate::serve::base::settings::{RESPONSE_MEMORY_BYTES_MAX, SEGMENT_BYTES, SHARE_BYTES_MAX};
use crate::serve::io::socket;
use crate::serve::io::spool::TempFiles;

use super::sending::{send_head_and_file, send_parts};
use super::write_queue::{self, FilePart, Hold, InMemory, Progress, WriteQueue};

/// Values of `WriteHalf::loss`.
struct Loss;

impl Loss {
    const NONE: u8 = 0;
    /// The connection is no more.
    const GONE: u8 = 1;
    /// We have given the client up.
    const DROPPED: u8 = 2;
    /// It has its answer, which is not the app side's.
    const ANSWERED: u8 = 3;
    /// A file of its answer could not be read to the end.
    const CUT: u8 = 4;
}

/// Values of `WriteHalf::answerer`.
struct Answerer;

impl Answerer {
    const NOBODY: u8 = 0;
    const APP: u8 = 1;
    const LOOP: u8 = 2;
}

/// It is made once a slot, and serves one connection after the other.
#[derive(Debug)]
pub struct WriteHalf {
    /// The socket; -1: none. The loop owns it and closes it only while no app thread has the connection.
    fd: AtomicI32,
    /// Why nothing can be sent any more (`Loss`).
    loss: AtomicU8,
    /// Of `Loss::CUT`, as in errno(3); 0: the file is shorter than it was.
    cut_by: AtomicI32,
    /// The client sends no more.
    half_closed: AtomicBool,
    queued: AtomicBool,
    /// The connection ends with its next answer.
    last: AtomicBool,
    /// Who answers the request that the app side has (`Answerer`).
    answerer: AtomicU8,
    /// The number by which the app side calls that request.
    number: AtomicU64,
    queue: Mutex<WriteQueue>,
    room: Condvar,
}

impl WriteHalf {
    pub fn new(memory: Charge, response_buffer: u64) -> WriteHalf {
        WriteHalf {
            fd: AtomicI32::new(-1),
            loss: AtomicU8::new(Loss::NONE),
            cut_by: AtomicI32::new(0),
            half_closed: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            last: AtomicBool::new(false),
            answerer: AtomicU8::new(Answerer::NOBODY),
            number: AtomicU64::new(0),
            queue: Mutex::new(WriteQueue::new(memory, response_buffer)),
            room: Condvar::new(),
        }
    }

    pub fn fd(&self) -> RawFd {
        self.fd.load(Ordering::Relaxed)
    }

    /// A new connection begins.
    pub fn open(&self, fd: RawFd) {
        self.fd.store(fd, Ordering::Relaxed);
        self.loss.store(Loss::NONE, Ordering::Relaxed);
        self.half_closed.store(false, Ordering::Relaxed);
        self.lock().lost = 0;
        self.last.store(false, Ordering::Relaxed);
    }

    /// The connection has ended; gives back what was queued.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.clear();
        self.queued.store(false, Ordering::Release);
        self.fd.store(-1, Ordering::Relaxed);
    }

    pub fn is_gone(&self) -> bool {
        self.loss.load(Ordering::Relaxed) != Loss::NONE
    }

    /// We have given the client up.
    pub fn is_dropped(&self) -> bool {
        self.loss.load(Ordering::Relaxed) == Loss::DROPPED
    }

    /// A request goes to the app side. Loop side.
    pub fn begin_request(&self) {
        self.answerer.store(Answerer::NOBODY, Ordering::Release);
    }

    /// What there was to be sent is not there any more.
    pub fn is_cut(&self) -> bool {
        self.loss.load(Ordering::Relaxed) == Loss::CUT
    }

    /// No two requests of a server have the same number. App side.
    pub fn set_number(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
    }

    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }

    /// The answer is to be given now. False: the loop has given one. App side.
    pub fn claim(&self) -> bool {
        // Once it is the app side's, it stays so until that gives it up (`unclaim`).
        if self.answerer.load(Ordering::Acquire) == Answerer::APP {
            return true;
        }
        let claimed =
            self.answerer.compare_exchange(Answerer::NOBODY, Answerer::APP, Ordering::AcqRel, Ordering::Acquire);
        claimed.map_or_else(|answerer| answerer == Answerer::APP, |_| true)
    }

    /// Only an interim answer was sent, and the loop may still give the final one. App side.
    pub fn unclaim(&self) {
        self.answerer.store(Answerer::NOBODY, Ordering::Release);
    }

    /// The same in place of the app side. False: that answers, or is just sending an interim answer. Loop side.
    pub fn claim_for_loop(&self) -> bool {
        self.answerer.compare_exchange(Answerer::NOBODY, Answerer::LOOP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The loop has answered in place of the app side.
    pub fn is_answered(&self) -> bool {
        self.loss.load(Ordering::Relaxed) == Loss::ANSWERED
    }

    /// Sends the answer that the loop has claimed, and says that no more will come. False: its client cannot have all of it,
    /// and can tell. Loop side.
    pub fn answer(&self, parts: &[&[u8]]) -> bool {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        // Behind an interim answer that the client does not take, nobody waits.
        let sent = !self.is_queued() && send_parts(self.fd(), parts, false).is_ok_and(|length| length == total);
        self.lose(Loss::ANSWERED);
        sent && socket::shutdown_write(self.fd()) || {
            socket::shutdown_both(self.fd());
            false
        }
    }

    /// Bytes that were taken, and that were not sent.
    pub fn unsent(&self) -> u64 {
        let queue = self.lock();
        queue.lost + queue.unsent()
    }

    /// Every answer from now on says that the connection ends, whatever holds for others. Loop side.
    pub fn set_last(&self, last: bool) {
        self.last.store(last, Ordering::Relaxed);
    }

    pub fn is_last(&self) -> bool {
        self.last.load(Ordering::Relaxed)
    }

    /// The client is gone: nothing more can be sent, and whoever waits for room need not.
    pub fn mark_gone(&self) {
        self.lose(Loss::GONE);
    }

    /// The client takes too little: nothing more will be sent.
    pub fn drop_client(&self) {
        self.lose(Loss::DROPPED);
    }

    /// A file of the answer cannot be read, or is shorter than it was. The end of the connection tells the client. `error`: as
    /// in errno(3); none: shorter.
    #[cold]
    pub fn cut(&self, error: Option<i32>) {
        self.cut_by.store(error.unwrap_or(0), Ordering::Relaxed);
        self.lose(Loss::CUT);
    }

    /// Why, where `is_cut`.
    pub fn why_cut(&self) -> String {
        match self.cut_by.load(Ordering::Relaxed) {
            0 => "it is shorter than it was".to_string(),
            error => io::Error::from_raw_os_error(error).to_string(),
        }
    }

    fn lose(&self, loss: u8) {
        let mut queue = self.lock();
        // The first reason stays.
        let _ = self.loss.compare_exchange(Loss::NONE, loss, Ordering::Relaxed, Ordering::Relaxed);
        queue.clear();
        self.queued.store(false, Ordering::Release);
        self.tell_of_room(&queue);
    }

    /// A condition variable asks the kernel even where nobody waits: so whoever waits says so. It is one thread at most, the
    /// one that has the request.
    fn tell_of_room(&self, queue: &WriteQueue) {
        if queue.awaited {
            self.room.notify_one();
        }
    }

    pub fn note_half_closed(&self) {
        self.half_closed.store(true, Ordering::Relaxed);
    }

    pub fn is_half_closed(&self) -> bool {
        self.half_closed.load(Ordering::Relaxed)
    }

    pub fn is_queued(&self) -> bool {
        self.queued.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, WriteQueue> {
        // Nothing panics while it is held; if something did, the queue is still a queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends or queues all of `parts`. App side.
    pub fn send(&self, parts: &[&[u8]], temp: &TempFiles) -> Sent {
        self.send_held(parts, None, false, temp)
    }

    /// As `send`; what cannot be sent at once of the last part need not be copied if it is large: `hold` gives a hold on
    /// its bytes. `closes`: the connection is closed at once, so that its end may go into the same packet (MSG_MORE).
    pub fn send_held(&self, parts: &[&[u8]], hold: Option<Hold<'_>>, closes: bool, temp: &TempFiles) -> Sent {
        if self.is_gone() {
            return Sent::Gone;
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut skip = 0;
        if !self.is_queued() {
            match send_parts(self.fd(), parts, closes) {
                Ok(length) if length == total => return Sent::All,
                Ok(length) => skip = length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.mark_gone();
                    return Sent::Gone;
                }
            }
        }
        self.queue_rest(parts, skip, hold, temp)
    }

    /// The socket has taken only so many bytes of `parts`, or others wait before them.
    #[cold]
    fn queue_rest(&self, parts: &[&[u8]], mut skip: usize, hold: Option<Hold<'_>>, temp: &TempFiles) -> Sent {
        let mut queue = self.lock();
        for (index, part) in parts.iter().enumerate() {
            let skipped = skip.min(part.len());
            skip -= skipped;
            let hold = hold.filter(|_| index + 1 == parts.len() && part.len() - skipped > SEGMENT_BYTES);
            match hold {
                Some(hold) if queue.push_held(hold, skipped, part.len()) => {}
                Some(_) | None => queue = self.push(queue, &part[skipped..], temp),
            }
        }
        self.queue(queue, temp)
    }

    /// Queues bytes in memory or in the file. The queue is not locked while that is written: whoever leads must not wait for
    /// the disk. Nobody else pushes meanwhile, since one thread has the request.
    fn push<'q>(
        &'q self,
        mut queue: MutexGuard<'q, WriteQueue>,
        bytes: &[u8],
        temp: &TempFiles,
    ) -> MutexGuard<'q, WriteQueue> {
        let rest = queue.push(bytes, temp);
        if rest.is_empty() {
            return queue;
        }
        let spool = queue.spool();
        drop(queue);
        let outcome = write_queue::write(spool, rest, temp);
        let mut queue = self.lock();
        if !self.is_gone() {
            queue.push_written(outcome, rest);
        }
        queue
    }

    /// Queues all of `parts`, for a loop that looks at what was deferred before long (`drain_deferred`). Nothing was queued
    /// before. None: there is no memory for it. App side.
    pub fn defer(&self, parts: &[&[u8]], temp: &TempFiles) -> Option<Sent> {
        let mut queue = self.lock();
        if !queue.defer(parts) {
            return None;
        }
        Some(self.queue(queue, temp))
    }

    /// An answer waits here for the loop to look.
    pub fn is_deferred(&self) -> bool {
        self.lock().deferred
    }

    /// Sends what was deferred, until the socket is full; None: nothing was. It is looked at under the lock: whoever defers
    /// afterwards finds that the leader has changed. Loop side.
    pub fn drain_deferred(&self) -> Option<Drained> {
        let queue = self.lock();
        queue.deferred.then(|| self.drain_locked(queue, SHARE_BYTES_MAX, &|_, _, _| false).0)
    }

    /// Sends `head` and then the file's bytes, as far as the socket takes them, and queues the rest. App side;
    /// SIGPIPE is blocked by the caller.
    pub fn send_file(&self, head: &[u8], file: OwnedFd, offset: u64, length: u64, temp: &TempFiles) -> Sent {
        if self.is_gone() {
            self.lock().lost += length;
            return Sent::Gone;
        }
        let mut rest = head;
        let (mut offset, mut left) = (offset, length);
        let outcome =
            (!self.is_queued()).then(|| send_head_and_file(self.fd(), &mut rest, &file, &mut offset, &mut left));
        match outcome {
            Some(Ok(())) if rest.is_empty() && left == 0 => return Sent::All,
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                self.lock().lost += left;
                match socket::is_at_fault(self.fd(), &error) {
                    true => self.mark_gone(),
                    false => self.cut(error.raw_os_error()),
                }
                return Sent::Gone;
            }
            // The queue goes before us, the socket is full, or the file is shorter than it was; draining tells.
            Some(Ok(()) | Err(_)) | None => {}
        }
        let mut queue = self.push(self.lock(), rest, temp);
        queue.push_file(file, offset, left);
        self.queue(queue, temp)
    }

    fn queue(&self, mut queue: MutexGuard<'_, WriteQueue>, temp: &TempFiles) -> Sent {
        if self.is_gone() {
            queue.clear();
            return Sent::Gone;
        }
        self.queued.store(true, Ordering::Release);
        let is_new = !std::mem::replace(&mut queue.watched, true);
        Sent::Queued { is_new, full: queue.room(temp) == 0 }
    }

    /// How many bytes may be given now, without more lying in the queue than may.
    pub fn room(&self, temp: &TempFiles) -> u64 {
        if self.is_queued() {
            self.lock().room(temp)
        } else {
            self.lock().first_room(temp)
        }
    }

    /// Waits until there is room for more than a little, so that not every piece waits, or the client has gone.
    /// The loop's `write_timeout` ends the wait for a client that takes nothing; `patience` is the bound should
    /// the loop itself be late.
    pub fn wait_for_room(&self, patience: Duration, temp: &TempFiles) {
        let mut queue = self.lock();
        loop {
            let wanted = queue.bytes_max.min(RESPONSE_MEMORY_BYTES_MAX) / 2;
            let enough = queue.is_empty() || queue.room(temp) > wanted;
            if enough || self.is_gone() {
                return;
            }
            let heard = queue.heard;
            queue.awaited = true;
            let (guard, timeout) = self.room.wait_timeout(queue, patience).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.awaited = false;
            if timeout.timed_out() && queue.heard == heard {
                drop(queue);
                self.drop_client();
                return;
            }
        }
    }

    /// How much the client has taken of what was queued, up to a constant: sent and acknowledged. Loop side.
    pub fn acked_bytes(&self) -> i64 {
        let drained = i64::try_from(self.lock().drained).unwrap_or(i64::MAX);
        drained.saturating_sub(i64::try_from(socket::unacknowledged(self.fd())).unwrap_or(0))
    }

    /// The socket is full, but the client takes what is in it. Loop side.
    pub fn note_ack_progress(&self) {
        self.lock().heard += 1;
    }

    /// Sends queued bytes until the socket is full or the share used up. Loop side.
    pub fn drain(&self, share: usize, in_memory: InMemory<'_>) -> (Drained, usize) {
        self.drain_locked(self.lock(), share, in_memory)
    }

    /// What is to be sent next of a file, after `Drained::Cold`. Loop side.
    pub fn next_of_file(&self) -> Option<FilePart> {
        self.lock().next_of_file()
    }

    /// It lies in memory, up to this place of the file. Loop side.
    pub fn note_read_ahead(&self, until: u64) {
        let mut queue = self.lock();
        queue.note_read_ahead(until);
        // It was the disk's fault, not the client's.
        queue.heard += 1;
    }

    /// And how many bytes went out.
    fn drain_locked(
        &self,
        mut queue: MutexGuard<'_, WriteQueue>,
        share: usize,
        in_memory: InMemory<'_>,
    ) -> (Drained, usize) {
        queue.deferred = false;
        let before = queue.drained;
        let outcome = queue.drain(self.fd(), share, in_memory);
        let sent = usize::try_from(queue.drained - before).unwrap_or(usize::MAX);
        let progress = sent > 0;
        if progress || outcome == Progress::Empty {
            queue.heard += 1;
            self.tell_of_room(&queue);
        }
        let drained = match outcome {
            Progress::Empty => {
                queue.watched = false;
                queue.spool_failed = false;
                self.queued.store(false, Ordering::Release);
                Drained::Empty
            }
            Progress::Blocked => Drained::Blocked { progress },
            Progress::Again => Drained::Again,
            Progress::Cold => Drained::Cold,
            Progress::Broken => Drained::Broken,
            Progress::Unreadable(error) => Drained::Unreadable(error),
        };
        (drained, sent)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    All,
    /// At least a part lies in the queue. `is_new`: the loop does not know yet.
    Queued {
        is_new: bool,
        full: bool,
    },
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    Empty,
    Blocked {
        progress: bool,
    },
    /// The share of this turn is used up; the socket may take more.
    Again,
    /// What comes next does not lie in memory (`next_of_file`).
    Cold,
    /// The client is gone.
    Broken,
    /// A file cannot be read, or is shorter than it was: the answer cannot be completed (`WriteHalf::cut`).
    Unreadable(Option<i32>),
}
