//! Exit codes: the one table. A supervisor restarts or gives up by them, and scripts branch on them, so a number never
//! changes its meaning. Nothing else in the master knows a number.

use std::io;

/// Why a `forkmaster` ended. The numbers are those of sysexits.h where it has one for the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    Done = 0,
    /// Also what has no row of its own.
    Refused = 1,
    /// clap and getopt(1) exit so.
    Usage = 2,
    /// As LSB says for `status`, and supervisorctl with it.
    NotRunning = 3,
    /// EX_UNAVAILABLE.
    Unavailable = 69,
    /// EX_TEMPFAIL: trying again later may work.
    InUse = 75,
    /// EX_NOPERM.
    Permission = 77,
    /// EX_CONFIG: a supervisor should not restart on it.
    Configuration = 78,
    /// As timeout(1).
    Timeout = 124,
}

/// The table as `--help` prints it.
pub const MEANINGS: [(ExitCode, &str); 9] = [
    (ExitCode::Done, "done, or stopped as asked"),
    (ExitCode::Refused, "refused, or not ready; the reason is on stderr"),
    (ExitCode::Usage, "bad arguments"),
    (ExitCode::NotRunning, "no running master found"),
    (ExitCode::Unavailable, "no worker became ready at the first start"),
    (ExitCode::InUse, "an address or the instance's name is in use"),
    (ExitCode::Permission, "the system forbids it"),
    (ExitCode::Configuration, "the configuration is wrong; a restart does not help"),
    (ExitCode::Timeout, "the time given is over; what was asked for goes on"),
];

impl ExitCode {
    /// For an error of the system at the start, such as a log file that cannot be opened. A missing directory is the
    /// configuration's fault: it stays missing however often a supervisor restarts the service.
    pub fn of(error: &io::Error) -> ExitCode {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::AddrInUse | Kind::WouldBlock => ExitCode::InUse,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => ExitCode::Permission,
            Kind::NotFound | Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidInput | Kind::AlreadyExists => {
                ExitCode::Configuration
            }
            _ => ExitCode::Refused,
        }
    }

    pub fn number(self) -> u8 {
        self as u8
    }
}

impl From<ExitCode> for i32 {
    fn from(code: ExitCode) -> i32 {
        i32::from(code.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_an_interface() {
        let numbers: Vec<u8> = MEANINGS.iter().map(|(code, _)| code.number()).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 69, 75, 77, 78, 124]);
    }

    #[test]
    fn errors_of_the_system_have_the_code_of_their_kind() {
        let of = |errno: i32| ExitCode::of(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(libc::ENOENT), ExitCode::Configuration);
        assert_eq!(of(libc::ENOTDIR), ExitCode::Configuration);
        assert_eq!(of(libc::EACCES), ExitCode::Permission);
        assert_eq!(of(libc::EPERM), ExitCode::Permission);
        assert_eq!(of(libc::EROFS), ExitCode::Permission);
        assert_eq!(of(libc::EADDRINUSE), ExitCode::InUse);
        assert_eq!(of(libc::EIO), ExitCode::Refused);
    }
}
