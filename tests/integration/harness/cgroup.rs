//! A memory cgroup of a test's own, of version 1 or 2, below that of the tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::master::Launch;
use super::site::Site;
use super::wait_within;

/// Removed with the test.
pub struct Cgroup {
    directory: PathBuf,
    names: &'static Names,
}

struct Names {
    limit: &'static str,
    swap: &'static str,
    usage: &'static str,
    /// Where the kills for want of memory are counted, as `oom_kill`.
    events: &'static str,
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    events: "memory.oom_control",
};

const V2: Names =
    Names { limit: "memory.max", swap: "memory.swap.max", usage: "memory.current", events: "memory.events" };

impl Cgroup {
    /// None: none can be made here.
    pub fn with_limit(site: &Site, bytes: u64) -> Option<Cgroup> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = |start: &str| own.lines().find_map(|line| line.split_once(start).map(|(_, path)| path.to_string()));
        let (root, names) = match path(":memory:") {
            Some(path) => (format!("/sys/fs/cgroup/memory{path}"), &V1),
            None => (format!("/sys/fs/cgroup{}", path("0::")?), &V2),
        };
        let name = site.path().file_name()?.to_str()?;
        let cgroup = Cgroup { directory: Path::new(&root).join(name), names };
        fs::create_dir(&cgroup.directory).ok()?;
        cgroup.set_limit(bytes)?;
        Some(cgroup)
    }

    pub fn set_limit(&self, bytes: u64) -> Option<()> {
        let limit = || fs::write(self.directory.join(self.names.limit), bytes.to_string());
        let before = limit();
        // Where there is swap. That of version 1 counts both, and must not be the smaller one, so it goes up first and down
        // last; that of version 2 is about swap alone.
        let swap = if self.names.swap == V2.swap { 0 } else { bytes };
        let _ = fs::write(self.directory.join(self.names.swap), swap.to_string());
        before.or_else(|_| limit()).ok()
    }

    pub fn usage(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join(self.names.usage)).expect("the kernel tells it");
        text.trim().parse().expect("a number")
    }

    /// How many processes the kernel has killed in it.
    pub fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join(self.names.events)).expect("the kernel tells it");
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("kernels since 4.13 count it").trim().parse().expect("a number")
    }

    /// A master in it.
    pub fn launch(&self) -> Launch {
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.directory.display());
        let through = ["sh", "-c", &join, "sh"].iter().map(|word| (*word).to_string()).collect();
        Launch { through, ..Launch::default() }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Only an empty one can be removed, and its last process may be ending.
        let _ = wait_within(Duration::from_secs(5), || fs::remove_dir(&self.directory).ok());
    }
}
