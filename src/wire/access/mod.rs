//! Lines of the access log, from what is known of a request: workers make them of what they have answered, the master of what
//! a worker that died has left behind. Nothing is read or written here.

pub mod line;
pub mod record;
