//! The sockets that a service manager has passed, by name (sd_listen_fds(3)): LISTEN_PID says to whom, LISTEN_FDS how
//! many, from descriptor 3 on, LISTEN_FDNAMES how they are called. Read from the start environment; nothing is opened.

use std::ffi::OsStr;

use super::environment::Environment;

/// SD_LISTEN_FDS_START.
const FIRST: i32 = 3;

/// More than any unit passes; a number from the environment must not become a long loop.
const PASSED_MAX: i32 = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// FileDescriptorName= of the socket unit, else the unit's own name. Several sockets of one unit have one name.
    pub name: String,
    pub fd: i32,
}

/// What was passed to the process with this pid.
pub fn sockets(environment: &Environment, pid: u32) -> Vec<Passed> {
    let variable = |name: &str| environment.get(OsStr::new(name)).and_then(|value| value.to_str());
    if variable("LISTEN_PID").and_then(|text| text.parse().ok()) != Some(pid) {
        return Vec::new();
    }
    let count: i32 = variable("LISTEN_FDS").and_then(|text| text.parse().ok()).unwrap_or(0);
    let names: Vec<&str> = variable("LISTEN_FDNAMES").map_or_else(Vec::new, |names| names.split(':').collect());
    let name = |at: i32| names.get(at as usize).copied().filter(|name| !name.is_empty()).unwrap_or("unknown");
    (0..count.clamp(0, PASSED_MAX)).map(|at| Passed { name: name(at).to_owned(), fd: FIRST + at }).collect()
}

/// Each name once, in order.
pub fn names(passed: &[Passed]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for one in passed {
        if !names.contains(&one.name.as_str()) {
            names.push(&one.name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(variables: &[(&str, &str)]) -> Vec<(String, i32)> {
        let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        sockets(&environment, 7).into_iter().map(|passed| (passed.name, passed.fd)).collect()
    }

    #[test]
    fn sockets_are_numbered_from_three_on_and_named_in_order() {
        let three = [("LISTEN_PID", "7"), ("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "http:admin:http")];
        assert_eq!(passed(&three), [("http".to_owned(), 3), ("admin".to_owned(), 4), ("http".to_owned(), 5)]);
        let unnamed = [("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "http")];
        assert_eq!(passed(&unnamed), [("http".to_owned(), 3), ("unknown".to_owned(), 4)]);
    }

    #[test]
    fn what_is_meant_for_another_process_or_makes_no_sense_is_nothing() {
        for variables in [
            &[("LISTEN_PID", "8"), ("LISTEN_FDS", "1")][..],
            &[("LISTEN_FDS", "1")],
            &[("LISTEN_PID", "7"), ("LISTEN_FDS", "-1")],
            &[("LISTEN_PID", "7"), ("LISTEN_FDS", "many")],
            &[("LISTEN_PID", "7")],
            &[],
        ] {
            assert!(passed(variables).is_empty(), "{variables:?}");
        }
        assert_eq!(passed(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2000000000")]).len(), PASSED_MAX as usize);
    }

    #[test]
    fn a_name_is_listed_once() {
        let one = |name: &str, fd| Passed { name: name.to_owned(), fd };
        assert_eq!(names(&[one("a", 3), one("b", 4), one("a", 5)]), ["a", "b"]);
    }
}
