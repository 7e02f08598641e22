"""Large answers, from memory and from a file."""

import os

BODY_64K = b"x" * 65_536
BODY_5M = b"x" * 5_000_000
# In the server's own directory, which is removed with it.
FILE = os.path.join(os.environ["BENCH_DIRECTORY"], "5m")

with open(FILE, "wb") as file:
    file.write(BODY_5M)


def _head(start_response, length):
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(length))])


def body_64k(environ, start_response):
    _head(start_response, len(BODY_64K))
    return [BODY_64K]


def body_5m(environ, start_response):
    _head(start_response, len(BODY_5M))
    return [BODY_5M]


def file_5m(environ, start_response):
    """By wsgi.file_wrapper where the server offers one, else in pieces as PEP 3333 shows."""
    _head(start_response, len(BODY_5M))
    file = open(FILE, "rb")
    if "wsgi.file_wrapper" in environ:
        return environ["wsgi.file_wrapper"](file, 65_536)
    return _pieces(file)


def _pieces(file):
    # A generator, since fastwsgi crashes on iterators without close().
    while piece := file.read(65_536):
        yield piece
