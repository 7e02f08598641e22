"""The application of most tests: one file, every behaviour that a test asks for under its own path.

A release of a test is this file, `release.py` (its name and how long its import takes) and a virtualenv
with the package `dep` in a version of its own. Every answer names the release and the process.
"""

import ctypes
import itertools
import json
import os
import sys
import threading
import time
import urllib.parse

import dep
import release

if release.IMPORT_S:
    time.sleep(release.IMPORT_S)

LOCAL = threading.local()
STARTED = time.monotonic()


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", "")))
    handler = ROUTES.get(path)
    if handler is None:
        return answer(start_response, "no such path: " + path, status="404 Not Found")
    return handler(environ, start_response, query)


def answer(start_response, body, status="200 OK", headers=()):
    if isinstance(body, str):
        body = body.encode()
    start_response(
        status,
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("X-Release", release.NAME),
            ("X-Pid", str(os.getpid())),
            *headers,
        ],
    )
    return [body]


def name(environ, start_response, query):
    return answer(start_response, release.NAME)


def info(environ, start_response, query):
    facts = {
        "release": release.NAME,
        "dep": dep.VERSION,
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "prefix": sys.prefix,
        "executable": sys.executable,
        "python": "{}.{}".format(*sys.version_info[:2]),
        "path": sys.path,
        "cwd": os.getcwd(),
        "argv": sys.argv,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "umask": umask(),
        "environ": dict(os.environ),
        "thread": threading.current_thread().name,
        "main_thread": threading.current_thread() is threading.main_thread(),
        "stdin": os.readlink("/proc/self/fd/0"),
    }
    return answer(start_response, json.dumps(facts))


def umask():
    # /proc instead of os.umask(), which would have to change it to read it.
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("Umask:"):
                return line.split()[1]


def wsgi(environ, start_response, query):
    plain = {key: value for key, value in environ.items() if isinstance(value, (str, bool, int))}
    return answer(start_response, json.dumps(plain))


def sleep(environ, start_response, query):
    time.sleep(float(query.get("s", "1")))
    return answer(start_response, release.NAME)


def until(environ, start_response, query):
    """Runs until a file is there: the request ends when a test wants it to, and after so long in any case."""
    end = time.monotonic() + 30
    while not os.path.exists(query["file"]) and time.monotonic() < end:
        time.sleep(0.005)
    return answer(start_response, release.NAME)


def parts(environ, start_response, query):
    """A part at once, and the rest when a file is there; or an exception in its place."""

    def generate():
        yield b"x" * 100000
        if "raise" in query:
            raise RuntimeError("in the middle")
        while not os.path.exists(query["file"]):
            time.sleep(0.005)
        for _ in range(30):
            yield b"x" * 1000000

    start_response("200 OK", [("Content-Type", "text/plain")])
    return generate()


def fifo(environ, start_response, query):
    """Runs until somebody opens the other end of a FIFO, and wakes up for nothing until then."""
    with open(query["file"], "rb"):
        return answer(start_response, release.NAME)


def spin(environ, start_response, query):
    """A loop in Python: the interpreter lock changes hands, the request does not end."""
    end = time.monotonic() + float(query.get("s", "1"))
    while time.monotonic() < end:
        pass
    return answer(start_response, release.NAME)


def hold(environ, start_response, query):
    """C code that keeps the interpreter lock for long. Nothing that sleeps: a signal would end it early."""
    sum(itertools.repeat(1, int(float(query.get("s", "1")) * 1e8)))
    return answer(start_response, release.NAME)


def keep(environ, start_response, query):
    """The same for so long, however fast the machine is at the moment."""
    end = time.monotonic() + float(query.get("s", "1"))
    # C code alone, which signals do not end early either.
    all(map(end.__gt__, iter(time.monotonic, None)))
    return answer(start_response, release.NAME)


def lock(environ, start_response, query):
    """Waits for a lock that nobody gives up."""
    taken = threading.Lock()
    taken.acquire()
    taken.acquire(timeout=float(query.get("s", "1")))
    return answer(start_response, release.NAME)


def echo(environ, start_response, query):
    return answer(start_response, environ["wsgi.input"].read())


def slow_echo(environ, start_response, query):
    body = environ["wsgi.input"].read()
    time.sleep(float(query.get("s", "1")))
    return answer(start_response, body)


def big(environ, start_response, query):
    size = int(query.get("bytes", "1000000"))
    line = b"0123456789abcdef"
    return answer(start_response, (line * (size // len(line) + 1))[:size])


def stream(environ, start_response, query):
    """Pieces without a length, with a pause between them."""
    pieces = int(query.get("pieces", "5"))
    pause = float(query.get("pause", "0.1"))
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Release", release.NAME), ("X-Pid", str(os.getpid()))])

    def generate():
        for number in range(pieces):
            yield "{} {}\n".format(release.NAME, number).encode()
            time.sleep(pause)

    return generate()


def local(environ, start_response, query):
    """Counts the requests of this thread; a thread that loses its threading.local starts again at 1."""
    time.sleep(float(query.get("s", "0")))
    LOCAL.count = getattr(LOCAL, "count", 0) + 1
    return answer(start_response, "{} {}".format(threading.get_ident(), LOCAL.count))


def threads(environ, start_response, query):
    return answer(start_response, "\n".join(sorted(thread.name for thread in threading.enumerate())))


def die(environ, start_response, query):
    os._exit(int(query.get("code", "7")))


def crash(environ, start_response, query):
    ctypes.string_at(0)


def sysexit(environ, start_response, query):
    raise SystemExit(3)


def fail(environ, start_response, query):
    raise RuntimeError("this view always fails")


def redirect(environ, start_response, query):
    return answer(start_response, "", status="302 Found", headers=[("Location", "/")])


def error(environ, start_response, query):
    return answer(start_response, "not today", status="500 Internal Server Error")


BALLAST = []


def grow(environ, start_response, query):
    BALLAST.append(b"x" * (int(query.get("mib", "10")) << 20))
    return answer(start_response, release.NAME)


def write(environ, start_response, query):
    """Creates a file with the mode that the umask leaves."""
    with open(query["path"], "w") as file:
        file.write(release.NAME)
    return answer(start_response, oct(os.stat(query["path"]).st_mode & 0o777))


def lazy(environ, start_response, query):
    """Imports a module of the release now, not at the start."""
    import later

    return answer(start_response, later.NAME)


def age(environ, start_response, query):
    return answer(start_response, "{:.3f}".format(time.monotonic() - STARTED))


ROUTES = {
    "/": name,
    "/info": info,
    "/wsgi": wsgi,
    "/sleep": sleep,
    "/until": until,
    "/parts": parts,
    "/fifo": fifo,
    "/spin": spin,
    "/hold": hold,
    "/keep": keep,
    "/lock": lock,
    "/echo": echo,
    "/slow-echo": slow_echo,
    "/big": big,
    "/stream": stream,
    "/local": local,
    "/threads": threads,
    "/exit": die,
    "/crash": crash,
    "/sysexit": sysexit,
    "/fail": fail,
    "/redirect": redirect,
    "/error": error,
    "/grow": grow,
    "/write": write,
    "/lazy": lazy,
    "/age": age,
}


class Factory:
    """For module strings with several attributes and for factory calls."""

    application = staticmethod(application)


def create_app(release_name="default", debug=False):
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/factory":
            return answer(start_response, "{} {}".format(release_name, debug))
        return application(environ, start_response)

    return app
