//! HTTP/1.1 and the loop that serves it. Knows no Python and no master.
//!
//! `proto` does no I/O: request heads, framing, bodies, responses. `serve` is the event loop. Arrows:
//! `serve -> proto`, never back.

pub mod proto;
pub mod serve;
