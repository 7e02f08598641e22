//! Memory that is used again. For large bodies: to give 200 kB back to the kernel after each request and to get them anew, page
//! by page, costs as much as reading them.

use std::sync::{Mutex, PoisonError};

use super::settings::{BODY_BUFFERS_KEPT, BODY_BUFFER_BYTES_MAX, BUFFERS_KEPT, BUFFER_IDLE_BYTES, BUFFER_KEPT_BYTES};

#[derive(Debug, Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty one, with memory if one was kept.
    pub fn take(&self) -> Vec<u8> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub fn keep(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() > BODY_BUFFER_BYTES_MAX {
            return;
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < BODY_BUFFERS_KEPT {
            buffer.clear();
            free.push(buffer);
        }
    }
}

/// Buffers of connections that wait for a request: idle ones hold none. The loop's own, so there is no lock.
#[derive(Debug, Default)]
pub struct InputBuffers(Vec<Vec<u8>>);

impl InputBuffers {
    pub fn new() -> InputBuffers {
        InputBuffers(Vec::with_capacity(BUFFERS_KEPT))
    }

    /// An empty one, with memory if one was kept.
    pub fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    pub fn keep(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > 0 && self.0.len() < BUFFERS_KEPT {
            buffer.clear();
            buffer.shrink_to(BUFFER_KEPT_BYTES);
            self.0.push(buffer);
        }
    }

    /// Of a connection that becomes idle: nothing in it is needed any more.
    pub fn keep_large(&mut self, buffer: &mut Vec<u8>, was_large: &mut bool) {
        if buffer.capacity() > BUFFER_IDLE_BYTES {
            self.keep(std::mem::take(buffer));
            *was_large = true;
        }
    }

    /// For a connection whose last one was large, and was kept here.
    pub fn lend(&mut self, buffer: &mut Vec<u8>, was_large: &mut bool) {
        if std::mem::take(was_large) {
            *buffer = self.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_kept_and_none_that_is_huge() {
        let buffers = Buffers::default();
        buffers.keep(Vec::with_capacity(BODY_BUFFER_BYTES_MAX + 1));
        assert_eq!(buffers.take().capacity(), 0);
        for _ in 0..BODY_BUFFERS_KEPT + 1 {
            buffers.keep(vec![1; 1000]);
        }
        let taken: Vec<Vec<u8>> = (0..BODY_BUFFERS_KEPT + 1).map(|_| buffers.take()).collect();
        assert!(taken.iter().all(Vec::is_empty));
        assert_eq!(taken.iter().filter(|buffer| buffer.capacity() > 0).count(), BODY_BUFFERS_KEPT);
    }
}
