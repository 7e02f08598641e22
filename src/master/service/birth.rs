//! How a child of the master becomes another program: fork, and exec. Nobody waits for the exec, which a file server may hold
//! up for as long as it likes: the child is in the books from its fork on, and has its deadlines from there. What it dies of
//! if the exec fails it leaves in a pipe, and whoever reaps it reads that. In the child there are system calls only, each of
//! them async-signal-safe (signal-safety(7)).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::stat::Mode;

use super::child::Entering;
use crate::signals::block_all;

/// As shells have it: there is no such program, and one that cannot be executed.
pub const NOT_FOUND: i32 = 127;
pub const NOT_EXECUTED: i32 = 126;

/// Where the sockets that are handed over begin (sd_listen_fds(3)).
const FIRST_FD: RawFd = 3;

/// The digits of any pid.
const PID_DIGITS: usize = 10;

/// Where programs are where no PATH says it (execvp(3)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Who runs a file that is no program and names none (execvp(3)).
const SHELL: &std::ffi::CStr = c"/bin/sh";

type Pointers = Vec<*const libc::c_char>;

/// A program, its arguments, its environment and its descriptors, all of it made before the fork: allocating is not allowed
/// after it.
pub struct Program {
    /// Where the program may be; the first that is there is executed.
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    /// `NAME=value`, each with its NUL. The last is LISTEN_PID's, where there are sockets: it is known only after the fork.
    environment: Vec<Vec<u8>>,
    /// Standard input, output and error. None: the master's own.
    streams: [Option<OwnedFd>; 3],
    /// Above the numbers that the program knows them by.
    sockets: Vec<OwnedFd>,
    entering: Entering,
}

/// A child that has become its program, or will, or dies.
pub struct Birth {
    pub pid: i32,
    pub failure: Failure,
}

/// Why a child could not become its program, for whoever asks when it has ended.
pub struct Failure(OwnedFd);

