//! One connection: bytes to a request, an answer to bytes. Knows neither the loop nor threads.

pub mod answer;
pub mod connection;
pub mod write_queue;
