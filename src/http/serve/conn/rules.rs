//! What every connection of a server has in common: settings, limits, and what it may use of memory and temporary files.

use std::sync::{Arc, Mutex, PoisonError};

use crate::proto::head::Limits;
use crate::serve::base::budget::Budget;
use crate::serve::base::buffers::Buffers;
use crate::serve::base::settings::{Settings, MEMORY_BYTES_MAX};
use crate::serve::io::file_threads::FileThreads;
use crate::serve::io::spool::TempFiles;

/// What reading needs to know and may use.
#[derive(Debug)]
pub struct Rules {
    pub settings: Settings,
    pub limits: Limits,
    pub temp: TempFiles,
    /// For the few bytes that whoever leads says itself: it never writes to a file.
    pub no_files: TempFiles,
    pub memory: Arc<Budget>,
    /// Of the bodies of requests. The same, unless nothing is there to relieve it.
    pub bodies: Arc<Budget>,
    pub buffers: Arc<Buffers>,
    pub hops: Hops,
}

/// Hop-by-hop fields of the application that were dropped, each told once.
#[derive(Debug, Default)]
pub struct Hops(Mutex<Vec<String>>);

impl Hops {
    pub fn warn(&self, name: &[u8]) {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are dropped and not refused are three names.
        if !told.contains(&name) {
            log::warn!("the application's header {name:?} is dropped: connections are the server's (PEP 3333)");
            told.push(name);
        }
    }
}

impl Rules {
    pub fn new(mut settings: Settings, files: &FileThreads) -> Rules {
        let memory = Budget::with_disposal(MEMORY_BYTES_MAX, Box::new(files.clone()));
        let mut bodies = Arc::clone(&memory);
        if settings.temp_dir.is_none() {
            settings.body_memory = settings.body_memory_alone;
            bodies = Budget::new(settings.body_memory_alone);
        }
        let temp = TempFiles::new(settings.temp_dir.clone(), settings.temp_limit);
        let (no_files, limits) = (TempFiles::new(None, 0), settings.limits());
        Rules { settings, limits, temp, no_files, memory, bodies, buffers: Arc::default(), hops: Hops::default() }
    }
}
