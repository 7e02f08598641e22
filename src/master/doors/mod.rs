//! The ways in: whoever asks the master something comes through one of these.

pub mod control;
pub mod protocol;
