//! A body that comes while the application reads it: what is read ahead for lines and for chunks, and the waiting for the
//! client, which is without the interpreter's lock and not the application's time.

use forkmaster_http::serve::{LiveInput, Read};
use pyo3::prelude::*;

use super::progress::Progress;

/// So much is read ahead, where something is.
const AHEAD_BYTES: usize = 64 * 1024;

pub struct Live {
    input: LiveInput,
    progress: Progress,
    /// None: it is chunked, and nobody knows.
    length: Option<u64>,
    /// Read, and not yet given out from `at` on.
    ahead: Vec<u8>,
    at: usize,
}

impl Live {
    pub fn new(input: LiveInput, length: Option<u64>, progress: Progress) -> Live {
        Live { input, progress, length, ahead: Vec::new(), at: 0 }
    }

    pub fn length(&self) -> Option<u64> {
        self.length
    }

    pub fn ahead(&self) -> &[u8] {
        &self.ahead[self.at..]
    }

    /// Gives out the first of what was read ahead.
    pub fn copy_ahead(&mut self, place: &mut [u8]) {
        place.copy_from_slice(&self.ahead[self.at..self.at + place.len()]);
        self.at += place.len();
        if self.at == self.ahead.len() {
            self.ahead.clear();
            self.at = 0;
        }
    }

    /// Fills the place, for which there must be enough.
    pub fn fill(&mut self, py: Python<'_>, place: &mut [u8]) -> PyResult<()> {
        let ahead = self.ahead().len().min(place.len());
        let (begin, mut rest) = place.split_at_mut(ahead);
        self.copy_ahead(begin);
        while !rest.is_empty() {
            let bytes = self.some(py, rest)?;
            if bytes == 0 {
                // Only a body that is not complete has less than its length, and that is an error already.
                return Err(pyo3::exceptions::PyOSError::new_err("the body is shorter than its length"));
            }
            rest = &mut rest[bytes..];
        }
        Ok(())
    }

    /// Reads ahead until so many bytes are there or the body ends; how many there are.
    pub fn reach(&mut self, py: Python<'_>, bytes: usize) -> PyResult<usize> {
        while self.ahead().len() < bytes {
            if self.more(py)? == 0 {
                break;
            }
        }
        Ok(self.ahead().len())
    }

    /// Reads ahead once; 0: the body has ended.
    pub fn more(&mut self, py: Python<'_>) -> PyResult<usize> {
        self.ahead.drain(..self.at);
        self.at = 0;
        let there = self.ahead.len();
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.resize(there + AHEAD_BYTES, 0);
        let read = self.some(py, &mut ahead[there..]);
        ahead.truncate(there + read.as_ref().map_or(0, |bytes| *bytes));
        self.ahead = ahead;
        read
    }

    /// At least one byte, or 0 at the end.
    fn some(&self, py: Python<'_>, place: &mut [u8]) -> PyResult<usize> {
        loop {
            match py.detach(|| self.input.read(place))? {
                Read::Bytes(bytes) => return Ok(bytes),
                Read::End => return Ok(0),
                Read::Nothing => {
                    self.progress.leave();
                    py.detach(|| {
                        self.input.wait();
                        self.progress.want_lock();
                    });
                    self.progress.enter();
                    py.check_signals()?;
                }
            }
        }
    }
}
