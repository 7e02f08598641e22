//! What of an answer the socket has not taken: memory, the application's own bytes, a temporary file, the application's
//! file. It is bounded in memory and on disk, for one answer and in sum. Whoever has it holds its lock (`write_half`).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::serve::base::budget::Charge;
use crate::serve::base::piece::Piece;
use crate::serve::base::settings::{
    DEFERRED_ANSWER_BYTES_MAX, FLUSH_ANSWERS_MAX, RESPONSE_MEMORY_BYTES_MAX, SEGMENT_BYTES, SHARE_BYTES_MAX,
};
use crate::serve::io::socket;
use crate::serve::io::spool::{Failed, Spool, TempFiles};

use super::sending::{send_parts, send_some};

/// How far a drain got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Empty,
    Blocked,
    Again,
    /// The next part of a file does not lie in memory.
    Cold,
    Broken,
    /// As in errno(3). None: a file is shorter than it was.
    Unreadable(Option<i32>),
}

/// Whether a part of a file lies in memory, by its offset and length.
pub type InMemory<'a> = &'a dyn Fn(BorrowedFd<'_>, u64, u64) -> bool;

/// A part of a file that is to be sent.
#[derive(Debug)]
pub struct FilePart {
    pub file: FileRef,
    pub offset: u64,
    pub length: u64,
}

/// A file for as long as somebody reads it.
#[derive(Clone, Debug)]
pub enum FileRef {
    Spool(Arc<Spool>),
    Application(Arc<OwnedFd>),
}

impl AsFd for FileRef {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            FileRef::Spool(spool) => spool.as_fd(),
            FileRef::Application(file) => file.as_fd(),
        }
    }
}

/// What is read ahead of a file at a time: more than a turn sends, so that a client seldom waits for it.
const READ_AHEAD_BYTES: u64 = 1024 * 1024;

/// An object of which less than one part in so many is left is copied and let go of.
const HELD_PART: usize = 4;

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
        file: Arc<OwnedFd>,
        offset: u64,
        left: u64,
    },
}

/// Memory for small answers that are deferred. It belongs to no connection, so that a new one allocates nothing for its first
/// answer; and to no thread, since whoever leads sends what another has left.
static SPARES: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

fn spares() -> MutexGuard<'static, Vec<Vec<u8>>> {
    SPARES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_spare() -> Vec<u8> {
    spares().pop().unwrap_or_default()
}

fn keep_spare(bytes: Vec<u8>) {
    let mut spares = spares();
    if spares.len() < FLUSH_ANSWERS_MAX {
        spares.push(bytes);
    }
}

#[derive(Debug)]
pub struct WriteQueue {
    segments: VecDeque<Segment>,
    memory: Charge,
    spool: Option<Arc<Spool>>,
    /// Up to here, what is first in the queue lies in memory, where it is of a file.
    in_memory_until: u64,
    /// Somebody reads ahead of it.
    is_read_ahead: bool,
    /// Bytes in `Spooled` segments.
    spooled: u64,
    /// The loop knows of the queue.
    pub watched: bool,
    /// What is queued waits for the loop to look, and not for the socket.
    pub deferred: bool,
    /// A file could not be written, and it was logged: the rest of this queue makes do with memory.
    pub spool_failed: bool,
    /// Counts all bytes that the loop has sent.
    pub drained: u64,
    /// Bytes that were queued and that nobody will send.
    pub lost: u64,
    /// Counts what the loop finds out about the client: that it took bytes, or that it goes on to.
    pub heard: u64,
    /// The thread that has the request waits for room.
    pub awaited: bool,
    /// `response_buffer`.
    pub bytes_max: u64,
}

impl WriteQueue {
    pub fn new(memory: Charge, response_buffer: u64) -> WriteQueue {
        WriteQueue {
            segments: VecDeque::with_capacity(1),
            memory,
            spool: None,
            in_memory_until: 0,
            is_read_ahead: false,
            spooled: 0,
            watched: false,
            deferred: false,
            spool_failed: false,
            drained: 0,
            lost: 0,
            heard: 0,
            awaited: false,
            bytes_max: response_buffer,
        }
    }

    /// What is queued and was not sent yet.
    pub fn unsent(&self) -> u64 {
        let of = |segment: &Segment| match segment {
            Segment::Memory { bytes, at } => (bytes.len() - at) as u64,
            Segment::Held { at, end, .. } => (end - at) as u64,
            Segment::Spooled { left, .. } | Segment::File { left, .. } => *left,
        };
        self.segments.iter().map(of).sum()
    }

