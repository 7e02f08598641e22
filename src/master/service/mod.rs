//! The hands of one application: how its processes are prepared, started and watched.

pub mod prepare;
pub mod processes;
pub mod python;
pub mod watch;
