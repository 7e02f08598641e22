//! Names that every layer knows: what an event belongs to, which deadlines there are, and whether a caller may wait.
//! They carry no behaviour of a layer, so that layers need not know each other for their sake.

const _: () = assert!(usize::BITS == 64, "a token holds an index and a generation");

/// What an event belongs to. Connections carry a generation, so that an event that was fetched before its
/// connection was closed cannot reach the next one in the same slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub index: u32,
    pub generation: u32,
}

impl Token {
    /// No connection ever has this generation.
    const LISTENERS: u32 = u32::MAX;

    pub const WAKE: Token = Token { index: u32::MAX, generation: Token::LISTENERS };

    /// The interpreter's wakeup descriptor.
    pub const SIGNAL: Token = Token { index: u32::MAX - 1, generation: Token::LISTENERS };

    /// The handoff queue.
    pub const QUEUE: Token = Token { index: u32::MAX - 2, generation: Token::LISTENERS };

    pub fn listener(index: usize) -> Token {
        Token { index: index as u32, generation: Token::LISTENERS }
    }

    pub fn as_listener(self) -> Option<usize> {
        let is_listener =
            self.generation == Token::LISTENERS && ![Token::WAKE, Token::SIGNAL, Token::QUEUE].contains(&self);
        is_listener.then_some(self.index as usize)
    }

    /// The generation after this one.
    pub fn next_generation(self) -> u32 {
        match self.generation.wrapping_add(1) {
            Token::LISTENERS => 0,
            generation => generation,
        }
    }

    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn from_u64(number: u64) -> Token {
        Token { index: number as u32, generation: (number >> 32) as u32 }
    }
}

/// Whether whoever runs the loop may wait for a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocking {
    /// It holds the interpreter's lock: nothing that writes to a disk or moves many bytes.
    Forbidden,
    Allowed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerKind {
    /// Nothing of a request has come.
    Keepalive,
    /// A head has begun.
    Header,
    /// Between two reads of a body.
    Body,
    /// Between two writes while bytes are queued.
    Write,
    /// Between FIN and close.
    Linger,
}

pub const TIMER_KINDS: [TimerKind; 5] =
    [TimerKind::Keepalive, TimerKind::Header, TimerKind::Body, TimerKind::Write, TimerKind::Linger];
