//! What is known and told: plain data between the supervisor, which decides, and those who show it.

pub mod canary;
pub mod history;
pub mod measures;
pub mod note;
pub mod outcome;
pub mod rehearsal;
pub mod snapshot;
pub mod standing;
