//! The directories that a generation is made of: its release, its virtualenv, those of `pythonpath`. Their names may lead to
//! others by the time that something is imported (`mv app app.old; mv app.new app`), so the directories themselves are held
//! open. An import finds what was there when the generation was made, wherever that lies by now.
//!
//! Absent: files that the application opens by a name which it has put together earlier.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use forkmaster_wire::alias::{self, Alias};
use forkmaster_wire::message::{Boot, GenerationId};
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyList, PyTuple};

/// Shared by all who import. Its lock is taken with the interpreter's only, so no fork copies it locked.
#[derive(Clone)]
pub struct Pinned(Arc<Mutex<Directories>>);

struct Directories {
    generation: GenerationId,
    held: Vec<Held>,
    /// Names with a link in them, and what they led to.
    links: Vec<Alias>,
    /// All names that lead elsewhere by now, or will with the next deploy. The longest first.
    aliases: Vec<Alias>,
}

struct Held {
    directory: File,
    id: (u64, u64),
    at: At,
    /// All that it was called so far. The first one is the generation's.
    names: Vec<PathBuf>,
}

#[derive(Clone, PartialEq, Eq)]
enum At {
    /// It has this name.
    Name(PathBuf),
    /// It has no name any more, and another one has the name that it had. With the path that still leads to it.
    Lost(PathBuf),
}

impl At {
    fn path(&self) -> &Path {
        match self {
            At::Name(path) | At::Lost(path) => path,
        }
    }
}

impl Held {
    /// None: there is no such directory, which the application will find out by itself.
    fn open(name: &Path) -> Option<Held> {
        let directory = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(name).ok()?;
        let id = id(&directory.metadata().ok()?);
        Some(Held { directory, id, at: At::Name(name.to_owned()), names: vec![name.to_owned()] })
    }

    /// Where it lies now, if that is not where it lay. In doubt it lies where it did.
    fn moved(&self) -> Option<At> {
        let is_another = match self.at.path().metadata() {
            Ok(found) if id(&found) == self.id => return None,
            Ok(_) => true,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => false,
            Err(_) => return None,
        };
        // The application may have closed the descriptor, and then the number is another file's.
        if id(&self.directory.metadata().ok()?) != self.id {
            return None;
        }
        let through = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()));
        let name = through.read_link().ok().filter(|name| name.metadata().is_ok_and(|found| id(&found) == self.id));
        match name {
            Some(name) => Some(At::Name(name)),
            // Where nothing has its name, nothing wrong is found there.
            None => is_another.then_some(At::Lost(through)),
        }
    }
}

