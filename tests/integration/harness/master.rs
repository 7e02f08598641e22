//! The running binary, and what it says of itself: log, `status`, exit status. The only place of the tests that
//! knows how `status --json` and the log's first lines look.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use super::client::{self, Address, Connection};
use super::journal;
use super::process::{self, Process};
use super::site::{end_all, Site};
use super::{wait_for, wait_within};

/// A command of the operator takes longer than a fact: `reload` waits for a whole generation.
const COMMAND_LIMIT: Duration = Duration::from_secs(90);

/// The warning that a master as root without `[server] user` gives.
const AS_ROOT: &str = "running as root without [server] user";

/// How a master is started. The default is an operator's shell with little in its environment.
pub struct Launch {
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Instead of `-c <site>/app.toml`.
    pub args: Option<Vec<String>>,
    /// The current directory; the site's if None.
    pub directory: Option<PathBuf>,
    /// Runs between fork and exec: async-signal-safe calls only.
    pub before_exec: Option<Box<dyn FnMut() -> std::io::Result<()> + Send + Sync>>,
    /// A command that starts the binary: `unshare -m sh -c '...; exec "$@"' sh`.
    pub through: Vec<String>,
    /// Instead of a log file: a terminal.
    pub terminal: Option<File>,
    /// Instead of the binary where cargo put it: a copy.
    pub binary: Option<PathBuf>,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch {
            env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into()), ("LANG".into(), "C.UTF-8".into())],
            args: None,
            directory: None,
            before_exec: None,
            through: Vec::new(),
            terminal: None,
            binary: None,
        }
    }
}

impl Launch {
    /// One variable more.
    pub fn env(mut self, name: &str, value: &str) -> Launch {
        self.env.push((name.to_string(), value.to_string()));
        self
    }

    pub fn args(mut self, args: &[&str]) -> Launch {
        self.args = Some(args.iter().map(|arg| arg.to_string()).collect());
        self
    }
}

/// A started master. Dropping it ends it and everything that works for its site.
pub struct Master {
    child: Mutex<Child>,
    pid: i32,
    site: PathBuf,
    config: PathBuf,
    log: PathBuf,
    stdout: PathBuf,
}

impl Master {
    pub(super) fn launch(site: &Site, number: u32, launch: Launch) -> Master {
        let log = site.path().join(format!("master-{number}.log"));
        let stdout = site.path().join(format!("stdout-{number}.log"));
        let create = |path: &Path| File::create(path).expect("a file of the site can be made");
        let mut words = launch.through.clone();
        words.push(launch.binary.unwrap_or_else(binary).to_string_lossy().into_owned());
        words.extend(
            launch.args.unwrap_or_else(|| vec!["-c".into(), site.config_path().to_string_lossy().into_owned()]),
        );
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(launch.env);
        command.current_dir(launch.directory.as_deref().unwrap_or(site.path()));
        match &launch.terminal {
            Some(terminal) => {
                let copy = || Stdio::from(terminal.try_clone().expect("a descriptor can be duplicated"));
                command.stdin(copy()).stdout(copy()).stderr(copy());
            }
            None => {
                command.stdin(Stdio::null()).stdout(create(&stdout)).stderr(create(&log));
            }
        }
        if let Some(before_exec) = launch.before_exec {
            // SAFETY: whoever sets `before_exec` makes async-signal-safe calls only.
            unsafe { command.pre_exec(before_exec) };
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", words[0]));
        let pid = child.id() as i32;
        let site_path = site.path().to_path_buf();
        Master { pid, child: Mutex::new(child), site: site_path, config: site.config_path(), log, stdout }
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    // Signals.

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("the master is there to be signalled");
    }

    pub fn hup(&self) {
        self.signal(Signal::SIGHUP);
    }

    pub fn term(&self) {
        self.signal(Signal::SIGTERM);
    }

    // Exit.

    /// Stops it as an operator does, by TERM: it exits with 0, leaves no process, and its log has no warning and no
    /// error. What may be loud in a test's log is for that test to say; then it calls `stop`.
    #[track_caller]
    pub fn stop_clean(&self) {
        self.stop();
        self.assert_quiet_log();
    }

    /// The same with a log that may be loud.
    #[track_caller]
    pub fn stop(&self) {
        self.term();
        let status = self.wait_exit();
        assert_eq!(status.code(), Some(0), "the master ended with {status}");
        self.assert_nothing_left();
    }

    /// Fails if a process that works for the site outlives its master.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let look = || process::belonging_to(&self.site).is_empty().then_some(());
        if wait_within(Duration::from_secs(2), look).is_none() {
            panic!("processes are left:\n{}", process::table(&process::belonging_to(&self.site)));
        }
    }

