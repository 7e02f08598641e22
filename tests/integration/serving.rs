//! Frameworks, clients and threads: what people put in front of and behind forkmaster.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::client::{self, head, Address, Connection};
use crate::harness::machine::Machine;
use crate::harness::process::Process;
use crate::harness::site::Site;
use crate::harness::{for_each_preload, wait_for};

/// A program that must succeed; returns what it wrote to stdout.
fn output_of(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn curl(args: &[&str]) -> String {
    output_of(Command::new(Machine::get().program("curl")).args(["-sS", "--max-time", "30"]).args(args))
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory of the site can be made");
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())).flatten() {
        let name = entry.file_name();
        // What running the example leaves there.
        if ["venv", "__pycache__", "static"].iter().any(|left| name == *left)
            || name.to_string_lossy().contains("sqlite3")
        {
            continue;
        }
        match entry.file_type().expect("it can be read") {
            kind if kind.is_dir() => copy_tree(&entry.path(), &to.join(&name)),
            kind if kind.is_file() => drop(fs::copy(entry.path(), to.join(&name)).expect("it can be copied")),
            _ => {}
        }
    }
}

fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

#[test]
fn the_hello_example_serves() {
    let site = Site::new("example_hello");
    copy_tree(&example("hello"), &site.release_path("1"));
    site.flip("1");
    let config = fs::read_to_string(site.release_path("1").join("app.toml")).expect("the example has one");
    let config = config.replace("127.0.0.1:8000", "127.0.0.1:0");
    site.write("releases/1/app.toml", &config);
    let config = site.release_path("1").join("app.toml");
    let launch = crate::harness::master::Launch::default().args(&["-c", config.to_str().expect("plain characters")]);
    let master = site.launch(launch);
    master.wait_log("-> serving");
    assert!(master.get("/a/path").text().starts_with("Hello from Python 3."));
}

#[test]
fn flask_with_curl() {
    let site = Site::new("flask");
    copy_tree(&example("flask"), &site.release_path("1"));
    site.flip("1");
    site.set("app.module", "'app:app'").set("app.probe", "'/healthz'").set("server.threads", "4");
    site.set("app.venv", &format!("{:?}", Machine::get().venv("flask")));
    let master = site.start();
    let url = format!("http://{}", master.address());
    assert_eq!(curl(&[&format!("{url}/hello/world")]), "Hello, world!\n");
    let json =
        curl(&["-H", "Content-Type: application/json", "-d", "{\"numbers\": [1, 2, 39]}", &format!("{url}/sum")]);
    assert_eq!(json.trim(), "{\"total\":42}");
    assert_eq!(curl(&[&format!("{url}/countdown")]), "3\n2\n1\n");
    assert!(curl(&["-o", "/dev/null", "-w", "%{http_code}", &format!("{url}/nowhere")]).contains("404"));
    let head = curl(&["-I", &format!("{url}/hello/world")]);
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-length: 14"), "{head}");
    assert_eq!(curl(&["--http1.0", &format!("{url}/hello/old")]), "Hello, old!\n");
    // Two requests on one connection.
    let twice = curl(&["-w", "%{num_connects}\n", &format!("{url}/hello/a"), &format!("{url}/hello/b")]);
    assert_eq!(twice, "Hello, a!\n1\nHello, b!\n0\n");
}

#[test]
fn uploads_by_curl_with_and_without_expect_and_chunked() {
    let site = Site::with_releases("curl_uploads", 1);
    let master = site.start();
    let body: String = (0..40_000).map(|number| format!("{number} ")).collect();
    let file = site.write("upload.txt", &body);
    let url = format!("http://{}/echo", master.address());
    let data = format!("@{}", file.display());
    assert!(curl(&["--data-binary", &data, &url]) == body);
    assert!(curl(&["--data-binary", &data, "-H", "Expect: 100-continue", &url]) == body);
    assert!(curl(&["--data-binary", &data, "-H", "Transfer-Encoding: chunked", &url]) == body);
    assert!(curl(&["--data-binary", &data, "-H", "Expect:", &url]) == body);
}

#[test]
fn a_multipart_upload_larger_than_memory_reaches_flask_whole() {
    let site = Site::new("flask_upload");
    copy_tree(&example("flask"), &site.release_path("1"));
    site.flip("1");
    site.set("app.module", "'app:app'").set("app.venv", &format!("{:?}", Machine::get().venv("flask")));
    let master = site.start();
    let body: Vec<u8> = (0..5_000_000u32).map(|at| (at % 251) as u8).collect();
    let file = site.path().join("large.bin");
    fs::write(&file, &body).expect("it is our directory");
    let expected = output_of(Command::new("sha256sum").arg(&file));
    let answer = curl(&["-F", &format!("file=@{}", file.display()), &format!("http://{}/upload", master.address())]);
    let hash = expected.split_whitespace().next().expect("it prints the hash first");
    assert!(answer.contains(hash) && answer.contains("large.bin"), "{answer}");
}

