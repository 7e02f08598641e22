//! Readings of whole configurations, in a directory with releases and a `current` link.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use forkmaster_wire::message::{ForwardedHeader, LogLevel, ProxyProtocol};

use super::problem::Problems;
use super::process_context::ProcessContext;
use super::settings::{AccessTarget, Bind, ControlSocket, Http, LogTarget, Surge};
use super::*;

/// A directory with `releases/1`, which has a venv of names and links only, and `current` pointing there.
struct Deploy {
    directory: tempfile::TempDir,
    context: ProcessContext,
    overrides: Overrides,
}

impl Deploy {
    fn new() -> Deploy {
        let directory = tempfile::tempdir().unwrap();
        let context = ProcessContext {
            environment: [("PATH", "/usr/bin:/bin"), ("HOME", "/root")].map(|(k, v)| (k.into(), v.into())).into(),
            cwd: directory.path().to_owned(),
            uid: 0,
            gid: 0,
            cpus: 3,
            executable: None,
            mount_namespace: 4026,
        };
        let deploy = Deploy { directory, context, overrides: Overrides::default() };
        deploy.release("1");
        symlink("releases/1", deploy.path("current")).unwrap();
        deploy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn release(&self, number: &str) {
        make_venv(&self.path(&format!("releases/{number}/venv")));
    }

    fn set(&mut self, name: &str, value: &str) {
        self.context.environment.insert(name.into(), value.into());
    }

    fn source(&self) -> Source {
        let file = ConfigFile { path: self.path("current/app.toml"), shown: "app.toml".to_owned() };
        Source { file: Some(file), overrides: self.overrides.clone() }
    }

    fn read(&self, text: &str) -> Result<Loaded, Problems> {
        std::fs::write(self.path("current/app.toml"), text).unwrap();
        read(&self.source(), &self.context, None)
    }

    /// Reads what must be refused; the lines of the message, without the directory's random name.
    fn refused(&self, text: &str) -> Vec<String> {
        let message = self.read(text).map(|loaded| loaded.show(false)).unwrap_err().to_string();
        let root = self.path("").to_string_lossy().into_owned();
        message.replace(&root, "/T/").lines().map(str::to_owned).collect()
    }

    /// The one line that is said of `[section] line` in an otherwise good file.
    fn refusal(&self, section: &str, line: &str) -> String {
        let module = if section == "app" { "" } else { "[app]\n" };
        let lines = self.refused(&format!("{module}[{section}]\n{line}\n"));
        let about: Vec<_> = lines.iter().filter(|text| !text.contains("[app] module: missing")).collect();
        about.last().unwrap().to_string()
    }
}

fn make_venv(path: &Path) {
    std::fs::create_dir_all(path.join("bin")).unwrap();
    std::fs::write(path.join("pyvenv.cfg"), "home = /usr/bin\n").unwrap();
    symlink("/bin/sh", path.join("bin/python")).unwrap();
}

fn peers(http: &Http) -> Vec<String> {
    http.forwarded_allow_ips.iter().map(ToString::to_string).collect()
}

const APP: &str = "[app]\nmodule = \"shop.wsgi\"\n";

mod change;
mod layers;
mod release;
mod values;
