//! The server as clients see it.

mod answers;
mod drain;
mod fixture;
mod requests;
mod slow;
mod threads;