    /// The exit status, if it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        let mut child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        child.try_wait().expect("it is our child")
    }

    #[track_caller]
    pub fn wait_exit(&self) -> ExitStatus {
        wait_for("the master's exit", || self.exited())
    }

    // Log.

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What the application wrote to stdout.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// The present end of the log, for `wait_log_after` and `log_after`.
    pub fn mark(&self) -> usize {
        self.log().len()
    }

    pub fn log_after(&self, mark: usize) -> String {
        self.log().get(mark..).unwrap_or("").to_string()
    }

    /// Waits for a line that matches; `*` stands for anything within the line. Returns the line.
    #[track_caller]
    pub fn wait_log(&self, pattern: &str) -> String {
        self.wait_log_after(0, pattern)
    }

    #[track_caller]
    pub fn wait_log_after(&self, mark: usize, pattern: &str) -> String {
        let what = format!("a log line with {pattern:?}");
        self.wait_or_exit(&what, || find_line(&self.log_after(mark), pattern))
    }

    /// Lines of the log that match.
    pub fn log_lines(&self, pattern: &str) -> Vec<String> {
        self.log().lines().filter(|line| matches(line, pattern)).map(str::to_string).collect()
    }

    /// Fails if the log has a warning or an error, but for the one about root, which tests run as.
    #[track_caller]
    pub fn assert_quiet_log(&self) {
        let loud: Vec<String> =
            self.log().lines().filter(|line| is_loud(line) && !line.contains(AS_ROOT)).map(str::to_string).collect();
        assert!(loud.is_empty(), "lines that should not be there:\n{}", loud.join("\n"));
    }

    // Facts.

    /// The first address, with its real port.
    #[track_caller]
    pub fn address(&self) -> Address {
        self.addresses().remove(0)
    }

    /// All addresses that the log says are listened on, in the order of the lines.
    #[track_caller]
    pub fn addresses(&self) -> Vec<Address> {
        self.wait_log("listening on ");
        let log = self.log();
        let said = log.lines().filter_map(|line| line.split_once("listening on ")).map(|(_, rest)| rest.trim());
        said.filter_map(|text| parse_address(text.split_whitespace().next()?)).collect()
    }

    /// The whole answer of `status --json`; None while nobody answers.
    pub fn status(&self) -> Option<Status> {
        self.status_with(&[])
    }

    /// The same with further arguments, for instance `--socket`.
    pub fn status_with(&self, args: &[&str]) -> Option<Status> {
        let output = self.cli(&[&["status", "--json"], args].concat());
        let json = serde_json::from_str(output.stdout.trim()).ok()?;
        Some(Status(json))
    }

    /// Workers of the serving generation that serve. Empty while nobody answers.
    pub fn workers(&self) -> Vec<Worker> {
        let status = self.status();
        let serving = status.as_ref().and_then(Status::serving);
        serving
            .map(|generation| generation.workers.into_iter().filter(|worker| worker.state == "serving").collect())
            .unwrap_or_default()
    }

    /// Waits until every configured worker serves, no other generation is at work, and returns the workers.
    #[track_caller]
    pub fn wait_serving(&self) -> Vec<Worker> {
        self.wait_workers(self.configured_workers())
    }

    /// The number of workers as the site's configuration says it.
    pub fn configured_workers(&self) -> usize {
        let text = fs::read_to_string(&self.config).unwrap_or_default();
        let value = text
            .lines()
            .find_map(|line| line.split_once("workers = ").filter(|(key, _)| ["", "server."].contains(key)));
        value.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(1)
    }

    /// Waits until the serving generation has exactly so many workers, all serving.
    #[track_caller]
    pub fn wait_workers(&self, count: usize) -> Vec<Worker> {
        self.wait_or_exit(&format!("{count} serving workers"), || {
            let serving = self.status()?.serving()?;
            let settled =
                serving.workers.len() == count && serving.workers.iter().all(|worker| worker.state == "serving");
            settled.then_some(serving.workers)
        })
    }

    /// Waits until only one generation is left, without draining workers.
    #[track_caller]
    pub fn wait_settled(&self) -> Generation {
        self.wait_or_exit("the old generations' end", || {
            let mut generations = self.status()?.generations();
            (generations.len() == 1).then(|| generations.remove(0))
        })
    }

    /// Waits until no worker of an old generation is left.
    #[track_caller]
    pub fn wait_drained(&self) {
        self.wait_or_exit("the old workers' end", || {
            let generations = self.status()?.generations();
            generations
                .iter()
                .all(|generation| generation.state == "serving" || generation.workers.is_empty())
                .then_some(())
        })
    }

    /// Direct children, zombies included.
    pub fn children(&self) -> Vec<Process> {
        process::children(self.pid)
    }

    /// Waits for a fact that can only come while the master runs.
    #[track_caller]
    pub fn wait_or_exit<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        wait_for(what, || match (look(), self.exited()) {
            (Some(fact), _) => Some(fact),
            (None, None) => None,
            // It may have written the line just before it ended.
            (None, Some(status)) => match look() {
                Some(fact) => Some(fact),
                None => panic!("waited for {what}, but the master ended: {status}"),
            },
        })
    }

    // Commands of an operator.

    /// Runs a verb against this master: `master.cli(&["reload"])`.
    pub fn cli(&self, args: &[&str]) -> Output {
        let mut all: Vec<&str> = args.to_vec();
        let config = self.config.to_string_lossy();
        all.extend(["-c", &config]);
        run(&self.site, &all)
    }

    /// `forkmaster reload`, which must succeed; returns the moment it said so.
    #[track_caller]
    pub fn reload(&self) -> Instant {
        let output = self.cli(&["reload"]);
        let committed = Instant::now();
        assert!(output.ok(), "reload was refused: {output}");
        committed
    }

    /// A connection to the first address.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::to(&self.address())
    }

    /// Asks for a page on a connection of its own.
    #[track_caller]
    pub fn get(&self, target: &str) -> client::Response {
        let response = client::get(&self.address(), target);
        response.unwrap_or_else(|failure| panic!("GET {target}: {failure}"))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // While the site prints what there was; it ends the processes itself.
            return;
        }
        end_all(&self.site);
        let mut child = self.child.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = child.wait();
    }
}

