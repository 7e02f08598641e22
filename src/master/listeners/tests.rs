//! Listeners on real sockets: what is bound, listens, is kept and goes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg};
use socket2::{Domain, SockAddr, Type};

use super::unix::temporary_name;
use super::*;
use crate::config::SUN_PATH_BYTES_MAX;
use crate::exit_code::ExitCode;

fn file(mode: u32) -> SocketFile {
    SocketFile { mode, uid: None, gid: None }
}

fn access(socket_file: SocketFile) -> Access {
    Access { backlog: 16, socket_file }
}

fn inet(text: &str) -> Bind {
    Bind::Inet(text.parse().unwrap())
}

fn take(listeners: &mut Listeners, binds: &[Bind]) -> Result<Vec<ListenerId>, ListenError> {
    listeners.bind(binds)
}

fn serve(listeners: &mut Listeners, binds: &[Bind]) -> Vec<ListenerId> {
    let ids = take(listeners, binds).unwrap();
    listeners.open(&ids, &access(file(0o660))).unwrap();
    ids
}

/// What a commit or a refusal does.
fn close_but(listeners: &mut Listeners, used: &[ListenerId]) {
    let unused: Vec<_> = listeners.listeners.keys().copied().filter(|id| !used.contains(id)).collect();
    listeners.close(&unused);
}

fn name(listeners: &Listeners, id: ListenerId) -> String {
    listeners.wire(&[id], &[])[0].0.address.clone()
}

fn address(listeners: &Listeners, id: ListenerId) -> SocketAddr {
    name(listeners, id).parse().unwrap()
}

