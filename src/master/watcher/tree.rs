//! Directories and their inotify watches. A new directory is watched and looked through, since files may have been made
//! in it before; what cannot be watched is said once.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::names;

/// A file is saved when whoever wrote it closes it, or when it is moved into place, as most editors do. Removed ones
/// count as well: a module that is gone must not go on being served.
const SAVED: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE);

const WATCHED: AddWatchFlags = SAVED.union(AddWatchFlags::IN_CREATE).union(AddWatchFlags::IN_ONLYDIR);

/// Directories below one that is watched. A link to a directory is not followed, or a circle would never end.
const DEPTH_MAX: usize = 32;

pub struct Tree {
    inotify: Inotify,
    directories: BTreeMap<WatchDescriptor, Directory>,
    /// Files outside the trees: the configuration and the `env_file`.
    files: Vec<PathBuf>,
    /// Some directory could not be watched, and that was said.
    is_short: bool,
}

struct Directory {
    path: PathBuf,
    /// The tree that it belongs to; none: only `files` in it count.
    root: Option<PathBuf>,
}

impl Tree {
    /// Watches whole trees, and single files by their directories: an editor puts another file in their place.
    pub fn watch(trees: &[PathBuf], files: &[PathBuf]) -> io::Result<Tree> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let (directories, files) = (BTreeMap::new(), files.to_vec());
        let mut tree = Tree { inotify, directories, files: files.clone(), is_short: false };
        for parent in files.iter().filter_map(|file| file.parent()) {
            tree.add(parent, None);
        }
        for root in trees {
            tree.enter(root, root, DEPTH_MAX);
        }
        Ok(tree)
    }

    pub fn inotify(&self) -> &Inotify {
        &self.inotify
    }

    /// Files that were saved since it was last asked. None: the kernel has lost events, and anything may have changed.
    pub fn saved(&mut self) -> io::Result<Option<Vec<PathBuf>>> {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error.into()),
        };
        let mut saved = Vec::new();
        for InotifyEvent { wd, mask, name, .. } in events {
            if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return Ok(None);
            }
            if mask.contains(AddWatchFlags::IN_IGNORED) {
                self.directories.remove(&wd);
                continue;
            }
            let (Some(name), Some(Directory { path, root })) = (name, self.directories.get(&wd)) else { continue };
            let (path, root) = (path.join(&name), root.clone());
            match mask.contains(AddWatchFlags::IN_ISDIR) {
                true => saved.extend(self.new_directory(&path, root.as_deref(), mask)),
                false if mask.intersects(SAVED) && self.counts(&path, root.as_deref()) => saved.push(path),
                false => {}
            }
        }
        Ok(Some(saved))
    }

    /// Compiled code is told from its source by the second and the size (importlib, PEP 552): of two saves within a second the
    /// first would be served. So what was compiled of a saved file goes.
    pub fn forget_compiled(saved: &Path) {
        let (Some(directory), Some(stem)) = (saved.parent(), saved.file_stem()) else { return };
        let begins = format!("{}.", stem.to_string_lossy());
        for entry in std::fs::read_dir(directory.join("__pycache__")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&begins) && name.ends_with(".pyc") {
                // Somebody else's stays, and so does one that is gone already.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn counts(&self, path: &Path, root: Option<&Path>) -> bool {
        let below = root.and_then(|root| path.strip_prefix(root).ok());
        below.is_some_and(names::counts) || self.files.iter().any(|file| file == path)
    }

    /// Files that are in a new directory already count as saved.
    fn new_directory(&mut self, path: &Path, root: Option<&Path>, mask: AddWatchFlags) -> Vec<PathBuf> {
        let is_new = mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO);
        let Some(root) = root.filter(|_| is_new && path.file_name().is_some_and(names::is_entered)) else {
            return Vec::new();
        };
        let files = self.enter(path, root, DEPTH_MAX);
        files.into_iter().filter(|file| self.counts(file, Some(root))).collect()
    }

    /// Watches a directory and all below it. The files in them.
    fn enter(&mut self, path: &Path, root: &Path, depth: usize) -> Vec<PathBuf> {
        // A virtual environment: what is installed there is not what somebody works at.
        if depth == 0 || path.join("pyvenv.cfg").exists() || !self.add(path, Some(root)) {
            return Vec::new();
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && names::is_entered(&entry.file_name()) => {
                    files.extend(self.enter(&entry.path(), root, depth - 1));
                }
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                Ok(_) | Err(_) => {}
            }
        }
        files
    }

    /// False: it is not watched.
    fn add(&mut self, path: &Path, root: Option<&Path>) -> bool {
        match self.inotify.add_watch(path, WATCHED) {
            Ok(wd) => {
                // The directory of the configuration may be the root of a tree, too: then the tree counts.
                let root = root.map(Path::to_path_buf);
                let known = self.directories.entry(wd).or_insert_with(|| Directory { path: path.into(), root: None });
                known.root = root.or(known.root.take());
                true
            }
            Err(error) => {
                if error == Errno::ENOSPC && !std::mem::replace(&mut self.is_short, true) {
                    log::warn!(
                        "{} and others are not watched: fs.inotify.max_user_watches is reached (sysctl)",
                        path.display()
                    );
                }
                false
            }
        }
    }
}

