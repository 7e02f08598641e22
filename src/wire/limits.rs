//! Limits of the machine, as system calls meet them: which errors say that there is no room now, and which limit to raise.
//! It reads limits and sets none.

use std::io;

use nix::sys::resource::{getrlimit, Resource};

/// Nobody did anything wrong, and the same may be possible later.
pub fn is_no_room(error: &io::Error) -> bool {
    hint(error).is_some()
}

/// The error, and what to raise where a limit is the cause.
pub fn explain(error: &io::Error) -> String {
    match hint(error) {
        Some(hint) => format!("{error}: {hint}"),
        None => error.to_string(),
    }
}

/// As many open files as this process may have. None: no limit.
pub fn open_files() -> Option<u64> {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    (soft != libc::RLIM_INFINITY).then_some(soft)
}

fn hint(error: &io::Error) -> Option<String> {
    let open_files = || open_files().map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
    Some(match error.raw_os_error()? {
        libc::EMFILE => {
            format!("this process may have {}; raise LimitNOFILE= in the unit, or `ulimit -n`", open_files())
        }
        // unix(7): what the whole user has in flight is counted, and compared with the sender's limit.
        libc::ETOOMANYREFS => format!(
            "more than {} descriptors of this user are on their way between processes; raise LimitNOFILE= in the unit, or \
             `ulimit -n`",
            open_files()
        ),
        libc::ENFILE => "the whole machine has no more; raise the sysctl fs.file-max".to_owned(),
        // fork(2), clone(2), pthread_create(3).
        libc::EAGAIN => "no more processes or threads may be started; raise TasksMax= and LimitNPROC= in the unit, `ulimit -u`, or the \
                         container's limit of processes"
            .to_owned(),
        libc::ENOMEM | libc::ENOBUFS => "the machine or its container has no more memory for it".to_owned(),
        // epoll_ctl(2), memfd_create(2), open(2).
        libc::ENOSPC => "a file system is full, or a user's epoll or inotify watches are used up (sysctl \
                         fs.epoll.max_user_watches, fs.inotify.max_user_watches)"
            .to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_named_with_what_raises_it() {
        let of = |errno: i32| explain(&io::Error::from_raw_os_error(errno));
        let limit = open_files().map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
        assert!(of(libc::EMFILE).contains(&format!("may have {limit}; raise LimitNOFILE=")), "{}", of(libc::EMFILE));
        assert!(of(libc::ETOOMANYREFS).contains(&limit) && of(libc::EAGAIN).contains("TasksMax="));
        assert!(!is_no_room(&io::Error::from_raw_os_error(libc::ENOENT)));
        assert_eq!(of(libc::EPERM), io::Error::from_raw_os_error(libc::EPERM).to_string());
        assert!(!is_no_room(&io::Error::other("the scoreboard has no cell left")));
    }
}
