//! Users and groups by name or number, looked up before any fork: getpwnam(3) takes locks and reads files, neither
//! of which a child may do between fork and exec.

use std::ffi::CString;

use nix::unistd::{getgrouplist, Gid, Group, Uid, User};

use super::settings::{Identity, Reader, ReaderId};
use crate::progress;

/// A user as written: a name, or a number with or without a passwd entry.
pub fn find_user(text: &str) -> Result<(u32, Option<User>), String> {
    progress::note(format!("looking up user {text} (NSS)"));
    if let Ok(uid) = text.parse::<u32>() {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(|error| error.desc().to_owned())?;
        return Ok((uid, user));
    }
    match CString::new(text).map_err(|_| "a NUL byte in a name".to_owned()).map(|_| User::from_name(text))? {
        Ok(Some(user)) => Ok((user.uid.as_raw(), Some(user))),
        Ok(None) => match text.split_once(':') {
            Some((user, group)) => {
                Err(format!("user and group are two settings; write user = \"{user}\" and group = \"{group}\""))
            }
            None => Err("there is no such user; create it, or write a number".to_owned()),
        },
        Err(error) => Err(error.desc().to_owned()),
    }
}

pub fn find_group(text: &str) -> Result<u32, String> {
    if let Ok(gid) = text.parse::<u32>() {
        return Ok(gid);
    }
    progress::note(format!("looking up group {text} (NSS)"));
    match CString::new(text).map_err(|_| "a NUL byte in a name".to_owned()).map(|_| Group::from_name(text))? {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group; create it, or write a number".to_owned()),
        Err(error) => Err(error.desc().to_owned()),
    }
}

/// Who may look: a user, or `group:NAME`.
pub fn find_reader(text: &str) -> Result<Reader, String> {
    let who = match text.strip_prefix("group:") {
        Some(group) => ReaderId::Group(find_group(group)?),
        None => ReaderId::User(find_user(text)?.0),
    };
    Ok(Reader { text: text.to_owned(), who })
}

/// Who to become. `Ok(None)`: stay who we are, not asked or already so.
pub fn run_as(
    user: Option<(u32, Option<User>)>,
    group: Option<u32>,
    current_uid: u32,
    current_gid: u32,
) -> Result<Option<Identity>, String> {
    let already =
        user.as_ref().is_none_or(|(uid, _)| *uid == current_uid) && group.is_none_or(|gid| gid == current_gid);
    if already {
        return Ok(None);
    }
    if current_uid != 0 {
        return Err(format!(
            "running as uid {current_uid}, and only root can become another user or group; start as root or remove the line"
        ));
    }
    let (uid, user) = match user {
        Some(found) => found,
        None => (current_uid, User::from_uid(Uid::from_raw(current_uid)).map_err(|error| error.desc().to_owned())?),
    };
    let Some(gid) = group.or(user.as_ref().map(|user| user.gid.as_raw())) else {
        return Err(format!("uid {uid} has no passwd entry, so its group is not known; write `group` as well"));
    };
    let groups = match &user {
        None => vec![gid],
        Some(user) => {
            let name = CString::new(user.name.as_str()).map_err(|_| "a NUL byte in a name".to_owned())?;
            progress::note(format!("looking up the groups of {} (NSS)", user.name));
            let groups = getgrouplist(&name, Gid::from_raw(gid)).map_err(|error| error.desc().to_owned())?;
            groups.into_iter().map(Gid::as_raw).collect()
        }
    };
    let home = user.as_ref().map(|user| user.dir.clone());
    let name = user.map(|user| user.name);
    Ok(Some(Identity { uid, gid, groups, name, home }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let (uid, user) = find_user("nobody").unwrap();
        assert_eq!(find_user(&uid.to_string()).unwrap().1.map(|user| user.name), user.map(|user| user.name));
        let (uid, user) = find_user("3999999999").unwrap();
        assert!(uid == 3_999_999_999 && user.is_none());
        assert!(find_user("no-such-user").unwrap_err().contains("no such user"));
        assert!(find_user("-1").is_err() && find_user("a\0b").is_err() && find_user("").is_err());
        assert_eq!(find_group("12345"), Ok(12345));
        assert!(find_group("no-such-group").unwrap_err().contains("no such group"));
    }

    #[test]
    fn readers_are_users_or_groups() {
        let found = |text: &str| find_reader(text).map(|reader| reader.who);
        assert_eq!((found("1001"), found("group:1001")), (Ok(ReaderId::User(1001)), Ok(ReaderId::Group(1001))));
        assert!(found("group:no-such-group").unwrap_err().contains("no such group"));
        assert!(found("no-such-user").unwrap_err().contains("no such user"));
    }

    #[test]
    fn who_to_become() {
        let nobody = find_user("nobody").unwrap();
        let becomes = run_as(Some(nobody.clone()), None, 0, 0).unwrap().unwrap();
        let gid = nobody.1.as_ref().map(|user| user.gid.as_raw()).unwrap();
        assert_eq!((becomes.uid, becomes.gid), (nobody.0, gid));
        assert!(becomes.groups.contains(&gid) && becomes.name.as_deref() == Some("nobody"));
        assert!(becomes.home.is_some());
        // Nothing asked, or already so.
        assert_eq!(run_as(None, None, 0, 0), Ok(None));
        assert_eq!(run_as(Some(nobody.clone()), None, nobody.0, 7), Ok(None));
        // Without a passwd entry the group must be said.
        assert!(run_as(Some((10_001, None)), None, 0, 0).unwrap_err().contains("`group`"));
        let becomes = run_as(Some((10_001, None)), Some(10_002), 0, 0).unwrap().unwrap();
        let expected = Identity { uid: 10_001, gid: 10_002, groups: vec![10_002], name: None, home: None };
        assert_eq!(becomes, expected);
        assert!(run_as(Some(nobody), None, 1000, 1000).unwrap_err().contains("only root"));
        assert!(run_as(None, Some(5), 1000, 1000).unwrap_err().contains("only root"));
        assert_eq!(run_as(None, Some(5), 0, 0).unwrap().unwrap().gid, 5);
    }
}
