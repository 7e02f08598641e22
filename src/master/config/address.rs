//! Addresses to listen on, as written and shown: `127.0.0.1:8000`, `[::1]:8000`, `unix:/run/shop.sock`, `fd://3`,
//! `systemd:http`;
//! and which of them cannot be had together.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::settings::Bind;

/// unix(7): sun_path holds 108 bytes with its closing NUL.
pub const SUN_PATH_BYTES_MAX: usize = 107;

impl Bind {
    /// `base` is the directory that relative socket paths start from.
    pub fn parse(text: &str, base: &Path) -> Result<Bind, String> {
        if text.is_empty() {
            return Err("an address is missing; write \"127.0.0.1:8000\"".to_owned());
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return parse_unix(path, base);
        }
        if let Some(number) = text.strip_prefix("fd://") {
            let fd = number.parse::<u16>().map_err(|_| "not a file descriptor; write \"fd://3\"".to_owned())?;
            return Ok(Bind::Fd(i32::from(fd)));
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            return parse_systemd(name);
        }
        if text.starts_with('/') {
            return Err(format!("a Unix socket is written \"unix:{text}\""));
        }
        parse_inet(text).map(Bind::Inet)
    }

    /// True if the kernel would refuse to let both listen. An IPv6 socket never takes IPv4 here (IPV6_V6ONLY), so
    /// `[::]:P` and `0.0.0.0:P` go together. Port 0 is another port each time.
    pub fn overlaps(&self, other: &Bind) -> bool {
        match (self, other) {
            (Bind::Inet(one), Bind::Inet(two)) => {
                one.port() == two.port()
                    && one.port() != 0
                    && one.is_ipv4() == two.is_ipv4()
                    && (one.ip() == two.ip() || one.ip().is_unspecified() || two.ip().is_unspecified())
            }
            (Bind::Unix(one), Bind::Unix(two)) => one == two,
            (Bind::Fd(one), Bind::Fd(two)) => one == two,
            (Bind::Systemd(one), Bind::Systemd(two)) => one == two,
            (Bind::Inet(_) | Bind::Unix(_) | Bind::Fd(_) | Bind::Systemd(_), _) => false,
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Inet(address) => address.fmt(f),
            Bind::Unix(path) => write!(f, "unix:{}", path.display()),
            Bind::Fd(fd) => write!(f, "fd://{fd}"),
            Bind::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

/// systemd.socket(5), FileDescriptorName=: no control characters and no colon.
fn parse_systemd(name: &str) -> Result<Bind, String> {
    if name.is_empty() {
        return Err("a name is missing; write the FileDescriptorName= of the .socket unit, \"systemd:http\"".to_owned());
    }
    if name.contains(':') || name.chars().any(char::is_control) {
        return Err("a FileDescriptorName= has no colon and no control character".to_owned());
    }
    Ok(Bind::Systemd(name.to_owned()))
}

fn parse_unix(path: &str, base: &Path) -> Result<Bind, String> {
    if path.is_empty() || path.ends_with('/') || path.ends_with("/.") || path.ends_with("..") {
        return Err("a socket's file name is missing; write \"unix:/run/shop/shop.sock\"".to_owned());
    }
    if path.starts_with('@') || path.contains('\0') {
        return Err("abstract sockets have neither mode nor owner and are not supported; write a path".to_owned());
    }
    // `components` drops `.` and doubled slashes, so that one path is written in one way.
    let path: PathBuf = base.join(path).components().collect();
    let bytes = path.as_os_str().len();
    if bytes > SUN_PATH_BYTES_MAX {
        return Err(format!("the path is {bytes} bytes long; the kernel takes at most {SUN_PATH_BYTES_MAX}"));
    }
    Ok(Bind::Unix(path))
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

fn parse_inet(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        if let SocketAddr::V6(v6) = address {
            if let Some(v4) = v6.ip().to_ipv4_mapped() {
                return Err(format!("an IPv4 address in IPv6 form; write \"{v4}:{}\"", v6.port()));
            }
        }
        return Ok(address);
    }
    if let Some(rest) = ["http://", "https://", "tcp://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        return Err(format!("an address has no scheme; write \"{}\"", rest.trim_end_matches('/')));
    }
    if text.parse::<u16>().is_ok() {
        return Err(format!(
            "a port without an address; write \"127.0.0.1:{text}\", or \"0.0.0.0:{text}\" for everyone"
        ));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        // Without its brackets, an IPv6 address with a port is another address.
        let with_port = text.rsplit_once(':').filter(|(host, port)| host.parse::<Ipv6Addr>().is_ok() && is_port(port));
        if let Some((host, port)) = with_port {
            return Err(format!(
                "an IPv6 address stands in brackets; write \"[{host}]:{port}\", or \"[{text}]:8000\" if all of it is the \
                 address"
            ));
        }
        return Err(format!("a port is missing; write \"{}\"", SocketAddr::new(ip, 8000)));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("not an address; write HOST:PORT, [v6]:PORT, unix:PATH, fd://N or systemd:NAME".to_owned());
    };
    let Ok(port) = port.parse::<u16>() else {
        return Err(format!("`{port}` is not a port between 0 and 65535"));
    };
    match host {
        // Looked up, it could be either family; everyone who writes it here wants this one.
        "localhost" => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        "" | "*" => {
            Err(format!("an address is missing; for every interface write \"0.0.0.0:{port}\" and \"[::]:{port}\""))
        }
        _ if host.split_once(':').is_some_and(|(_host, port)| is_port(port)) => {
            Err(format!("an address has one port; write \"{host}\""))
        }
        _ if host.contains('%') => Err(format!(
            "an address has no zone (`%` and an interface); write \"[::]:{port}\" for every interface, or an address without it"
        )),
        _ if host.starts_with('[') => Err(format!("`{host}` is not an IPv6 address; write \"[::1]:{port}\"")),
        _ if host.contains(':') => Err(format!("an IPv6 address stands in brackets; write \"[{host}]:{port}\"")),
        _ => Err(format!("`{host}` is not an IP address, and names are not looked up; write \"127.0.0.1:{port}\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(text: &str) -> Result<Bind, String> {
        Bind::parse(text, Path::new("/etc/shop"))
    }

    #[test]
    fn every_form_is_shown_as_it_was_written() {
        for text in ["127.0.0.1:8000", "0.0.0.0:0", "[::1]:8000", "unix:/run/shop.sock", "fd://3", "systemd:http"] {
            assert_eq!(bind(text).unwrap().to_string(), text);
        }
        assert_eq!(bind("unix:run/./a.sock").unwrap().to_string(), "unix:/etc/shop/run/a.sock");
        assert_eq!(bind("unix:///run/a.sock").unwrap().to_string(), "unix:/run/a.sock");
        assert_eq!(bind("localhost:80").unwrap().to_string(), "127.0.0.1:80");
    }

    #[test]
    fn a_refusal_says_what_to_write() {
        let cases = [
            ("8000", "\"127.0.0.1:8000\""),
            (":8000", "\"0.0.0.0:8000\""),
            ("*:8000", "\"0.0.0.0:8000\""),
            ("::1", "\"[::1]:8000\""),
            ("::1:8000", "write \"[::1]:8000\", or \"[::1:8000]:8000\""),
            ("2001:db8::5:80", "\"[2001:db8::5]:80\""),
            ("fe80::1:xx:80", "\"[fe80::1:xx]:80\""),
            ("127.0.0.1", "\"127.0.0.1:8000\""),
            ("shop.example:80", "\"127.0.0.1:80\""),
            ("http://127.0.0.1:80/", "\"127.0.0.1:80\""),
            ("127.0.0.1:99999", "65535"),
            ("[::ffff:127.0.0.1]:80", "\"127.0.0.1:80\""),
            ("/run/a.sock", "\"unix:/run/a.sock\""),
            ("unix:", "file name"),
            ("unix:/run/", "file name"),
            ("unix:@a", "abstract"),
            ("fd://x", "fd://3"),
            ("fd://-1", "fd://3"),
            ("systemd:", "systemd:http"),
            ("systemd:a:b", "no colon"),
            ("", "missing"),
            ("nonsense", "HOST:PORT"),
        ];
        for (text, hint) in cases {
            let error = bind(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(bind(&format!("unix:/{}", "a".repeat(107))).unwrap_err().contains("108 bytes"));
    }

    #[test]
    fn overlaps() {
        let overlap = |one: &str, two: &str| bind(one).unwrap().overlaps(&bind(two).unwrap());
        assert!(overlap("127.0.0.1:80", "0.0.0.0:80"));
        assert!(overlap("[::]:80", "[::1]:80"));
        assert!(overlap("unix:/a", "unix:/a"));
        assert!(overlap("fd://3", "fd://3") && overlap("systemd:a", "systemd:a"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlap("127.0.0.1:80", "0.0.0.0:81"));
        assert!(!overlap("0.0.0.0:80", "[::]:80"));
        assert!(!overlap("127.0.0.1:0", "0.0.0.0:0"));
        assert!(!overlap("fd://3", "127.0.0.1:3"));
    }
}
