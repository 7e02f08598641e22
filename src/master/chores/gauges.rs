//! The live gauges of prometheus_client in its multiprocess mode: a file for each process in PROMETHEUS_MULTIPROC_DIR, which
//! counts as long as it is there. A process that was killed cannot remove its own, so the master does what
//! `multiprocess.mark_process_dead` does: `gauge_live*_PID.db` of each process that is gone, and of all at the start.
//! Counters and histograms stay, as they must.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::files::{self, Rights};

/// The second is the older name, which the library still reads.
const VARIABLES: [&str; 2] = ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"];

/// Where they lie, and whose they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauges {
    directory: PathBuf,
    application: Option<Rights>,
}

impl Gauges {
    /// None: the application was not told to use them.
    pub fn of(environment: &[(OsString, OsString)], release: &Path, application: Option<Rights>) -> Option<Gauges> {
        let value = |variable: &&str| environment.iter().find(|(name, _)| name == *variable).map(|(_, value)| value);
        let directory = VARIABLES.iter().find_map(value).filter(|value| !value.is_empty())?;
        Some(Gauges { directory: release.join(directory), application })
    }

    /// `of`: the process that is gone; None: all of them.
    pub fn remove(&self, of: Option<i32>) {
        let is_chosen = |name: &OsStr| pid_of(name).is_some_and(|pid| of.is_none_or(|gone| gone == pid));
        match files::remove(&self.directory, self.application.as_ref(), is_chosen) {
            Ok(0) => {}
            Ok(removed) => log::debug!("removed live gauges of prometheus_client: {removed}"),
            // The application says so itself.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                let directory = self.directory.display();
                log::warn!("live gauges of prometheus_client in {directory} cannot be removed: {error}");
            }
        }
    }
}

/// `gauge_livesum_4711.db`.
fn pid_of(name: &OsStr) -> Option<i32> {
    let (mode, pid) = name.to_str()?.strip_prefix("gauge_live")?.strip_suffix(".db")?.rsplit_once('_')?;
    let is_plain = mode.bytes().all(|byte| byte.is_ascii_lowercase()) && pid.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| pid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_live_gauges_have_a_process() {
        for (name, pid) in [
            ("gauge_livesum_4711.db", Some(4711)),
            ("gauge_liveall_1.db", Some(1)),
            ("gauge_livemostrecent_22.db", Some(22)),
            ("gauge_all_4711.db", None),
            ("gauge_sum_4711.db", None),
            ("counter_4711.db", None),
            ("histogram_4711.db", None),
            ("gauge_livesum_4711.db.bak", None),
            ("gauge_livesum_.db", None),
            ("gauge_livesum_-1.db", None),
            ("gauge_live/../_1.db", None),
        ] {
            assert_eq!(pid_of(OsStr::new(name)), pid, "{name}");
        }
    }

    #[test]
    fn the_directory_is_the_applications() {
        let variable = |name: &str, value: &str| vec![(OsString::from(name), OsString::from(value))];
        let of = |environment: &[(OsString, OsString)]| {
            Gauges::of(environment, Path::new("/srv/1"), None).map(|gauges| gauges.directory)
        };
        assert_eq!(of(&variable("PROMETHEUS_MULTIPROC_DIR", "/run/p")), Some("/run/p".into()));
        assert_eq!(of(&variable("prometheus_multiproc_dir", "p")), Some("/srv/1/p".into()));
        assert_eq!(of(&variable("PROMETHEUS_MULTIPROC_DIR", "")), None);
        assert_eq!(of(&[]), None);
    }
}