#[test]
fn requests_with_a_session() {
    let site = Site::with_releases("requests", 1);
    let master = site.start();
    let script = format!(
        "import requests\n\
         base = 'http://{}'\n\
         with requests.Session() as session:\n\
         \x20   pids = set()\n\
         \x20   for number in range(50):\n\
         \x20       body = bytes([number]) * 20000\n\
         \x20       response = session.post(base + '/echo', data=body, timeout=30)\n\
         \x20       assert response.status_code == 200 and response.content == body\n\
         \x20       pids.add(response.headers['X-Pid'])\n\
         \x20   assert len(pids) == 1, pids\n\
         \x20   assert session.post(base + '/echo', data=(b'piece' for _ in range(1000)), timeout=30).content == b'piece' * 1000\n\
         \x20   assert len(session.get(base + '/big?bytes=5000000', timeout=30).content) == 5000000\n\
         \x20   assert session.get(base + '/stream', timeout=30).text.count('\\n') == 5\n\
         \x20   assert session.head(base + '/', timeout=30).headers['Content-Length'] == '1'\n\
         \x20   assert session.get(base + '/error', timeout=30).status_code == 500\n\
         \x20   assert session.get(base + '/fail', timeout=30).status_code == 500\n\
         \x20   assert session.get(base + '/redirect', timeout=30).text == '1'\n\
         print('all answered')\n",
        master.address()
    );
    let text = output_of(Command::new(Machine::get().venv("flask").join("bin/python")).args(["-c", &script]));
    assert_eq!(text.trim(), "all answered");
    master.wait_log("RuntimeError: this view always fails");
}

/// The Django example in a release, with its database and an administrator.
fn django(name: &str) -> Site {
    let site = Site::new(name);
    let release = site.release_path("1");
    copy_tree(&example("django"), &release);
    site.flip("1");
    let python = Machine::get().venv("django").join("bin/python");
    let manage = |args: &[&str]| {
        let mut command = Command::new(&python);
        command.arg("manage.py").args(args).current_dir(&release).env("DJANGO_SUPERUSER_PASSWORD", "admin");
        output_of(&mut command)
    };
    manage(&["migrate", "--verbosity", "0"]);
    manage(&["createsuperuser", "--noinput", "--username", "admin", "--email", "admin@example.com"]);
    manage(&["collectstatic", "--noinput", "--verbosity", "0"]);
    site.set("app.module", "'shop.wsgi'").set("app.probe", "'/healthz'").set("server.threads", "4");
    site.set("env.DJANGO_SETTINGS_MODULE", "'shop.settings'");
    site.set("app.venv", &format!("{:?}", Machine::get().venv("django")));
    site
}

