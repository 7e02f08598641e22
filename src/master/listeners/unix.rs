//! Unix sockets: bound under a temporary name, renamed into their place when they begin to listen, so that a client finds
//! either nothing, the previous socket, or one that listens with its mode and owner set.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use forkmaster_wire::channel::refuse_descriptors;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::{fchownat, Gid, Uid};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::error::{explain, refused};
use super::{ListenError, ListenErrorClass, Listener, ListenerState};
use crate::config::settings::{Bind, SocketFile};
use crate::config::SUN_PATH_BYTES_MAX;

/// Names tried for a Unix socket before it is renamed into place; each is taken only by a master that was killed
/// within the moment between the two.
const TEMPORARY_NAMES_MAX: u32 = 16;

/// A Unix socket that still has the name it was bound under.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) path: PathBuf,
    /// Its name once it listens.
    place: PathBuf,
    pub(super) node: Node,
}

/// A Unix socket in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placed {
    pub(super) path: PathBuf,
    pub(super) node: Node,
    pub(super) socket_file: SocketFile,
}

/// Tells our socket file from one that somebody else put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    device: u64,
    inode: u64,
}

impl Temporary {
    /// Access first, so that the socket is never there with another one. The place is looked at again: much may have
    /// happened since the plan.
    pub(super) fn place(&self, bind: &Bind, socket_file: &SocketFile) -> Result<Placed, ListenError> {
        set_access(&self.path, self.node, socket_file).map_err(|error| explain(bind, &error))?;
        check_place(bind, &self.place)?;
        std::fs::rename(&self.path, &self.place).map_err(|error| explain(bind, &error))?;
        Ok(Placed { path: self.place.clone(), node: self.node, socket_file: socket_file.clone() })
    }
}

impl Placed {
    /// Nothing is in its place, or something else. What cannot be looked at is taken to be there.
    pub(super) fn is_lost(&self) -> bool {
        match node_of(&self.path) {
            Ok(node) => node != self.node,
            Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }
}

pub(super) fn bind(bind: &Bind, path: &Path) -> Result<Listener, ListenError> {
    let failed = |error: io::Error| explain(bind, &error);
    check_place(bind, path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None).map_err(failed)?;
    // A worker that receives one would be held up by closing it.
    refuse_descriptors(&socket);
    let mut attempt = 0;
    let temporary = loop {
        let temporary = temporary_name(path, attempt);
        if temporary.as_os_str().len() > SUN_PATH_BYTES_MAX {
            let reason = format!(
                "the kernel takes {SUN_PATH_BYTES_MAX} bytes of a path, and the name it is bound under first has more"
            );
            return Err(refused(bind, &reason, "choose a shorter directory", ListenErrorClass::Configuration));
        }
        match SockAddr::unix(&temporary).and_then(|address| socket.bind(&address)) {
            Ok(()) => break temporary,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt + 1 < TEMPORARY_NAMES_MAX => attempt += 1,
            Err(error) => return Err(failed(error)),
        }
    };
    let node = node_of(&temporary).map_err(failed)?;
    let file = Some(Temporary { path: temporary, place: path.to_owned(), node });
    Ok(Listener { bind: bind.clone(), address: bind.to_string(), socket, stage: ListenerState::Bound { file } })
}

/// Beside the place, since rename(2) works within a file system only; short, since `sun_path` is. `ss` goes on showing
/// this name, so it begins like the real one where that fits.
pub(super) fn temporary_name(path: &Path, attempt: u32) -> PathBuf {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let pid = std::process::id();
    let long = directory.join(format!(".{name}.{pid}-{attempt}"));
    if long.as_os_str().len() <= SUN_PATH_BYTES_MAX {
        long
    } else {
        directory.join(format!(".{pid}-{attempt}"))
    }
}

/// A socket file has no directory to lie in. `check` asks this too: whoever starts the service may make it.
pub fn missing_directory(bind: &Bind) -> Option<ListenError> {
    let Bind::Unix(path) = bind else { return None };
    let directory = path.parent().unwrap_or(Path::new("/"));
    if directory.is_dir() {
        return None;
    }
    let reason = format!("there is no directory {}", directory.display());
    // systemd.exec(5): RuntimeDirectory= makes directories below /run, for as long as the service runs.
    let below_run = directory.strip_prefix("/run").ok().filter(|rest| !rest.as_os_str().is_empty());
    let fix = match below_run {
        Some(rest) => format!("create it, or under systemd write RuntimeDirectory={} in the unit", rest.display()),
        None => "create it (systemd: RuntimeDirectory=)".to_owned(),
    };
    Some(refused(bind, &reason, &fix, ListenErrorClass::Configuration))
}

/// A path is free if nothing is there, or a socket that nobody listens on.
fn check_place(bind: &Bind, path: &Path) -> Result<(), ListenError> {
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return missing_directory(bind).map_or(Ok(()), Err);
        }
        Err(error) => return Err(explain(bind, &error)),
    };
    if !meta.file_type().is_socket() {
        let reason = "a file that is not a socket is there";
        let fix = "remove it, or choose another path";
        return Err(refused(bind, reason, fix, ListenErrorClass::Configuration));
    }
    let live = |reason: &str| Err(refused(bind, reason, "stop it, or choose another path", ListenErrorClass::InUse));
    let probe =
        Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None).map_err(|error| explain(bind, &error))?;
    match SockAddr::unix(path).and_then(|address| probe.connect(&address)) {
        Ok(()) => live("another process listens there"),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
            // Its backlog is full: unix(7) sockets never are "in progress".
            Some(Errno::EAGAIN | Errno::EINPROGRESS) => live("another process listens there, and is busy"),
            Some(Errno::EPROTOTYPE) => live("another process has a socket of another type there"),
            Some(_) | None => Err(explain(bind, &error)),
        },
    }
}

/// Sets mode and owner of the very file that was bound: the directory may be writable by others, and chmod(2) by name
/// would follow a symlink put in its place. chmod through /proc/self/fd works with O_PATH, fchmod(2) does not.
pub(super) fn set_access(path: &Path, node: Node, socket_file: &SocketFile) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = std::fs::File::from(nix::fcntl::open(path, flags, Mode::empty())?);
    let meta = file.metadata()?;
    if (Node { device: meta.dev(), inode: meta.ino() }) != node {
        return Err(io::Error::other("the socket file was replaced by another process"));
    }
    let (uid, gid) = (socket_file.uid.map(Uid::from_raw), socket_file.gid.map(Gid::from_raw));
    if uid.is_some_and(|uid| uid.as_raw() != meta.uid()) || gid.is_some_and(|gid| gid.as_raw() != meta.gid()) {
        fchownat(&file, "", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    }
    let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(by_number, std::fs::Permissions::from_mode(socket_file.mode))
}

pub(super) fn node_of(path: &Path) -> io::Result<Node> {
    let meta = path.symlink_metadata()?;
    Ok(Node { device: meta.dev(), inode: meta.ino() })
}
