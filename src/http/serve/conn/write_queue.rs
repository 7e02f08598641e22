//! The sending side of a connection, shared between the app thread that answers and the loop that drains.
//!
//! While nothing is queued the app thread sends straight to the socket, without a lock. What the socket does not
//! take is queued under the lock, and from then on all bytes go through the queue, which only the loop empties.
//! Only the app thread sets `queued`, only the loop clears it, and both do so under the lock.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::serve::base::budget::Charge;
use crate::serve::base::settings::{DEFERRED_ANSWER_BYTES_MAX, RESPONSE_MEMORY_BYTES_MAX, TURN_BYTES_MAX};
use crate::serve::io::socket;
use crate::serve::io::spool::{Failed, Spool, TempFiles};

/// Small pieces are gathered in memory up to this, so that a queue of them is neither many sends nor one vector
/// that grows for ever at one end while it is sent at the other.
const SEGMENT_BYTES: usize = 64 * 1024;

/// One slot's write half between the two sides. It is made once and serves one connection after the other.
#[derive(Debug)]
pub struct WriteHalf {
    /// The socket; -1: none. The loop owns it and closes it only while no app thread has the connection.
    fd: AtomicI32,
    gone: AtomicBool,
    queued: AtomicBool,
    queue: Mutex<WriteQueue>,
    room: Condvar,
}

impl WriteHalf {
    pub fn new(memory: Charge, response_buffer: u64) -> WriteHalf {
        let queue = WriteQueue {
            segments: VecDeque::new(),
            spare: Vec::new(),
            memory,
            spool: None,
            spooled: 0,
            watched: false,
            deferred: false,
            spool_failed: false,
            drained: 0,
            heard: 0,
            bytes_max: response_buffer,
        };
        WriteHalf {
            fd: AtomicI32::new(-1),
            gone: AtomicBool::new(false),
            queued: AtomicBool::new(false),
            queue: Mutex::new(queue),
            room: Condvar::new(),
        }
    }

    pub fn fd(&self) -> RawFd {
        self.fd.load(Ordering::Relaxed)
    }

    /// A new connection begins.
    pub fn open(&self, fd: RawFd) {
        self.fd.store(fd, Ordering::Relaxed);
        self.gone.store(false, Ordering::Relaxed);
    }

    /// The connection has ended; gives back what was queued.
    pub fn close(&self) {
        let mut queue = self.lock();
        queue.clear();
        self.queued.store(false, Ordering::Release);
        self.fd.store(-1, Ordering::Relaxed);
    }

    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// The client is gone: nothing more can be sent, and whoever waits for room need not.
    pub fn mark_gone(&self) {
        let mut queue = self.lock();
        self.gone.store(true, Ordering::Relaxed);
        queue.clear();
        self.queued.store(false, Ordering::Release);
        self.room.notify_all();
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
        let mut queue = self.lock();
        for (index, part) in parts.iter().enumerate() {
            let skipped = skip.min(part.len());
            skip -= skipped;
            let hold = hold.filter(|_| index + 1 == parts.len() && part.len() - skipped > SEGMENT_BYTES);
            match hold {
                // Whoever gave it has the memory in any case; it counts all the same, so that slow clients have a bound.
                Some(hold) if queue.memory.grow((part.len() - skipped) as u64) => {
                    queue.segments.push_back(Segment::Held { piece: hold(), at: skipped, end: part.len() });
                }
                Some(_) | None => queue.push(&part[skipped..], temp),
            }
        }
        self.queue(queue, temp)
    }

    /// Queues all of `parts`, for a loop that looks at what was deferred before long (`drain_deferred`). Nothing was queued
    /// before. None: there is no memory for it. App side.
    pub fn defer(&self, parts: &[&[u8]], temp: &TempFiles) -> Option<Sent> {
        let mut queue = self.lock();
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if !queue.memory.grow(total as u64) {
            return None;
        }
        for part in parts {
            queue.push_memory(part);
        }
        queue.deferred = true;
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
        queue.deferred.then(|| self.drain_locked(queue))
    }

