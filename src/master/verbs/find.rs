//! Finding a running master, and knowing that it is the right one. A client looks at the usual places, then at every
//! socket that the kernel lists under the service's name, since the service may have been given a directory that the
//! client's environment does not name. It believes the kernel's word on who serves there, never the path.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{connect, setsockopt, socket, sockopt, AddressFamily, SockFlag, SockType, UnixAddr};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::config::settings::{ControlPlace, ControlSocket, ControlTarget};
use crate::doors::peer::Peer;
use crate::exit_code::ExitCode;

/// connect(2) waits while the server's backlog is full, as that of a stopped master may be.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Whom to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `--socket`: the operator has named the server itself, whoever runs it.
    Socket(PathBuf),
    Configured(ControlTarget),
}

/// A connection to the master.
pub struct Found {
    pub stream: UnixStream,
    pub path: PathBuf,
    pub peer: Peer,
}

/// Why there is none.
#[derive(Debug)]
pub struct NotFound {
    pub reason: String,
    pub exit_code: ExitCode,
}

impl NotFound {
    fn because(reason: String) -> NotFound {
        NotFound { reason, exit_code: ExitCode::NotRunning }
    }
}

/// What came of looking at one path.
enum Look {
    Found(Found),
    /// Nobody's, or nobody there.
    No(String),
    /// There is a master, but not one for this client.
    NotOurs {
        text: String,
        exit_code: ExitCode,
    },
}

/// Whose servers may be asked.
struct Believed {
    uids: BTreeSet<u32>,
    /// A configuration has named some of them: its owner, and its `[server] user`.
    configured: bool,
}

impl Believed {
    /// What to do about somebody else.
    fn but_how(believed: Option<&Believed>) -> &'static str {
        match believed.is_some_and(|believed| believed.configured) {
            true => ", nor the owner or the `user` of the configuration; --socket PATH talks to it all the same",
            false => "; -c FILE or --socket PATH names it",
        }
    }
}

pub fn find(target: &Target) -> Result<Found, NotFound> {
    let target = match target {
        Target::Socket(path) => return at_path(path, None),
        Target::Configured(target) => target,
    };
    let ours = nix::unistd::geteuid().as_raw();
    let uids = target.uids.iter().copied().chain([0, ours]).collect();
    let believed = Believed { uids, configured: !target.uids.is_empty() };
    match &target.socket {
        ControlSocket::Off => {
            Err(NotFound::because("the control socket is switched off ([control] socket)".to_owned()))
        }
        ControlSocket::Path(path) => at_path(path, Some(&believed)),
        ControlSocket::Auto(places) => by_name(&target.name, places, &believed),
    }
}

fn at_path(path: &Path, believed: Option<&Believed>) -> Result<Found, NotFound> {
    match look(path, believed, true) {
        Look::Found(found) => Ok(found),
        Look::No(text) => Err(NotFound::because(format!("no running master found; tried\n  {text}"))),
        Look::NotOurs { text, exit_code } => {
            Err(NotFound { reason: format!("no master that may be asked; tried\n  {text}"), exit_code })
        }
    }
}

/// Looks everywhere. A service that runs twice under one name is an error: the operator must say which one is meant.
fn by_name(name: &str, places: &[ControlPlace], believed: &Believed) -> Result<Found, NotFound> {
    let mut paths: Vec<PathBuf> = places.iter().map(|place| place.path.clone()).collect();
    let file_name = format!("{name}.sock");
    for path in listed() {
        if path.file_name().is_some_and(|name| *name == *file_name) && !paths.contains(&path) {
            paths.push(path);
        }
    }
    let (mut found, mut tried, mut not_ours) = (Vec::<Found>::new(), Vec::new(), None);
    for (at, path) in paths.iter().enumerate() {
        let is_usual = at < places.len();
        match look(path, Some(believed), is_usual) {
            // One master has one socket, but that may have two names (/run and /var/run).
            Look::Found(one) if found.iter().all(|other| other.peer != one.peer) => found.push(one),
            Look::Found(_) => {}
            Look::No(text) => tried.push(text),
            Look::NotOurs { text, exit_code } => {
                tried.push(text);
                not_ours = Some(exit_code);
            }
        }
    }
    // Of two, the one in the same container.
    if found.len() > 1 && found.iter().filter(|one| one.peer.shares_mounts()).count() == 1 {
        found.retain(|one| one.peer.shares_mounts());
    }
    match (found.pop(), found.as_slice()) {
        (Some(one), []) => Ok(one),
        (Some(one), others) => {
            let lines = others.iter().chain([&one]).map(|one| {
                format!("\n  --socket {}  (pid {}, uid {})", one.path.display(), one.peer.pid, one.peer.uid)
            });
            let reason = format!("more than one master is called {name}; say which:{}", lines.collect::<String>());
            Err(NotFound { reason, exit_code: ExitCode::Refused })
        }
        (None, _) => {
            let tried = tried.join("\n  ");
            let reason = format!("no running master found; tried\n  {tried}\n`forkmaster list` shows those that run");
            Err(NotFound { reason, exit_code: not_ours.unwrap_or(ExitCode::NotRunning) })
        }
    }
}

