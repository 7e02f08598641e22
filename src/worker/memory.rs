//! What this process costs: its private memory, and the time that it has spent on processors. A worker measures itself,
//! since nobody else may: `smaps_rollup` of another user's process is refused to a root without its capabilities, as in
//! a container.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use nix::time::{clock_gettime, ClockId};

/// What a process has in memory, in bytes. 0 where the kernel does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What no other process shares.
    pub private: u64,
    /// The same with its share of what several share.
    pub pss: u64,
}

/// Both files that are read have less, or what is wanted before that.
const FILE_BYTES_MAX: usize = 4096;

/// The kernel walks all pages for it: some ten milliseconds a gigabyte.
pub fn used() -> Used {
    let mut buffer = [0; FILE_BYTES_MAX];
    match read("/proc/self/smaps_rollup", &mut buffer) {
        Some(rollup) => Used { private: private_of(rollup), pss: field_bytes(rollup, "Pss:") },
        // Linux before 4.14, or a kernel without CONFIG_PROC_PAGE_MONITOR: what is resident and not of a file.
        None => {
            let status = read("/proc/self/status", &mut buffer).unwrap_or_default();
            Used { private: field_bytes(status, "RssAnon:"), pss: 0 }
        }
    }
}

/// Without an allocation, since a worker that is warm makes none: what is asked about memory should not change it.
fn read<'a>(path: &str, buffer: &'a mut [u8; FILE_BYTES_MAX]) -> Option<&'a str> {
    let mut file = File::open(path).ok()?;
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest).ok()? {
            0 => break,
            read => length += read,
        }
    }
    std::str::from_utf8(&buffer[..length]).ok()
}

/// Time on processors since the fork (clock_gettime(2): the clock of a forked child begins at zero).
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn private_of(rollup: &str) -> u64 {
    field_bytes(rollup, "Private_Clean:") + field_bytes(rollup, "Private_Dirty:")
}

/// `Private_Dirty:    1234 kB`; proc_pid_smaps(5).
fn field_bytes(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_clean_and_dirty_pages_that_nobody_shares() {
        let rollup = "5581-7ffd ---p 00000000 00:00 0  [rollup]\nRss:  900 kB\nShared_Dirty:  7 kB\n\
                      Private_Clean:         12 kB\nPrivate_Dirty:      3000 kB\nReferenced: 5 kB\n";
        assert_eq!(private_of(rollup), 3012 * 1024);
        let used = used();
        assert!(used.private > 64 * 1024, "this very process has a stack and a heap");
        assert!(used.pss == 0 || used.pss >= used.private, "{used:?}");
    }

    #[test]
    fn time_on_a_processor_goes_on_only_while_it_runs() {
        let before = cpu_time();
        while cpu_time() < before + Duration::from_millis(20) {}
        assert!(cpu_time() >= before + Duration::from_millis(20));
    }
}