/// What a command left.
#[derive(Clone, Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// How it ended, in words.
    pub fn ended(&self) -> String {
        self.code.map_or("no exit code".to_string(), |code| format!("exit code {code}"))
    }

    /// Both streams, for messages that may be on either.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} after {:?}\n{}{}", self.ended(), self.took, self.stdout, self.stderr)
    }
}

/// Runs the binary in a directory until it ends.
#[track_caller]
pub fn run(directory: &Path, args: &[&str]) -> Output {
    run_with(directory, args, Launch::default())
}

#[track_caller]
pub fn run_with(directory: &Path, args: &[&str], launch: Launch) -> Output {
    let started = Instant::now();
    let mut words = launch.through.clone();
    words.push(launch.binary.unwrap_or_else(binary).to_string_lossy().into_owned());
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .args(args)
        .env_clear()
        .envs(launch.env)
        .current_dir(launch.directory.as_deref().unwrap_or(directory));
    let (out, err) = (tempfile::tempfile(), tempfile::tempfile());
    let (mut out, mut err) = (out.expect("a temporary file can be made"), err.expect("a temporary file can be made"));
    let copy = |file: &File| Stdio::from(file.try_clone().expect("a descriptor can be duplicated"));
    command.stdin(Stdio::null()).stdout(copy(&out)).stderr(copy(&err));
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", words[0]));
    let status = wait_within(COMMAND_LIMIT, || child.try_wait().expect("it is our child"));
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (whole(&mut out), whole(&mut err));
    let output = Output { code: status.and_then(|status| status.code()), stdout, stderr, took: started.elapsed() };
    journal::note_command(args, &output);
    assert!(status.is_some(), "forkmaster {args:?} did not end: {output}");
    output
}

