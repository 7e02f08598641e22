//! All that the master and the Python side agree on: the messages and the channel they travel on, the
//! scoreboard in shared memory, and what a template inherits across exec. Nothing else in the project knows
//! these bytes. The worker library is embedded in the master's binary, so the two ends normally are of one
//! build; `WIRE_HASH` makes sure of it.

pub mod access;
pub mod alias;
pub mod channel;
pub mod handoff;
pub mod histogram;
pub mod inherit;
pub mod json;
pub mod large;
pub mod limits;
pub mod log_line;
pub mod memfd;
pub mod message;
pub mod millis;
pub mod mutant;
pub mod peer;
pub mod percent;
pub mod put;
pub mod rehearsal;
pub mod scoreboard;
pub mod text;
pub mod timestamp;

/// A hash of this crate's sources, sent in `Hello`: a master never talks to a worker library that was built
/// from other messages (possible after an upgrade in place, or with `FORKMASTER_WORKER_LIB`).
pub const WIRE_HASH: u64 = fnv1a(
    concat!(
        include_str!("lib.rs"),
        include_str!("alias.rs"),
        include_str!("channel.rs"),
        include_str!("handoff/message.rs"),
        include_str!("inherit.rs"),
        include_str!("json.rs"),
        include_str!("large.rs"),
        include_str!("message.rs"),
        include_str!("millis.rs"),
        include_str!("peer.rs"),
        include_str!("rehearsal.rs"),
        include_str!("scoreboard.rs"),
    )
    .as_bytes(),
);

/// What master and workers of different builds can rely on: it changes with a message, a header of the handoff queue or a
/// meaning that one of the two would get wrong. Messages and fields that are only added leave it as it is. A master that
/// was upgraded in place talks to workers that have the library of the binary before.
pub const WIRE_VERSION: u32 = 1;

/// FNV-1a, 64 bits (the Fowler/Noll/Vo hash; draft-eastlake-fnv): enough to tell two builds apart.
const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}
