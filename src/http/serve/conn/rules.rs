//! What every connection of a server has in common: settings, limits, and what it may use of memory and temporary files.

use std::sync::Arc;

use crate::proto::head::Limits;
use crate::serve::base::budget::Budget;
use crate::serve::base::buffers::Buffers;
use crate::serve::base::settings::{Settings, MEMORY_BYTES_MAX};
use crate::serve::io::spool::TempFiles;

/// What reading needs to know and may use.
#[derive(Debug)]
pub struct Rules {
    pub settings: Settings,
    pub limits: Limits,
    pub temp: TempFiles,
    pub memory: Arc<Budget>,
    pub buffers: Arc<Buffers>,
}

impl Rules {
    pub fn new(settings: Settings) -> Rules {
        let temp = TempFiles::new(settings.temp_dir.clone(), settings.temp_limit);
        let limits = settings.limits();
        Rules { settings, limits, temp, memory: Budget::new(MEMORY_BYTES_MAX), buffers: Arc::default() }
    }
}
