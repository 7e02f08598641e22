//! Answering a request: its head, its framing, its pieces, and what becomes of the connection. Whoever has the request may
//! do it: an app thread, or the loop, which refuses. Nobody is told here that bytes were queued.

use std::io;
use std::os::fd::OwnedFd;

use crate::proto::response::{Asked, ChunkLine, Framing};

use crate::serve::base::observers::How;
use crate::serve::base::settings::DEFERRED_ANSWER_BYTES_MAX;
use crate::serve::io::socket;
use crate::serve::io::spool::TempFiles;

use super::answer::{date_now, After};
use super::request::Request;
use super::sending::GATHERED_BYTES_MAX;
use super::write_half::Sent;
use super::write_queue::Hold;

/// A piece of an answer's body.
pub struct Part<'a> {
    pub bytes: &'a [u8],
    /// The length of the whole body, where it is known.
    pub whole: Option<u64>,
    pub hold: Option<Hold<'a>>,
    /// The answer ends with it.
    pub last: bool,
}

impl<'a> Part<'a> {
    pub fn new(bytes: &'a [u8]) -> Part<'a> {
        Part { bytes, whole: None, hold: None, last: false }
    }
}

/// What became of a piece.
pub enum Delivery {
    /// There is no head yet, so it is dropped.
    Unstarted,
    Sent(Sent),
    /// It lies in the queue for a loop that looks there before long. Where none does any more, the loop has to be told.
    Deferred(Sent),
}

/// What the application did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Short { sent: u64, length: u64 },
    Long { length: u64 },
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Complete,
    /// Something is missing, or too much.
    Cut,
}

