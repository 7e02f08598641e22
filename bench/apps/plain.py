"""Plain WSGI applications, one for each kind of answer that is measured."""

import os
import tempfile
import time

HELLO = b"Hello, World!"
BODY_64K = b"x" * 65536
PIECE = b"y" * 1024

_file = tempfile.NamedTemporaryFile(prefix="forkmaster-bench-")
_file.write(os.urandom(1 << 20) * 5)
_file.flush()


def _answer(start_response, body, kind="text/plain"):
    start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


def hello(environ, start_response):
    return _answer(start_response, HELLO)


def body_64k(environ, start_response):
    return _answer(start_response, BODY_64K)


def file_5m(environ, start_response):
    """A file by wsgi.file_wrapper, where the server offers one."""
    size = os.fstat(_file.fileno()).st_size
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    file = open(_file.name, "rb")
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is not None:
        return wrapper(file, 65536)
    return iter(lambda: file.read(65536), b"")


def memory_5m(environ, start_response):
    return _answer(start_response, BODY_64K * 80, "application/octet-stream")


def upload(environ, start_response):
    """Reads the body to its end and says how long it was."""
    stream, length = environ["wsgi.input"], 0
    while True:
        piece = stream.read(65536)
        if not piece:
            break
        length += len(piece)
    return _answer(start_response, str(length).encode())


def pieces_100(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(100 * len(PIECE)))])
    return (PIECE for _ in range(100))


def sleep_5ms(environ, start_response):
    time.sleep(0.005)
    return _answer(start_response, HELLO)


def mixed(environ, start_response):
    """200 ms for /slow, nothing for the rest."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.2)
    return _answer(start_response, HELLO)
