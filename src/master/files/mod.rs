//! Opening files by name where somebody else may have a hand in the name: logs, the pid file, the configuration, the
//! env file. It never waits for the other end of a FIFO, and never truncates.
//!
//! The rule. A path is walked from the root, a part at a time, by descriptors, so that what was looked at is what is
//! opened. A master that is root begins with root's rights. At the first directory that somebody else owns, or that
//! the application's user may write to, it gives them up: the rest of the path is walked and opened with the rights
//! of that directory's owner, and with those of the application's user once a directory is the application's. So
//! whoever can change the path gets nothing opened that they could not open themselves. A symbolic link is followed
//! where root, the directory's owner, or the user whose rights count just then has made it; in a directory that all
//! may write to (/tmp), the sticky bit makes this safe. A log or pid file has one name only: a second one (a hard
//! link) may be somebody else's file. CVE-2016-1247 is what nginx had without such a rule; logrotate refuses
//! directories like these ("insecure permissions"), or takes their owner's rights by its `su`.
//!
//! The rights are taken in a thread of its own, which ends with them. fsuid and fsgid belong to a thread (setfsuid(2)),
//! and so do the groups where setgroups is called past the C library, whose wrapper changes all threads (nptl(7)).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{fcntl, openat, readlinkat, FcntlArg, OFlag};
use nix::sys::stat::{fstat, FileStat, Mode, SFlag};
use nix::unistd::{geteuid, Uid, User};
use serde::{Deserialize, Serialize};

use crate::progress;

mod made;
mod removing;
#[cfg(test)]
mod tests;

pub use made::{Made, Node};
pub use removing::{may_make, remove, rename};

/// As the kernel has it (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// Times that an entry is looked at again when it was replaced between the look and the open (logrotate).
const TRIES_MAX: u32 = 8;

/// The kernel's group for what belongs to nobody.
const NO_GROUP: u32 = 65534;

/// Whose rights count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// A file, FIFO or device that lines are appended to.
pub struct Appended {
    pub file: OwnedFd,
    /// The reading end of a FIFO: while it is open, writing waits for no other reader and fails without none.
    pub reader: Option<OwnedFd>,
    /// It was not there before.
    pub made: Option<Made>,
    pub node: Node,
}

/// A pid file and where it lies.
#[derive(Debug)]
pub struct PidPlace {
    pub file: File,
    pub directory: OwnedFd,
    pub name: OsString,
}

/// Opens a log, and makes it where it is not there.
pub fn append(path: &Path, application: Option<&Rights>) -> io::Result<Appended> {
    progress::note(format!("opening {}", path.display()));
    if let Some(stream) = standard_stream(path)? {
        let node = node(&fstat(&stream)?);
        return Ok(Appended { file: stream, reader: None, made: None, node });
    }
    let Found { file, reader, made, directory, name, .. } = open(path, Purpose::Append, application)?;
    let node = node(&fstat(&file)?);
    let made = made.map(|MadeBy(rights)| Made::new(directory, name, rights, node));
    Ok(Appended { file, reader, made, node })
}

/// Opens a file to read it, and says where it really lies. Whether it is a regular file is for the caller to judge.
pub fn read(path: &Path) -> io::Result<(File, PathBuf)> {
    progress::note(format!("reading {}", path.display()));
    let found = open(path, Purpose::Read, None)?;
    Ok((found.file.into(), found.place.join(found.name)))
}

/// The same with a user's rights from the first directory on, where this process is root. `because` says why, after "since".
pub fn read_as(path: &Path, rights: &Rights, because: String) -> io::Result<(File, PathBuf)> {
    progress::note(format!("reading {}", path.display()));
    let found = with_rights(None, |walk| {
        walk.give_up(rights.clone(), because)?;
        walk.open(path, Purpose::Read)
    })?;
    Ok((found.file.into(), found.place.join(found.name)))
}

/// Opens a pid file, and makes it where it is not there. Its content stays.
pub fn pid_file(path: &Path, application: Option<&Rights>) -> io::Result<PidPlace> {
    progress::note(format!("opening {}", path.display()));
    let found = open(path, Purpose::PidFile, application)?;
    Ok(PidPlace { file: found.file.into(), directory: found.directory, name: found.name })
}