    pub fn clear(&mut self) {
        self.lost += self.unsent();
        while !self.segments.is_empty() {
            self.pop();
        }
        self.memory.clear();
        self.spool = None;
        self.in_memory_until = 0;
        self.is_read_ahead = false;
        self.spooled = 0;
        self.watched = false;
        self.deferred = false;
        self.spool_failed = false;
    }

    /// The first segment was sent.
    fn pop(&mut self) {
        self.in_memory_until = 0;
        self.is_read_ahead = false;
        match self.segments.pop_front() {
            Some(Segment::Memory { mut bytes, .. }) if bytes.capacity() <= DEFERRED_ANSWER_BYTES_MAX => {
                bytes.clear();
                keep_spare(bytes);
            }
            Some(Segment::Held { piece, end, .. }) => self.memory.let_go(piece, end as u64),
            Some(Segment::Memory { .. } | Segment::Spooled { .. } | Segment::File { .. }) | None => {}
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
    pub fn room(&self, temp: &TempFiles) -> u64 {
        let spool = self.spool.as_ref().map_or(0, |spool| spool.length());
        let left = self.bytes_max.saturating_sub(self.memory.bytes() + spool);
        let memory = self.memory_bytes_max(temp).saturating_sub(self.memory.bytes()).min(self.memory.left());
        let files = if self.spool_failed { 0 } else { temp.left() };
        left.min(memory + files)
    }

    /// How much a first piece may have, of which the socket takes some at once: at least one segment, so that an answer goes
    /// on where nothing is left for queues.
    pub fn first_room(&self, temp: &TempFiles) -> u64 {
        self.room(temp).max(SEGMENT_BYTES as u64)
    }

    /// Takes bytes to memory while that is within the bounds. The rest, which is for the file (`write`, `push_written`).
    pub fn push<'b>(&mut self, bytes: &'b [u8], temp: &TempFiles) -> &'b [u8] {
        let room = self.memory_bytes_max(temp).saturating_sub(self.memory.bytes());
        let (head, rest) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
        let rest = if self.memory.grow(head.len() as u64) {
            self.push_memory(head);
            rest
        } else {
            bytes
        };
        if !rest.is_empty() && (!temp.available() || self.spool_failed) {
            self.force(rest);
            return &[];
        }
        rest
    }

    /// The file, if there is one yet.
    pub fn spool(&self) -> Option<Arc<Spool>> {
        self.spool.clone()
    }

    /// What `write` came to. Bytes that the file did not take go to memory all the same, because they must not be lost.
    /// Whoever asks for room first gets there with one segment at most.
    pub fn push_written(&mut self, outcome: Result<Arc<Spool>, Failed>, bytes: &[u8]) {
        let length = bytes.len() as u64;
        let spool = match outcome {
            Ok(spool) => spool,
            Err(Failed::Full) => return self.force(bytes),
            Err(Failed::Io(error)) => {
                log::warn!("temporary file for a response: {error}; the application waits for the client (temp_dir)");
                self.spool_failed = true;
                return self.force(bytes);
            }
        };
        let offset = spool.length() - length;
        // All that was in it before may have been sent meanwhile.
        self.spool = Some(spool);
        self.spooled += length;
        match self.segments.back_mut() {
            Some(Segment::Spooled { left, .. }) => *left += length,
            Some(Segment::Memory { .. } | Segment::Held { .. } | Segment::File { .. }) | None => {
                self.segments.push_back(Segment::Spooled { offset, left: length });
            }
        }
    }

    fn force(&mut self, bytes: &[u8]) {
        self.memory.force(bytes.len() as u64);
        self.push_memory(bytes);
    }

    /// Keeps the application's own bytes from `at` to `end` instead of a copy. False: a copy is better, since little of them
    /// is left, or the memory of all answers is used up.
    pub fn push_held(&mut self, hold: Hold<'_>, at: usize, end: usize) -> bool {
        // All of the object lives as long as a byte of it is wanted, so all of it counts.
        let has_room = (end - at) >= end / HELD_PART && self.memory.grow(end as u64);
        if has_room {
            self.segments.push_back(Segment::Held { piece: hold(), at, end });
        }
        has_room
    }

    pub fn push_file(&mut self, file: OwnedFd, offset: u64, left: u64) {
        self.segments.push_back(Segment::File { file: Arc::new(file), offset, left });
    }

