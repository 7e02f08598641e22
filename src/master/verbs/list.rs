//! `list`: the masters of this machine, as far as the kernel lists their sockets and this user may see them. It asks
//! nothing of other users' masters.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use forkmaster_wire::json;
use serde::Serialize;

use super::ask::{ask, read};
use super::{find, output};
use crate::doors::peer::Peer;
use crate::doors::protocol::Request;
use crate::doors::socket_file::{lock_path, try_connect};
use crate::exit_code::ExitCode;
use crate::facts::snapshot::Snapshot;

/// One stuck master must not keep the others from being listed.
const STATE_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Serialize)]
struct Row {
    name: String,
    /// None: it cannot be seen.
    pid: Option<i32>,
    uid: u32,
    /// Only of this user's own masters.
    state: Option<String>,
    socket: String,
}

pub fn list(json: bool) -> ExitCode {
    let mut rows: Vec<Row> = find::listed().into_iter().filter_map(|path| row(&path)).collect();
    rows.sort_unstable_by(|one, other| (&one.name, &one.socket).cmp(&(&other.name, &other.socket)));
    // A listening socket is listed once more for each client that waits to be accepted.
    rows.dedup_by(|one, other| one.socket == other.socket);
    match json {
        true => {
            let rows = json::value(&rows).to_string();
            output::print(format_args!("{}\n", output::printable_json(&rows)));
        }
        false => output::print(output::printable(&table(&rows))),
    }
    ExitCode::Done
}

/// None: it is no master's, or its file cannot be seen from here.
fn row(path: &Path) -> Option<Row> {
    let file = std::fs::symlink_metadata(path).ok().filter(|file| file.file_type().is_socket())?;
    if !is_of_forkmaster(path) {
        return None;
    }
    let ours = nix::unistd::geteuid().as_raw();
    let connected = try_connect(path).ok();
    let peer = connected.as_ref().and_then(|connected| Peer::of(connected).ok());
    let is_ours = peer.is_some_and(|peer| peer.uid == ours);
    let state = connected.filter(|_| is_ours).map(|connected| {
        let mut stream = std::os::unix::net::UnixStream::from(connected);
        let asked = stream.set_nonblocking(false).map_err(Into::into);
        let line = asked.and_then(|()| ask(&mut stream, &Request::Status, Some(STATE_WITHIN)));
        let state = line.and_then(|line| read::<Snapshot>(&line)).map(|snapshot| snapshot.state.into_owned());
        state.unwrap_or_else(|_| "does not answer".to_owned())
    });
    Some(Row {
        name: name(path),
        pid: peer.map(|peer| peer.pid).filter(|pid| *pid != 0),
        uid: peer.map_or(file.uid(), |peer| peer.uid),
        state,
        socket: path.to_string_lossy().into_owned(),
    })
}

/// In one of its own directories, or with its lock beside it.
fn is_of_forkmaster(path: &Path) -> bool {
    let directory = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    let is_usual = directory.is_some_and(|name| name == "forkmaster" || name.starts_with("forkmaster-"));
    is_usual || std::fs::symlink_metadata(lock_path(path)).is_ok_and(|lock| lock.is_file())
}

/// As in `places`: the name, in shared memory with the container's number.
fn name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    match (path.starts_with("/dev/shm"), stem.rsplit_once('-')) {
        (true, Some((name, number))) if number.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
        (_, Some(_) | None) => stem,
    }
}

fn table(rows: &[Row]) -> String {
    let header = ["NAME", "PID", "UID", "STATE", "SOCKET"].map(str::to_owned);
    let cells = rows.iter().map(|row| {
        let pid = row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let state = row.state.clone().unwrap_or_else(|| "-".to_owned());
        [row.name.clone(), pid, row.uid.to_string(), state, row.socket.clone()]
    });
    let lines: Vec<[String; 5]> = [header].into_iter().chain(cells).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let shown = lines.iter().map(|[name, pid, uid, state, socket]| {
        let [a, b, c, d] = widths;
        format!("{name:a$}  {pid:>b$}  {uid:>c$}  {state:d$}  {socket}\n")
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_columns() {
        let row = |name: &str, pid, state: Option<&str>| Row {
            name: name.to_owned(),
            pid,
            uid: 1000,
            state: state.map(str::to_owned),
            socket: format!("/run/{name}.sock"),
        };
        let text = "NAME   PID   UID  STATE    SOCKET\n\
                    shop    71  1000  running  /run/shop.sock\n\
                    zebra    -  1000  -        /run/zebra.sock\n";
        assert_eq!(table(&[row("shop", Some(71), Some("running")), row("zebra", None, None)]), text);
    }

    #[test]
    fn names_come_from_files() {
        assert_eq!(name(Path::new("/run/forkmaster/shop-2.sock")), "shop-2");
        assert_eq!(name(Path::new("/dev/shm/forkmaster-0/shop-2-4026531840.sock")), "shop-2");
    }

    #[test]
    fn other_programs_sockets_are_not_listed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("docker.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(row(&path), None);
        std::fs::write(directory.path().join("docker.lock"), "").unwrap();
        assert!(row(&path).is_some());
    }
}