/// stdout and stderr by their names as files. Opening these names again fails for a socket (journald's), and for a
/// pipe that another user has made.
fn standard_stream(path: &Path) -> io::Result<Option<OwnedFd>> {
    Ok(match path.to_str() {
        Some("/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1") => Some(io::stdout().as_fd().try_clone_to_owned()?),
        Some("/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2") => Some(io::stderr().as_fd().try_clone_to_owned()?),
        Some(_) | None => None,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Append,
    Read,
    PidFile,
    /// A directory, to look at what is in it.
    Directory,
}

struct Found {
    file: OwnedFd,
    reader: Option<OwnedFd>,
    made: Option<MadeBy>,
    directory: OwnedFd,
    /// The directory's path, without links.
    place: PathBuf,
    name: OsString,
}

/// The file was not there before; made with the process's own rights, or with those.
struct MadeBy(Option<Rights>);

fn open(path: &Path, purpose: Purpose, application: Option<&Rights>) -> io::Result<Found> {
    with_rights(application, |walk| walk.open(path, purpose))
}

/// Whatever rights the walk takes end with it.
fn with_rights<T: Send>(
    application: Option<&Rights>,
    work: impl FnOnce(&mut Walk<'_>) -> io::Result<T> + Send,
) -> io::Result<T> {
    let root = geteuid().is_root();
    let walk = || {
        let mut walk = Walk { application, switches: root, acting: geteuid().as_raw(), taken: None, because: None };
        work(&mut walk).map_err(|error| walk.explain(error))
    };
    if !root {
        return walk();
    }
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("open".into()).spawn_scoped(scope, walk)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that opens files has panicked")))
    })
}

struct Walk<'a> {
    application: Option<&'a Rights>,
    /// Whether this thread can take others' rights.
    switches: bool,
    /// The user whose rights count now.
    acting: u32,
    /// Whose rights were taken last.
    taken: Option<Rights>,
    /// Why root's rights were given up.
    because: Option<String>,
}

