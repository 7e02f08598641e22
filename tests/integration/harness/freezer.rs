//! A cgroup of a test's own that can be frozen, as `docker pause` does it; of version 2 or 1.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::master::Launch;
use super::site::Site;
use super::{wait_for, wait_within};

/// Removed with the test.
pub struct Freezer {
    directory: PathBuf,
    names: &'static Names,
}

struct Names {
    /// What is written to, for a frozen and for a running one.
    control: &'static str,
    frozen: &'static str,
    running: &'static str,
    /// Where the kernel says that all of it stands still, and how.
    state: &'static str,
    is_frozen: &'static str,
}

const V1: Names = Names {
    control: "freezer.state",
    frozen: "FROZEN",
    running: "THAWED",
    state: "freezer.state",
    is_frozen: "FROZEN",
};

const V2: Names =
    Names { control: "cgroup.freeze", frozen: "1", running: "0", state: "cgroup.events", is_frozen: "frozen 1" };

impl Freezer {
    /// None: none can be made here.
    pub fn new(site: &Site) -> Option<Freezer> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let find = |line_start: &str, kind: &str, option: &str| {
            let (_, path) = own.lines().find_map(|line| line.split_once(line_start))?;
            let place = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
                [_, place, found, options, ..] if found == kind && options.contains(option) => Some(place),
                _ => None,
            })?;
            Some(Path::new(place).join(path.trim_start_matches('/')))
        };
        let name = site.path().file_name()?;
        let make = |root: Option<PathBuf>, names: &'static Names| {
            let freezer = Freezer { directory: root?.join(name), names };
            fs::create_dir(&freezer.directory).ok()?;
            freezer.directory.join(names.control).exists().then_some(freezer)
        };
        make(find("0::", "cgroup2", ""), &V2).or_else(|| make(find(":freezer:", "cgroup", "freezer"), &V1))
    }

    /// A master in it.
    pub fn launch(&self) -> Launch {
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.directory.display());
        let through = ["sh", "-c", &join, "sh"].iter().map(|word| (*word).to_string()).collect();
        Launch { through, ..Launch::default() }
    }

    /// Everything in it stands still from now on, until the guard is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        let frozen = Frozen(self);
        fs::write(self.directory.join(self.names.control), self.names.frozen).expect("it is ours");
        wait_for("everything to stand still", || {
            let state = fs::read_to_string(self.directory.join(self.names.state)).ok()?;
            state.contains(self.names.is_frozen).then_some(())
        });
        frozen
    }
}

pub struct Frozen<'a>(&'a Freezer);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0.directory.join(self.0.names.control), self.0.names.running);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        // Only an empty one can be removed, and its last process may be ending.
        let _ = wait_within(Duration::from_secs(5), || fs::remove_dir(&self.directory).ok());
    }
}