/// `X-Request-Id: 4f1c` as a name and a value; none where there is none.
pub fn split_id(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

impl Request {
    /// What the application says is complete.
    pub fn end_head(&mut self) {
        if let Some((name, value)) = split_id(&self.id) {
            self.answer.head.add_missing(name, value);
        }
        self.answer.head.end();
    }

    pub fn asked(&self) -> Asked {
        Asked { version: self.head.version, head: self.method() == b"HEAD", keep_alive: self.head.keep_alive }
    }

    /// The framing, decided now if it was not yet. `closing`: the connection ends with this answer.
    fn frame(&mut self, whole: Option<u64>, closing: bool) -> Framing {
        if let Some(framing) = self.answer.framing {
            return framing;
        }
        let asked = self.asked();
        // What is left of a body that was not read to its end cannot be told from the next request.
        let is_unread = self.body.live().is_some_and(|live| !live.is_complete());
        let closing = closing || is_unread || self.write_half.is_last();
        let asked = Asked { keep_alive: asked.keep_alive && !closing, ..asked };
        let (framing, keep) = self.answer.head.complete(asked, whole, &date_now());
        self.answer.framing = Some(framing);
        self.answer.keep = keep;
        if framing == Framing::UntilClose {
            // RFC 9112 section 8: such a message is complete only if its connection is closed cleanly.
            self.answer.ends_by_reset = true;
            socket::set_end_by_reset(self.write_half.fd(), true);
        }
        framing
    }

    /// Sends or queues a piece, with the head before it if that has not gone out.
    pub fn send(&mut self, part: Part<'_>, temp: &TempFiles, closing: bool) -> Delivery {
        if !self.answer.head.is_set() {
            self.answer.unstarted = true;
            return Delivery::Unstarted;
        }
        let Part { bytes: piece, whole, hold, last } = part;
        let begins = self.answer.framing.is_none();
        if begins && !self.write_half.claim() {
            return Delivery::Sent(Sent::Gone);
        }
        let framing = self.frame(whole, closing);
        let answer = &mut self.answer;
        let (piece, line) = match framing {
            Framing::None => (&piece[..0], None),
            Framing::Length(length) => {
                let left = usize::try_from(length - answer.sent).unwrap_or(usize::MAX);
                answer.excess |= piece.len() > left;
                (&piece[..piece.len().min(left)], None)
            }
            Framing::Chunked => (piece, (!piece.is_empty()).then(|| ChunkLine::new(piece.len()))),
            Framing::UntilClose => (piece, None),
        };
        answer.sent += piece.len() as u64;
        // Where the client did not ask for the end it may still be sending, and the close lingers.
        let closes = last && !answer.keep && !self.head.keep_alive;
        let head = if begins { answer.head.bytes() } else { b"" };
        let (line, end) = line.as_ref().map_or((&b""[..], &b""[..]), |line| (line.bytes(), &b"\r\n"[..]));
        let write_half = &self.write_half;
        if begins && answer.may_defer && answer.is_complete() && head.len() + piece.len() <= DEFERRED_ANSWER_BYTES_MAX {
            if let Some(sent) = write_half.defer(&[head, piece], temp) {
                return Delivery::Deferred(sent);
            }
        }
        let sent = match framing {
            Framing::Chunked => write_half.send(&[head, line, piece, end], temp),
            Framing::None | Framing::Length(_) | Framing::UntilClose
                if begins && head.len() + piece.len() <= GATHERED_BYTES_MAX =>
            {
                answer.head.with_body(piece, |bytes| write_half.send_held(&[bytes], None, closes, temp))
            }
            Framing::None | Framing::Length(_) | Framing::UntilClose => {
                write_half.send_held(&[head, piece], hold, closes, temp)
            }
        };
        if sent == Sent::Gone {
            self.answer.sent -= piece.len() as u64;
        }
        Delivery::Sent(sent)
    }

    /// Sends a file from this offset, `left` bytes of it at most. SIGPIPE is blocked by the caller. None: not possible with
    /// this answer.
    pub fn send_file(
        &mut self,
        file: OwnedFd,
        offset: u64,
        left: u64,
        temp: &TempFiles,
        closing: bool,
    ) -> io::Result<Option<Sent>> {
        // A chunk would need its length before the file, and gains nothing.
        match self.answer.framing {
            Some(Framing::Chunked) => return Ok(None),
            Some(Framing::None | Framing::Length(_) | Framing::UntilClose) | None => {}
        }
        let begins = self.answer.framing.is_none();
        if begins && !self.write_half.claim() {
            return Ok(Some(Sent::Gone));
        }
        let length = match self.frame(Some(left), closing) {
            Framing::None => 0,
            Framing::Length(length) => left.min(length - self.answer.sent),
            Framing::Chunked | Framing::UntilClose => left,
        };
        self.answer.sent += length;
        let head = if begins { self.answer.head.bytes() } else { b"" };
        Ok(Some(self.write_half.send_file(head, file, offset, length, temp)))
    }

    /// The application has no more to say, and the head has gone out. What it did wrong; and what of the end was still to
    /// be sent.
    pub fn finish(&mut self, temp: &TempFiles) -> Result<Option<Sent>, Fault> {
        let Request { answer, write_half, .. } = self;
        match answer.framing {
            Some(Framing::Length(length)) if answer.sent < length && !write_half.is_gone() => {
                Err(Fault::Short { sent: answer.sent, length })
            }
            Some(Framing::Length(length)) if answer.excess => Err(Fault::Long { length }),
            Some(Framing::Chunked) => Ok(Some(write_half.send(&[b"0\r\n\r\n"], temp))),
            Some(Framing::Length(_) | Framing::None | Framing::UntilClose) | None => Ok(None),
        }
    }

    /// A plain error answer, where no head was sent.
    #[cold]
    pub fn refuse(&mut self, status: u16, reason: &str, asked: Asked, temp: &TempFiles) -> Sent {
        let id = split_id(&self.id);
        let body = self.answer.refuse(status, reason, asked, id);
        self.answer.sent = body.len() as u64;
        self.write_half.send(&[self.answer.head.bytes(), body.as_bytes()], temp)
    }

    /// Decides what the loop does with the connection.
    pub fn decide_after(&mut self, end: End) {
        self.answer.how = match end {
            End::Complete => How::Complete,
            End::Cut => How::Cut,
        };
        self.answer.after = match (end, self.answer.framing) {
            (End::Complete, _) if self.answer.keep => After::KeepAlive,
            (End::Complete, _) if self.head.keep_alive => After::Linger,
            (End::Complete, _) => After::Close,
            // Closing early tells the client that something is missing, except where closing is the end.
            (End::Cut, Some(Framing::UntilClose)) => After::Reset,
            (End::Cut, Some(Framing::None | Framing::Length(_) | Framing::Chunked) | None) => After::Linger,
        };
    }
}
