//! `forkmaster dev` watches what somebody works at: a saved file is a HUP to this very process, which then reloads as
//! always. It has a thread of its own, reads nothing of the files, and decides nothing else.

mod names;
mod tree;

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use tree::Tree;

/// One save is often several events, and a change of branches many files: it is over when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(50);

/// Whoever writes without an end is not waited for.
const QUIET_WITHIN: Duration = Duration::from_millis(500);

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub trees: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
}

/// Files are watched as long as it lives.
pub struct Watching(Arc<AtomicBool>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub fn start(watched: &Watched) -> io::Result<Watching> {
    let mut tree = Tree::watch(&watched.trees, &watched.files)?;
    let over = Arc::new(AtomicBool::new(false));
    let watching = Watching(Arc::clone(&over));
    let watch = move || loop {
        match changed(&mut tree) {
            // Nobody reloads any more, and HUP has its default action again.
            Ok(_) if over.load(Ordering::SeqCst) => return,
            Ok(what) => {
                log::info!("{what} saved: reloading");
                // Ourselves: it cannot fail.
                let _ = kill(Pid::this(), Signal::SIGHUP);
            }
            Err(error) => return log::error!("files are not watched any more: {error}"),
        }
    };
    thread::Builder::new().name("fm-watcher".into()).spawn(watch)?;
    Ok(watching)
}

/// Waits for a change.
pub fn wait(watched: &Watched) -> io::Result<String> {
    changed(&mut Tree::watch(&watched.trees, &watched.files)?)
}

/// What was saved, in words, once it is quiet again.
fn changed(tree: &mut Tree) -> io::Result<String> {
    let mut names: Vec<String> = Vec::new();
    let mut all = false;
    let mut began: Option<Instant> = None;
    loop {
        let left = began.map(|began| QUIET_WITHIN.saturating_sub(began.elapsed()).min(QUIET));
        if left.is_some_and(|left| left.is_zero()) || !wait_for_events(tree, left)? {
            break;
        }
        match tree.saved()? {
            Some(saved) => {
                saved.iter().for_each(|path| Tree::forget_compiled(path));
                names.extend(saved.iter().map(|path| tree::shown(path)));
            }
            None => all = true,
        }
        if all || !names.is_empty() {
            began.get_or_insert_with(Instant::now);
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(match names.as_slice() {
        [] => "files".to_owned(),
        [one] => one.clone(),
        [one, others @ ..] => format!("{one} and {} more", others.len()),
    })
}

/// False: the time is over.
fn wait_for_events(tree: &Tree, at_most: Option<Duration>) -> io::Result<bool> {
    let limit = at_most.and_then(|limit| PollTimeout::try_from(limit).ok()).unwrap_or(PollTimeout::NONE);
    loop {
        match poll(&mut [PollFd::new(tree.inotify().as_fd(), PollFlags::POLLIN)], limit) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
