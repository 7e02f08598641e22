//! Real files, links and FIFOs, as root and as somebody else: what is opened with whose rights, and what is refused.

use super::*;
use std::io::{Read, Write};
use std::os::unix::fs::{chown, symlink, MetadataExt, PermissionsExt};

const NOBODY: u32 = 65534;

fn nobody() -> Rights {
    Rights { uid: NOBODY, gid: NOBODY, groups: vec![NOBODY] }
}

/// A directory that all may enter: root's (or whoever runs the tests), with one of nobody's in it where that can be.
struct Place {
    directory: tempfile::TempDir,
    root: bool,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let place = Place { directory, root: geteuid().is_root() };
        std::fs::create_dir(place.path("app")).unwrap();
        place.give_to_nobody("app");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn give_to_nobody(&self, name: &str) {
        if self.root {
            std::os::unix::fs::lchown(self.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

fn say(log: Appended, text: &str) {
    std::fs::File::from(log.file).write_all(text.as_bytes()).unwrap();
    log.made.into_iter().for_each(Made::keep);
}

fn refusal<T>(result: io::Result<T>) -> (io::ErrorKind, String) {
    let error = result.err().expect("it is refused");
    (error.kind(), error.to_string())
}

#[test]
fn a_log_is_made_appended_to_and_never_truncated() {
    let place = Place::new();
    let path = place.path("a.log");
    say(append(&path, None).unwrap(), "one\n");
    say(append(&path, None).unwrap(), "two\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    let (kind, text) = refusal(append(&place.path("none/a.log"), None));
    assert_eq!(kind, io::ErrorKind::NotFound, "{text}");
    assert!(refusal(append(&place.path("app"), None)).1.contains("a directory"));
    say(append(Path::new("/dev/null"), None).unwrap(), "gone\n");
}

#[test]
fn links_of_root_are_followed_and_those_in_a_public_directory_are_not() {
    let place = Place::new();
    std::fs::create_dir(place.path("data")).unwrap();
    symlink("data/real.log", place.path("a.log")).unwrap();
    say(append(&place.path("a.log"), Some(&nobody())).unwrap(), "line\n");
    assert_eq!(std::fs::read_to_string(place.path("data/real.log")).unwrap(), "line\n");
    if !place.root {
        return;
    }
    // As /tmp is.
    std::fs::create_dir(place.path("public")).unwrap();
    std::fs::set_permissions(place.path("public"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    symlink(place.write("precious", "", 0o600), place.path("public/a.log")).unwrap();
    place.give_to_nobody("public/a.log");
    let (kind, text) = refusal(append(&place.path("public/a.log"), Some(&nobody())));
    assert_eq!(kind, io::ErrorKind::PermissionDenied);
    assert!(text.contains("a symbolic link that somebody else has made (uid 65534)"), "{text}");
    symlink("a", place.path("b")).unwrap();
    symlink("b", place.path("a")).unwrap();
    assert!(refusal(append(&place.path("a"), None)).1.contains("Too many levels of symbolic links"));
}

#[test]
fn in_the_applications_directory_only_its_own_rights_count() {
    let place = Place::new();
    if !place.root {
        return;
    }
    let precious = place.write("precious", "secret\n", 0o600);
    symlink(&precious, place.path("app/access.log")).unwrap();
    symlink(&precious, place.path("app/app.pid")).unwrap();
    symlink(&precious, place.path("app/.env")).unwrap();
    for application in [Some(nobody()), None] {
        let application = application.as_ref();
        let failures = [
            refusal(append(&place.path("app/access.log"), application)),
            refusal(pid_file(&place.path("app/app.pid"), application)),
            refusal(read(&place.path("app/.env"))),
        ];
        for (kind, text) in failures {
            assert_eq!(kind, io::ErrorKind::PermissionDenied, "{text}");
            assert!(text.starts_with("Permission denied (with the rights of uid 65534, since /"), "{text}");
        }
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "secret\n");
    // Nor is a whole directory swapped for another.
    std::fs::create_dir(place.path("etc")).unwrap();
    symlink(place.path("etc"), place.path("app/logs")).unwrap();
    refusal(append(&place.path("app/logs/a.log"), Some(&nobody())));
    assert_eq!(std::fs::read_dir(place.path("etc")).unwrap().count(), 0);
    // What it may do itself, it may have done.
    say(append(&place.path("app/own.log"), Some(&nobody())).unwrap(), "line\n");
    let meta = place.path("app/own.log").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.len()), (NOBODY, NOBODY, 5));
    // This thread has the rights it had.
    // SAFETY: -1 changes nothing.
    assert_eq!(unsafe { libc::setfsuid(u32::MAX) }, 0);
    std::fs::read_to_string(&precious).unwrap();
}

#[test]
fn a_directory_that_the_applications_group_may_write_to_is_the_applications() {
    let place = Place::new();
    if !place.root {
        return;
    }
    std::fs::create_dir(place.path("shared")).unwrap();
    chown(place.path("shared"), Some(0), Some(NOBODY)).unwrap();
    std::fs::set_permissions(place.path("shared"), std::fs::Permissions::from_mode(0o775)).unwrap();
    say(append(&place.path("shared/a.log"), Some(&nobody())).unwrap(), "");
    assert_eq!(place.path("shared/a.log").metadata().unwrap().uid(), NOBODY);
    say(append(&place.path("shared/b.log"), None).unwrap(), "");
    assert_eq!(place.path("shared/b.log").metadata().unwrap().uid(), 0);
}

#[test]
fn second_names_and_others_pid_files_are_refused() {
    let place = Place::new();
    let precious = place.write("precious", "", 0o644);
    std::fs::hard_link(&precious, place.path("a.log")).unwrap();
    assert!(refusal(append(&place.path("a.log"), None)).1.contains("2 names (hard links)"));
    assert!(refusal(pid_file(&place.path("a.log"), None)).1.contains("2 names (hard links)"));
    if place.root {
        place.write("theirs.pid", "1\n", 0o644);
        place.give_to_nobody("theirs.pid");
        let (_, text) = refusal(pid_file(&place.path("theirs.pid"), Some(&nobody())));
        assert!(text.contains("belongs to somebody else (uid 65534)"), "{text}");
    }
}

#[test]
fn a_fifo_without_a_reader_takes_lines_and_is_not_waited_for() {
    let place = Place::new();
    let path = place.path("fifo");
    nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    let log = append(&path, None).unwrap();
    let flags = fcntl(&log.file, FcntlArg::F_GETFL).unwrap();
    assert_eq!(flags & (libc::O_NONBLOCK | libc::O_ACCMODE), libc::O_WRONLY);
    nix::unistd::write(&log.file, b"early\n").unwrap();
    // Whoever comes later reads it.
    let mut late = std::fs::File::open(&path).unwrap();
    drop(log);
    let mut text = String::new();
    late.read_to_string(&mut text).unwrap();
    assert_eq!(text, "early\n");
    assert!(refusal(pid_file(&path, None)).1.contains("not a regular file"));
    // A configuration is no FIFO, but saying so is not for this file.
    read(&path).unwrap();
}

#[test]
fn a_read_file_says_where_it_really_lies() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("releases/1/conf")).unwrap();
    place.write("releases/1/app.toml", "text", 0o644);
    symlink("releases/1", place.path("current")).unwrap();
    let (mut file, real) = read(&place.path("current/conf/../app.toml")).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), real), ("text", place.path("releases/1/app.toml")));
}

#[test]
fn a_log_that_was_made_and_is_not_kept_is_removed_while_it_is_empty() {
    let place = Place::new();
    // Made with root's rights, and with those of the directory's owner.
    for name in ["a.log", "app/a.log"] {
        let path = place.path(name);
        let made = || append(&path, Some(&nobody())).unwrap().made.expect("it was not there");
        drop(made());
        assert!(!path.exists(), "{name}");
        made().keep();
        assert!(append(&path, None).unwrap().made.is_none(), "it was there");
        std::fs::remove_file(&path).unwrap();
        // Somebody has written to it.
        let not_empty = made();
        std::fs::write(&path, "line\n").unwrap();
        drop(not_empty);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line\n");
        std::fs::remove_file(&path).unwrap();
        // Another file has its name.
        let moved = made();
        std::fs::rename(&path, place.path("moved")).unwrap();
        std::fs::write(&path, "").unwrap();
        drop(moved);
        assert!(path.exists() && place.path("moved").exists());
        std::fs::remove_file(&path).unwrap();
    }
}