impl Program {
    /// `words`: the program and its arguments. A program with a slash lies below the directory, others on the PATH of that
    /// environment.
    pub fn new<'a>(
        words: &[impl AsRef<OsStr>],
        environment: impl Iterator<Item = (&'a OsStr, &'a OsStr)>,
        directory: &Path,
        entering: Entering,
    ) -> io::Result<Program> {
        let name = words.first().map(|word| Path::new(word.as_ref())).ok_or(io::ErrorKind::InvalidInput)?;
        let mut path = None;
        let mut variables = Vec::new();
        for (name, value) in environment {
            path = path.or_else(|| (name == "PATH").then_some(value));
            variables.push(variable(name, value)?);
        }
        let candidates: Vec<PathBuf> = match name.as_os_str().as_bytes().contains(&b'/') {
            true => vec![directory.join(name)],
            false => std::env::split_paths(path.unwrap_or(DEFAULT_PATH.as_ref()))
                .map(|one| directory.join(one).join(name))
                .collect(),
        };
        Ok(Program {
            candidates: candidates.iter().map(c_string).collect::<io::Result<_>>()?,
            arguments: words.iter().map(c_string).collect::<io::Result<_>>()?,
            environment: variables,
            streams: [None, None, None],
            sockets: Vec::new(),
            entering,
        })
    }

    /// That is executed, whatever its first argument says.
    pub fn executing(self, executable: &Path) -> io::Result<Program> {
        Ok(Program { candidates: vec![c_string(executable)?], ..self })
    }

    /// It reads nothing.
    pub fn without_input(mut self) -> io::Result<Program> {
        let null = nix::fcntl::open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        self.streams[0] = Some(null);
        Ok(self)
    }

    /// What it writes comes out of the pipe that is returned, which does not block.
    pub fn with_output(mut self) -> io::Result<(Program, OwnedFd)> {
        let (output, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Only this end: the program's own writes wait as it expects.
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.streams[2] = Some(theirs.try_clone()?);
        self.streams[1] = Some(theirs);
        Ok((self, output))
    }

    /// Listening sockets under one name, as sd_listen_fds(3) has it.
    pub fn with_sockets(mut self, sockets: &[BorrowedFd<'_>], name: &str) -> io::Result<Program> {
        if sockets.is_empty() {
            return Ok(self);
        }
        let end = FIRST_FD + sockets.len() as RawFd;
        self.sockets = sockets.iter().map(|socket| duplicate(*socket, end)).collect::<io::Result<_>>()?;
        let names = vec![name; sockets.len()].join(":");
        let count = sockets.len().to_string();
        self.environment.push(variable("LISTEN_FDS".as_ref(), count.as_ref())?);
        self.environment.push(variable("LISTEN_FDNAMES".as_ref(), names.as_ref())?);
        self.environment.push([b"LISTEN_PID=".as_slice(), &[0; PID_DIGITS + 1]].concat());
        Ok(self)
    }

    /// Forks. Called from the master's main thread only: the parent-death signal is sent when the *thread* ends that forked
    /// (prctl(2)).
    pub fn start(mut self) -> io::Result<Birth> {
        let (failure, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Above the numbers that its sockets take.
        let tell = duplicate(std::os::fd::AsFd::as_fd(&tell), FIRST_FD + self.sockets.len() as RawFd)?;
        let kept: Vec<RawFd> = self.sockets.iter().chain([&tell]).map(AsRawFd::as_raw_fd).collect();
        self.entering.spare(&kept);
        let arguments: Pointers = pointers(self.arguments.iter().map(|argument| argument.as_ptr()));
        // `sh FILE ARGUMENTS`; which file, is known in the child.
        let rest = arguments.iter().skip(1).filter(|pointer| !pointer.is_null()).copied();
        let mut script: Pointers = pointers([SHELL.as_ptr(), SHELL.as_ptr()].into_iter().chain(rest));
        let environment: Pointers = pointers(self.environment.iter().map(|variable| variable.as_ptr().cast()));
        // What comes for the child waits until it has the default actions (`Entering::enter`). The master's handlers, which it has
        // until then, would take it for nobody.
        let mask = block_all()?;
        // SAFETY: the child makes async-signal-safe calls only and ends with an exec or `_exit`.
        let forked = match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let error = self.become_it(&arguments, &mut script, &environment);
                let code = if error == libc::ENOENT { NOT_FOUND } else { NOT_EXECUTED };
                let bytes = error.to_ne_bytes();
                // Whoever does not want to know has closed the other end.
                // SAFETY: no memory is involved.
                unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
                // SAFETY: the pointer and length are those of a living array.
                unsafe { libc::write(tell.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
                // SAFETY: ends the process without running anything of the master's.
                unsafe { libc::_exit(code) }
            }
            pid => Ok(Birth { pid, failure: Failure(failure) }),
        };
        if let Err(error) = mask.thread_set_mask() {
            log::error!("signals stay blocked: {error}");
        }
        forked
    }

    /// In the child. Returns errno.
    fn become_it(
        &mut self,
        arguments: &[*const libc::c_char],
        script: &mut [*const libc::c_char],
        environment: &[*const libc::c_char],
    ) -> i32 {
        if let Err(error) = self.take_descriptors() {
            return errno(&error);
        }
        let mut failure = libc::ENOENT;
        for candidate in &self.candidates {
            // SAFETY: NUL-terminated strings, and arrays of such with a null pointer at their end, all of which live.
            unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            let mut error = errno(&io::Error::last_os_error());
            if error == libc::ENOEXEC {
                script[1] = candidate.as_ptr();
                // SAFETY: as above.
                unsafe { libc::execve(SHELL.as_ptr(), script.as_ptr(), environment.as_ptr()) };
                error = errno(&io::Error::last_os_error());
            }
            match error {
                libc::ENOENT | libc::ENOTDIR => {}
                // Another one may be executable, as execvp(3) has it.
                libc::EACCES => failure = libc::EACCES,
                error => return error,
            }
        }
        failure
    }

    fn take_descriptors(&mut self) -> io::Result<()> {
        for (number, stream) in self.streams.iter().enumerate() {
            if let Some(stream) = stream {
                take_as(stream, number as RawFd)?;
            }
        }
        self.entering.enter()?;
        for (at, socket) in self.sockets.iter().enumerate() {
            take_as(socket, FIRST_FD + at as RawFd)?;
        }
        if let Some(variable) = self.environment.last_mut().filter(|_| !self.sockets.is_empty()) {
            write_own_pid(variable);
        }
        Ok(())
    }
}

impl Failure {
    /// None: it has become the program, or has not tried yet. It has, or never will, once it is dead.
    pub fn read(&self) -> Option<io::Error> {
        let mut bytes = [0; size_of::<i32>()];
        match nix::unistd::read(&self.0, &mut bytes) {
            Ok(read) if read == bytes.len() => Some(io::Error::from_raw_os_error(i32::from_ne_bytes(bytes))),
            Ok(_) | Err(_) => None,
        }
    }

    /// The same, for those who have nothing else to do: waits until that is known.
    pub fn wait(&self) -> Option<io::Error> {
        let mut polled = [PollFd::new(std::os::fd::AsFd::as_fd(&self.0), PollFlags::POLLIN)];
        while poll(&mut polled, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
        self.read()
    }
}

/// Without CLOEXEC, as dup2(2) has it.
fn take_as(fd: &OwnedFd, number: RawFd) -> io::Result<()> {
    // SAFETY: both numbers are ours: one is open, the other is kept free for it.
    match unsafe { libc::dup2(fd.as_raw_fd(), number) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Behind the `=` of `variable`, which has room for it.
fn write_own_pid(variable: &mut [u8]) {
    // SAFETY: getpid(2) cannot fail.
    let mut pid = unsafe { libc::getpid() };
    let (mut digits, mut length) = ([0; PID_DIGITS], 0);
    while pid > 0 {
        digits[length] = b'0' + (pid % 10) as u8;
        (pid, length) = (pid / 10, length + 1);
    }
    let begin = variable.len() - PID_DIGITS - 1;
    for at in 0..length {
        variable[begin + at] = digits[length - 1 - at];
    }
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn pointers(strings: impl Iterator<Item = *const libc::c_char>) -> Pointers {
    strings.chain([std::ptr::null()]).collect()
}

fn variable(name: &OsStr, value: &OsStr) -> io::Result<Vec<u8>> {
    let bytes = [name.as_bytes(), b"=", value.as_bytes()].concat();
    Ok(CString::new(bytes)?.into_bytes_with_nul())
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}

fn duplicate(fd: BorrowedFd<'_>, from: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(from))?;
    // SAFETY: fcntl has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(words: &[&str], path: &Path, directory: &Path) -> Program {
        let environment = [(OsStr::new("PATH"), path.as_os_str())].into_iter();
        let entering = Entering::new(None, None, directory, &[]).unwrap();
        Program::new(words, environment, directory, entering).unwrap().without_input().unwrap()
    }

    /// What it writes, and why it could not become its program.
    fn run(program: Program) -> (String, Option<i32>) {
        let (program, output) = program.with_output().unwrap();
        let birth = program.start().unwrap();
        let failure = birth.failure.wait().and_then(|error| error.raw_os_error());
        fcntl(&output, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let said = std::io::read_to_string(std::fs::File::from(output)).unwrap();
        let mut status = 0;
        // SAFETY: the pointer is to a living value.
        assert_eq!(unsafe { libc::waitpid(birth.pid, &mut status, 0) }, birth.pid);
        (said, failure)
    }

    #[test]
    fn a_program_is_found_as_execvp_finds_it_and_what_went_wrong_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            std::fs::write(root.join(name), text).unwrap();
            std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        write("closed/tool", "", 0o644);
        write("open/tool", "#!/bin/sh\necho \"$0 $1 $PWD\"\n", 0o755);
        write("bin/plain", "echo \"plain $1\"\n", 0o755);
        let path = PathBuf::from(format!("{0}/nowhere:{0}/closed:open", root.display()));
        let (said, failure) = run(program(&["tool", "a b"], &path, &root));
        assert_eq!((said, failure), (format!("{0}/open/tool a b {0}\n", root.display()), None));
        // With a slash it lies below the directory; without a line that says who runs it, a shell does.
        assert_eq!(run(program(&["bin/plain", "x"], &path, &root)), ("plain x\n".to_owned(), None));
        let closed = root.join("closed");
        assert_eq!(run(program(&["tool"], &closed, &root)), (String::new(), Some(libc::EACCES)));
        assert_eq!(run(program(&["none"], &path, &root)), (String::new(), Some(libc::ENOENT)));
        assert_eq!(run(program(&["open/tool"], &path, &root.join("gone"))), (String::new(), Some(libc::ENOENT)));
    }

    /// As found: until the child had the default actions the master's handlers took what was sent to it, and a service that was
    /// told to stop right after its start ran on until it was killed.
    #[test]
    fn a_signal_that_comes_right_after_the_fork_is_the_childs() {
        let noticed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let handler = signal_hook::flag::register(libc::SIGTERM, noticed).unwrap();
        for _ in 0..20 {
            let birth = program(&["sleep", "2"], Path::new(DEFAULT_PATH), Path::new("/")).start().unwrap();
            let mut status = 0;
            // SAFETY: it is our child, and not reaped.
            assert_eq!(unsafe { libc::kill(birth.pid, libc::SIGTERM) }, 0);
            // SAFETY: the pointer is to a living value.
            assert_eq!(unsafe { libc::waitpid(birth.pid, &mut status, 0) }, birth.pid);
            assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGTERM, "{status}");
        }
        signal_hook::low_level::unregister(handler);
    }

    #[test]
    fn it_gets_its_sockets_under_their_numbers_and_nothing_else_that_the_master_has() {
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        // Not for it, and from somebody who has forgotten the flag.
        let leaked = duplicate(std::os::fd::AsFd::as_fd(&socket), 50).unwrap();
        fcntl(&leaked, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let words = ["sh", "-c", "ls -m /proc/$$/fd; echo \"$$ $LISTEN_PID $LISTEN_FDS $LISTEN_FDNAMES\""];
        let with = program(&words, Path::new(DEFAULT_PATH), Path::new("/"));
        let socket = std::os::fd::AsFd::as_fd(&socket);
        let (said, failure) = run(with.with_sockets(&[socket, socket], "web").unwrap());
        let lines: Vec<&str> = said.lines().collect();
        let (pid, listen) = lines[1].split_once(' ').unwrap();
        assert_eq!((lines[0], listen), ("0, 1, 2, 3, 4", &*format!("{pid} 2 web:web")), "{said} {failure:?}");
    }
}