    /// Sends `head` and then the file's bytes, as far as the socket takes them, and queues the rest. App side;
    /// SIGPIPE is blocked by the caller.
    pub fn send_file(&self, head: &[u8], file: OwnedFd, offset: u64, length: u64, temp: &TempFiles) -> Sent {
        if self.is_gone() {
            return Sent::Gone;
        }
        let mut rest = head;
        let (mut offset, mut left) = (offset, length);
        let outcome =
            (!self.is_queued()).then(|| send_head_and_file(self.fd(), &mut rest, &file, &mut offset, &mut left));
        match outcome {
            Some(Ok(())) if rest.is_empty() && left == 0 => return Sent::All,
            Some(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                self.mark_gone();
                return Sent::Gone;
            }
            // The queue goes before us, the socket is full, or the file is shorter than it was; draining tells.
            Some(Ok(()) | Err(_)) | None => {}
        }
        let mut queue = self.lock();
        queue.push(rest, temp);
        queue.segments.push_back(Segment::File { file, offset, left });
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

    /// How many bytes a queue that is not empty may still take.
    pub fn room(&self, temp: &TempFiles) -> u64 {
        self.lock().room(temp)
    }

    /// Waits until there is room for more than a little, so that not every piece waits, or the client has gone.
    /// The loop's `write_timeout` ends the wait for a client that takes nothing; `patience` is the bound should
    /// the loop itself be late.
    pub fn wait_for_room(&self, patience: Duration, temp: &TempFiles) {
        let mut queue = self.lock();
        loop {
            let wanted = queue.bytes_max.min(RESPONSE_MEMORY_BYTES_MAX) / 2;
            let enough = queue.segments.is_empty() || queue.room(temp) > wanted;
            if enough || self.is_gone() {
                return;
            }
            let heard = queue.heard;
            let (guard, timeout) = self.room.wait_timeout(queue, patience).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            if timeout.timed_out() && queue.heard == heard {
                drop(queue);
                self.mark_gone();
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

    /// Sends queued bytes until the socket is full. Loop side.
    pub fn drain(&self) -> Drained {
        self.drain_locked(self.lock())
    }

    fn drain_locked(&self, mut queue: MutexGuard<'_, WriteQueue>) -> Drained {
        queue.deferred = false;
        let before = queue.drained;
        let outcome = queue.drain(self.fd());
        let progress = queue.drained != before;
        if progress || outcome == Progress::Empty {
            queue.heard += 1;
            self.room.notify_all();
        }
        match outcome {
            Progress::Empty => {
                queue.watched = false;
                queue.spool_failed = false;
                self.queued.store(false, Ordering::Release);
                Drained::Empty
            }
            Progress::Blocked => Drained::Blocked { progress },
            Progress::Again => Drained::Again,
            Progress::Broken => Drained::Broken,
        }
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
    /// The client is gone, or a file is shorter than it was: the answer cannot be completed.
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Empty,
    Blocked,
    Again,
    Broken,
}

/// Bytes that stay where they are for as long as this lives.
pub trait Piece: Send + std::fmt::Debug {
    fn bytes(&self) -> &[u8];
}

/// Makes a hold on bytes whose owner would otherwise let them go.
pub type Hold<'a> = &'a dyn Fn() -> Box<dyn Piece>;

#[derive(Debug)]
enum Segment {
    Memory {
        bytes: Vec<u8>,
        at: usize,
    },
    /// The application's own, of which the answer may have only the beginning.
    Held {
        piece: Box<dyn Piece>,
        at: usize,
        end: usize,
    },
    /// Bytes of the response's own spool.
    Spooled {
        offset: u64,
        left: u64,
    },
    /// Bytes of the application's file, by a descriptor of our own, so that it may close its one.
    File {
        file: OwnedFd,
        offset: u64,
        left: u64,
    },
}

#[derive(Debug)]
struct WriteQueue {
    segments: VecDeque<Segment>,
    /// For the next small answer that is deferred; no bytes are in it.
    spare: Vec<u8>,
    memory: Charge,
    spool: Option<Spool>,
    /// Bytes in `Spooled` segments.
    spooled: u64,
    /// The loop knows of the queue.
    watched: bool,
    /// What is queued waits for the loop to look, and not for the socket.
    deferred: bool,
    /// A file could not be written, and it was logged: the rest of this queue makes do with memory.
    spool_failed: bool,
    /// Counts all bytes that the loop has sent.
    drained: u64,
    /// Counts what the loop finds out about the client: that it took bytes, or that it goes on to.
    heard: u64,
    /// `response_buffer`.
    bytes_max: u64,
}

impl WriteQueue {
    fn clear(&mut self) {
        self.segments.clear();
        self.memory.clear();
        self.spool = None;
        self.spooled = 0;
        self.watched = false;
        self.deferred = false;
        self.spool_failed = false;
    }

    /// The first segment was sent.
    fn pop(&mut self) {
        match self.segments.pop_front() {
            Some(Segment::Memory { mut bytes, .. }) if bytes.capacity() <= DEFERRED_ANSWER_BYTES_MAX => {
                bytes.clear();
                self.spare = bytes;
            }
            Some(Segment::Memory { .. } | Segment::Held { .. } | Segment::Spooled { .. } | Segment::File { .. })
            | None => {}
        }
    }

    fn memory_bytes_max(&self, temp: &TempFiles) -> u64 {
        if temp.available() {
            RESPONSE_MEMORY_BYTES_MAX.min(self.bytes_max)
        } else {
            self.bytes_max
        }
    }

    /// A spool counts with its whole length until all of it was sent, since only then its blocks are freed.
    fn room(&self, temp: &TempFiles) -> u64 {
        let spool = self.spool.as_ref().map_or(0, Spool::length);
        let left = self.bytes_max.saturating_sub(self.memory.bytes() + spool);
        let memory = self.memory_bytes_max(temp).saturating_sub(self.memory.bytes());
        let files = if self.spool_failed { 0 } else { temp.left() };
        left.min(memory + files)
    }

    /// Takes all of the bytes: to memory while that is within the bounds, then to the file, and if that fails to
    /// memory all the same, because they must not be lost; whoever asks `room` first never gets there.
    fn push(&mut self, bytes: &[u8], temp: &TempFiles) {
        if bytes.is_empty() {
            return;
        }
        let room = self.memory_bytes_max(temp).saturating_sub(self.memory.bytes());
        let (head, rest) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        if !self.memory.grow(head.len() as u64) {
            self.spool_or_force(bytes, temp);
            return;
        }
        self.push_memory(head);
        if !rest.is_empty() {
            self.spool_or_force(rest, temp);
        }
    }

    fn push_memory(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.segments.back_mut() {
            Some(Segment::Memory { bytes: tail, .. }) if tail.len() + bytes.len() <= SEGMENT_BYTES => {
                tail.extend_from_slice(bytes);
            }
            Some(Segment::Memory { .. } | Segment::Held { .. } | Segment::Spooled { .. } | Segment::File { .. })
            | None => {
                let mut tail = std::mem::take(&mut self.spare);
                tail.extend_from_slice(bytes);
                self.segments.push_back(Segment::Memory { bytes: tail, at: 0 });
            }
        }
    }

    fn spool_or_force(&mut self, bytes: &[u8], temp: &TempFiles) {
        if let Some(offset) = self.push_spool(bytes, temp) {
            let length = bytes.len() as u64;
            self.spooled += length;
            match self.segments.back_mut() {
                Some(Segment::Spooled { left, .. }) => *left += length,
                Some(Segment::Memory { .. } | Segment::Held { .. } | Segment::File { .. }) | None => {
                    self.segments.push_back(Segment::Spooled { offset, left: length });
                }
            }
            return;
        }
        self.memory.force(bytes.len() as u64);
        self.push_memory(bytes);
    }

    /// Where in the spool the bytes went; None: they did not.
    fn push_spool(&mut self, bytes: &[u8], temp: &TempFiles) -> Option<u64> {
        if !temp.available() || self.spool_failed {
            return None;
        }
        match self.try_spool(bytes, temp) {
            Ok(offset) => Some(offset),
            Err(Failed::Full) => None,
            Err(Failed::Io(error)) => {
                log::warn!("temporary file for a response: {error}; the application waits for the client (temp_dir)");
                self.spool_failed = true;
                None
            }
        }
    }

    fn try_spool(&mut self, bytes: &[u8], temp: &TempFiles) -> Result<u64, Failed> {
        let spool = match &mut self.spool {
            Some(spool) => spool,
            None => self.spool.insert(temp.create()?),
        };
        let offset = spool.length();
        spool.append(bytes).map(|()| offset)
    }

    fn drain(&mut self, fd: RawFd) -> Progress {
        let mut share = TURN_BYTES_MAX;
        loop {
            let Some(segment) = self.segments.front_mut() else { return Progress::Empty };
            if share == 0 {
                return Progress::Again;
            }
            let outcome = match segment {
                Segment::Memory { bytes, at } => send_parts(fd, &[&bytes[*at..]], false).inspect(|sent| *at += sent),
                Segment::Held { piece, at, end } => {
                    let rest = &piece.bytes()[*at..*end];
                    send_parts(fd, &[&rest[..rest.len().min(TURN_BYTES_MAX)]], false).inspect(|sent| *at += sent)
                }
                Segment::Spooled { offset, left } => match &self.spool {
                    Some(spool) => send_some(fd, spool, offset, left),
                    None => return Progress::Broken,
                },
                Segment::File { file, offset, left } => send_some(fd, file, offset, left),
            };
            let sent = match outcome {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                Err(_) => return Progress::Broken,
            };
            self.drained += sent as u64;
            share = share.saturating_sub(sent);
            let ended = match segment {
                Segment::Memory { bytes, at } => {
                    self.memory.release(sent as u64);
                    *at == bytes.len()
                }
                Segment::Held { at, end, .. } => {
                    self.memory.release(sent as u64);
                    at == end
                }
                Segment::Spooled { left, .. } => {
                    self.spooled -= sent as u64;
                    *left == 0
                }
                Segment::File { left, .. } => *left == 0,
            };
            if ended {
                self.pop();
                if self.spooled == 0 {
                    self.spool = None;
                }
            } else if sent == 0 {
                // sendfile at the end of a file that promised more.
                return Progress::Broken;
            }
        }
    }
}

fn send_some(fd: RawFd, file: &impl AsFd, offset: &mut u64, left: &mut u64) -> io::Result<usize> {
    let sent = socket::send_file(fd, file.as_fd(), offset, *left)?;
    *left -= sent as u64;
    Ok(sent)
}

/// Sends as much as the socket takes; `WouldBlock` when it is full. Ok: all was sent, or the file ended early.
fn send_head_and_file(fd: RawFd, head: &mut &[u8], file: &OwnedFd, offset: &mut u64, left: &mut u64) -> io::Result<()> {
    while !head.is_empty() {
        let sent = send_parts(fd, &[head], *left > 0)?;
        *head = &head[sent..];
    }
    while *left > 0 {
        if send_some(fd, file, offset, left)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// More parts than an answer ever has: head, chunk line, piece, line end.
const PARTS_MAX: usize = 4;

/// Up to this, parts are copied together: a head and a small body.
pub const GATHERED_BYTES_MAX: usize = 1024;

fn send_parts(fd: RawFd, parts: &[&[u8]], more: bool) -> io::Result<usize> {
    let total: usize = parts.iter().map(|part| part.len()).sum();
    if total == 0 {
        return Ok(0);
    }
    if let [part] = parts {
        return socket::send_one(fd, part, more);
    }
    if total <= GATHERED_BYTES_MAX {
        let mut gathered = [0; GATHERED_BYTES_MAX];
        let mut end = 0;
        for part in parts {
            gathered[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        return socket::send_one(fd, &gathered[..end], more);
    }
    let mut slices = [IoSlice::new(&[]); PARTS_MAX];
    let mut count = 0;
    for part in parts.iter().filter(|part| !part.is_empty()).take(PARTS_MAX) {
        slices[count] = IoSlice::new(part);
        count += 1;
    }
    socket::send(fd, &slices[..count], more)
}
