//! The server as clients see it.

mod answers;
mod corpus;
mod drain;
mod fixture;
mod flush_batch;
mod proxy;
mod requests;
mod slow;
mod threads;