/// Connects, if whoever serves there is believed. The file's owner is asked before: a stranger's socket is not even
/// knocked at, for it may let a client wait. None believes everybody.
fn look(path: &Path, believed: Option<&Believed>, is_usual: bool) -> Look {
    let shown = path.display();
    let file = match std::fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_usual => {
            return Look::No(format!(
                "{shown}: somebody listens there, but the file cannot be seen from here: it lies in a private /tmp or \
                 in a container; with systemd set RuntimeDirectory="
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && listed().iter().any(|other| other == path) => {
            return Look::No(format!(
                "{shown}: somebody listens there, but the file was removed, or lies in a container; a master makes it again \
                 within half a minute, or at once where `kill -HUP` tells it to reload"
            ));
        }
        Err(error) => return Look::No(format!("{shown}: {}", describe(&error))),
    };
    let stranger = |uid: u32| Look::NotOurs {
        text: format!("{shown}: belongs to uid {uid}, who is neither root nor you{}", Believed::but_how(believed)),
        exit_code: ExitCode::NotRunning,
    };
    let is_believed = |uid: u32| believed.is_none_or(|believed| believed.uids.contains(&uid));
    if file.file_type().is_socket() && !is_believed(file.uid()) {
        return stranger(file.uid());
    }
    let stream = match connect_to(path) {
        Ok(stream) => stream,
        Err(Errno::EACCES) => {
            return Look::NotOurs {
                text: format!("{shown}: belongs to uid {}; become that user, or root", file.uid()),
                exit_code: ExitCode::Permission,
            };
        }
        Err(Errno::EAGAIN) => {
            let text = format!("{shown}: a master is there, and does not answer: it is stopped, or stuck");
            return Look::NotOurs { text, exit_code: ExitCode::Timeout };
        }
        Err(error) => return Look::No(format!("{shown}: {}", error.desc())),
    };
    match Peer::of(&stream) {
        Ok(peer) if !is_believed(peer.uid) => stranger(peer.uid),
        Ok(peer) if believed.is_some() && peer.is_of_another_container() => Look::NotOurs {
            text: format!("{shown}: is a master of another container; --socket PATH talks to it"),
            exit_code: ExitCode::NotRunning,
        },
        Ok(peer) => Look::Found(Found { stream: stream.into(), path: path.to_owned(), peer }),
        Err(error) => Look::No(format!("{shown}: {}", error.desc())),
    }
}

fn describe(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}

/// unix(7): the time that connect(2) waits for room in the backlog is that of SO_SNDTIMEO. EAGAIN: it is over.
fn connect_to(path: &Path) -> nix::Result<OwnedFd> {
    let client = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&client, sockopt::SendTimeout, &TimeVal::seconds(CONNECT_WITHIN.as_secs() as i64))?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&client), &UnixAddr::new(path)?)?;
    setsockopt(&client, sockopt::SendTimeout, &TimeVal::zero())?;
    Ok(client)
}

/// Sockets of this network namespace that somebody listens on, by their paths (proc_net(5)). Where that cannot be
/// read there are none.
pub fn listed() -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/net/unix").unwrap_or_default();
    table.split(|byte| *byte == b'\n').skip(1).filter_map(listed_in).collect()
}

