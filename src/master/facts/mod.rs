//! What is known and told: plain data between the supervisor, which decides, and those who show it.

pub mod snapshot;
