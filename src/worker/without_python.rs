//! The tests of the worker's modules that know no Python; see Cargo.toml.

#[path = "wsgi/forwarded.rs"]
mod forwarded;
#[path = "logger.rs"]
mod logger;
#[path = "wsgi/percent.rs"]
mod percent;
#[path = "title.rs"]
mod title;
