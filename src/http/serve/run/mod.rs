//! Who runs the loop, and the side of the application: app threads, the monitor, and the means to answer a request.

pub mod app_thread;
pub mod app_times;
pub mod close_look;
pub mod exchange;
pub mod follower;
pub mod leader;
pub mod live_input;
pub mod long_paths;
pub mod monitor;
