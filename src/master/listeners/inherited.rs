//! Sockets that a supervisor handed over: they come listening, and belong to whoever made them.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use forkmaster_wire::channel::refuse_descriptors;
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag, OFlag};
use socket2::{Domain, Socket, Type};

use super::error::{explain, refused};
use super::{ListenError, ListenErrorClass, Listener, ListenerState};
use crate::config::passed::{self, Passed};
use crate::config::settings::Bind;

pub(super) const FIX: &str = "hand over a listening stream socket under that number";

/// All that systemd passed under this name.
pub(super) fn passed_under(passed: &[Passed], bind: &Bind, name: &str) -> Result<Vec<Listener>, ListenError> {
    let named: Vec<_> = passed.iter().filter(|passed| passed.name == name).collect();
    if named.is_empty() {
        let (reason, fix) = match &passed::names(passed)[..] {
            [] => (
                "no socket was passed (LISTEN_FDS is not set for this process)".to_owned(),
                "start the .socket unit, and this service by it".to_owned(),
            ),
            names => {
                let names = names.iter().map(|name| format!("\"systemd:{name}\"")).collect::<Vec<_>>().join(", ");
                (
                    format!("no socket of this name was passed; there is {names}"),
                    "write one of these, or set \
                    FileDescriptorName= in the .socket unit"
                        .to_owned(),
                )
            }
        };
        return Err(refused(bind, &reason, &fix, ListenErrorClass::Configuration));
    }
    named.into_iter().map(|passed| adopt(bind, passed.fd)).collect()
}

/// Nobody but the master has a use for them, named or not.
pub(super) fn keep_from_children(passed: &[Passed]) {
    for passed in passed {
        // SAFETY: fcntl with a number that may not be open: it then fails with EBADF and nothing else.
        let _ = unsafe { libc::fcntl(passed.fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Takes a copy; the original stays open (a later reload may want it again) and never gets into a child. It is not
/// unlinked, its options stay: others hold the same open file description.
pub(super) fn adopt(bind: &Bind, fd: i32) -> Result<Listener, ListenError> {
    let not_ours = |reason: &str| refused(bind, reason, FIX, ListenErrorClass::Configuration);
    // SAFETY: fcntl with a number that may not be open: it then fails with EBADF and nothing else.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(match Errno::last() {
            Errno::EBADF => not_ours("no such file descriptor is open"),
            errno => explain(bind, &errno.into()),
        });
    }
    // SAFETY: the descriptor was made by the line above and nobody else knows it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    let socket = Socket::from(copy);
    let kind = socket.r#type().map_err(|_| not_ours("it is not a socket"))?;
    let domain = socket.domain().map_err(|error| explain(bind, &error))?;
    if kind != Type::STREAM || ![Domain::IPV4, Domain::IPV6, Domain::UNIX].contains(&domain) {
        return Err(not_ours("it is not a TCP or Unix stream socket"));
    }
    if !socket.is_listener().map_err(|error| explain(bind, &error))? {
        return Err(not_ours("it does not listen"));
    }
    let flags = fcntl(&socket, FcntlArg::F_GETFL)
        .map(OFlag::from_bits_truncate)
        .map_err(|errno| explain(bind, &errno.into()))?;
    if !flags.contains(OFlag::O_NONBLOCK) {
        // It is a flag of the description that we share with whoever handed it over. Without it a worker whose
        // sibling was quicker would hang in accept; it is set once and never taken back.
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(|errno| explain(bind, &errno.into()))?;
    }
    if domain == Domain::UNIX {
        refuse_descriptors(&socket);
    }
    // SAFETY: F_DUPFD succeeded above, so the number is open; it stays so, nothing here closes it.
    let original = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(original, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|errno| explain(bind, &errno.into()))?;
    let bound = socket.local_addr().map_err(|error| explain(bind, &error))?;
    let named = bound.as_socket().map(|address| address.to_string());
    let named = named.or_else(|| bound.as_pathname().map(|path| format!("unix:{}", path.display())));
    let address = named.map_or_else(|| bind.to_string(), |named| format!("{bind} ({named})"));
    Ok(Listener { bind: bind.clone(), address, socket, stage: ListenerState::Inherited })
}
