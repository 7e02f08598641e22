//! Where a request's body goes: memory first, then a file, or straight to the application (`live_body`). Reads from no
//! socket.

use std::sync::Arc;
use std::time::Instant;

use crate::proto::refusal::{self, Refusal};
use crate::serve::base::budget::Charge;
use crate::serve::base::buffers::{Buffers, InputBuffers};
use crate::serve::base::settings::{
    BUFFER_KEPT_BYTES, GATHER_BYTES, GATHER_BYTES_MAX, MEMORY_BYTES_MAX, READ_BODY_BYTES,
};
use crate::serve::io::spool::{Failed, Spool, TempFiles};

use super::live_body::{Ended, LiveBody, Rest};
use super::rules::Rules;
use super::write_half::WriteHalf;

/// Room is charged as bytes come, never for what was only announced.
#[derive(Debug)]
pub struct RequestBody {
    present: bool,
    /// The whole body, or what is not yet in the file.
    memory: Vec<u8>,
    /// Of this body; of one that is known to be longer than `body_memory` just a stretch worth writing.
    memory_bytes_max: u64,
    charge: Charge,
    /// Where large memory comes from and goes to.
    buffers: Arc<Buffers>,
    file: Option<Spool>,
    /// It goes to a file, which there is once something was written.
    spools: bool,
    /// So much is gathered before it is written.
    batch_bytes: usize,
    /// A file thread has its bytes and its file (`take_batch`).
    is_away: bool,
    length: u64,
    /// As its head says.
    declared: Option<u64>,
    /// The last body's memory was large, and others have it now.
    was_large: bool,
    beyond: Beyond,
}

/// What becomes of a body that does not fit into memory.
#[derive(Debug)]
enum Beyond {
    /// A file takes it.
    File,
    /// It may go live, if it proves to be fast until then. Its head was there at this time.
    Undecided(Instant),
    /// It has come so far, and lies in memory until somebody decides.
    Reached(Instant),
    Live(Arc<LiveBody>),
    /// It was live; what was read of the next request.
    Over(Vec<u8>),
}

impl RequestBody {
    pub fn new(rules: &Rules) -> RequestBody {
        RequestBody {
            present: false,
            memory: Vec::new(),
            memory_bytes_max: 0,
            charge: rules.bodies.charge(),
            buffers: Arc::clone(&rules.buffers),
            file: None,
            spools: false,
            batch_bytes: GATHER_BYTES,
            is_away: false,
            length: 0,
            declared: None,
            was_large: false,
            beyond: Beyond::File,
        }
    }

    /// None: the request has no body, or it is live and its length is not known.
    pub fn length(&self) -> Option<u64> {
        let is_known = self.live().is_none() || self.declared.is_some();
        (self.present && is_known).then(|| self.declared.unwrap_or(self.length))
    }

    /// It goes to the application as it comes.
    pub fn live(&self) -> Option<&Arc<LiveBody>> {
        match &self.beyond {
            Beyond::Live(live) => Some(live),
            Beyond::File | Beyond::Undecided(_) | Beyond::Reached(_) | Beyond::Over(_) => None,
        }
    }

    /// More has come than fits into memory, and somebody has to decide where it goes: how much, and since when.
    pub fn reached(&self) -> Option<(u64, Instant)> {
        match self.beyond {
            Beyond::Reached(since) => Some((self.length, since)),
            Beyond::File | Beyond::Undecided(_) | Beyond::Live(_) | Beyond::Over(_) => None,
        }
    }

    pub fn go_live(&mut self, write_half: Arc<WriteHalf>, rest: Rest, input: Vec<u8>, bytes_max: u64) {
        let begun = std::mem::take(&mut self.memory);
        self.beyond = Beyond::Live(Arc::new(LiveBody::new(write_half, rest, begun, input, bytes_max)));
    }

    /// The request is answered. What became of a live body.
    pub fn end_live(&mut self) -> Option<Ended> {
        let mut ended = self.live()?.end();
        self.beyond = Beyond::Over(ended.next.as_mut().map(std::mem::take).unwrap_or_default());
        Some(ended)
    }

    /// What was read of the next request, by whoever read the live body.
    pub fn take_next(&mut self) -> Option<Vec<u8>> {
        match std::mem::replace(&mut self.beyond, Beyond::File) {
            Beyond::Over(next) => Some(next),
            Beyond::File | Beyond::Undecided(_) | Beyond::Reached(_) | Beyond::Live(_) => None,
        }
    }

    /// What has come so far.
    pub fn bytes(&self) -> u64 {
        self.length
    }

    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// Memory for a body, in place of that of the last one where that was large.
    pub fn lend(&mut self, inputs: &mut InputBuffers) {
        inputs.lend(&mut self.memory, &mut self.was_large);
    }

    pub fn keep_large(&mut self, inputs: &mut InputBuffers) {
        inputs.keep_large(&mut self.memory, &mut self.was_large);
    }

    #[cfg(test)]
    pub fn kept_bytes(&self) -> usize {
        self.memory.capacity()
    }

