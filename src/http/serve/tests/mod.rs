//! The server as clients see it.

mod answers;
mod corpus;
mod drain;
mod fixture;
mod proxy;
mod requests;
mod slow;
mod threads;
mod volley;
