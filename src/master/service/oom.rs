//! Whether the kernel's OOM killer has ended a process of this service: the counter of the memory cgroup tells, since a
//! SIGKILL has no sender. Only reads the kernel's own files, and believes nothing that it cannot parse.
//!
//! cgroup v2 counts in memory.events (Documentation/admin-guide/cgroup-v2.rst), v1 in memory.oom_control since Linux
//! 4.13. Both count a victim where it belongs, whether the limit that was met is the cgroup's own, an ancestor's or the
//! machine's.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::supervisor::worker::Exit;

/// Two workers that are killed together are reaped one after the other: a kill that nobody has claimed yet explains
/// another death for so long.
const TOGETHER: Duration = Duration::from_secs(1);

/// The memory cgroup of the master, which is also that of the workers unless somebody has moved them.
pub struct OomKills {
    /// None: there is no such cgroup, or it does not count.
    cgroup: Option<Cgroup>,
    seen: u64,
    unclaimed: u64,
    counted_at: Option<Instant>,
}

struct Cgroup {
    counter: PathBuf,
    limit: PathBuf,
}

impl OomKills {
    pub fn watch() -> OomKills {
        let cgroup = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| Cgroup::of(&text));
        let seen = cgroup.as_ref().and_then(Cgroup::kills).unwrap_or(0);
        OomKills { cgroup, seen, unclaimed: 0, counted_at: None }
    }

    /// Why a process ended with a SIGKILL that the master has not sent. None: for another reason.
    pub fn explain_exit(&mut self, exit: &Exit, now: Instant) -> Option<String> {
        match exit {
            Exit::Signal { number: libc::SIGKILL, .. } => self.explain(now),
            Exit::Signal { .. }
            | Exit::OutOfMemory(_)
            | Exit::Code(_)
            | Exit::NeverBorn(_)
            | Exit::NoRoom(_)
            | Exit::LostAtBirth => None,
        }
    }

    /// Whether a process that was killed just now was killed for want of memory; the text says by which limit.
    fn explain(&mut self, now: Instant) -> Option<String> {
        let cgroup = self.cgroup.as_ref()?;
        let kills = cgroup.kills()?;
        if self.counted_at.is_none_or(|at| now.saturating_duration_since(at) > TOGETHER) {
            self.unclaimed = 0;
        }
        if kills > self.seen {
            self.unclaimed += kills - self.seen;
            self.seen = kills;
            self.counted_at = Some(now);
        }
        self.unclaimed = self.unclaimed.checked_sub(1)?;
        Some(match cgroup.limit_bytes() {
            Some(bytes) => format!("out of memory: cgroup limit {:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            None => "out of memory".to_owned(),
        })
    }
}

impl Cgroup {
    /// From /proc/self/cgroup (cgroups(7)): `0::/path` is v2, `4:memory:/path` is v1. Inside a container the path may be
    /// the host's while the mount shows the container's own cgroup at its top.
    fn of(text: &str) -> Option<Cgroup> {
        let path_of = |controller: &str| {
            text.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let found = fields.next()?.split(',').any(|name| name == controller);
                found.then(|| fields.next()).flatten()
            })
        };
        let v1 = path_of("memory")
            .map(|path| ("/sys/fs/cgroup/memory", path, "memory.oom_control", "memory.limit_in_bytes"));
        let v2 = path_of("").map(|path| ("/sys/fs/cgroup", path, "memory.events", "memory.max"));
        // Where v1 has the memory controller, v2 has it not.
        let (mount, path, counter, limit) = v1.or(v2)?;
        let places = [PathBuf::from(format!("{mount}{path}")), PathBuf::from(mount)];
        let found = places.into_iter().map(|place| Cgroup { counter: place.join(counter), limit: place.join(limit) });
        found.into_iter().find(|cgroup| cgroup.kills().is_some())
    }

    fn kills(&self) -> Option<u64> {
        kills_in(&fs::read_to_string(&self.counter).ok()?)
    }

    fn limit_bytes(&self) -> Option<u64> {
        limit_in(&fs::read_to_string(&self.limit).ok()?)
    }
}

fn kills_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// "max" is v2's word for no limit, the largest multiple of a page is v1's.
fn limit_in(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes < 1 << 62)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_both_versions_are_understood() {
        assert_eq!(kills_in("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(kills_in("oom_kill_disable 0\nunder_oom 0\n"), None);
        assert_eq!(limit_in("157286400\n"), Some(157_286_400));
        assert_eq!(limit_in("max\n"), None);
        assert_eq!(limit_in("9223372036854771712\n"), None);
    }

    #[test]
    fn a_kill_explains_one_death_and_not_a_later_one() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("events", "oom_kill 4\n");
        write("max", "1048576\n");
        let cgroup = Cgroup { counter: directory.path().join("events"), limit: directory.path().join("max") };
        let mut kills = OomKills { cgroup: Some(cgroup), seen: 4, unclaimed: 0, counted_at: None };
        let now = Instant::now();
        assert_eq!(kills.explain(now), None);
        write("events", "oom_kill 6\n");
        let text = Some("out of memory: cgroup limit 1.0 MiB".to_owned());
        assert_eq!(kills.explain(now), text);
        assert_eq!(kills.explain(now), text);
        assert_eq!(kills.explain(now), None);
        write("events", "oom_kill 8\n");
        assert_eq!(kills.explain(now), text);
        // Another one is killed before the second of these two is reaped.
        write("events", "oom_kill 9\n");
        assert_eq!([kills.explain(now), kills.explain(now), kills.explain(now)], [text.clone(), text, None]);
        write("events", "oom_kill 11\n");
        assert!(kills.explain(now).is_some());
        assert_eq!(kills.explain(now + Duration::from_secs(5)), None);
    }
}
