//! The control socket's place in the file system: which of the usual places, its directory, its lock, its file.
//!
//! A master holds the lock `NAME.lock` beside `NAME.sock` for as long as it lives. So two starts at once cannot both
//! win, and a file that a killed master left behind is replaced without asking anybody: nothing here can wait. The
//! socket is bound at its final name, since that is the name that /proc/net/unix shows and clients search for.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{bind, connect, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{fchmod, Mode};
use serde::{Deserialize, Serialize};

use super::closer::Closer;
use super::peer::Peer;
use crate::config::settings::{ControlPlace, ControlSocket};
use crate::saved::{Claims, Kept};

/// Connections that wait to be accepted; the standard library's own number.
const BACKLOG: i32 = 128;

/// A lock file that is being removed by its last holder is opened again; each try meets another such file.
const LOCK_TRIES_MAX: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    path: PathBuf,
    #[serde(default)]
    directory_mode: Option<u32>,
    made: (u64, u64),
    lock_path: PathBuf,
    lock_made: (u64, u64),
}

/// A listening control socket. Dropping it removes its files.
pub struct SocketFile {
    listener: OwnedFd,
    closer: Closer,
    place: ControlPlace,
    /// Device and inode of the file that was made.
    made: (u64, u64),
    lock: Lock,
}

/// Why a place cannot be had.
enum Unusable {
    /// A master of another container has it: this one's clients do not look for that one.
    Neighbour,
    InUse,
    Failed(io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Unusable {
        Unusable::Failed(error)
    }
}

impl From<Errno> for Unusable {
    fn from(error: Errno) -> Unusable {
        Unusable::Failed(error.into())
    }
}

impl SocketFile {
    /// Listens at the set path, or at the first of the usual places that can be had. None: it is switched off, or none
    /// of the usual places can be had, which is no error: the service matters more.
    pub fn open(socket: &ControlSocket) -> io::Result<Option<SocketFile>> {
        let places = match socket {
            ControlSocket::Off => return Ok(None),
            ControlSocket::Path(path) => {
                let place = ControlPlace { path: path.clone(), directory_mode: Some(0o755) };
                let opened = SocketFile::open_at(&place).map_err(|unusable| match unusable {
                    Unusable::Neighbour | Unusable::InUse => in_use(path),
                    Unusable::Failed(error) => with_path(path, error),
                })?;
                log::info!("control socket at {}", path.display());
                return Ok(Some(opened));
            }
            ControlSocket::Auto(places) => places,
        };
        let mut reasons = Vec::new();
        for place in places {
            let path = &place.path;
            match SocketFile::open_at(place) {
                Ok(opened) => {
                    log::info!("control socket at {}", path.display());
                    return Ok(Some(opened));
                }
                Err(Unusable::InUse) => return Err(in_use(path)),
                Err(Unusable::Neighbour) => {
                    reasons.push(format!("{}: a master of another container has it", path.display()));
                }
                Err(Unusable::Failed(error)) => reasons.push(with_path(path, error).to_string()),
            }
        }
        log::info!("no control socket: none of its places is writable; signals work ({})", reasons.join("; "));
        Ok(None)
    }

    fn open_at(place: &ControlPlace) -> Result<SocketFile, Unusable> {
        let path = &place.path;
        prepare_directory(place)?;
        // An operator's slip must not cost a file.
        if fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
            let text = "a file that is not a socket is there; remove it, or choose another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text).into());
        }
        let Some(lock) = Lock::take(&lock_path(path))? else { return Err(who_has(path)) };
        match try_connect(path) {
            // A server that knows nothing of the lock.
            Ok(_) | Err(Errno::EAGAIN) => return Err(who_has(path)),
            Err(Errno::ECONNREFUSED) => fs::remove_file(path)?,
            Err(_) => {}
        }
        let Bound { listener, closer, made } = bind_at(path)?;
        let opened = SocketFile { listener, closer, place: place.clone(), made, lock };
        listen(&opened.listener, Backlog::new(BACKLOG)?)?;
        Ok(opened)
    }