/// Logs in as a browser does: a page with a token, a form, cookies, a redirect.
fn admin_login(site: &Site, base: &str, extra: &[&str]) {
    let jar = site.path().join("cookies");
    let _ = fs::remove_file(&jar);
    let jar = jar.to_str().expect("plain characters");
    let url = format!("{base}/admin/login/?next=/admin/");
    let with = |args: &[&str]| curl(&[extra, &["-b", jar, "-c", jar], args].concat());
    let page = with(&[&url]);
    let token = page.split("csrfmiddlewaretoken\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
    let token = token.unwrap_or_else(|| panic!("no login form: {page}"));
    let form = format!("csrfmiddlewaretoken={token}&username=admin&password=admin&next=/admin/");
    let home = with(&["-L", "-e", &url, "-d", &form, &url]);
    assert!(home.contains("Site administration"), "not logged in: {home}");
    let list = with(&[&format!("{base}/admin/catalogue/product/")]);
    assert!(list.contains("Axe") && list.contains("3.50"), "the list of products is not shown: {list}");
}

#[test]
fn djangos_admin_login_over_tcp() {
    let site = django("django_tcp");
    let master = site.start();
    let base = format!("http://{}", master.address());
    assert_eq!(curl(&[&format!("{base}/")]), "Axe 49.00\nFork 3.50\n");
    admin_login(&site, &base, &[]);
    master.reload();
    admin_login(&site, &base, &[]);
}

/// nginx of one test; ended with it.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(nginx) = Process::of(self.0.id() as i32) {
            // Its master ends its workers on TERM.
            nginx.signal(nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

fn start_nginx(site: &Site, directory: &Path) -> (Nginx, SocketAddr) {
    // nginx cannot be asked for the port of port 0, so a free one is looked for and the start is tried again.
    for _ in 0..10 {
        let probe = TcpListener::bind("127.0.0.1:0").expect("some port is free");
        let address = probe.local_addr().expect("a bound socket has an address");
        drop(probe);
        let config = fs::read_to_string(example("django").join("nginx.conf")).expect("the example has one");
        fs::write(directory.join("nginx.conf"), config.replace("127.0.0.1:8080", &address.to_string()))
            .expect("it is our directory");
        let user = output_of(Command::new("id").arg("-un"));
        let log = fs::File::create(site.path().join("nginx.log")).expect("it is our directory");
        let mut child = Command::new(Machine::get().program("nginx"))
            .arg("-p")
            .arg(directory)
            .args(["-c", "nginx.conf", "-g", &format!("daemon off; user {};", user.trim())])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nginx can be started");
        let tcp = Address::Tcp(address);
        let up = wait_for("nginx", || {
            if child.try_wait().expect("it is our child").is_some() {
                return Some(false);
            }
            Connection::open(&tcp).is_ok().then_some(true)
        });
        if up {
            return (Nginx(child), address);
        }
    }
    panic!("nginx does not start: {}", fs::read_to_string(site.path().join("nginx.log")).unwrap_or_default());
}

#[test]
fn djangos_admin_login_behind_nginx_over_a_unix_socket() {
    let site = django("django_nginx");
    // The socket is where the example's nginx.conf looks for it.
    let directory = site.release_path("1");
    site.set("server.bind", "['unix:releases/1/django.sock']");
    let master = site.start();
    let (_nginx, address) = start_nginx(&site, &directory);
    let base = format!("http://{address}");
    assert_eq!(curl(&[&format!("{base}/")]), "Axe 49.00\nFork 3.50\n");
    admin_login(&site, &base, &[]);
    assert!(
        curl(&["-I", &format!("{base}/static/admin/css/base.css")]).starts_with("HTTP/1.1 200"),
        "nginx serves files"
    );
    let load = crate::harness::load::Load::on(&Address::Tcp(address)).target("/").closing(2).keeping(4).start();
    for _ in 0..5 {
        master.reload();
        load.wait_answers(5);
    }
    load.stop().assert_no_failures();
    admin_login(&site, &base, &[]);
}

#[test]
fn djangos_admin_login_over_the_unix_socket_directly() {
    let site = django("django_unix");
    site.set("server.bind", "['unix:app.sock']");
    let _master = site.start();
    let socket = site.path().join("app.sock");
    admin_login(&site, "http://localhost", &["--unix-socket", socket.to_str().expect("plain characters")]);
}

/// Asks one page from many clients at once, until every worker has been asked often.
fn ask_in_parallel(address: &Address, target: &str, clients: usize, requests: usize) -> Vec<client::Response> {
    let ask = || {
        let mut connection = Connection::to(address);
        let answers: Vec<_> = (0..requests).map(|_| connection.get(target).expect("it is answered")).collect();
        answers
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client does not panic")).collect()
    })
}

#[test]
fn django_opens_one_database_connection_per_app_thread() {
    let site = django("django_connections");
    site.set("server.workers", "1");
    let master = site.start();
    let answers = ask_in_parallel(&master.address(), "/connections", 8, 50);
    let threads: BTreeSet<String> = answers.iter().map(|answer| answer.json()["thread"].to_string()).collect();
    let made = answers.iter().filter_map(|answer| answer.json()["made"].as_u64()).max();
    // A thread that serves for the first time connects; all four have served, and none twice.
    assert_eq!(threads.len(), 4, "{threads:?}");
    assert_eq!(made, Some(4), "connections of four threads");
}

#[test]
fn threads_keep_their_threading_local() {
    for_each_preload(|preload| {
        let site = Site::with_releases("thread_local", 1);
        site.set("server.workers", "1").set("server.threads", "4").set("app.preload", preload);
        let master = site.start();
        let answers = ask_in_parallel(&master.address(), "/local?s=0.005", 8, 40);
        let mut counts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for answer in &answers {
            let text = answer.text();
            let (thread, count) = text.split_once(' ').expect("thread and count");
            counts.entry(thread.to_string()).or_default().push(count.parse().expect("a number"));
        }
        assert_eq!(counts.len(), 4, "exactly four threads run the application, preload = {preload}");
        for (thread, mut seen) in counts {
            seen.sort();
            let expected: Vec<u64> = (1..=seen.len() as u64).collect();
            assert_eq!(seen, expected, "thread {thread} lost its threading.local, preload = {preload}");
        }
    });
}

#[test]
fn one_thread_is_the_main_thread() {
    let site = Site::with_releases("main_thread", 1);
    let master = site.start();
    for _ in 0..20 {
        assert_eq!(master.get("/info").json()["main_thread"], true);
    }
}

#[test]
fn threads_run_requests_at_the_same_time() {
    let site = Site::with_releases("parallel", 1);
    site.set("server.workers", "1").set("server.threads", "4");
    let master = site.start();
    let started = Instant::now();
    ask_in_parallel(&master.address(), "/sleep?s=0.5", 4, 1);
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?} for four times 0.5 s", started.elapsed());
}

