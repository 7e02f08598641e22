//! The history's file: lines are appended, and what is in it is read once. It has a bound: beyond it the file gets a second
//! name, and the one that had it is forgotten. Whatever moment a kill finds, each line is whole in one of the two, or it is the
//! torn last one, which nobody reads. That takes no room on a disk that is full. Several masters may have one file: a line
//! goes to the end of whichever it was when it was opened, and one of them at a time gives it the other name.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::facts::history::Entry;
use crate::files;

/// Each of the two files; some hundred deploys.
const BYTES_MAX: u64 = 512 * 1024;

/// What is read of a file at most: it may have been somebody else's.
const READ_BYTES_MAX: u64 = 2 * BYTES_MAX;

/// Appends lines.
pub fn keep(path: &Path, lines: &[String]) -> io::Result<()> {
    let mut text = lines.concat();
    let mut file = append(path)?;
    if file.metadata()?.is_file() && file.metadata()?.len() + text.len() as u64 > BYTES_MAX {
        file = set_aside(path, file)?;
    }
    if is_torn(path) {
        // The line of a master that was killed, or of a disk that was full.
        text.insert(0, '\n');
    }
    file.write_all(text.as_bytes())
}

/// The file that there is now. Where another master sets it aside just then, it may be the same.
fn set_aside(path: &Path, file: File) -> io::Result<File> {
    // Nobody is waited for: anybody who may read the file could keep it locked.
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(locked) => files::rename(path, &*locked, second)?,
        Err((file, _)) => return Ok(file),
    }
    append(path)
}

/// The entries of both files, oldest first, once each.
pub fn read(path: &Path) -> Vec<Entry> {
    let mut seen = std::collections::HashSet::new();
    let real = files::read(path).map_or_else(|_| path.to_owned(), |(_, real)| real);
    let before = real.file_name().map_or_else(|| real.clone(), |name| real.with_file_name(second(name.to_owned())));
    let texts = [before, path.to_owned()].map(|path| read_text(&path).unwrap_or_default());
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| seen.insert(line.to_owned()));
    lines.filter_map(Entry::from_line).collect()
}

fn second(mut name: OsString) -> OsString {
    name.push(".1");
    name
}

fn append(path: &Path) -> io::Result<File> {
    let mut appended = files::append(path, None)?;
    // It is to stay.
    appended.made.take().into_iter().for_each(files::Made::keep);
    let file: OwnedFd = appended.file;
    Ok(file.into())
}

fn is_torn(path: &Path) -> bool {
    let last = || -> io::Result<u8> {
        let mut file = regular(path)?;
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        Ok(last[0])
    };
    // An empty file has no last byte.
    last().is_ok_and(|last| last != b'\n')
}

fn regular(path: &Path) -> io::Result<File> {
    let (file, _) = files::read(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    regular(path)?.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::facts::history::Deploy;

    fn line(number: usize) -> String {
        let deploy = Deploy { reason: format!("{number} {}", "x".repeat(900)), ..Deploy::default() };
        Entry::Deploy(Box::new(deploy)).to_line() + "\n"
    }

    fn before(path: &Path) -> PathBuf {
        path.with_file_name(second(path.file_name().unwrap().to_owned()))
    }

    fn numbers(path: &Path) -> Vec<usize> {
        let number = |entry: Entry| match entry {
            Entry::Deploy(deploy) => deploy.reason.split(' ').next().unwrap().parse().unwrap(),
            Entry::Served(_) => unreachable!("none was written"),
        };
        read(path).into_iter().map(number).collect()
    }

    #[test]
    fn lines_are_kept_within_the_bound_and_the_latest_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        assert!(read(&path).is_empty());
        for number in 0..2000 {
            keep(&path, &[line(number)]).unwrap();
        }
        let found = numbers(&path);
        assert!(found.windows(2).all(|two| two[1] == two[0] + 1), "{found:?}");
        assert!(found.last() == Some(&1999) && found.len() > 400, "{}", found.len());
        let bytes = |path: &Path| path.metadata().unwrap().len();
        assert!(bytes(&path) <= BYTES_MAX && bytes(&before(&path)) <= BYTES_MAX);
    }

    #[test]
    fn masters_that_share_a_file_lose_no_line_of_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        // As many as fit into the two files.
        let (masters, lines) = (4, 150);
        std::thread::scope(|scope| {
            for master in 0..masters {
                let path = &path;
                scope.spawn(move || {
                    for number in 0..lines {
                        keep(path, &[line(master * lines + number)]).unwrap();
                    }
                });
            }
        });
        let mut found = numbers(&path);
        found.sort_unstable();
        assert!(before(&path).exists(), "the bound was met");
        assert_eq!(found, Vec::from_iter(0..masters * lines));
    }

    #[test]
    fn what_somebody_locks_is_waited_for_by_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        std::fs::write(&path, "x".repeat(BYTES_MAX as usize) + "\n").unwrap();
        let locked = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap();
        keep(&path, &[line(0)]).unwrap();
        assert!(!before(&path).exists() && numbers(&path) == [0]);
        drop(locked);
        keep(&path, &[line(1)]).unwrap();
        assert!(before(&path).exists() && numbers(&path) == [0, 1]);
    }

    #[test]
    fn what_is_no_line_of_ours_is_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        let mut text = line(0).into_bytes();
        text.extend(b"\xff\xfe\0\n\n{}\nnull\n[1]\n{\"what\":\"deploy\",\"at\":7}\n");
        text.extend(b"{\"what\":\"canary\",\"verdict\":\"good\"}\n");
        let later = line(1).replacen("\"what\"", "\"who_knows\":{\"a\":[1,2]},\"what\"", 1);
        text.extend(later.as_bytes());
        text.extend(b"\xc3");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(numbers(&path), [0, 1]);
        keep(&path, &[line(2)]).unwrap();
        assert_eq!(numbers(&path), [0, 1, 2]);
    }

    #[test]
    fn the_second_file_lies_beside_the_first_wherever_a_link_leads() {
        let directory = tempfile::tempdir().unwrap();
        let (path, real) = (directory.path().join("link"), directory.path().join("real"));
        std::os::unix::fs::symlink(&real, &path).unwrap();
        for number in 0..700 {
            keep(&path, &[line(number)]).unwrap();
        }
        assert!(before(&real).exists() && path.is_symlink());
        assert_eq!(numbers(&path), Vec::from_iter(0..700));
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.jsonl");
        keep(&path, &[line(0), line(1)]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [whole.len() - 1, whole.len() - 5, line(0).len() + 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            keep(&path, &[line(2)]).unwrap();
            let expected: &[usize] = if cut == whole.len() - 1 { &[0, 1, 2] } else { &[0, 2] };
            assert_eq!(numbers(&path), expected, "{cut}");
        }
        // One that was written twice counts once.
        std::fs::copy(&path, before(&path)).unwrap();
        assert_eq!(numbers(&path), [0, 2]);
    }

    #[test]
    fn what_cannot_be_written_is_an_error_and_what_is_no_file_is_no_history() {
        let directory = tempfile::tempdir().unwrap();
        assert!(keep(&directory.path().join("missing").join("history.jsonl"), &[line(0)]).is_err());
        assert!(keep(directory.path(), &[line(0)]).is_err() && read(directory.path()).is_empty());
        assert!(keep(Path::new("/dev/full"), &[line(0)]).is_err());
    }
}
