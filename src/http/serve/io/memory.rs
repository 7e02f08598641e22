//! Memory that was freed, and that the C library keeps for what comes next: it knows nothing of our bounds.

/// Gives free pages back to the kernel, in the middle of the heap too. glibc keeps up to twice the largest piece that was
/// ever freed (M_TRIM_THRESHOLD, mallopt(3)), and what lies below something that is still in use. Takes milliseconds, in
/// which others wait for memory.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time by any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
