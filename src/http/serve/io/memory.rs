//! Memory that was freed, and that the C library keeps for what comes next: it knows nothing of our bounds.

/// Gives free pages back to the kernel, in the middle of the heap too. glibc keeps up to twice the largest piece that was
/// ever freed (M_TRIM_THRESHOLD, mallopt(3)), and what lies below something that is still in use.
///
/// Each arena is locked meanwhile, and a thread that wants memory of the same arena waits: 1.2 ms for 8 MB of freed heap, 12 ms
/// for 50 MB and 63 ms for 200 MB (glibc 2.36, pieces of 4 kB, 100 kB and 20 MB alike: it is the pages that cost). glibc has
/// no smaller step. To have large pieces mapped one by one instead (M_MMAP_THRESHOLD) helps only if it is done before the
/// first one is freed, and would cost every application that uses such memory again and again.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time by any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
