//! The history's file: lines are appended, and what is in it is read once. It has a bound: beyond it the file's lines go to a
//! second one, whose lines are forgotten. Whatever moment a kill finds, each line is whole in one of the two, or in both,
//! or it is the torn last one, which nobody reads.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::facts::history::Entry;
use crate::files;

/// Each of the two files; some hundred deploys.
const BYTES_MAX: u64 = 512 * 1024;

/// What is read of a file at most: it may have been somebody else's.
const READ_BYTES_MAX: u64 = 2 * BYTES_MAX;

/// Appends lines.
pub fn keep(path: &Path, lines: &[String]) -> io::Result<()> {
    let mut text = lines.concat();
    let before = read_text(path).unwrap_or_default();
    let mut file = append(path)?;
    if before.len() as u64 + text.len() as u64 > BYTES_MAX {
        // The second file is whole before the first one is emptied.
        let mut second = append(&second(path))?;
        second.set_len(0)?;
        second.write_all(before.as_bytes())?;
        second.sync_data()?;
        file.set_len(0)?;
    } else if !before.is_empty() && !before.ends_with('\n') {
        // The torn line of a master that was killed, or of a disk that was full.
        text.insert(0, '\n');
    }
    file.write_all(text.as_bytes())
}

/// The entries of both files, oldest first, once each.
pub fn read(path: &Path) -> Vec<Entry> {
    let mut seen = std::collections::HashSet::new();
    let texts = [second(path), path.to_owned()].map(|path| read_text(&path).unwrap_or_default());
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| seen.insert(line.to_owned()));
    lines.filter_map(Entry::from_line).collect()
}

fn second(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn append(path: &Path) -> io::Result<File> {
    let mut appended = files::append(path, None)?;
    // It is to stay.
    appended.made.take().into_iter().for_each(files::Made::keep);
    let file: OwnedFd = appended.file;
    Ok(file.into())
}

fn read_text(path: &Path) -> io::Result<String> {
    let (file, _) = files::read(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::history::Deploy;

    fn line(number: usize) -> String {
        let deploy = Deploy { reason: format!("{number} {}", "x".repeat(900)), ..Deploy::default() };
        Entry::Deploy(Box::new(deploy)).to_line() + "\n"
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
        assert!(bytes(&path) <= BYTES_MAX && bytes(&second(&path)) <= BYTES_MAX);
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
        // Killed when the second file was whole and the first not yet empty: each line counts once.
        std::fs::copy(&path, second(&path)).unwrap();
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