fn id(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

impl Directories {
    /// Follows those that lie elsewhere by now. False: none does.
    fn follow(&mut self) -> bool {
        let mut moved: Vec<PathBuf> = Vec::new();
        for held in &mut self.held {
            let Some(at) = held.moved() else { continue };
            let name = &held.names[0];
            // A virtualenv in a release goes along with it.
            if !moved.iter().any(|other| name.starts_with(other)) {
                tell(self.generation, name, &at);
            }
            moved.push(name.clone());
            if let At::Name(name) = &at {
                if !held.names.contains(name) {
                    held.names.push(name.clone());
                }
            }
            held.at = at;
        }
        if !moved.is_empty() {
            self.aliases = self.aliases_now();
        }
        !moved.is_empty()
    }

    fn aliases_now(&self) -> Vec<Alias> {
        let former = |held: &Held| {
            let real = held.at.path().to_owned();
            held.names.clone().into_iter().filter(move |name| *name != real).collect::<Vec<_>>()
        };
        let moved = self
            .held
            .iter()
            .flat_map(|held| former(held).into_iter().map(|name| Alias { name, real: held.at.path().to_owned() }));
        let mut moved: Vec<Alias> = moved.collect();
        moved.sort_by_key(|alias| std::cmp::Reverse(alias.name.components().count()));
        let real = |link: &Alias| alias::pinned(&moved, &link.real).unwrap_or_else(|| link.real.clone());
        let mut all: Vec<Alias> =
            self.links.iter().map(|link| Alias { name: link.name.clone(), real: real(link) }).collect();
        all.append(&mut moved);
        all.sort_by_key(|alias| std::cmp::Reverse(alias.name.components().count()));
        all
    }
}

fn tell(generation: GenerationId, name: &Path, at: &At) {
    let shown = name.display();
    match at {
        At::Name(now) if now == name => log::info!("generation gen={generation}: {shown} is back in its place"),
        At::Name(now) => log::warn!(
            "generation gen={generation}: {shown} was renamed while it serves: its modules are imported from {} until the \
             next reload",
            now.display()
        ),
        At::Lost(_) => log::warn!(
            "generation gen={generation}: {shown} was removed while it serves, and another directory has its name: nothing \
             is imported from that one before `forkmaster reload` deploys it"
        ),
    }
}

impl Pinned {
    /// Holds the directories from now on, and has all imports keep to them.
    pub fn hold(py: Python<'_>, boot: &Boot) -> PyResult<Pinned> {
        let sys = py.import("sys")?;
        let prefix: PathBuf = sys.getattr("prefix")?.extract()?;
        let is_venv = prefix != sys.getattr("base_prefix")?.extract::<PathBuf>()?;
        let names = std::iter::once(&boot.release).chain(is_venv.then_some(&prefix)).chain(&boot.pythonpath);
        let held = names.filter_map(|name| Held::open(name)).collect();
        let links = boot.aliases.clone();
        let directories = Directories { generation: boot.generation, held, aliases: links.clone(), links };
        let pinned = Pinned(Arc::new(Mutex::new(directories)));
        if !boot.aliases.is_empty() {
            pinned.rename_entries(&sys)?;
        }
        pinned.watch_imports(&sys)?;
        Ok(pinned)
    }

    /// Looks where the directories lie.
    pub fn follow(&self, py: Python<'_>) -> PyResult<()> {
        let moved = self.directories(Directories::follow);
        if moved {
            self.rename_entries(&py.import("sys")?)?;
        }
        Ok(())
    }

    /// A directory of which nothing can be imported any more, since another one has its name.
    pub fn lost(&self) -> Option<PathBuf> {
        self.directories(|directories| {
            let lost = directories.held.iter().find(|held| matches!(held.at, At::Lost(_)))?;
            Some(lost.names[0].clone())
        })
    }

    fn directories<T>(&self, with: impl FnOnce(&mut Directories) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn real(&self, path: &Path) -> Option<PathBuf> {
        self.directories(|directories| alias::pinned(&directories.aliases, path))
    }

    /// What PYTHONPATH, `.pth` files and we have put on `sys.path` gets the name by which it is found.
    fn rename_entries(&self, sys: &Bound<'_, PyModule>) -> PyResult<()> {
        let path = sys.getattr("path")?.cast_into::<PyList>()?;
        for place in 0..path.len() {
            // Any object may stand there.
            let Ok(entry) = path.get_item(place)?.extract::<PathBuf>() else {
                continue;
            };
            if let Some(real) = self.real(&entry) {
                path.set_item(place, real.as_os_str())?;
            }
        }
        // Finders that were made for such names before.
        sys.getattr("path_importer_cache")?.call_method0("clear")?;
        Ok(())
    }

    /// What the application puts on `sys.path` later keeps its name, and so do packages that were imported before; both are
    /// looked for in the pinned directories all the same. Whether these lie where they did is asked where a module is
    /// imported for the first time.
    fn watch_imports(&self, sys: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = sys.py();
        let pinned = self.clone();
        let hook = move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
            let entry = arguments.get_item(0)?.extract::<PathBuf>().ok();
            match entry.and_then(|entry| pinned.real(&entry)) {
                Some(real) => finder_of(arguments.py(), &real),
                None => Err(PyImportError::new_err("no other name of the release")),
            }
        };
        let hook = PyCFunction::new_closure(py, Some(c"forkmaster_pinned"), None, hook)?;
        sys.getattr("path_hooks")?.call_method1("insert", (0, hook))?;
        let pinned = self.clone();
        let find = move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
            pinned.follow(arguments.py())?;
            Ok(arguments.py().None())
        };
        let find = PyCFunction::new_closure(py, Some(c"forkmaster_follow"), None, find)?;
        // It finds nothing itself: whoever comes next does.
        let finder = PyDict::new(py);
        finder.set_item("find_spec", find)?;
        let finder = py.import("types")?.getattr("SimpleNamespace")?.call((), Some(&finder))?;
        sys.getattr("meta_path")?.call_method1("insert", (0, finder))?;
        Ok(())
    }
}

/// What the other hooks have for this path. None of them asks ours again: the path is real.
fn finder_of(py: Python<'_>, path: &Path) -> PyResult<Py<PyAny>> {
    for hook in py.import("sys")?.getattr("path_hooks")?.try_iter()? {
        match hook?.call1((path.as_os_str(),)) {
            Ok(finder) => return Ok(finder.unbind()),
            Err(error) if error.is_instance_of::<PyImportError>(py) => {}
            Err(error) => return Err(error),
        }
    }
    Err(PyImportError::new_err("no finder for it"))
}
