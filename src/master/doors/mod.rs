//! The ways in: whoever asks the master something comes through one of these.

pub mod closer;
pub mod conn;
pub mod control;
pub mod metrics;
pub mod notify;
pub mod peer;
pub mod protocol;
pub mod socket_file;
pub mod status;