/// As a person would name it: below the current directory, or the file's name.
pub fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let name = path.file_name().map(OsStr::to_os_string).unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(Path::new(&name)).display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::slice;

    use super::*;

    fn saved(tree: &mut Tree) -> Vec<String> {
        let paths = tree.saved().unwrap().unwrap();
        let mut names: Vec<String> =
            paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        names.dedup();
        names
    }

    #[test]
    fn what_was_compiled_of_a_saved_file_goes() {
        let directory = tempfile::tempdir().unwrap();
        let compiled = directory.path().join("__pycache__");
        fs::create_dir(&compiled).unwrap();
        for name in ["views.cpython-313.pyc", "views.cpython-313.opt-1.pyc", "views_of.cpython-313.pyc"] {
            fs::write(compiled.join(name), "").unwrap();
        }
        Tree::forget_compiled(&directory.path().join("views.py"));
        let left: Vec<_> = fs::read_dir(&compiled).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["views_of.cpython-313.pyc"]);
    }

    #[test]
    fn saved_files_are_told_also_in_new_directories() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("shop");
        fs::create_dir_all(root.join("pages")).unwrap();
        fs::create_dir_all(root.join(".git")).unwrap();
        fs::create_dir_all(root.join("venv")).unwrap();
        fs::write(root.join("venv/pyvenv.cfg"), "").unwrap();
        let configuration = directory.path().join("app.toml");
        let mut tree = Tree::watch(slice::from_ref(&root), slice::from_ref(&configuration)).unwrap();
        assert!(saved(&mut tree).is_empty());
        fs::write(root.join("pages/views.py"), "a = 1").unwrap();
        fs::write(root.join(".git/config.py"), "").unwrap();
        fs::write(root.join("venv/lib.py"), "").unwrap();
        fs::write(root.join("db.sqlite3"), "").unwrap();
        fs::write(directory.path().join("other.toml"), "").unwrap();
        assert_eq!(saved(&mut tree), ["views.py"]);
        // As editors do: another file takes its place.
        fs::write(root.join("pages/.views.py.swp"), "a = 2").unwrap();
        fs::rename(root.join("pages/.views.py.swp"), root.join("pages/views.py")).unwrap();
        fs::write(&configuration, "").unwrap();
        assert_eq!(saved(&mut tree), ["views.py", "app.toml"]);
        fs::create_dir_all(root.join("api/v1")).unwrap();
        fs::write(root.join("api/v1/urls.py"), "").unwrap();
        assert_eq!(saved(&mut tree), ["urls.py"]);
        fs::write(root.join("api/v1/urls.py"), "b").unwrap();
        assert_eq!(saved(&mut tree), ["urls.py"]);
        fs::remove_file(root.join("api/v1/urls.py")).unwrap();
        assert_eq!(saved(&mut tree), ["urls.py"]);
    }
}
