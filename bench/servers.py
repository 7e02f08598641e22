"""The servers that are compared: how each is started, and what its processes cost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BIN = os.path.dirname(sys.executable)
TICKS = os.sysconf("SC_CLK_TCK")

# Server and load on different processors, so that they do not take each other's time.
SERVER_CPU, LOAD_CPU = "0", "1"


class DidNotStart(Exception):
    """With the end of the server's log, which says why."""


def _forkmaster(port, app, workers, threads, directory, options):
    module, callable_ = app.split(":")
    config = os.path.join(directory, "app.toml")
    with open(config, "w") as file:
        file.write(
            f"""name = "bench-{port}"
[app]
module = "{module}:{callable_}"
release = "{HERE}/apps"
python = "{sys.executable}"
preload = {"true" if options.get("preload") else "false"}
[server]
bind = ["127.0.0.1:{port}"]
workers = {workers}
threads = {threads}
connections = 20000
[log]
level = "warn"
{'access = "' + os.path.join(directory, "access.log") + '"' if options.get("access_log") else ""}
[control]
socket = "{directory}/control.sock"
"""
        )
    return [os.path.join(ROOT, "target/release/forkmaster"), "-c", config]


def _gunicorn(kind):
    def command(port, app, workers, threads, directory, options):
        line = [f"{BIN}/gunicorn", "-b", f"127.0.0.1:{port}", "-w", str(workers), "--chdir", f"{HERE}/apps"]
        line += ["--worker-class", kind, "--keep-alive", "75", "--log-level", "error", "--backlog", "4096"]
        line += ["--worker-connections", "20000"]
        if kind == "gthread":
            # With one thread it would be the sync worker.
            line += ["--threads", str(max(threads, 2))]
        if options.get("preload"):
            line.append("--preload")
        return line + [app]

    return command


def _granian(port, app, workers, threads, directory, options):
    line = [f"{BIN}/granian", "--interface", "wsgi", "--port", str(port), "--workers", str(workers)]
    line += ["--blocking-threads", str(threads), "--log-level", "error", "--no-ws", "--http", "1"]
    return line + ["--backlog", "4096", "--working-dir", f"{HERE}/apps", app]


def _uwsgi(port, app, workers, threads, directory, options):
    module, callable_ = app.split(":")
    line = [f"{BIN}/uwsgi", "--http11-socket", f"127.0.0.1:{port}", "--master", "--processes", str(workers)]
    line += ["--module", module, "--callable", callable_, "--chdir", f"{HERE}/apps", "--disable-logging"]
    line += ["--listen", "4096", "--die-on-term", "--so-keepalive"]
    line += ["--threads", str(threads)] if threads > 1 else []
    return line + ["--virtualenv", os.path.dirname(BIN)]


def _script(text):
    def command(port, app, workers, threads, directory, options):
        module, callable_ = app.split(":")
        code = f"import sys; sys.path.insert(0, {HERE + '/apps'!r})\nfrom {module} import {callable_} as app\n"
        return [sys.executable, "-c", code + text.format(port=port, workers=workers, threads=threads)]

    return command


def _floor(port, app, workers, threads, directory, options):
    return [os.path.join(ROOT, "target/release/floor"), str(port)]


COMMANDS = {
    "floor": _floor,
    "forkmaster": _forkmaster,
    "fastwsgi": _script("import fastwsgi\nfastwsgi.server.backlog = 4096\nfastwsgi.run(wsgi_app=app, host='127.0.0.1', port={port}, loglevel=0)"),
    "bjoern": _script("import bjoern\nbjoern.run(app, '127.0.0.1', {port})"),
    "granian": _granian,
    "uwsgi": _uwsgi,
    "waitress": _script("import waitress\nwaitress.serve(app, host='127.0.0.1', port={port}, threads=max({threads}, 4), connection_limit=20000, backlog=4096, _quiet=True)"),
    "gunicorn-gthread": _gunicorn("gthread"),
    "gunicorn-sync": _gunicorn("sync"),
}

# One process only: left out where a scenario wants more workers or more threads than they have.
ONE_PROCESS = {"fastwsgi", "bjoern", "waitress", "floor"}
ONE_THREAD = {"fastwsgi", "bjoern", "gunicorn-sync", "floor"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running server, pinned to its processor."""

    def __init__(self, name, app, workers=1, threads=1, **options):
        self.name, self.port = name, free_port()
        self.directory = tempfile.mkdtemp(prefix="forkmaster-bench-")
        command = COMMANDS[name](self.port, app, workers, threads, self.directory, options)
        self.log = open(os.path.join(self.directory, "log"), "w+")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            ["taskset", "-c", SERVER_CPU, *command],
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            cwd=os.path.join(HERE, "apps"),
        )
        self._wait_for_an_answer()
        self.first_answer = time.monotonic() - self.started

    def _wait_for_an_answer(self):
        deadline = self.started + 20
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    if client.recv(12).startswith(b"HTTP/1.1 200"):
                        return
            except OSError:
                pass
            time.sleep(0.002)
        self.log.seek(0)
        reason = self.log.read().strip().splitlines()[-1:] or ["no output"]
        self.stop()
        raise DidNotStart(reason[0][:200])

    def pids(self):
        """The server's processes: those of its sessions (templates of forkmaster have one of their own)."""
        children = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as stat:
                        parent = int(stat.read().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(entry))
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue += children.get(pid, [])
        return found

    def cpu_seconds(self):
        total = 0
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
            except OSError:
                continue
            # utime, stime, and those of reaped children: proc_pid_stat(5).
            total += sum(int(fields[index]) for index in (11, 12, 13, 14))
        return total / TICKS

    def pss_bytes(self):
        total = 0
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/smaps_rollup") as rollup:
                    for line in rollup:
                        if line.startswith("Pss:"):
                            total += int(line.split()[1]) * 1024
            except OSError:
                continue
        return total

    def stop(self):
        for pid in reversed(self.pids()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
