//! What every layer may use: names, settings, counting. No input or output.

pub mod address;
pub mod budget;
pub mod buffers;
pub mod handoff;
pub mod names;
pub mod observers;
pub mod pace;
pub mod piece;
pub mod refused;
pub mod settings;
pub mod share;
pub mod sync;