impl Walk<'_> {
    fn open(&mut self, path: &Path, purpose: Purpose) -> io::Result<Found> {
        let mut parts = parts(path);
        let mut place = PathBuf::from("/");
        let mut directory = self.enter_root()?;
        let (mut links, mut tries) = (0, 0);
        while let Some(part) = parts.pop_front() {
            let last = parts.is_empty();
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let entry = match openat(&directory, part.as_os_str(), flags, Mode::empty()) {
                Ok(entry) => entry,
                Err(Errno::ENOENT) if last && purpose.makes() => match create(&directory, &part, purpose) {
                    Ok(file) => {
                        let made = Some(MadeBy(self.taken.take()));
                        return Ok(Found { file, reader: None, made, directory, place, name: part });
                    }
                    Err(Errno::EEXIST) if tries < TRIES_MAX => {
                        tries += 1;
                        parts.push_front(part);
                        continue;
                    }
                    Err(errno) => return Err(errno.into()),
                },
                Err(errno) => return Err(errno.into()),
            };
            let stat = fstat(&entry)?;
            match kind(&stat) {
                SFlag::S_IFLNK => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::ELOOP.into());
                    }
                    self.check_link(&stat, &directory, &place.join(&part))?;
                    let target = PathBuf::from(readlinkat(&entry, "")?);
                    if target.is_absolute() {
                        directory = self.enter_root()?;
                        place = PathBuf::from("/");
                    }
                    for part in self::parts(&target).into_iter().rev() {
                        parts.push_front(part);
                    }
                }
                SFlag::S_IFDIR if !last || purpose == Purpose::Directory => {
                    match part == ".." {
                        true => drop(place.pop()),
                        false => place.push(&part),
                    }
                    self.enter(&entry, &place)?;
                    if last {
                        return Ok(Found { file: entry, reader: None, made: None, directory, place, name: part });
                    }
                    directory = entry;
                }
                _ if !last => return Err(Errno::ENOTDIR.into()),
                _ => {
                    self.check_last(&stat, purpose)?;
                    match open_entry(&directory, &part, &stat, purpose)? {
                        Some((file, reader)) => {
                            return Ok(Found { file, reader, made: None, directory, place, name: part });
                        }
                        None if tries < TRIES_MAX => {
                            tries += 1;
                            parts.push_front(part);
                        }
                        None => return Err(io::Error::other("it is replaced again and again")),
                    }
                }
            }
        }
        Err(Errno::EISDIR.into())
    }

    fn enter_root(&mut self) -> io::Result<OwnedFd> {
        let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        self.enter(&root, Path::new("/"))?;
        Ok(root)
    }

    /// Gives up root's rights where the directory asks for it.
    fn enter(&mut self, directory: &OwnedFd, place: &Path) -> io::Result<()> {
        if !self.switches {
            return Ok(());
        }
        let stat = fstat(directory)?;
        let at_home = self.application.filter(|rights| rights.can_change(&stat));
        let rights = match at_home {
            Some(application) if self.acting != application.uid => application.clone(),
            None if self.acting == 0 && stat.st_uid != 0 => Rights::of(stat.st_uid)?,
            // Nobody's but root's, or given up already.
            Some(_) | None => return Ok(()),
        };
        self.give_up(rights, format!("{} is not root's alone", place.display()))
    }

    fn give_up(&mut self, rights: Rights, because: String) -> io::Result<()> {
        // A root without CAP_SETUID (a container that dropped it) is a user like others, and so is its application.
        if !self.switches || !rights.take()? {
            self.switches = false;
            return Ok(());
        }
        self.acting = rights.uid;
        self.taken = Some(rights);
        self.because.get_or_insert(because);
        Ok(())
    }

    fn check_link(&self, link: &FileStat, directory: &OwnedFd, place: &Path) -> io::Result<()> {
        let owner = fstat(directory)?.st_uid;
        if [0, self.acting, owner].contains(&link.st_uid) {
            return Ok(());
        }
        let text = format!("{} is a symbolic link that somebody else has made (uid {})", place.display(), link.st_uid);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }

    fn check_last(&self, stat: &FileStat, purpose: Purpose) -> io::Result<()> {
        let refused = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        let wrong = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        match (purpose, kind(stat)) {
            (Purpose::Read, _) => return Ok(()),
            (Purpose::Directory, _) => return Err(Errno::ENOTDIR.into()),
            (Purpose::Append, SFlag::S_IFIFO | SFlag::S_IFCHR) => return Ok(()),
            (Purpose::Append | Purpose::PidFile, SFlag::S_IFREG) => {}
            (Purpose::Append | Purpose::PidFile, SFlag::S_IFDIR) => return wrong("it is a directory"),
            (Purpose::Append, _) => return wrong("it is neither a file nor a FIFO nor a device to write to"),
            (Purpose::PidFile, _) => return wrong("it is not a regular file"),
        }
        if stat.st_nlink > 1 {
            let names = stat.st_nlink;
            return refused(format!("it has {names} names (hard links), and one of them may be another file's"));
        }
        // Whoever owns it decides which process its readers signal.
        let ours = [0, self.acting, geteuid().as_raw()].contains(&stat.st_uid);
        if purpose == Purpose::PidFile && !ours {
            return refused(format!("it belongs to somebody else (uid {})", stat.st_uid));
        }
        Ok(())
    }

    /// Says whose rights they were that did not suffice.
    fn explain(&self, error: io::Error) -> io::Error {
        match &self.because {
            None => error,
            Some(because) => {
                let uid = self.acting;
                let reason = match error.raw_os_error() {
                    Some(code) => Errno::from_raw(code).desc().to_owned(),
                    None => error.to_string(),
                };
                let text = format!("{reason} (with the rights of uid {uid}, since {because})");
                io::Error::new(error.kind(), text)
            }
        }
    }
}

impl Rights {
    /// A user's, with the one group that the user database names.
    fn of(uid: u32) -> io::Result<Rights> {
        progress::note(format!("looking up uid {uid} (NSS)"));
        let user = User::from_uid(Uid::from_raw(uid))?;
        let gid = user.map_or(NO_GROUP, |user| user.gid.as_raw());
        Ok(Rights { uid, gid, groups: vec![gid] })
    }

    /// Whether they suffice to replace what is in a directory. Where the sticky bit is set, each entry is its owner's.
    fn can_change(&self, directory: &FileStat) -> bool {
        let mode = Mode::from_bits_truncate(directory.st_mode);
        let in_group = self.gid == directory.st_gid || self.groups.contains(&directory.st_gid);
        let writes = (in_group && mode.contains(Mode::S_IWGRP)) || mode.contains(Mode::S_IWOTH);
        self.uid == directory.st_uid || (writes && !mode.contains(Mode::S_ISVTX))
    }

