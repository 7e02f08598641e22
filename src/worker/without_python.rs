//! The tests of the worker's modules that know no Python; see Cargo.toml.

#[path = "access/mod.rs"]
mod access;
#[path = "wsgi/forwarded.rs"]
mod forwarded;
#[path = "line_rate.rs"]
mod line_rate;
#[path = "log_queue.rs"]
mod log_queue;
#[path = "logger.rs"]
mod logger;
#[path = "logs.rs"]
mod logs;
#[path = "memory.rs"]
mod memory;
#[path = "native_threads.rs"]
mod native_threads;
#[path = "put.rs"]
mod put;
#[path = "recall.rs"]
mod recall;
#[path = "sockets.rs"]
mod sockets;
#[path = "tempdir.rs"]
mod tempdir;
#[path = "title.rs"]
mod title;
