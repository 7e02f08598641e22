//! Addresses: bound once, kept over every reload, added and removed by one.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use crate::harness::client::{self, Address, Connection, Failure};
use crate::harness::load::Load;
use crate::harness::master::{Launch, Master};
use crate::harness::site::Site;
use crate::harness::wait_for;

fn unix(site: &Site, name: &str) -> Address {
    Address::Unix(site.path().join(name))
}

/// A port that is free now. Only for tests that must know the number before the master binds it.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    listener.local_addr().expect("a bound socket has an address")
}

#[test]
fn ipv4_ipv6_and_unix_at_once() {
    let site = Site::with_releases("all_families", 1);
    site.set("server.bind", "['127.0.0.1:0', '[::1]:0', 'unix:app.sock']");
    let master = site.start();
    let addresses = master.addresses();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    for address in &addresses {
        assert_eq!(client::get(address, "/").expect("it serves").text(), "1", "{address}");
    }
    let remote = |address: &Address| client::get(address, "/wsgi").expect("it serves").json()["REMOTE_ADDR"].clone();
    assert_eq!(remote(&addresses[0]), "127.0.0.1");
    assert_eq!(remote(&addresses[1]), "::1");
    site.release("2");
    site.flip("2");
    master.reload();
    for address in &addresses {
        assert_eq!(client::get(address, "/").expect("it still serves").text(), "2", "{address}");
    }
}

#[test]
fn listeners_survive_reloads_with_their_port_and_their_queue() {
    let site = Site::with_releases("kept_listener", 1);
    let master = site.start();
    let before = listening_inodes(&master);
    for _ in 0..3 {
        master.reload();
    }
    assert_eq!(listening_inodes(&master), before, "a listener was made anew");
}

