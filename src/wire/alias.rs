//! The other names of a release: paths that lead to it, or to a directory above it, through a symbolic link. The next
//! deploy changes the link, and a generation keeps to the directory that it led to.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A name with a link in it, and the real directory that it led to when the generation was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    pub name: PathBuf,
    pub real: PathBuf,
}

/// `path` by its real name. None: no alias is in it. The longest ones come first in `aliases`.
pub fn pinned(aliases: &[Alias], path: &Path) -> Option<PathBuf> {
    let found = aliases.iter().find_map(|alias| Some((alias, path.strip_prefix(&alias.name).ok()?)));
    // `join` with nothing would end in a slash.
    found.map(|(alias, behind)| alias.real.components().chain(behind.components()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_an_alias_gets_its_real_name_and_no_other_does() {
        let alias = |name: &str, real: &str| Alias { name: name.into(), real: real.into() };
        let aliases = [alias("/srv/current/app", "/srv/42/app"), alias("/srv/current", "/srv/42")];
        let pinned = |path: &str| pinned(&aliases, Path::new(path));
        assert_eq!(pinned("/srv/current/app/lib"), Some("/srv/42/app/lib".into()));
        assert_eq!(pinned("/srv//current/lib/./x/").as_deref(), Some(Path::new("/srv/42/lib/x")));
        let text = pinned("/srv/current/").unwrap();
        assert_eq!(text.to_str(), Some("/srv/42"));
        assert_eq!(pinned("/srv/currently/lib"), None);
        assert_eq!(pinned("/srv/42/lib"), None);
        assert_eq!(pinned("lib"), None);
    }
}
