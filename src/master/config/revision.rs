//! Which state of its source a release is, for the history: the first line of a file RELEASE or REVISION (Capistrano writes
//! one) in its directory, or the commit that git has checked out there. Nothing is run for it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A line for people.
const CHARS_MAX: usize = 100;

/// Of each file that is read: packed-refs of a large repository has megabytes, and this is only a name.
const BYTES_MAX: u64 = 256 * 1024;

pub fn of(release: &Path) -> Option<String> {
    let line = |name: &str| first_line(&release.join(name));
    line("RELEASE").or_else(|| line("REVISION")).or_else(|| commit(release))
}

fn commit(release: &Path) -> Option<String> {
    let git = release.join(".git");
    // A file in a worktree of its own: gitrepository-layout(5).
    let git = match first_line(&git) {
        Some(line) => release.join(line.strip_prefix("gitdir: ")?),
        None => git,
    };
    let head = first_line(&git.join("HEAD"))?;
    let Some(name) = head.strip_prefix("ref: ") else { return Some(head) };
    let common = first_line(&git.join("commondir")).map_or_else(|| git.clone(), |common| git.join(common));
    let packed = || {
        let text = text(&common.join("packed-refs"))?;
        let found = text.lines().find_map(|line| line.strip_suffix(name)?.strip_suffix(' ').map(str::to_owned));
        found
    };
    first_line(&common.join(name)).or_else(packed)
}

fn first_line(path: &Path) -> Option<String> {
    let text = text(path)?;
    let line: String = text.lines().next()?.trim().chars().filter(|char| !char.is_control()).take(CHARS_MAX).collect();
    (!line.is_empty()).then_some(line)
}

fn text(path: &Path) -> Option<String> {
    // A FIFO would have to be waited for.
    path.metadata().ok().filter(|meta| meta.is_file())?;
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_named_by_its_file_or_its_commit() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let found = || of(directory.path());
        assert_eq!(found(), None);
        write(".git/HEAD", "ref: refs/heads/main\n");
        assert_eq!(found(), None);
        write(".git/packed-refs", "# pack-refs\n1111 refs/heads/old\n2222 refs/heads/main\n");
        assert_eq!(found().as_deref(), Some("2222"));
        write(".git/refs/heads/main", "3333\n");
        assert_eq!(found().as_deref(), Some("3333"));
        write(".git/HEAD", "4444\n");
        assert_eq!(found().as_deref(), Some("4444"));
        write("REVISION", "5555\n");
        assert_eq!(found().as_deref(), Some("5555"));
        write("RELEASE", "  shop 1.4 \u{7}(blue)\nmore\n");
        assert_eq!(found().as_deref(), Some("shop 1.4 (blue)"));
        write("RELEASE", &"x".repeat(4000));
        assert_eq!(found().map(|line| line.len()), Some(CHARS_MAX));
    }
}
