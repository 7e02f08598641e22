//! One connection: bytes to a request, an answer to bytes. Knows neither the loop nor threads.

pub mod answer;
pub mod answering;
pub mod body;
pub mod live_body;
pub mod reader;
pub mod request;
pub mod rules;
pub mod sending;
pub mod write_half;
pub mod write_queue;
