//! The processors, and how much memory new workers may take: the least that any memory cgroup above this process has left, and what the
//! machine has available, less a tenth. Reads files of the kernel only, which never wait.

use std::fs;
use std::path::{Path, PathBuf};

use crate::supervisor::pace::Room;

/// cgroup v1 says "no limit" with the largest multiple of the page size.
const V1_NO_LIMIT: u64 = 0x7FFF_FFFF_FFFF_F000;

/// `worker_bytes`: what a worker that serves takes.
pub fn measure(worker_bytes: u64) -> Room {
    // Affinity and the cgroup's quota considered (sched_getaffinity(2), cpu.max).
    let processors = std::thread::available_parallelism().map_or(1, |processors| processors.get() as u32);
    Room { bytes: bytes(), processors, worker_bytes }
}

/// Bytes that are free for new processes; None where nothing could be read.
fn bytes() -> Option<u64> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let within = directories(&cgroups).into_iter().filter_map(|(directory, version)| left(&directory, version));
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    within.chain(available).min().map(|bytes| bytes - bytes / 10)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// This process's memory cgroup and all above it, from the lines of /proc/self/cgroup (cgroups(7)).
fn directories(text: &str) -> Vec<(PathBuf, Version)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (mounts, version): (&[&str], _) = match controllers {
            "" => (&["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], Version::V2),
            list if list.split(',').any(|name| name == "memory") => (&["/sys/fs/cgroup/memory"], Version::V1),
            _other => continue,
        };
        for mount in mounts {
            // A container may see its own cgroup as the root: the path within need not exist, then its parents count.
            for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
                found.push((Path::new(mount).join(ancestor), version));
            }
        }
    }
    found
}

/// What a cgroup has left; None: it has no limit. Pages of files that nobody used lately are given back at once.
fn left(directory: &Path, version: Version) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(directory.join(name)).ok()?.trim().parse::<u64>().ok();
    let stat = |key: &str| {
        let text = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        field(&text, key).unwrap_or(0)
    };
    match version {
        Version::V2 => {
            // "max" is no number, and no limit.
            let limit = [number("memory.max"), number("memory.high")].into_iter().flatten().min()?;
            Some(remainder(limit, number("memory.current")?, stat("inactive_file")))
        }
        Version::V1 => {
            let limit = number("memory.limit_in_bytes").filter(|limit| *limit < V1_NO_LIMIT)?;
            Some(remainder(limit, number("memory.usage_in_bytes")?, stat("total_inactive_file")))
        }
    }
}

fn remainder(limit: u64, used: u64, given_back: u64) -> u64 {
    limit.saturating_sub(used.saturating_sub(given_back))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The number behind a word of memory.stat.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cgroup_above_counts() {
        let v2 = directories("0::/system.slice/shop.service\n");
        let names: Vec<&str> = v2.iter().filter_map(|(path, _)| path.to_str()).collect();
        assert_eq!(
            names[..3],
            ["/sys/fs/cgroup/system.slice/shop.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/"]
        );
        let v1 = directories("5:cpu,cpuacct:/a\n4:memory:/docker/x\n");
        assert_eq!(v1.len(), 3);
        assert!(v1.iter().all(|(_, version)| *version == Version::V1));
    }

    #[test]
    fn a_limit_less_what_is_used_and_not_given_back() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("memory.max", "max\n");
        write("memory.high", "max\n");
        write("memory.current", "300\n");
        write("memory.stat", "anon 100\ninactive_file 50\nfile 9\n");
        assert_eq!(left(directory.path(), Version::V2), None);
        write("memory.max", "1000\n");
        assert_eq!(left(directory.path(), Version::V2), Some(750));
        write("memory.high", "200\n");
        assert_eq!(left(directory.path(), Version::V2), Some(0));
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.usage_in_bytes", "300\n");
        assert_eq!(left(directory.path(), Version::V1), None);
        write("memory.limit_in_bytes", "400\n");
        assert_eq!(left(directory.path(), Version::V1), Some(100));
    }

    #[test]
    fn this_machine_has_some_room() {
        assert!(bytes().unwrap() > 0);
        assert_eq!(available("MemFree: 1 kB\nMemAvailable:     2048 kB\n"), Some(2048 * 1024));
    }
}