    /// Takes a small answer, for a loop that looks here before long. False: the memory of all answers is used up.
    pub fn defer(&mut self, parts: &[&[u8]]) -> bool {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        self.deferred = self.memory.grow(total as u64);
        if self.deferred {
            for part in parts {
                self.push_memory(part);
            }
        }
        self.deferred
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
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
                let mut tail = take_spare();
                tail.extend_from_slice(bytes);
                self.segments.push_back(Segment::Memory { bytes: tail, at: 0 });
            }
        }
    }

    /// What is first in the queue, where it is a part of a file, for somebody who reads ahead of it.
    pub fn next_of_file(&mut self) -> Option<FilePart> {
        let (file, offset, left) = match self.segments.front()? {
            Segment::Spooled { offset, left } => (FileRef::Spool(self.spool.clone()?), *offset, *left),
            Segment::File { file, offset, left } => (FileRef::Application(Arc::clone(file)), *offset, *left),
            Segment::Memory { .. } | Segment::Held { .. } => return None,
        };
        self.is_read_ahead = true;
        Some(FilePart { file, offset, length: left.min(READ_AHEAD_BYTES) })
    }

    pub fn note_read_ahead(&mut self, until: u64) {
        // It may have been sent, or given up, meanwhile.
        if std::mem::take(&mut self.is_read_ahead) {
            self.in_memory_until = until;
        }
    }

    /// Sends up to `share` bytes, or a little more.
    pub fn drain(&mut self, fd: RawFd, mut share: usize, in_memory: InMemory<'_>) -> Progress {
        loop {
            let Some(segment) = self.segments.front_mut() else { return Progress::Empty };
            if share == 0 {
                return Progress::Again;
            }
            let outcome = match segment {
                Segment::Memory { bytes, at } => send_parts(fd, &[&bytes[*at..]], false).inspect(|sent| *at += sent),
                Segment::Held { piece, at, end } => {
                    let rest = &piece.bytes()[*at..*end];
                    send_parts(fd, &[&rest[..rest.len().min(SHARE_BYTES_MAX)]], false).inspect(|sent| *at += sent)
                }
                Segment::Spooled { offset, left } => {
                    let Some(spool) = &self.spool else { return Progress::Unreadable(None) };
                    let until = &mut self.in_memory_until;
                    let Some(share) = share_in_memory(spool.as_fd(), *offset, *left, share, until, in_memory) else {
                        return Progress::Cold;
                    };
                    send_some(fd, spool, offset, left, share)
                }
                Segment::File { file, offset, left } => {
                    let until = &mut self.in_memory_until;
                    let Some(share) = share_in_memory(file.as_fd(), *offset, *left, share, until, in_memory) else {
                        return Progress::Cold;
                    };
                    send_some(fd, file, offset, left, share)
                }
            };
            let sent = match outcome {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Blocked,
                Err(error) if socket::is_at_fault(fd, &error) => return Progress::Broken,
                Err(error) => return Progress::Unreadable(error.raw_os_error()),
            };
            self.drained += sent as u64;
            share = share.saturating_sub(sent);
            let ended = match segment {
                Segment::Memory { bytes, at } => {
                    self.memory.release(sent as u64);
                    *at == bytes.len()
                }
                Segment::Held { at, end, .. } => at == end,
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
                return Progress::Unreadable(None);
            }
        }
    }
}

/// How much of a file may be sent without waiting for a disk; none: nothing.
fn share_in_memory(
    file: BorrowedFd<'_>,
    offset: u64,
    left: u64,
    share: usize,
    until: &mut u64,
    in_memory: InMemory<'_>,
) -> Option<usize> {
    if offset >= *until {
        let length = left.min(SHARE_BYTES_MAX as u64);
        if !in_memory(file, offset, length) {
            return None;
        }
        *until = offset + length;
    }
    Some(share.min(usize::try_from(*until - offset).unwrap_or(usize::MAX)))
}

/// Appends to the file, which is made first where there is none. May wait for the disk.
pub fn write(spool: Option<Arc<Spool>>, bytes: &[u8], temp: &TempFiles) -> Result<Arc<Spool>, Failed> {
    #[cfg(test)]
    temp.wait_for_disk();
    let spool = match spool {
        Some(spool) => spool,
        None => Arc::new(temp.create()?),
    };
    spool.append(bytes).map(|()| spool)
}
