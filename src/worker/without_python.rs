//! The tests of the worker's modules that know no Python; see Cargo.toml.

#[path = "logger.rs"]
mod logger;
#[path = "title.rs"]
mod title;
#[path = "wsgi/forwarded.rs"]
mod forwarded;
#[path = "wsgi/percent.rs"]
mod percent;