    /// A body that lies in memory, to be kept by whoever takes it.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.memory)
    }

    /// What was taken is no longer needed.
    pub fn give_back(&self, memory: Vec<u8>) {
        self.buffers.keep(memory);
    }

    pub fn file(&self) -> Option<&Spool> {
        self.file.as_ref()
    }

    pub fn clear(&mut self) {
        self.present = false;
        self.length = 0;
        self.declared = None;
        self.beyond = Beyond::File;
        self.file = None;
        self.spools = false;
        self.is_away = false;
        self.charge.clear();
        self.memory.clear();
        if self.memory.capacity() > BUFFER_KEPT_BYTES {
            self.buffers.keep(std::mem::take(&mut self.memory));
        }
    }

    /// A body will come, of this length or chunked. Refuses one that would find no place, as things stand.
    pub fn expect(&mut self, length: Option<u64>, may_live: bool, rules: &Rules) -> Result<(), Refusal> {
        let body_memory = rules.settings.body_memory;
        self.present = true;
        self.declared = length;
        self.memory_bytes_max = body_memory;
        if may_live && length.is_none_or(|length| length > body_memory) {
            self.beyond = Beyond::Undecided(Instant::now());
        }
        let Some(length) = length else { return Ok(()) };
        if length > rules.settings.max_body {
            return Err(refusal::BODY_LONG);
        }
        if length > body_memory {
            if !rules.temp.available() {
                return Err(refusal::BODY_NO_TEMP_DIR);
            }
            if let Beyond::File = self.beyond {
                self.memory_bytes_max = body_memory.min(GATHER_BYTES as u64);
            }
        }
        let memory = if length > body_memory { 0 } else { rules.bodies.left() };
        if length > memory && length > rules.temp.left() {
            return Err(refusal::TEMP_FULL);
        }
        Ok(())
    }

    pub fn append(&mut self, bytes: &[u8], rules: &Rules) -> Result<(), Refusal> {
        self.memory.extend_from_slice(bytes);
        self.added(bytes.len(), rules)
    }

    /// Where up to `left` bytes may be read to, and how many at once: twice as many each time, since what was only
    /// announced shall not cost memory. Memory that is asked for and not written to costs none, so there is room for all
    /// that may stay in memory from the beginning, and it need not move as it grows.
    pub fn place(&mut self, left: u64) -> (&mut Vec<u8>, usize) {
        if !self.spools && left > BUFFER_KEPT_BYTES as u64 && self.memory.capacity() <= BUFFER_KEPT_BYTES {
            let begun = std::mem::replace(&mut self.memory, self.buffers.take());
            self.memory.reserve(begun.len() + left.min(self.memory_bytes_max) as usize);
            self.memory.extend_from_slice(&begun);
        }
        debug_assert!(!self.has_batch(false), "it is to be written first");
        let step = match self.spools {
            true => self.batch_bytes - self.memory.len(),
            false => {
                let left = self.memory_bytes_max.saturating_sub(self.length) as usize;
                self.memory.len().min(left).max(READ_BODY_BYTES)
            }
        };
        let room = usize::try_from(left).map_or(step, |left| left.min(step));
        self.memory.reserve(room);
        (&mut self.memory, room)
    }

    /// The last bytes in memory are new: counts them, and finds another place for all of them where there are too many.
    pub fn added(&mut self, bytes: usize, rules: &Rules) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        self.length += bytes;
        if self.spools {
            self.charge.force(bytes);
            return Ok(());
        }
        if self.length <= self.memory_bytes_max && self.charge.grow(bytes) {
            return Ok(());
        }
        self.charge.force(bytes);
        match self.beyond {
            Beyond::Undecided(since) | Beyond::Reached(since) => {
                self.beyond = Beyond::Reached(since);
                Ok(())
            }
            Beyond::File | Beyond::Live(_) | Beyond::Over(_) => self.go_to_file(rules),
        }
    }

    /// What lies in memory goes to a file, and so does what comes.
    pub fn go_to_file(&mut self, rules: &Rules) -> Result<(), Refusal> {
        self.beyond = Beyond::File;
        self.spools = rules.temp.available();
        self.begin_batch();
        match self.spools {
            true => Ok(()),
            false if self.length > rules.settings.body_memory => Err(refusal::BODY_NO_TEMP_DIR),
            false => Err(refusal::TEMP_FULL),
        }
    }

    fn begin_batch(&mut self) {
        let is_free = self.charge.left() >= MEMORY_BYTES_MAX / 2;
        self.batch_bytes = if is_free { GATHER_BYTES_MAX } else { GATHER_BYTES };
    }

    /// So much lies in memory that it is worth writing. `all_came`: nothing more comes.
    pub fn has_batch(&self, all_came: bool) -> bool {
        self.spools && (self.memory.len() >= self.batch_bytes || (all_came && !self.memory.is_empty()))
    }

    /// What is to be written to the file. Nothing is read of the body until it is back.
    pub fn take_batch(&mut self) -> Batch {
        self.is_away = true;
        Batch { bytes: std::mem::take(&mut self.memory), outcome: self.file.take().map(Ok) }
    }

    pub fn is_away(&self) -> bool {
        self.is_away
    }

    /// It is back. Its memory is used again.
    pub fn put_back(&mut self, batch: Batch) -> Result<(), Refusal> {
        self.is_away = false;
        self.memory = batch.bytes;
        self.memory.clear();
        self.charge.clear();
        self.begin_batch();
        self.file = batch.outcome.transpose().map_err(translate)?;
        Ok(())
    }

    /// The last byte has come, and is in its place.
    pub fn complete(&mut self) {
        if self.spools {
            self.buffers.keep(std::mem::take(&mut self.memory));
        }
    }
}

/// A part of a body on its way to the file.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// The file; none: it is still to be made.
    outcome: Option<Result<Spool, Failed>>,
}

impl Batch {
    /// May wait for the disk.
    pub fn write(&mut self, temp: &TempFiles) {
        let file = self.outcome.take().unwrap_or_else(|| temp.create());
        self.outcome = Some(file.and_then(|file| file.append(&self.bytes).map(|()| file)));
    }
}

fn translate(failed: Failed) -> Refusal {
    match failed {
        Failed::Full => refusal::TEMP_FULL,
        Failed::Io(error) => {
            log::warn!("temporary file for a request body: {error}");
            refusal::TEMP_FAILED
        }
    }
}
