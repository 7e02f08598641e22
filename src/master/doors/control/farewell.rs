//! The end of a master that is pid 1 of its namespace, as in a container. It is the end of every other process there
//! (pid_namespaces(7)), also of a client that waits for it: `forkmaster stop` would be killed instead of saying that
//! all is well.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use super::{Client, Control};

/// A client has nothing more to do than to exit.
const WITHIN: Duration = Duration::from_secs(1);

impl Control {
    /// Lets everybody who is connected see the end, and waits until they have left. The socket is gone before that.
    pub fn part(self) {
        let Control { socket, clients, .. } = self;
        drop(socket);
        let mut clients: Vec<Client> = clients.into_values().collect();
        clients.iter().for_each(|client| client.conn.finish());
        let deadline = Instant::now() + WITHIN;
        while !clients.is_empty() {
            let left = PollTimeout::try_from(deadline.saturating_duration_since(Instant::now()));
            // No events: POLLHUP is reported anyway, once both sides have closed.
            let mut polled: Vec<PollFd> =
                clients.iter().map(|client| PollFd::new(client.conn.as_fd(), PollFlags::empty())).collect();
            match poll(&mut polled, left.unwrap_or(PollTimeout::ZERO)) {
                Ok(0) => return,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
            let have_left: Vec<bool> = polled.iter().map(|polled| polled.any() == Some(true)).collect();
            let mut have_left = have_left.into_iter();
            clients.retain(|_| have_left.next() == Some(false));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};

    use super::super::Accepted;
    use super::*;
    use crate::config::settings::ControlSocket;
    use crate::sources::Sources;

    /// A door with one client, and where it is.
    fn with_a_client(directory: &Path) -> (Control, UnixStream, PathBuf) {
        let path = directory.join("control.sock");
        let mut sources = Sources::new().unwrap();
        let socket = ControlSocket::Path(path.clone());
        let mut control = Control::open(&socket, &[], sources.registry()).unwrap().unwrap();
        let client = UnixStream::connect(&path).unwrap();
        assert_eq!(control.accept(&mut sources, Instant::now()), Accepted::All);
        (control, client, path)
    }

    #[test]
    fn whoever_is_connected_sees_the_end_and_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (control, mut client, path) = with_a_client(directory.path());
        let (left, has_left) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn(move || {
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            assert!(!path.exists());
            left.send(()).unwrap();
        });
        control.part();
        has_left.try_recv().expect("it left before the master did");
        waiting.join().unwrap();
    }

    #[test]
    fn whoever_stays_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let (control, mut client, _path) = with_a_client(directory.path());
        control.part();
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }
}