/// A client sends a byte, and the listener's accept gives it back: it really is that socket.
fn talks(listeners: &Listeners, id: ListenerId, mut client: impl Write) {
    client.write_all(b"x").unwrap();
    let wire = listeners.wire(&[id], &[]);
    let listener = Socket::from(wire[0].1.try_clone_to_owned().unwrap());
    let (mut connection, _) = listener.accept().unwrap();
    connection.set_nonblocking(false).unwrap();
    let mut byte = [0];
    connection.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

#[test]
fn inet_listeners_listen_only_once_they_are_opened() {
    for text in ["127.0.0.1:0", "[::1]:0"] {
        let mut listeners = Listeners::new(Vec::new());
        let ids = take(&mut listeners, &[inet(text)]).unwrap();
        let id = ids[0];
        let bound = address(&listeners, id);
        assert_ne!(bound.port(), 0);
        assert_eq!(TcpStream::connect(bound).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        listeners.open(&ids, &access(file(0o660))).unwrap();
        talks(&listeners, id, TcpStream::connect(bound).unwrap());
        let socket = &listeners.listeners[&id].socket;
        assert!(socket.reuse_address().unwrap() && !socket.reuse_port().unwrap());
        assert!(fcntl(socket, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0);
        assert!(fcntl(socket, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK != 0);
        if bound.is_ipv6() {
            assert!(socket.only_v6().unwrap());
        }
        listeners.close(&[id]);
        refuses(bound);
    }
}

/// Waits until nobody listens. A process that another test starts has a copy of every descriptor between fork and
/// exec (CLOEXEC acts at exec only), so a listener may outlive its close for that moment.
fn refuses(address: SocketAddr) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        match TcpStream::connect(address) {
            Err(error) => return assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused),
            Ok(_) => assert!(std::time::Instant::now() < deadline, "{address} still listens"),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_reload_keeps_what_is_shared_and_closes_what_no_one_uses() {
    let mut listeners = Listeners::new(Vec::new());
    let first = serve(&mut listeners, &[inet("127.0.0.1:0"), inet("[::1]:0")]);
    let kept = address(&listeners, first[0]);
    let gone = address(&listeners, first[1]);
    let second = take(&mut listeners, &[inet("0.0.0.0:0"), inet("127.0.0.1:0")]).unwrap();
    assert_eq!(second[1], first[0]);
    listeners.open(&second, &access(file(0o660))).unwrap();
    assert_eq!(address(&listeners, first[0]), kept);
    close_but(&mut listeners, &second);
    refuses(gone);
    talks(&listeners, first[0], TcpStream::connect(kept).unwrap());
    assert_eq!(listeners.wire(&[first[1], second[1]], &[]).len(), 1);
    // A number is never given twice.
    let third = take(&mut listeners, &[inet("[::1]:0")]).unwrap();
    assert!(third[0] > second[0]);
}

#[test]
fn a_plan_that_fails_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = Bind::Inet(other.local_addr().unwrap());
    let mut listeners = Listeners::new(Vec::new());
    let first = serve(&mut listeners, &[inet("127.0.0.1:0")]);
    let unix = Bind::Unix(directory.path().join("a.sock"));
    let error = take(&mut listeners, &[unix, inet("127.0.0.1:0"), taken.clone()]).unwrap_err();
    assert_eq!((error.class, error.exit_code()), (ListenErrorClass::InUse, ExitCode::InUse));
    let text = error.to_string();
    assert!(text.starts_with(&format!("cannot listen on {taken}: address already in use; stop")), "{text}");
    assert_eq!(listeners.listeners.keys().copied().collect::<Vec<_>>(), first);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    talks(&listeners, first[0], TcpStream::connect(address(&listeners, first[0])).unwrap());
}

#[test]
fn a_port_that_is_taken_between_plan_and_open_is_reported() {
    let mut listeners = Listeners::new(Vec::new());
    let ids = take(&mut listeners, &[inet("127.0.0.1:0")]).unwrap();
    let rival = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    rival.set_reuse_address(true).unwrap();
    rival.bind(&address(&listeners, ids[0]).into()).unwrap();
    rival.listen(1).unwrap();
    assert_eq!(listeners.open(&ids, &access(file(0o660))).unwrap_err().class, ListenErrorClass::InUse);
}

#[test]
fn an_address_that_overlaps_a_served_one_is_refused_with_that_sentence() {
    let mut listeners = Listeners::new(Vec::new());
    let first = serve(&mut listeners, &[inet("127.0.0.1:0")]);
    let port = address(&listeners, first[0]).port();
    let again = serve(&mut listeners, &[inet("127.0.0.1:0"), inet(&format!("[::1]:{port}"))]);
    let error = take(&mut listeners, &[inet(&format!("[::]:{port}"))]).unwrap_err();
    assert!(error.reason.contains("overlaps [::1]"), "{error}");
    close_but(&mut listeners, &again[..1]);
}

/// An operator corrects an address while the reload with the wrong one is still being proved.
#[test]
fn an_address_that_nobody_serves_yet_is_in_nobodys_way() {
    let mut listeners = Listeners::new(Vec::new());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let wrong = take(&mut listeners, &[inet(&format!("0.0.0.0:{port}"))]).unwrap();
    let right = take(&mut listeners, &[inet(&format!("127.0.0.1:{port}"))]).unwrap();
    assert_ne!(wrong, right);
    close_but(&mut listeners, &right);
    listeners.open(&right, &access(file(0o660))).unwrap();
    let both = [inet(&format!("0.0.0.0:{port}")), inet(&format!("127.0.0.2:{port}"))];
    let served = take(&mut listeners, &both[..1]).unwrap_err();
    assert!(served.reason.contains("which is served now"), "{served}");
    close_but(&mut listeners, &[]);
    let twice = take(&mut listeners, &both).unwrap_err();
    assert!(twice.reason.contains("another address of the same settings"), "{twice}");
}

#[test]
fn ports_in_time_wait_can_be_bound_again() {
    let mut listeners = Listeners::new(Vec::new());
    let ids = serve(&mut listeners, &[inet("127.0.0.1:0")]);
    let bound = address(&listeners, ids[0]);
    let client = TcpStream::connect(bound).unwrap();
    let accepted = Socket::from(listeners.wire(&ids, &[])[0].1.try_clone_to_owned().unwrap()).accept().unwrap().0;
    // The side that closes first is the one in TIME_WAIT.
    drop(accepted);
    drop(client);
    listeners.close_all();
    serve(&mut listeners, &[Bind::Inet(bound)]);
}

#[test]
fn other_addresses_and_ports_below_1024_have_their_own_words() {
    let error = take(&mut Listeners::new(Vec::new()), &[inet("192.0.2.1:0")]).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Configuration);
    assert!(error.fix.contains("ip address"), "{error}");
    let error = explain(&inet("0.0.0.0:80"), &Errno::EACCES.into());
    assert_eq!(error.exit_code(), ExitCode::Permission);
    assert!(error.fix.contains("CAP_NET_BIND_SERVICE"));
}

#[test]
fn a_unix_socket_appears_in_its_place_when_opened_and_goes_when_closed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.sock");
    let bind = Bind::Unix(path.clone());
    let mut listeners = Listeners::new(Vec::new());
    let socket_file = SocketFile { mode: 0o640, uid: Some(65534), gid: Some(12345) };
    let ids = listeners.bind(std::slice::from_ref(&bind)).unwrap();
    assert!(!path.exists());
    listeners.open(&ids, &access(socket_file)).unwrap();
    let meta = path.symlink_metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 65534, 12345));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    talks(&listeners, ids[0], UnixStream::connect(&path).unwrap());
    assert_eq!(name(&listeners, ids[0]), format!("unix:{}", path.display()));
    // A reload keeps the socket, and changes mode and owner when it commits, not before.
    let next = Access { backlog: 32, socket_file: SocketFile { mode: 0o600, uid: Some(0), gid: None } };
    let again = listeners.bind(&[bind]).unwrap();
    assert_eq!(again, ids);
    listeners.open(&again, &next).unwrap();
    let kept = path.symlink_metadata().unwrap();
    assert_eq!((kept.mode() & 0o7777, kept.uid()), (0o640, 65534));
    assert!(listeners.adapt(&again, &next).is_empty());
    let changed = path.symlink_metadata().unwrap();
    assert_eq!((changed.ino(), changed.mode() & 0o7777, changed.uid()), (meta.ino(), 0o600, 0));
    listeners.close_all();
    assert!(!path.exists());
}