/// `0000000000000000: 00000002 00000000 00010000 0001 01 23456 /run/forkmaster/shop.sock`: flags (SO_ACCEPTCON), type
/// (SOCK_STREAM), state, inode, and the path that was bound, to the end of the line.
fn listed_in(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.splitn(8, |byte| *byte == b' ');
    let (flags, kind) = (fields.nth(3)?, fields.next()?);
    if flags != b"00010000" || kind != b"0001" {
        return None;
    }
    // The inode is padded on the left, with spaces.
    let rest = fields.last()?;
    let rest = &rest[rest.iter().position(|byte| *byte != b' ')?..];
    let path = match rest.first() {
        Some(b'/') => rest,
        Some(_) | None => &rest[rest.iter().position(|byte| *byte == b' ')? + 1..],
    };
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    path.is_absolute().then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn target(name: &str, places: &[&Path]) -> Target {
        let place = |path: &&Path| ControlPlace { path: path.to_path_buf(), directory_mode: None };
        let socket = ControlSocket::Auto(places.iter().map(place).collect());
        Target::Configured(ControlTarget { name: name.to_owned(), socket, uids: Vec::new() })
    }

    #[test]
    fn a_master_whose_file_was_removed_is_told_from_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let reason = |found: Result<Found, NotFound>| found.err().unwrap().reason;
        let lost = reason(at_path(&path, None));
        assert!(lost.contains("somebody listens there") && lost.contains("kill -HUP"), "{lost}");
        drop(listener);
        let none = reason(at_path(&path, None));
        assert!(none.contains("No such file") && !none.contains("kill -HUP"), "{none}");
    }

    #[test]
    fn lines_of_the_kernel() {
        let path = |line: &str| listed_in(line.as_bytes()).map(|path| path.to_string_lossy().into_owned());
        let stem = "0000000000000000: 00000002 00000000 00010000 0001 01";
        assert_eq!(path(&format!("{stem} 23456 /run/a b/shop.sock")).as_deref(), Some("/run/a b/shop.sock"));
        assert_eq!(path(&format!("{stem}   456 /run/shop.sock")).as_deref(), Some("/run/shop.sock"));
        assert_eq!(path(&format!("{stem} 23456 @forkmaster/0/shop")), None);
        assert_eq!(path(&format!("{stem} 23456 relative.sock")), None);
        assert_eq!(path(&format!("{stem} 23456")), None);
        // Connected, and of datagrams.
        assert_eq!(path("0000000000000000: 00000003 00000000 00000000 0001 03 23456 /run/shop.sock"), None);
        assert_eq!(path("0000000000000000: 00000002 00000000 00000000 0002 01 23456 /run/shop.sock"), None);
        assert_eq!(path(""), None);
    }

    #[test]
    fn a_socket_in_no_usual_place_is_found_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let name = format!("found-{}", std::process::id());
        let path = directory.path().join(format!("{name}.sock"));
        let _listener = UnixListener::bind(&path).unwrap();
        let found = find(&target(&name, &[Path::new("/nonexistent/a.sock")])).unwrap();
        assert_eq!((found.path, found.peer.pid), (path, std::process::id() as i32));
    }

    #[test]
    fn who_is_not_found_is_told_what_was_tried() {
        let target = target("nobody-is-called-so", &[Path::new("/nonexistent/a.sock"), Path::new("/proc/b.sock")]);
        let not_found = find(&target).err().unwrap();
        assert_eq!(not_found.exit_code, ExitCode::NotRunning);
        let tried =
            "no running master found; tried\n  /nonexistent/a.sock: No such file or directory\n  /proc/b.sock: \
                     No such file or directory\n`forkmaster list` shows those that run";
        assert_eq!(not_found.reason, tried);
    }

    #[test]
    fn a_server_that_takes_nobody_any_more_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("full.sock");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&listener), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        let _waiting: Vec<_> = (0..2).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let not_found = find(&Target::Socket(path)).err().unwrap();
        assert_eq!(not_found.exit_code, ExitCode::Timeout);
        assert!(not_found.reason.contains("does not answer"), "{}", not_found.reason);
    }
}
