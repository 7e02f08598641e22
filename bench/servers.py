"""The servers that are compared: the command that starts each, as its own documentation would have it fast, and the
reasons why one of them cannot take part somewhere."""

import dataclasses
import functools
import os
import sys

from machine import HERE, ROOT

BIN = os.path.dirname(sys.executable)
APPS = os.path.join(HERE, "apps")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a scenario asks of a server."""

    app: str
    workers: int = 1
    threads: int = 1
    # Load with one connection a request: uWSGI has a protocol for each kind.
    close: bool = False
    preload: bool = False
    # In front, as in Scenario.
    nginx: str = ""
    # Whether the master listens for probes and scrapers.
    status: bool = False
    # forkmaster's variants.
    defaults: bool = False
    access_log: bool = False
    stream_bodies: str = ""


def _forkmaster(setup, port, directory, binary=os.path.join(ROOT, "target/release/forkmaster")):
    config = os.path.join(directory, "app.toml")
    lines = ["[app]", f'module = "{setup.app}"', f'release = "{APPS}"', f'python = "{sys.executable}"']
    if setup.preload:
        lines += ["preload = true"]
    lines += ["[server]", f'bind = ["127.0.0.1:{port}"]']
    if not setup.defaults:
        lines += [f"workers = {setup.workers}", f"threads = {setup.threads}", "connections = 20000"]
        lines += ["[log]", 'level = "warn"']
        if setup.access_log:
            lines += [f'access = "{directory}/access.log"']
        if setup.stream_bodies:
            lines += ["[http]", f'stream_bodies = "{setup.stream_bodies}"']
        lines += ["[control]", f'socket = "{directory}/control.sock"']
        if setup.status:
            lines += ["[status]", f'bind = ["unix:{directory}/status.sock"]']
    with open(config, "w") as file:
        file.write("\n".join(lines) + "\n")
    return [binary, "-c", config]


def _gunicorn(kind):
    def command(setup, port, directory):
        line = [sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "-w", str(setup.workers), "--chdir", APPS]
        line += ["--worker-class", kind, "--keep-alive", "75", "--log-level", "error", "--backlog", "4096"]
        line += ["--worker-connections", "20000"]
        line += ["--threads", str(setup.threads)] if kind == "gthread" else []
        line += ["--preload"] if setup.preload else []
        return [*line, setup.app]

    return command


def _granian(setup, port, directory):
    line = [sys.executable, "-m", "granian", "--interface", "wsgi", "--port", str(port), "--working-dir", APPS]
    line += ["--workers", str(setup.workers), "--blocking-threads", str(setup.threads)]
    # Its backpressure counts connections: by default as many as the backlog.
    line += ["--http", "1", "--no-ws", "--log-level", "error", "--backlog", "4096", "--backpressure", "20000"]
    # It starts workers again only where asked, after 3.5 s unless told otherwise.
    return [*line, "--respawn-failed-workers", "--respawn-interval", "0", setup.app]


def _uwsgi_any(setup, socket):
    module, callable_ = setup.app.split(":")
    line = [f"{BIN}/uwsgi", *socket, "--virtualenv", os.path.dirname(BIN), "--chdir", APPS]
    line += ["--module", module, "--callable", callable_, "--master", "--processes", str(setup.workers)]
    # Without a delay for workers that die young, which is what `respawn` asks for.
    line += ["--disable-logging", "--listen", "4096", "--tcp-nodelay", "--forkbomb-delay", "0"]
    line += ["--threads", str(setup.threads)] if setup.threads > 1 else ["--enable-threads"]
    return line if setup.preload else [*line, "--lazy-apps"]


def _uwsgi(setup, port, directory):
    """Its own HTTP: a connection holds a worker for as long as it lives, so keep-alive starves the others."""
    if setup.close:
        # It closes without saying so, which load generators count as an error: hence the header.
        return _uwsgi_any(setup, ["--http-socket", f"127.0.0.1:{port}", "--add-header", "Connection: close"])
    return _uwsgi_any(setup, ["--http11-socket", f"127.0.0.1:{port}"])


def _uwsgi_router(setup, port, directory):
    """With its router in front, a process that holds the connections."""
    return _uwsgi_any(setup, ["--http", f"127.0.0.1:{port}", "--http-keepalive", "--http-auto-chunked"])


def _script(text):
    """A server that is started from Python."""

    def command(setup, port, directory):
        module, callable_ = setup.app.split(":")
        code = f"import sys; sys.path.insert(0, {APPS!r})\nfrom {module} import {callable_} as app\n"
        return [sys.executable, "-c", code + text.format(port=port, workers=setup.workers, threads=setup.threads)]

    return command


_FASTWSGI = """import fastwsgi
fastwsgi.server.backlog = 4096
fastwsgi.server.tcp_nodelay = 1
fastwsgi.run(wsgi_app=app, host="127.0.0.1", port={port}, loglevel=0, workers={workers})
"""

# Several processes on one listener are made by forking after listen(), as its documentation says. It never sets
# TCP_NODELAY, without which 100 pieces take 40 ms; connections have it from the listener.
_BJOERN = """import bjoern, os, socket
bjoern.listen(app, "127.0.0.1", {port}, listen_backlog=4096).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range({workers} - 1):
    if os.fork() == 0:
        break