    /// Somebody has removed its file: whoever cleans up in /run or /tmp. What another has put there is not ours to replace.
    pub fn is_lost(&self) -> bool {
        fs::symlink_metadata(&self.place.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// Listens anew, with a file at the same place, and its lock if that was removed, too. If that fails all is as before.
    pub fn make_again(&mut self) -> io::Result<()> {
        let path = &self.place.path;
        let failed = |unusable| match unusable {
            Unusable::Neighbour | Unusable::InUse => in_use(path),
            Unusable::Failed(error) => with_path(path, error),
        };
        prepare_directory(&self.place).map_err(|error| with_path(path, error))?;
        let lock = match is_at(&self.lock.path, self.lock.made) {
            true => None,
            false => Some(Lock::take(&self.lock.path)?.ok_or_else(|| in_use(path))?),
        };
        let Bound { listener, closer, made } = bind_at(path).map_err(failed)?;
        if let Err(error) = Backlog::new(BACKLOG).and_then(|backlog| listen(&listener, backlog)) {
            let _ = fs::remove_file(path);
            return Err(with_path(path, error.into()));
        }
        (self.listener, self.closer, self.made) = (listener, closer, made);
        if let Some(lock) = lock {
            self.lock = lock;
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Everybody may connect from now on, and is asked who it is. The file is found again without following a link, since
    /// others may have rights in its directory.
    pub fn let_all_connect(&self) -> io::Result<()> {
        let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(&self.place.path)?;
        let found = file.metadata()?;
        if (found.dev(), found.ino()) != self.made {
            return Err(with_path(&self.place.path, io::Error::other("somebody else's file is there now")));
        }
        // O_PATH: fchmod(2) refuses such a descriptor, its name in /proc does not (open(2)).
        fs::set_permissions(format!("/proc/self/fd/{}", file.as_raw_fd()), fs::Permissions::from_mode(0o666))?;
        let directory = self.place.path.parent().and_then(|directory| directory.metadata().ok());
        if directory.is_some_and(|directory| directory.mode() & 0o011 == 0) {
            let shown = self.place.path.display();
            log::warn!(
                "[control] readers cannot reach {shown}: its directory is closed to others; set [control] socket"
            );
        }
        Ok(())
    }

    pub fn save(&self, kept: &mut Kept) -> Saved {
        kept.keep("control", &self.listener);
        kept.keep("control.lock", &*self.lock.held);
        Saved {
            path: self.place.path.clone(),
            directory_mode: self.place.directory_mode,
            made: self.made,
            lock_path: self.lock.path.clone(),
            lock_made: self.lock.made,
        }
    }

    /// The lock is that of the open file and has lived on.
    pub fn restore(saved: Saved, claims: &mut Claims) -> io::Result<SocketFile> {
        let Saved { path, directory_mode, made, lock_path, lock_made } = saved;
        let (listener, file) = (claims.claim("control")?, claims.claim("control.lock")?);
        let held = Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
        let closer = Closer::for_listener(&listener)?;
        let place = ControlPlace { path, directory_mode };
        Ok(SocketFile { listener, closer, place, made, lock: Lock { held, path: lock_path, made: lock_made } })
    }

    pub fn closer(&self) -> &Closer {
        &self.closer
    }
}

impl AsFd for SocketFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The lock is still held: whoever starts next finds no file, or waits for none.
        if is_at(&self.place.path, self.made) {
            let _ = fs::remove_file(&self.place.path);
        }
        if is_at(&self.lock.path, self.lock.made) {
            let _ = fs::remove_file(&self.lock.path);
        }
    }
}

/// flock(2) on a file that is there while somebody holds it. Whoever finds a file that nobody holds may take it.
struct Lock {
    held: Flock<File>,
    path: PathBuf,
    made: (u64, u64),
}

impl Lock {
    /// None: somebody holds it.
    fn take(path: &Path) -> io::Result<Option<Lock>> {
        for _ in 0..LOCK_TRIES_MAX {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            // A FIFO or a link that somebody put there is neither waited for nor followed.
            let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
            let opened = file.metadata()?;
            if !opened.is_file() {
                let text = format!("{} is no regular file; remove it", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            let made = (opened.dev(), opened.ino());
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Its last holder may have removed it between the open and the lock.
                Ok(held) if is_at(path, made) => return Ok(Some(Lock { held, path: path.to_owned(), made })),
                Ok(_) => {}
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

/// `NAME.lock` beside `NAME.sock`.
pub fn lock_path(socket: &Path) -> PathBuf {
    match socket.extension() {
        Some(extension) if extension == "sock" => socket.with_extension("lock"),
        Some(_) | None => {
            let mut path = socket.as_os_str().to_owned();
            path.push(".lock");
            path.into()
        }
    }
}

/// Makes the directory where the place says so and its parent is there. One below a directory that everybody can write
/// to may have been made by anybody: it has to be this user's own, and closed to others.
fn prepare_directory(place: &ControlPlace) -> io::Result<()> {
    let (Some(directory), Some(mode)) = (place.path.parent(), place.directory_mode) else { return Ok(()) };
    match fs::DirBuilder::new().mode(mode).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    if mode != 0o700 {
        return Ok(());
    }
    let found = fs::symlink_metadata(directory)?;
    let ours = found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o077 == 0;
    match ours {
        true => Ok(()),
        false => {
            let text = format!("{} is not a directory of this user's with mode 0700", directory.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
}

/// A socket in use: by a master whose clients would look here, or by one of another container?
fn who_has(path: &Path) -> Unusable {
    let peer = try_connect(path).ok().and_then(|connected| Peer::of(&connected).ok());
    match peer {
        Some(peer) if peer.is_of_another_container() || !peer.shares_mounts() => Unusable::Neighbour,
        // Also one that is about to listen, or to end.
        Some(_) | None => Unusable::InUse,
    }
}

/// Connects without waiting: EAGAIN where too many others wait already (connect(2)).
pub fn try_connect(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(client.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(client)
}

/// A socket that does not listen yet, and its file.
struct Bound {
    listener: OwnedFd,
    closer: Closer,
    made: (u64, u64),
}

fn bind_at(path: &Path) -> Result<Bound, Unusable> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Before listen(2): nobody can have passed anything yet.
    let closer = Closer::for_listener(&listener)?;
    // bind(2) makes the file with the mode that the socket has now, less the umask (unix_bind_bsd in
    // net/unix/af_unix.c). So the file is never open to others, and the umask, which all threads share, stays.
    fchmod(listener.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    let made = fs::symlink_metadata(path)?;
    Ok(Bound { listener, closer, made: (made.dev(), made.ino()) })
}

fn is_at(path: &Path, made: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == made)
}

fn with_path(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn in_use(path: &Path) -> io::Error {
    let text = format!("{}: another master of this name is running; stop it, or set another `name`", path.display());
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn at(path: &Path) -> io::Result<SocketFile> {
        SocketFile::open(&ControlSocket::Path(path.to_owned())).map(|opened| opened.unwrap())
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_files_are_for_the_owner_only_and_go_with_the_master() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made").join("shop.sock");
        let opened = at(&path).unwrap();
        assert_eq!((mode(&path), mode(&path.with_extension("lock"))), (0o600, 0o600));
        UnixStream::connect(&path).unwrap();
        drop(opened);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_live_socket_is_never_taken_and_a_stale_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.sock");
        let first = at(&path).unwrap();
        let error = at(&path).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("shop.sock: another master of this name is running"), "{error}");
        drop(first);
        // As a killed master leaves it: a socket and a lock file that nobody holds, and what older versions left.
        drop(UnixListener::bind(&path).unwrap());
        fs::write(path.with_extension("lock"), "").unwrap();
        fs::write(path.with_extension(format!("{}.tmp", std::process::id())), "").unwrap();
        let _again = at(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn files_that_were_removed_are_made_again_and_anothers_are_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made").join("shop.sock");
        let mut opened = at(&path).unwrap();
        assert!(!opened.is_lost());
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(opened.is_lost());
        opened.make_again().unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!((opened.is_lost(), mode(&path), at(&path).is_err()), (false, 0o600, true));
        // The file alone.
        fs::remove_file(&path).unwrap();
        opened.make_again().unwrap();
        UnixStream::connect(&path).unwrap();
        // Another master has come meanwhile, since it found no lock.
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let other = at(&path).unwrap();
        assert!(!opened.is_lost() && opened.make_again().is_err());
        fs::remove_file(&path).unwrap();
        assert!(opened.is_lost());
        let error = opened.make_again().unwrap_err();
        assert!(error.to_string().contains("another master of this name is running"), "{error}");
        drop((opened, other));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_server_that_knows_no_lock_is_not_robbed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("other.sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert_eq!(at(&path).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        UnixStream::connect(&path).unwrap();
        assert!(path.exists());
    }

    #[test]
    fn what_is_no_socket_or_no_lock_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious.sock");
        fs::write(&path, "text").unwrap();
        let error = at(&path).err().unwrap();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
        let path = directory.path().join("linked.sock");
        std::os::unix::fs::symlink("/nonexistent/made", lock_path(&path)).unwrap();
        assert!(at(&path).is_err());
        let path = directory.path().join("fifo.sock");
        nix::unistd::mkfifo(&lock_path(&path), Mode::from_bits_truncate(0o600)).unwrap();
        assert!(at(&path).err().unwrap().to_string().contains("no regular file"));
    }

    #[test]
    fn of_many_that_start_at_once_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shop.sock");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let opened: Vec<io::Result<SocketFile>> = std::thread::scope(|scope| {
                let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| at(&path))).collect();
                starts.into_iter().map(|start| start.join().unwrap()).collect()
            });
            assert_eq!(opened.iter().filter(|opened| opened.is_ok()).count(), 1);
            UnixStream::connect(&path).unwrap();
        }
    }

    #[test]
    fn the_first_usable_place_serves() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str, mode| ControlPlace {
            path: directory.path().join(name).join("shop.sock"),
            directory_mode: Some(mode),
        };
        // Somebody else was here first, and left it open to everybody.
        fs::create_dir(directory.path().join("theirs")).unwrap();
        let open_to_all = fs::Permissions::from_mode(0o777);
        fs::set_permissions(directory.path().join("theirs"), open_to_all).unwrap();
        std::os::unix::fs::symlink(directory.path(), directory.path().join("link")).unwrap();
        let nowhere = ControlPlace { path: "/proc/no/such/shop.sock".into(), directory_mode: Some(0o755) };
        let places = vec![nowhere.clone(), place("theirs", 0o700), place("link", 0o700), place("ours", 0o700)];
        let opened = SocketFile::open(&ControlSocket::Auto(places)).unwrap().unwrap();
        assert_eq!(opened.path(), directory.path().join("ours/shop.sock"));
        assert_eq!(mode(&directory.path().join("ours")), 0o700);
        let none = SocketFile::open(&ControlSocket::Auto(vec![nowhere])).unwrap();
        assert!(none.is_none());
    }

    #[test]
    fn the_lock_is_beside_the_socket() {
        assert_eq!(lock_path(Path::new("/run/a.b.sock")), Path::new("/run/a.b.lock"));
        assert_eq!(lock_path(Path::new("/run/control")), Path::new("/run/control.lock"));
        assert_eq!(lock_path(Path::new("/run/x.lock")), Path::new("/run/x.lock.lock"));
    }
}
