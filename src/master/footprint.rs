//! How the master gives memory back. Most of its code runs at the start and for a deploy, and then not for hours: the command
//! line, the configuration, the tables of settings. Three things go: pages of the binary that were never written to, free heap,
//! and the main thread's stack below what is in use.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use nix::sys::mman::{madvise, MmapAdvise};
use nix::unistd::{getpid, gettid, sysconf, SysconfVar};

/// After this long without anything to do, the pages of what the loop did are not needed soon.
const QUIET_AFTER: Duration = Duration::from_secs(2);

/// When the master last had something to do, and whether the pages that this took are still here.
pub struct Footprint {
    busy_at: Option<Instant>,
}

impl Footprint {
    pub fn new(now: Instant) -> Footprint {
        Footprint { busy_at: Some(now) }
    }

    /// To be told of each turn of the loop. After the first quiet while the pages go, once: a loop that only looks at its
    /// scoreboards needs few of them again.
    pub fn turned(&mut self, was_busy: bool, now: Instant) {
        if was_busy {
            self.busy_at = Some(now);
        } else if self.busy_at.is_some_and(|at| now.saturating_duration_since(at) >= QUIET_AFTER) {
            self.busy_at = None;
            let_go_of_what_a_deploy_took();
            if gettid() == getpid() {
                let_go_of_deeper_stack();
            }
        }
    }
}

/// One arena for all threads (mallopt(3), M_ARENA_MAX). The C library would give each thread that allocates an arena
/// of its own; the log's thread and the chores allocate little and seldom.
pub fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        log::debug!("the allocator keeps an arena for each thread");
    }
}

/// Gives back what a start or a deploy needed: the pages of the binary's code and constants, and free heap. What is
/// needed again comes from the page cache, 64 KiB at a time.
pub fn let_go_of_what_a_deploy_took() {
    for bytes in constant_segments() {
        let_go(bytes);
    }
    #[cfg(target_env = "gnu")]
    // SAFETY: gives free pages of the heap back to the kernel (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How far below its callers this file's own frames may reach.
const OWN_FRAMES_BYTES: usize = 16 * 1024;

/// Deeper than a start goes, and far less than the main thread's stack may grow: nothing else is mapped there, since the kernel
/// keeps that room free (mmap(2), MAP_GROWSDOWN).
const DEEPEST_BYTES: usize = 256 * 1024;

/// To read the settings takes a hundred KiB of stack that the loop never reaches again. For the main thread only, whose stack ends
/// far below.
fn let_go_of_deeper_stack() {
    let Ok(Some(page_bytes)) = sysconf(SysconfVar::PAGE_SIZE) else { return };
    let here = 0_u8;
    let end = (&raw const here as usize - OWN_FRAMES_BYTES) / page_bytes as usize * page_bytes as usize;
    let Some(first) = NonNull::new((end - DEEPEST_BYTES) as *mut c_void) else { return };
    // SAFETY: below all frames of this thread lies nothing that anybody will read: whoever goes there writes first. ENOMEM: the
    // stack has not been so deep, and what there is of it was let go.
    let _ = unsafe { madvise(first, DEEPEST_BYTES, MmapAdvise::MADV_DONTNEED) };
}

/// Pages that are mapped from the binary's own file and were never written to leave the process. Whoever looks at them
/// again gets them from the file (madvise(2), MADV_DONTNEED).
pub fn let_go(bytes: &'static [u8]) {
    let Ok(Some(page_bytes)) = sysconf(SysconfVar::PAGE_SIZE) else { return };
    // Only whole pages: what stands before and behind is not ours to judge.
    let before = bytes.as_ptr().align_offset(page_bytes as usize).min(bytes.len());
    let pages = &bytes[before..];
    let Some(first) = NonNull::new(pages.as_ptr().cast_mut().cast()) else { return };
    let length = pages.len() / page_bytes as usize * page_bytes as usize;
    // SAFETY: whole pages of data that are mapped from the binary, cannot be written and hold no relocations; they keep
    // their contents.
    if let Err(error) = unsafe { madvise(first, length, MmapAdvise::MADV_DONTNEED) } {
        log::debug!("{length} bytes of the binary stay in memory: {error}");
    }
}

/// The segments of this program that nobody can write to: code, and constants without relocations. Constants with
/// relocations are in a segment that was writable when the program started (elf(5), PT_GNU_RELRO).
fn constant_segments() -> Vec<&'static [u8]> {
    let mut segments = Vec::new();
    // SAFETY: the callback gets a valid `dl_phdr_info` and the address of `segments`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note_constant_segments), (&raw mut segments).cast()) };
    segments
}