#[test]
fn an_abandoned_unix_socket_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut listeners = Listeners::new(Vec::new());
    take(&mut listeners, &[Bind::Unix(directory.path().join("a.sock"))]).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    close_but(&mut listeners, &[]);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn two_plans_may_share_what_one_of_them_bound() {
    let mut listeners = Listeners::new(Vec::new());
    let one = take(&mut listeners, &[inet("127.0.0.1:0")]).unwrap();
    let two = take(&mut listeners, &[inet("127.0.0.1:0")]).unwrap();
    assert_eq!(one, two);
    close_but(&mut listeners, &two);
    listeners.open(&two, &access(file(0o660))).unwrap();
    talks(&listeners, two[0], TcpStream::connect(address(&listeners, two[0])).unwrap());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let bind = [Bind::Unix(path.clone())];
    drop(UnixListener::bind(&path).unwrap());
    serve(&mut Listeners::new(Vec::new()), &bind);
    assert!(!path.exists());

    let live = UnixListener::bind(&path).unwrap();
    let before = node_of(&path).unwrap();
    let error = take(&mut Listeners::new(Vec::new()), &bind).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::InUse);
    assert!(error.reason.contains("another process listens"), "{error}");
    // Its backlog full: connect says EAGAIN.
    Socket::from(live.as_fd().try_clone_to_owned().unwrap()).listen(0).unwrap();
    let mut clients = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        match client.connect(&SockAddr::unix(&path).unwrap()) {
            Ok(()) => clients.push(client),
            Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(clients.len() < 64);
    }
    assert_eq!(take(&mut Listeners::new(Vec::new()), &bind).unwrap_err().class, ListenErrorClass::InUse);
    assert_eq!(node_of(&path).unwrap(), before);
    drop((live, clients));

    std::fs::remove_file(&path).unwrap();
    let _datagram = UnixDatagram::bind(&path).unwrap();
    assert_eq!(take(&mut Listeners::new(Vec::new()), &bind).unwrap_err().class, ListenErrorClass::InUse);
}

#[test]
fn a_file_that_is_no_socket_and_a_missing_directory_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    std::fs::write(&path, "precious").unwrap();
    let error = take(&mut Listeners::new(Vec::new()), &[Bind::Unix(path.clone())]).unwrap_err();
    assert!(error.exit_code() == ExitCode::Configuration && error.reason.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let error = take(&mut Listeners::new(Vec::new()), &[Bind::Unix(directory.path().join("none/a.sock"))]).unwrap_err();
    assert!(error.reason.contains("there is no directory") && error.fix.contains("RuntimeDirectory"), "{error}");
    let long = directory.path().join("d".repeat(SUN_PATH_BYTES_MAX - directory.path().as_os_str().len() - 3));
    std::fs::create_dir(&long).unwrap();
    let error = take(&mut Listeners::new(Vec::new()), &[Bind::Unix(long.join("a"))]).unwrap_err();
    assert!(error.fix.contains("shorter"), "{error}");
}