/// The listening sockets that the master holds, as inode numbers.
fn listening_inodes(master: &Master) -> Vec<u64> {
    let listening: Vec<u64> = fs::read_to_string("/proc/net/tcp")
        .expect("proc is mounted")
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A is TCP_LISTEN (include/net/tcp_states.h).
            (fields.get(3) == Some(&"0A")).then(|| fields.get(9)?.parse().ok()).flatten()
        })
        .collect();
    let fds = fs::read_dir(format!("/proc/{}/fd", master.pid())).expect("the master runs");
    let mut held: Vec<u64> = fds
        .flatten()
        .filter_map(|fd| {
            let target = fs::read_link(fd.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .filter(|inode| listening.contains(inode))
        .collect();
    held.sort();
    held
}

#[test]
fn a_reload_adds_and_removes_addresses() {
    let site = Site::with_releases("add_remove", 1);
    site.set("server.bind", "['127.0.0.1:0', 'unix:old.sock']");
    let master = site.start();
    let tcp = master.address();
    let load = Load::on(&tcp).closing(2).keeping(2).start();
    site.set("server.bind", "['127.0.0.1:0', 'unix:new.sock']");
    master.reload();
    load.wait_answers(20);
    load.stop().assert_no_failures();
    assert_eq!(client::get(&unix(&site, "new.sock"), "/").expect("the new address serves").text(), "1");
    assert_eq!(client::get(&unix(&site, "old.sock"), "/").err(), Some(Failure::Refused));
    assert!(!site.path().join("old.sock").exists(), "the socket file of a removed address is left");
    assert_eq!(client::get(&tcp, "/").expect("the kept address serves").text(), "1");
}

/// What was queued on a listener that a commit removes is answered.
#[test]
fn a_removed_address_is_accepted_until_it_is_empty() {
    let site = Site::with_releases("removed_queue", 1);
    site.set("server.bind", "['127.0.0.1:0', 'unix:old.sock']");
    let master = site.start();
    let load = Load::on(&unix(&site, "old.sock")).closing(6).keeping(0).start();
    site.set("server.bind", "['127.0.0.1:0']");
    master.reload();
    let report = load.stop();
    let lost: Vec<_> = report.failures.iter().filter(|failed| failed.what != Failure::Refused.to_string()).collect();
    assert!(lost.is_empty(), "a connection that was made was not answered: {report}");
}

#[test]
fn an_address_that_cannot_be_bound_refuses_the_reload_and_changes_nothing() {
    let site = Site::with_releases("refused_bind", 1);
    site.release("2");
    let master = site.start();
    let before = master.wait_serving();
    let taken = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let taken_address = taken.local_addr().expect("a bound socket has an address").to_string();
    site.flip("2");
    site.set("server.bind", &format!("['127.0.0.1:0', 'unix:extra.sock', '{taken_address}']"));
    let output = master.cli(&["reload"]);
    assert_eq!(output.code, Some(1), "{output}");
    assert!(output.text().contains(&taken_address), "{output}");
    assert_eq!(master.workers(), before);
    assert_eq!(master.get("/").text(), "1");
    assert!(!site.path().join("extra.sock").exists(), "an address of the refused configuration is left");
    drop(taken);
    master.reload();
    assert_eq!(master.get("/").text(), "2");
    assert!(site.path().join("extra.sock").exists());
}

#[test]
fn overlapping_addresses_are_refused_with_that_sentence() {
    let site = Site::with_releases("overlap", 1);
    let port = free_port().port();
    site.set("server.bind", &format!("['127.0.0.1:{port}', '0.0.0.0:{port}']"));
    let master = site.spawn();
    assert_ne!(master.wait_exit().code(), Some(0));
    let log = master.log();
    assert!(log.contains(&format!("127.0.0.1:{port}")) && log.contains(&format!("0.0.0.0:{port}")), "{log}");
}

#[test]
fn the_mode_and_owner_of_a_unix_socket() {
    let site = Site::with_releases("socket_mode", 1);
    site.set("server.bind", "['unix:app.sock']")
        .set("server.socket_mode", "'0600'")
        .set("server.socket_group", "'nogroup'");
    let master = site.start();
    let meta = fs::metadata(site.path().join("app.sock")).expect("it is there");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(meta.gid(), 65534);
    assert_eq!(client::get(&unix(&site, "app.sock"), "/").expect("it serves").text(), "1");
    master.stop();
    assert!(!site.path().join("app.sock").exists(), "the socket file is left");
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let site = Site::with_releases("stale", 1);
    site.set("server.bind", "['unix:app.sock']");
    let master = site.start();
    master.signal(nix::sys::signal::Signal::SIGKILL);
    master.wait_exit();
    assert!(site.path().join("app.sock").exists(), "a killed master cannot unlink it");
    wait_for("the workers' end", || site.processes().is_empty().then_some(()));
    let again = site.start();
    assert_eq!(client::get(&unix(&site, "app.sock"), "/").expect("it serves").text(), "1");
    drop(again);
}

#[test]
fn a_live_socket_file_is_refused_with_exit_75() {
    let site = Site::with_releases("live", 1);
    site.set("server.bind", "['unix:app.sock']");
    let path = site.path().join("app.sock");
    let live = UnixListener::bind(&path).expect("it is our directory");
    let inode = fs::metadata(&path).expect("it is there").ino();
    let master = site.spawn();
    assert_eq!(master.wait_exit().code(), Some(75));
    assert_eq!(fs::metadata(&path).expect("it is still there").ino(), inode);
    drop(live);
}

#[test]
fn a_file_that_is_no_socket_is_not_replaced() {
    let site = Site::with_releases("not_a_socket", 1);
    site.set("server.bind", "['unix:app.sock']");
    site.write("app.sock", "somebody's data");
    let master = site.spawn();
    assert_ne!(master.wait_exit().code(), Some(0));
    assert_eq!(fs::read_to_string(site.path().join("app.sock")).ok().as_deref(), Some("somebody's data"));
}

#[test]
fn a_socket_file_that_is_not_ours_any_more_is_not_unlinked() {
    let site = Site::with_releases("not_ours", 1);
    site.set("server.bind", "['unix:app.sock']");
    let master = site.start();
    let path = site.path().join("app.sock");
    fs::remove_file(&path).expect("it is our directory");
    let other = UnixListener::bind(&path).expect("the name is free");
    master.stop();
    assert!(path.exists(), "it unlinked the socket of another server");
    drop(other);
}

/// `unix:app.sock` in a configuration that lies in the release, or the name of the link itself.
#[test]
fn a_socket_behind_a_link_that_was_flipped_is_found_again_after_the_reload() {
    let site = Site::with_releases("socket_in_release", 2);
    site.set("server.bind", "['127.0.0.1:0', 'unix:current/app.sock']");
    let master = site.start();
    let (tcp, socket) = (master.address(), unix(&site, "current/app.sock"));
    master.wait_log("WARN * bind */current/app.sock lies in the release: *until the reload; write a path *");
    assert_eq!(client::get(&socket, "/").expect("it serves").text(), "1");
    // A client that is there already, and one that asks elsewhere, notice nothing.
    let load = Load::on(&tcp).closing(2).keeping(2).start();
    let kept = Load::on(&socket).closing(0).keeping(2).start();
    kept.wait_answers(10);
    site.flip("2");
    master.reload();
    master.wait_log("WARN * unix:*/current/app.sock: no socket of this service was there any more *: it is made again");
    assert_eq!(client::get(&socket, "/").expect("it serves again").text(), "2");
    load.wait_answers(10);
    load.stop().assert_no_failures();
    kept.stop().assert_no_failures();
    // The way back finds the file that was left there, of a socket that is closed.
    site.flip("1");
    master.reload();
    assert_eq!(client::get(&socket, "/").expect("it serves again").text(), "1");
    master.stop();
    assert!(!site.path().join("current/app.sock").exists(), "it is left");
}

#[test]
fn a_socket_file_that_was_removed_is_made_again_by_a_reload() {
    let site = Site::with_releases("socket_removed", 2);
    site.set("server.bind", "['unix:app.sock']");
    let master = site.start();
    let path = site.path().join("app.sock");
    for release in ["2", "1"] {
        fs::remove_file(&path).expect("it is our directory");
        site.flip(release);
        master.reload();
        assert_eq!(master.get("/").text(), release);
    }
    // One that is refused makes none, and one that another server has is not taken from it.
    fs::remove_file(&path).expect("it is our directory");
    let other = UnixListener::bind(&path).expect("the name is free");
    let output = master.cli(&["reload"]);
    assert!(output.code == Some(1) && output.text().contains("another process listens there"), "{output}");
    drop(other);
    master.reload();
    assert_eq!(master.get("/").text(), "1");
}

#[test]
fn a_handed_over_socket_is_served_and_kept() {
    let site = Site::with_releases("fd", 1);
    let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
    let address = Address::Tcp(listener.local_addr().expect("a bound socket has an address"));
    let fd = listener.as_raw_fd();
    site.set("server.bind", "['fd://3']");
    let launch = Launch {
        before_exec: Some(Box::new(move || {
            // dup2 clears close-on-exec; where the number is 3 already, fcntl does.
            // SAFETY: both are async-signal-safe system calls on numbers.
            let handed = unsafe {
                match fd {
                    3 => libc::fcntl(3, libc::F_SETFD, 0),
                    _ => libc::dup2(fd, 3),
                }
            };
            if handed < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })),
        ..Launch::default()
    };
    let master = site.launch(launch);
    master.wait_serving();
    assert_eq!(client::get(&address, "/").expect("it serves").text(), "1");
    site.release("2");
    site.flip("2");
    master.reload();
    assert_eq!(client::get(&address, "/").expect("it still serves").text(), "2");
    master.stop();
    // Ours is still open: an inherited socket is never shut down.
    let mut waiting = Connection::to(&address);
    waiting.must_send("x");
}

#[test]
fn a_missing_fd_is_a_configuration_error() {
    let site = Site::with_releases("no_fd", 1);
    site.set("server.bind", "['fd://57']");
    let master = site.spawn();
    assert_eq!(master.wait_exit().code(), Some(78));
    master.wait_log("57");
}

#[test]
fn connections_balance_between_workers() {
    let site = Site::with_releases("balance", 1);
    site.set("server.workers", "3");
    let master = site.start();
    let address = master.address();
    // Three requests that run at once need three workers with one thread each.
    let mut busy: Vec<Connection> = Vec::new();
    for _ in 0..3 {
        let mut connection = Connection::to(&address);
        connection.must_send(client::head("GET", "/sleep?s=1", &[]));
        busy.push(connection);
    }
    let mut pids: Vec<i32> = busy.iter_mut().map(|connection| connection.expect_answer().pid()).collect();
    pids.sort();
    pids.dedup();
    assert_eq!(pids.len(), 3, "a busy worker accepted while others were idle");
}
