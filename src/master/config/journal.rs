//! Whether stderr is systemd's journal: $JOURNAL_STREAM names the device and the inode of the stream that the service
//! was given (systemd.exec(5)). A stderr that was turned elsewhere has others.

use std::ffi::OsStr;

use nix::sys::stat::fstat;

use super::environment::Environment;

pub fn is_stderr(environment: &Environment) -> bool {
    let named = environment.get(OsStr::new("JOURNAL_STREAM")).and_then(|value| value.to_str());
    let found = fstat(std::io::stderr()).map(|stat| format!("{}:{}", stat.st_dev, stat.st_ino));
    named.is_some_and(|named| found.is_ok_and(|found| found == named))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_counts_only_where_it_names_this_stream() {
        let with = |value: &str| is_stderr(&[("JOURNAL_STREAM".into(), value.into())].into());
        let stat = fstat(std::io::stderr()).unwrap();
        assert!(with(&format!("{}:{}", stat.st_dev, stat.st_ino)));
        assert!(!with(&format!("{}:{}", stat.st_dev, stat.st_ino + 1)));
        assert!(!with("nonsense") && !is_stderr(&Environment::new()));
    }
}