/// What `status --json` says to a test that has failed. The master may be the one that hangs, so this does not wait
/// for it as long as a test does.
pub(super) fn last_status(directory: &Path) -> String {
    let config = directory.join("app.toml");
    let mut command = Command::new("timeout");
    command.arg("5").arg(binary()).args(["status", "--json", "-c"]).arg(config).current_dir(directory);
    match command.env_clear().envs(Launch::default().env).stdin(Stdio::null()).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            format!("{}: {}", output.status, String::from_utf8_lossy(&said).trim_end())
        }
        Err(error) => format!("cannot be asked: {error}"),
    }
}

fn whole(file: &mut File) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes));
    read.expect("our own temporary file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The binary under test: cargo builds it before the tests; `FORKMASTER_BIN` names another one.
pub fn binary() -> PathBuf {
    match (std::env::var_os("FORKMASTER_BIN"), option_env!("CARGO_BIN_EXE_forkmaster")) {
        (Some(path), _) => path.into(),
        (None, Some(path)) => path.into(),
        (None, None) => panic!("FORKMASTER_BIN does not name the binary to test"),
    }
}

/// The answer of `status --json`.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

#[derive(Clone, Debug)]
pub struct Generation {
    pub number: u64,
    pub state: String,
    pub release: PathBuf,
    pub in_place: bool,
    /// 0: it has none.
    pub template_pid: i32,
    pub workers: Vec<Worker>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    pub slot: u64,
    pub pid: i32,
    pub state: String,
}

impl Status {
    pub fn ready(&self) -> bool {
        self.0["ready"].as_bool() == Some(true)
    }

    pub fn generations(&self) -> Vec<Generation> {
        let list = self.0["generations"].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|generation| Generation {
                number: generation["generation"].as_u64().unwrap_or(0),
                state: text(&generation["state"]),
                release: PathBuf::from(text(&generation["release"])),
                in_place: generation["in_place"].as_bool() == Some(true),
                template_pid: generation["template"]["pid"].as_i64().unwrap_or(0) as i32,
                workers: generation["workers"].as_array().cloned().unwrap_or_default().iter().map(worker).collect(),
            })
            .collect()
    }

    pub fn serving(&self) -> Option<Generation> {
        self.generations().into_iter().find(|generation| generation.state == "serving")
    }

    /// The open connections of each worker.
    pub fn connections(&self) -> Vec<u64> {
        let generations = self.0["generations"].as_array().into_iter().flatten();
        let workers = generations.flat_map(|generation| generation["workers"].as_array().into_iter().flatten());
        workers.map(|worker| worker["connections"].as_u64().unwrap_or(0)).collect()
    }

    /// Why the last reload was refused; None if it was not.
    pub fn last_refusal(&self) -> Option<String> {
        let last = &self.0["last_reload"];
        (last["ok"].as_bool() == Some(false)).then(|| text(&last["reason"]))
    }
}

fn worker(value: &Value) -> Worker {
    Worker {
        slot: value["slot"].as_u64().unwrap_or(u64::MAX),
        pid: value["pid"].as_i64().unwrap_or(0) as i32,
        state: text(&value["state"]),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_string()
}

fn parse_address(text: &str) -> Option<Address> {
    match text.strip_prefix("unix:") {
        Some(path) => Some(Address::Unix(path.into())),
        None => text.parse::<SocketAddr>().ok().map(Address::Tcp),
    }
}

fn find_line(log: &str, pattern: &str) -> Option<String> {
    // A last line without its end may still grow.
    let complete = log.rfind('\n').map_or("", |end| &log[..end]);
    complete.lines().find(|line| matches(line, pattern)).map(str::to_string)
}

fn is_loud(line: &str) -> bool {
    matches(line, " WARN ") || matches(line, " ERROR ") || line.starts_with("Traceback") || line.contains("panicked at")
}

/// Whether a line contains the pattern's parts in their order.
fn matches(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}