/// # Safety
/// `segments` points to a `Vec<&'static [u8]>`, `program` is what dl_iterate_phdr(3) gives.
unsafe extern "C" fn note_constant_segments(
    program: *mut libc::dl_phdr_info,
    _size: usize,
    segments: *mut c_void,
) -> c_int {
    // SAFETY: as promised by the caller.
    let (program, segments) = unsafe { (&*program, &mut *segments.cast::<Vec<&'static [u8]>>()) };
    // SAFETY: so many headers stand there for as long as the program is loaded.
    let headers = unsafe { std::slice::from_raw_parts(program.dlpi_phdr, program.dlpi_phnum.into()) };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let first = (program.dlpi_addr as usize + header.p_vaddr as usize) as *const u8;
            // SAFETY: the segment is mapped there, readable, for the life of the process.
            segments.push(unsafe { std::slice::from_raw_parts(first, header.p_memsz as usize) });
        }
    }
    // The first one is the program itself; other than 0 ends the iteration.
    1
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::AtomicU32;
    use std::sync::Mutex;

    use super::*;

    /// Tests that look at the pages of this process take turns.
    pub(crate) static ALONE: Mutex<()> = Mutex::new(());

    /// Pages of these bytes that this process has mapped: bit 63 of an entry of /proc/self/pagemap
    /// (proc_pid_pagemap(5)).
    pub(crate) fn pages_present(bytes: &[u8]) -> usize {
        pages_present_at(bytes.as_ptr() as usize, bytes.len())
    }

    fn pages_present_at(first: usize, bytes: usize) -> usize {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE).unwrap().unwrap() as usize;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let last = first + bytes - 1;
        let present = |page: &usize| {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, (page * 8) as u64).unwrap();
            u64::from_ne_bytes(entry) >> 63 == 1
        };
        (first / page_bytes..=last / page_bytes).filter(present).count()
    }

    #[test]
    fn code_and_constants_are_found_and_nothing_that_is_written() {
        static WRITTEN: AtomicU32 = AtomicU32::new(1);
        static RELOCATED: &[&str] = &["one", "two"];
        let segments = constant_segments();
        let holds =
            |address: usize| segments.iter().any(|bytes| bytes.as_ptr_range().contains(&(address as *const u8)));
        assert!(holds(code_and_constants_are_found_and_nothing_that_is_written as fn() as usize));
        assert!(holds("a constant".as_ptr() as usize));
        assert!(!holds(&raw const WRITTEN as usize));
        assert!(!holds(RELOCATED.as_ptr() as usize));
    }

    #[test]
    fn what_was_let_go_of_is_read_again_from_the_file() {
        let _alone = ALONE.lock();
        let constants = *constant_segments().iter().max_by_key(|bytes| bytes.len()).unwrap();
        let sum = || constants.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        let before = sum();
        let all = pages_present(constants);
        let_go_of_what_a_deploy_took();
        let left = pages_present(constants);
        assert!(left < all / 2, "{left} of {all} pages are mapped");
        assert_eq!(sum(), before);
    }

    #[test]
    fn a_stack_that_was_deep_is_let_go_of() {
        #[inline(never)]
        fn go_deep() -> u8 {
            let mut deep = [1_u8; DEEPEST_BYTES - 4 * OWN_FRAMES_BYTES];
            std::hint::black_box(&mut deep)[7]
        }
        let here = [1_u8; 64];
        let (deepest, bytes) = (std::hint::black_box(&here).as_ptr() as usize - DEEPEST_BYTES / 2, DEEPEST_BYTES / 4);
        go_deep();
        assert!(pages_present_at(deepest, bytes) > 10);
        let_go_of_deeper_stack();
        assert_eq!(pages_present_at(deepest, bytes), 0);
        assert_eq!((here, go_deep()), ([1; 64], 1));
    }

    #[test]
    fn a_quiet_while_lets_go_once_and_a_busy_turn_begins_it_anew() {
        let _alone = ALONE.lock();
        let constants = *constant_segments().iter().max_by_key(|bytes| bytes.len()).unwrap();
        let read_all = || std::hint::black_box(constants.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        let went = |footprint: &mut Footprint, was_busy, now| {
            read_all();
            let all = pages_present(constants);
            footprint.turned(was_busy, now);
            pages_present(constants) < all / 2
        };
        let began = Instant::now();
        let mut footprint = Footprint::new(began);
        assert!(!went(&mut footprint, false, began + QUIET_AFTER / 2));
        assert!(!went(&mut footprint, true, began + QUIET_AFTER));
        assert!(!went(&mut footprint, false, began + QUIET_AFTER * 3 / 2));
        assert!(went(&mut footprint, false, began + QUIET_AFTER * 2));
        assert!(!went(&mut footprint, false, began + QUIET_AFTER * 4));
        assert!(!went(&mut footprint, true, began + QUIET_AFTER * 5));
        assert!(went(&mut footprint, false, began + QUIET_AFTER * 6));
    }
}