    /// Takes them for the rest of this thread. False: the kernel does not let us.
    fn take(&self) -> io::Result<bool> {
        // SAFETY: the pointer and length are those of a living slice of gid_t.
        let done = unsafe { libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) };
        if done != 0 {
            return match Errno::last() {
                Errno::EPERM => Ok(false),
                errno => Err(errno.into()),
            };
        }
        // These two report no error: they return the value before, and -1 changes nothing (setfsuid(2)).
        // SAFETY: no memory is involved.
        unsafe { libc::setfsgid(self.gid) };
        // SAFETY: as above.
        let gid = unsafe { libc::setfsgid(u32::MAX) };
        // SAFETY: as above.
        unsafe { libc::setfsuid(self.uid) };
        // SAFETY: as above.
        let uid = unsafe { libc::setfsuid(u32::MAX) };
        if (uid as u32, gid as u32) != (self.uid, self.gid) {
            return Err(io::Error::other(format!("the rights of uid {} cannot be taken", self.uid)));
        }
        Ok(true)
    }
}

/// Opens what was looked at. None: another entry is there by now.
fn open_entry(
    directory: &OwnedFd,
    name: &OsStr,
    looked_at: &FileStat,
    purpose: Purpose,
) -> io::Result<Option<(OwnedFd, Option<OwnedFd>)>> {
    let open = |flags: OFlag| -> io::Result<Option<OwnedFd>> {
        // O_NONBLOCK: neither a FIFO nor a device is waited for.
        let always = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        match openat(directory, name, flags | always, Mode::empty()) {
            Ok(file) => {
                let stat = fstat(&file)?;
                Ok((node(&stat) == node(looked_at)).then_some(file))
            }
            Err(Errno::ENOENT | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    };
    if purpose == Purpose::Append && kind(looked_at) == SFlag::S_IFIFO {
        return open_fifo(open);
    }
    let Some(file) = open(purpose.flags())? else { return Ok(None) };
    if kind(looked_at) == SFlag::S_IFCHR {
        wait_as_others_do(&file)?;
    }
    Ok(Some((file, None)))
}

/// A FIFO needs a reader to be opened (fifo(7)); we are one ourselves. What is written before another one comes stays
/// in it, as far as it fits.
fn open_fifo(open: impl Fn(OFlag) -> io::Result<Option<OwnedFd>>) -> io::Result<Option<(OwnedFd, Option<OwnedFd>)>> {
    let reader = match open(OFlag::O_RDONLY) {
        Ok(Some(reader)) => Some(reader),
        Ok(None) => return Ok(None),
        // Writing alone may be allowed.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        Err(error) => return Err(error),
    };
    let file = match open(OFlag::O_WRONLY) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            let text = "nobody reads the FIFO, and we may not do so ourselves";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Err(error) => return Err(error),
    };
    wait_as_others_do(&file)?;
    Ok(Some((file, reader)))
}

fn create(directory: &OwnedFd, name: &OsStr, purpose: Purpose) -> nix::Result<OwnedFd> {
    let mode = match purpose {
        Purpose::PidFile => Mode::from_bits_truncate(0o644),
        // As umask has it.
        Purpose::Append | Purpose::Read | Purpose::Directory => Mode::from_bits_truncate(0o666),
    };
    let flags = purpose.flags() | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, mode)
}

impl Purpose {
    fn flags(self) -> OFlag {
        match self {
            Purpose::Append => OFlag::O_WRONLY | OFlag::O_APPEND,
            Purpose::Read => OFlag::O_RDONLY,
            Purpose::PidFile => OFlag::O_RDWR,
            Purpose::Directory => OFlag::O_PATH,
        }
    }

    /// What is not there is made.
    fn makes(self) -> bool {
        match self {
            Purpose::Append | Purpose::PidFile => true,
            Purpose::Read | Purpose::Directory => false,
        }
    }
}

/// O_NONBLOCK was for open(2). Python's streams, which get the descriptor too, expect writes that wait.
fn wait_as_others_do(file: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

fn node(stat: &FileStat) -> Node {
    (stat.st_dev, stat.st_ino)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The parts of a path, without the root; `..` stays, since it means the parent of what a link led to.
fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}