#[test]
fn a_slow_client_costs_no_worker() {
    let site = Site::with_releases("slow_clients", 1);
    site.set("server.workers", "1");
    let master = site.start();
    let address = master.address();
    let mut slow = Vec::new();
    for number in 0..30 {
        let mut connection = Connection::to(&address);
        match number % 3 {
            0 => connection.must_send("GET / HT"),
            1 => connection.must_send(head("POST", "/echo", &[("Content-Length", "1000")])),
            // Asks for more than the socket buffers take and reads nothing.
            _ => connection.must_send(head("GET", "/big?bytes=20000000", &[])),
        }
        slow.push(connection);
    }
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(client::get(&address, "/").expect("others are served").text(), "1");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    // And they are answered when they go on.
    let body = vec![b'x'; 1000];
    slow[1].must_send(&body);
    assert_eq!(slow[1].expect_answer().body, body);
    assert_eq!(slow[2].expect_answer().body.len(), 20_000_000);
}

#[test]
fn requests_on_one_connection_pipelined_head_and_100_continue() {
    let site = Site::with_releases("http_basics", 1);
    let master = site.start();
    let mut connection = master.connect();
    connection.must_send([head("GET", "/", &[]), head("GET", "/nowhere", &[]), head("GET", "/", &[])].concat());
    let statuses: Vec<u16> = (0..3).map(|_| connection.expect_answer().status).collect();
    assert_eq!(statuses, [200, 404, 200]);
    connection.must_send(head("HEAD", "/big?bytes=1000", &[]));
    let response = connection.read_to_head().expect("it is answered");
    assert_eq!((response.header("Content-Length"), response.body.len()), (Some("1000"), 0));
    // A client that does not wait for it is told all the same, or not; the answer comes after it.
    let expecting = head("POST", "/echo", &[("Content-Length", "5"), ("Expect", "100-continue")]);
    let response = connection.ask([expecting.as_slice(), b"hello"].concat());
    assert!(response.text() == "hello" && response.interim.iter().all(|status| *status == 100), "{response:?}");
    let expecting = head("POST", "/echo", &[("Content-Length", "5"), ("Expect", "100-continue")]);
    connection.must_send(expecting);
    let interim = connection.read_available(Duration::from_secs(5)).expect("it says that it goes on");
    assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&interim));
    assert_eq!(connection.ask("hello").text(), "hello");
    let stream = connection.ask(head("GET", "/stream?pause=0", &[]));
    assert_eq!((stream.header("Transfer-Encoding"), stream.text().lines().count()), (Some("chunked"), 5));
    assert_eq!(connection.get_ok("/").text(), "1");
}

#[test]
fn half_closed_clients_are_answered() {
    let site = Site::with_releases("half_close", 1);
    let master = site.start();
    let mut connection = master.connect();
    connection.must_send(head("GET", "/", &[]));
    connection.finish_sending().expect("a half-close works");
    assert_eq!(connection.expect_answer().text(), "1");
    assert!(connection.closed_within(Duration::from_secs(5)));
}

#[test]
fn a_failing_view_is_a_500_with_a_traceback_in_the_log_only() {
    let site = Site::with_releases("failing_view", 1);
    let master = site.start();
    let mut connection = master.connect();
    let response = connection.ask(head("GET", "/fail", &[]));
    assert_eq!(response.status, 500);
    assert!(!response.text().contains("RuntimeError"), "the client sees the traceback");
    master.wait_log("RuntimeError: this view always fails");
    assert!(master.log().contains("Traceback"), "{}", master.log());
    assert_eq!(master.get("/").text(), "1");
}

/// Whoever is awake first must not take everything: keep-alive connections stay where they are.
#[test]
fn connections_are_shared_out_between_workers() {
    let site = Site::with_releases("balance", 1);
    site.set("server.workers", "4");
    let master = site.start();
    master.wait_workers(4);
    // So many that they take far longer than a worker may have to wait for a processor, whose turn others have.
    let connections: Vec<Connection> = (0..480)
        .map(|_| {
            let mut connection = master.connect();
            assert_eq!(connection.get("/").expect("an answer").status, 200);
            connection
        })
        .collect();
    let shares = master.status().expect("a master that answers").connections();
    // 120 each, where no worker has to wait for a processor.
    assert!(shares.iter().sum::<u64>() == 480 && shares.iter().all(|share| (60..=240).contains(share)), "{shares:?}");
    drop(connections);
}
