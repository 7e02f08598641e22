"""For the tests of what a request costs: every way to answer, and the counts of this process."""

import json
import sys
import threading
import time

# There in debug builds of the worker library.
ALLOCATIONS = sys.modules["_forkmaster"].allocations
KEPT = []
LARGE = 50_000_000
MAY_LEAVE = threading.Event()


def application(environ, start_response):
    return ROUTES[environ["PATH_INFO"].partition("/x")[0]](environ, start_response)


def head(start_response, body=None):
    headers = [("Content-Type", "text/plain"), ("X-Latin", "\xe9")]
    if body is not None:
        headers.append(("Content-Length", str(len(body))))
    return start_response("200 OK", headers)


def hello(environ, start_response):
    head(start_response, b"hello")
    return [b"hello"]


def unsized(environ, start_response):
    head(start_response)
    return (b"hello",)


def pieces(environ, start_response):
    head(start_response)
    return (piece for piece in (b"one ", b"two ", b"three"))


def busy(environ, start_response):
    """Takes so long that answers wait for each other."""
    end = time.perf_counter() + 30e-6
    while time.perf_counter() < end:
        pass
    return hello(environ, start_response)


def written(environ, start_response):
    write = head(start_response)
    write(b"one ")
    write(b"two")
    return []


def upload(environ, start_response):
    body = environ["wsgi.input"].read()
    head(start_response, body)
    return [body]


def keeping(environ, start_response):
    """Keeps what belongs to the request: the next one must have its own."""
    KEPT.append((start_response, head(start_response, b"kept")))
    return [b"kept"]


def using_kept(environ, start_response):
    """What was kept is dead, whatever runs meanwhile."""
    outcomes = []
    for old_start_response, old_write in KEPT:
        for use in (lambda: old_start_response("500 No", []), lambda: old_write(b"no")):
            try:
                use()
                outcomes.append("works")
            except RuntimeError as error:
                outcomes.append(str(error))
    KEPT.clear()
    body = json.dumps(outcomes).encode()
    head(start_response, body)
    return [body]


def leaving(environ, start_response):
    """Returns while a thread of its own is inside write(), waiting for a client that does not read."""
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(LARGE))])
    threading.Thread(target=write, args=(b"x" * LARGE,), daemon=True).start()
    MAY_LEAVE.wait()
    return []


def leave(environ, start_response):
    MAY_LEAVE.set()
    return hello(environ, start_response)


def counts(environ, start_response):
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1])
    body = json.dumps(
        {"allocations": ALLOCATIONS(), "blocks": sys.getallocatedblocks(), "resident_pages": resident}
    ).encode()
    head(start_response, body)
    return [body]


ROUTES = {
    "/hello": hello,
    "/unsized": unsized,
    "/pieces": pieces,
    "/busy": busy,
    "/written": written,
    "/upload": upload,
    "/keeping": keeping,
    "/using-kept": using_kept,
    "/leaving": leaving,
    "/leave": leave,
    "/counts": counts,
}
