//! An answer in the making: its head, its framing once decided, and what has become of its body.

use std::cell::Cell;

use crate::proto::response::{Asked, Framing, Head};
use crate::proto::{date, refusal};

use crate::serve::base::observers::How;
use crate::serve::base::settings::BUFFER_KEPT_BYTES;

/// What the loop does with the connection after the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// The next request.
    #[default]
    KeepAlive,
    /// The client said that it sends no more: close when all is sent.
    Close,
    /// The client may still send: FIN, read for a while, close (RFC 9112 section 9.6).
    Linger,
    /// The answer's end cannot be told by its framing: RST.
    Reset,
}

#[derive(Debug, Default)]
pub struct Answer {
    pub head: Head,
    /// None: the head has not gone out.
    pub framing: Option<Framing>,
    pub keep: bool,
    /// Body bytes that went out, without chunk lines.
    pub sent: u64,
    /// The application wrote more than it declared.
    pub excess: bool,
    /// The application wrote before it said what status.
    pub unstarted: bool,
    pub after: After,
    /// How it ends, if all that there is of it goes out.
    pub how: How,
    /// Only the close ends the body, and it has not been sent to its end.
    pub ends_by_reset: bool,
    /// Its connection belongs to a flush batch: it need not go out at once.
    pub may_defer: bool,
}

impl Answer {
    /// Sets the head of a plain error answer and returns its body. Allocates: errors may.
    /// `id`: what every answer to its request says besides, a name and a value; or nothing.
    #[cold]
    pub fn refuse(&mut self, status: u16, reason: &str, asked: Asked, id: Option<(&[u8], &[u8])>) -> String {
        let phrase = refusal::phrase(status);
        let body = if reason.is_empty() { format!("{phrase}\n") } else { format!("{phrase}: {reason}\n") };
        // RFC 9110 section 15.6.4.
        let retry_after = (status == 503).then_some(refusal::RETRY_AFTER_S);
        match self.close_with(status, b"text/plain; charset=utf-8", retry_after, body.len(), asked, id) {
            true => body,
            false => String::new(),
        }
    }

    /// Sets the head of an answer that ends its connection. False: it has no body.
    #[cold]
    pub fn close_with(
        &mut self,
        status: u16,
        content_type: &[u8],
        retry_after: Option<&str>,
        body_bytes: usize,
        asked: Asked,
        id: Option<(&[u8], &[u8])>,
    ) -> bool {
        let retry_after = retry_after.map(|seconds| (&b"Retry-After"[..], seconds.as_bytes()));
        let fields: Vec<(&[u8], &[u8])> =
            std::iter::once((&b"Content-Type"[..], content_type)).chain(retry_after).collect();
        let line = format!("{status} {}", refusal::phrase(status));
        let valid = self.head.set(line.as_bytes(), &fields);
        debug_assert!(valid.is_ok(), "{valid:?}");
        if let Some((name, value)) = id {
            self.head.add_missing(name, value);
        }
        let asked = Asked { keep_alive: false, ..asked };
        let (framing, keep) = self.head.complete(asked, Some(body_bytes as u64), &date_now());
        self.framing = Some(framing);
        self.keep = keep;
        match framing {
            Framing::None => false,
            Framing::Length(_) | Framing::Chunked | Framing::UntilClose => true,
        }
    }

    /// The head is out, and it is the whole answer (RFC 9110 section 9.3.2 and 15.3.5); or more was given than it declares.
    pub fn takes_no_more(&self) -> bool {
        match self.framing {
            Some(Framing::None) => true,
            Some(Framing::Length(_)) if self.excess => true,
            Some(Framing::Length(_) | Framing::Chunked | Framing::UntilClose) | None => false,
        }
    }

    /// Nothing more will be sent, and the connection lives on.
    pub fn is_complete(&self) -> bool {
        let complete = match self.framing {
            Some(Framing::Length(length)) => self.sent == length,
            Some(Framing::None) => true,
            Some(Framing::Chunked | Framing::UntilClose) | None => false,
        };
        complete && self.keep
    }

    pub fn clear(&mut self) {
        self.head.clear();
        self.head.shrink(BUFFER_KEPT_BYTES);
        self.framing = None;
        self.keep = false;
        self.sent = 0;
        self.excess = false;
        self.unstarted = false;
        self.after = After::KeepAlive;
        self.how = How::Complete;
        self.ends_by_reset = false;
        self.may_defer = false;
    }
}

thread_local! {
    /// The Date field of the second that is: formatted once a second for each thread, without a lock.
    static DATE: Cell<(u64, [u8; date::LENGTH])> = const { Cell::new((u64::MAX, [0; date::LENGTH])) };
}

/// Since the epoch, by the kernel's latest tick: at most some 10 ms late, which a date in seconds does not show, for a tenth
/// of the price (time(7), "The software clock").
fn second_now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid pointer; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0)
}

pub fn date_now() -> [u8; date::LENGTH] {
    let now = second_now();
    DATE.with(|cached| {
        let (second, text) = cached.get();
        if second == now {
            return text;
        }
        let text = date::format(now);
        cached.set((now, text));
        text
    })
}
