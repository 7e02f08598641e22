//! The kernel, one system call or one descriptor at a time. Knows no HTTP.

pub mod copies;
pub mod cpu;
pub mod epoll;
pub mod file_threads;
pub mod memory;
pub mod parker;
pub mod socket;
pub mod spool;