bjoern.run()
"""

# poll() because select() ends at 1,024 descriptors; four threads are its default.
_WAITRESS = """import waitress
waitress.serve(app, host="127.0.0.1", port={port}, threads=max({threads}, 4), connection_limit=20000, backlog=4096,
               asyncore_use_poll=True, channel_timeout=75, _quiet=True)
"""


def _floor(setup, port, directory):
    return [os.path.join(ROOT, "target/release/floor"), str(port)]


COMMANDS = {
    "floor": _floor,
    "forkmaster": _forkmaster,
    "fastwsgi": _script(_FASTWSGI),
    "bjoern": _script(_BJOERN),
    "granian": _granian,
    "uwsgi": _uwsgi,
    "uwsgi-router": _uwsgi_router,
    "waitress": _script(_WAITRESS),
    "gunicorn-gthread": _gunicorn("gthread"),
    "gunicorn-sync": _gunicorn("sync"),
}

def add_before(binary):
    """An older forkmaster, twice: what differs between the two is the noise of this machine."""
    for name in ("forkmaster before", "forkmaster before, again"):
        COMMANDS[name] = functools.partial(_forkmaster, binary=binary)


# So far behind in hello that they take part only where something else than speed is asked, or in the first table.
SLOW = {"waitress", "gunicorn-gthread", "gunicorn-sync"}

LOADS_BEFORE_FORK = {"fastwsgi", "bjoern"}
ONE_THREAD = LOADS_BEFORE_FORK | {"gunicorn-sync"}
UNATTENDED = LOADS_BEFORE_FORK | {"waitress"}


def why_not(name, scenario):
    """The reason why a server takes no part in a scenario, or None."""
    kind = scenario.kind
    reasons = [
        (name in SLOW and not scenario.slow_peers, "far behind in hello, left out to save time"),
        (name == "waitress" and scenario.workers > 1, "one process only"),
        (name == "waitress" and kind == "idle", "polls every connection for each request: 10,000 take minutes to open"),
        (name in ONE_THREAD and scenario.threads > 1, "one thread only"),
        (name == "uwsgi-router" and not scenario.router, "for small answers on many connections; see uwsgi"),
        (name == "uwsgi" and kind == "idle", "a connection holds a worker; see uwsgi-router"),
        (name == "gunicorn-sync" and kind == "idle", "no keep-alive"),
        (name in UNATTENDED and kind in ("reload", "take over"), "no reload"),
        (name in UNATTENDED and kind == "respawn", "nobody starts a dead worker again"),
        (name == "granian" and scenario.preload, "no preload"),
        (kind == "looked at" and not name.startswith("forkmaster"), "no status of its own in JSON and for Prometheus"),
        (
            name in LOADS_BEFORE_FORK and kind == "memory" and not scenario.preload,
            "loads the application before it forks; see preloaded",
        ),
    ]
    return next((reason for applies, reason in reasons if applies), None)