#[test]
fn a_socket_file_that_is_no_longer_ours_is_not_unlinked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let mut listeners = Listeners::new(Vec::new());
    serve(&mut listeners, &[Bind::Unix(path.clone())]);
    // Its file kept by another name, so that the inode cannot be used again.
    std::fs::rename(&path, directory.path().join("moved")).unwrap();
    let _successor = UnixListener::bind(&path).unwrap();
    listeners.close_all();
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn a_place_that_was_taken_since_the_plan_is_respected() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let mut listeners = Listeners::new(Vec::new());
    let ids = take(&mut listeners, &[Bind::Unix(path.clone())]).unwrap();
    let _rival = UnixListener::bind(&path).unwrap();
    assert_eq!(listeners.open(&ids, &access(file(0o660))).unwrap_err().class, ListenErrorClass::InUse);
    listeners.close_all();
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn access_is_set_on_the_file_that_was_bound_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut listeners = Listeners::new(Vec::new());
    let ids = take(&mut listeners, &[Bind::Unix(directory.path().join("a.sock"))]).unwrap();
    let victim = directory.path().join("victim");
    std::fs::write(&victim, "").unwrap();
    std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
    let temporary = temporary_name(&directory.path().join("a.sock"), 0);
    std::fs::rename(&temporary, directory.path().join("aside")).unwrap();
    std::os::unix::fs::symlink(&victim, &temporary).unwrap();
    let error = listeners.open(&ids, &access(file(0o660))).unwrap_err();
    assert!(error.reason.contains("replaced"), "{error}");
    assert_eq!(victim.metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn an_inherited_socket_is_used_as_it_is() {
    let original = TcpListener::bind("127.0.0.1:0").unwrap();
    let bound = original.local_addr().unwrap();
    let bind = [Bind::Fd(original.as_raw_fd())];
    let mut listeners = Listeners::new(Vec::new());
    let ids = serve(&mut listeners, &bind);
    let id = ids[0];
    assert_eq!(name(&listeners, id), format!("fd://{} ({bound})", original.as_raw_fd()));
    assert!(fcntl(&original, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK != 0);
    assert!(fcntl(&original, FcntlArg::F_GETFD).unwrap() & libc::FD_CLOEXEC != 0);
    talks(&listeners, id, TcpStream::connect(bound).unwrap());
    // Closed by a reload and wanted again by the next one.
    listeners.close(&[id]);
    assert!(TcpStream::connect(bound).is_ok());
    let again = serve(&mut listeners, &bind);
    assert_ne!(again[0], id);
    // Our own copy is no socket that was handed over.
    let own = listeners.wire(&again, &[])[0].1.as_raw_fd();
    assert!(take(&mut listeners, &[Bind::Fd(own)]).unwrap_err().reason.contains("handed over"));
}

#[test]
fn an_inherited_unix_socket_is_never_unlinked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.sock");
    let original = UnixListener::bind(&path).unwrap();
    let mode = path.metadata().unwrap().mode();
    let mut listeners = Listeners::new(Vec::new());
    let ids = listeners.bind(&[Bind::Fd(original.as_raw_fd())]).unwrap();
    listeners.open(&ids, &access(file(0o660))).unwrap();
    assert_eq!(path.metadata().unwrap().mode(), mode);
    listeners.close_all();
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn descriptors_that_are_no_listening_stream_sockets_are_refused() {
    let refusal = |fd: i32| take(&mut Listeners::new(Vec::new()), &[Bind::Fd(fd)]).unwrap_err();
    assert!(refusal(9999).reason.contains("no such file descriptor"));
    let file = tempfile::tempfile().unwrap();
    assert!(refusal(file.as_raw_fd()).reason.contains("not a socket"));
    let datagram = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(refusal(datagram.as_raw_fd()).reason.contains("not a TCP or Unix stream socket"));
    let (stream, _peer) = UnixStream::pair().unwrap();
    let error = refusal(stream.as_raw_fd());
    assert!(error.exit_code() == ExitCode::Configuration && error.reason.contains("does not listen"), "{error}");
    // What was refused is left as it was.
    assert!(fcntl(&stream, FcntlArg::F_GETFL).unwrap() & libc::O_NONBLOCK == 0);
}

#[test]
fn all_sockets_of_a_name_are_one_address() {
    let sockets: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let names = ["http", "admin", "http"].iter();
    let passed = names.zip(&sockets).map(|(name, socket)| Passed { name: (*name).to_owned(), fd: socket.as_raw_fd() });
    let mut listeners = Listeners::new(passed.collect());
    let http = Bind::Systemd("http".to_owned());
    let ids = take(&mut listeners, &[http.clone(), Bind::Systemd("admin".to_owned())]).unwrap();
    assert_eq!(ids.len(), 3);
    for (id, socket) in ids.iter().zip([&sockets[0], &sockets[2], &sockets[1]]) {
        talks(&listeners, *id, TcpStream::connect(socket.local_addr().unwrap()).unwrap());
    }
    assert_eq!(take(&mut listeners, &[http]).unwrap(), ids[..2]);
    let missing = take(&mut listeners, &[Bind::Systemd("web".to_owned())]).unwrap_err();
    assert!(missing.reason.contains("there is \"systemd:http\", \"systemd:admin\""), "{missing}");
    let nothing = take(&mut Listeners::new(Vec::new()), &[Bind::Systemd("web".to_owned())]).unwrap_err();
    assert!(nothing.exit_code() == ExitCode::Configuration && nothing.reason.contains("no socket was passed"));
}

#[test]
fn a_backlog_above_the_kernels_is_a_warning() {
    let mut listeners = Listeners::new(Vec::new());
    let backlog = |backlog| Access { backlog, socket_file: file(0o660) };
    assert!(listeners.open(&[], &backlog(i32::MAX as u32)).unwrap()[0].contains("net.core.somaxconn"));
    assert!(listeners.open(&[], &backlog(1)).unwrap().is_empty());
}
