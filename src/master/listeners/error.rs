//! Why an address cannot be listened on, in words that say what to do about it.

use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::config::settings::Bind;
use crate::exit_code::ExitCode;

/// Why an address cannot be had, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenError {
    /// As configured.
    pub address: String,
    pub reason: String,
    pub fix: String,
    pub class: ListenErrorClass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenErrorClass {
    InUse,
    Permission,
    Configuration,
}

impl ListenError {
    pub fn exit_code(&self) -> ExitCode {
        match self.class {
            ListenErrorClass::InUse => ExitCode::InUse,
            ListenErrorClass::Permission => ExitCode::Permission,
            ListenErrorClass::Configuration => ExitCode::Configuration,
        }
    }
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}; {}", self.address, self.reason, self.fix)
    }
}

impl std::error::Error for ListenError {}

pub(super) fn refused(bind: &Bind, reason: &str, fix: &str, class: ListenErrorClass) -> ListenError {
    ListenError { address: bind.to_string(), reason: reason.to_owned(), fix: fix.to_owned(), class }
}

pub(super) fn explain(bind: &Bind, error: &io::Error) -> ListenError {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let reason = errno.map_or_else(|| error.to_string(), |errno| errno.desc().to_lowercase());
    let (fix, class) = match (errno, bind) {
        (Some(Errno::EADDRINUSE), Bind::Inet(address)) => {
            let fix = format!(
                "stop what listens there (`ss -ltnp 'sport = :{}'` names it), or choose another port",
                address.port()
            );
            (fix, ListenErrorClass::InUse)
        }
        (Some(Errno::EADDRINUSE), Bind::Unix(_) | Bind::Fd(_) | Bind::Systemd(_)) => {
            ("stop what listens there, or choose another path".to_owned(), ListenErrorClass::InUse)
        }
        (Some(Errno::EACCES | Errno::EPERM), Bind::Inet(_)) => {
            let fix = "ports below 1024 need root, CAP_NET_BIND_SERVICE, or a socket handed over as fd://N";
            (fix.to_owned(), ListenErrorClass::Permission)
        }
        (Some(Errno::EACCES | Errno::EPERM), Bind::Unix(_) | Bind::Fd(_) | Bind::Systemd(_)) => {
            let fix = "the directory must be writable, and only root can give the socket to others";
            (fix.to_owned(), ListenErrorClass::Permission)
        }
        (Some(Errno::EROFS), _) => {
            ("choose a directory that can be written".to_owned(), ListenErrorClass::Configuration)
        }
        (Some(Errno::EADDRNOTAVAIL), _) => {
            ("choose an address of this machine (`ip address` lists them)".to_owned(), ListenErrorClass::Configuration)
        }
        (Some(Errno::EAFNOSUPPORT), _) => (
            "this kernel has the address family switched off; remove the address".to_owned(),
            ListenErrorClass::Configuration,
        ),
        (Some(Errno::EMFILE | Errno::ENFILE), _) => {
            ("raise the limit of open files".to_owned(), ListenErrorClass::Configuration)
        }
        (Some(_) | None, _) => ("choose another address".to_owned(), ListenErrorClass::Configuration),
    };
    ListenError { address: bind.to_string(), reason, fix, class }
}
