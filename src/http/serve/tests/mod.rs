//! The server as clients see it.

mod answers;
mod bounds;
mod corpus;
mod disk;
mod drain;
mod endings;
pub mod fixture;
mod flush_batch;
mod handoff;
mod herd;
mod leading;
mod live;
#[cfg(loom)]
mod model;
mod order;
mod overdue;
mod proxy;
mod requests;
mod slow;
mod threads;
