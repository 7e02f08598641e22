//! HTTP/1.1 without I/O: what bytes mean and which bytes to answer. Nothing here reads a socket, a clock or a
//! setting; the same bytes give the same result however they were split on their way.

pub mod chunked;
pub mod date;
pub mod framing;
pub mod head;
pub mod proxy;
pub mod refusal;
pub mod response;
pub mod syntax;
pub mod target;

#[cfg(any(test, fuzzing))]
pub mod check;
#[cfg(test)]
mod split_test;

/// The request's version as it matters to an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}
