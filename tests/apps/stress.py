"""Answers that are made of their request's id, in every form that an application may take, while threads and children of the
application do what they like. Whatever is wrong goes to the file that FAILURES names.

`/FORM/ID?n=LINES&k=LINES_OF_THE_BODY`
"""

import io
import os
import socket
import tempfile
import threading
import time
from urllib.parse import parse_qsl

FAILURES = os.environ["FAILURES"]
FORMS = {}
SEEN = set()
LOCAL = threading.local()
KEPT = []


def wrong(what):
    with open(FAILURES, "a") as file:
        file.write(what + "\n")


def form(function):
    FORMS[function.__name__] = function
    return function


def application(environ, start_response):
    start_others()
    mature()
    _, name, number = environ["PATH_INFO"].split("/")
    query = dict(parse_qsl(environ["QUERY_STRING"]))
    if environ["HTTP_X_ID"] != number or environ["HTTP_X_PORT"] != environ["REMOTE_PORT"]:
        wrong("%s: the head of %s, from %s, by %s" % (number, environ["HTTP_X_ID"], environ["HTTP_X_PORT"], environ["REMOTE_PORT"]))
    line = number.encode() + b"\n"
    if "unread" not in query and environ["wsgi.input"].read() != line * int(query["k"]):
        wrong("%s: the body is another one" % number)
    if number in SEEN:
        wrong("%s was run twice" % number)
    SEEN.add(number)
    return FORMS[name](environ, start_response, line, int(query["n"]))


def begin(start_response, line, status="200 OK"):
    return start_response(status, [("Content-Type", "text/plain"), ("X-Id", line[:-1].decode())])


@form
def whole(environ, start_response, line, count):
    begin(start_response, line)
    return [line * count]


@form
def pieces(environ, start_response, line, count):
    begin(start_response, line)
    return (line for _ in range(count))


@form
def written(environ, start_response, line, count):
    write = begin(start_response, line)
    for _ in range(count):
        write(line)
    return []


@form
def from_a_thread(environ, start_response, line, count):
    def go():
        write = begin(start_response, line)
        write(line * count)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    return []


@form
def file(environ, start_response, line, count):
    begin(start_response, line)
    content = tempfile.TemporaryFile()
    content.write(line * count)
    content.seek(0)
    return environ["wsgi.file_wrapper"](content)


@form
def memory_file(environ, start_response, line, count):
    begin(start_response, line)
    return environ["wsgi.file_wrapper"](io.BytesIO(line * count), 1000)


@form
def slow(environ, start_response, line, count):
    time.sleep(hash(line) % 20 / 1000)
    begin(start_response, line)
    return [line * count]


@form
def raises(environ, start_response, line, count):
    raise SystemExit(1) if hash(line) % 2 else ValueError("as it was asked to")


@form
def cut(environ, start_response, line, count):
    """Some lines, and then no end."""
    begin(start_response, line)

    def generate():
        yield line * count
        raise ValueError("as it was asked to")

    return generate()


@form
def stray(environ, start_response, line, count):
    """A thread that goes on to write when the request is over."""
    write = begin(start_response, line)

    def go():
        try:
            for _ in range(count):
                write(line)
        except RuntimeError:
            pass

    threading.Thread(target=go).start()
    return []


@form
def forks(environ, start_response, line, count):
    """A child that writes to the client, which is not its own."""
    write = begin(start_response, line)
    child = os.fork()
    if child == 0:
        try:
            write(b"FOREIGN")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return [line * count]


@form
def keeps(environ, start_response, line, count):
    """Whoever has its callables uses them when the request is over."""
    LOCAL.kept = (start_response, begin(start_response, line))
    return [line * count]


def mature():
    """What this thread's latest request has kept: that request is over."""
    kept = getattr(LOCAL, "kept", None)
    if kept:
        LOCAL.kept = None
        KEPT.append(kept)
        del KEPT[:-20]


def write_to_others():
    """Uses what belongs to requests that are over."""
    while True:
        time.sleep(0.002)
        for start_response, write in list(KEPT):
            for name, call in (
                ("start_response", lambda: start_response("500 Foreign", [])),
                ("write", lambda: write(b"FOREIGN")),
            ):
                try:
                    call()
                    wrong("%s of a request that is over took something" % name)
                except RuntimeError:
                    pass


def use_descriptors():
    """Whoever writes to a descriptor that it has closed, or closes it twice, hits one of these."""
    number = 0
    while True:
        time.sleep(0.001)
        number += 1
        token = b"%d %d" % (os.getpid(), number)
        try:
            ours, theirs = socket.socketpair()
            reader, writer = os.pipe()
            ours.sendall(token)
            os.write(writer, token)
            time.sleep(0.001)
            if theirs.recv(1000) != token or os.read(reader, 1000) != token:
                wrong("a descriptor of the application had foreign bytes")
            ours.close()
            theirs.close()
            os.close(reader)
            os.close(writer)
        except OSError as error:
            wrong("a descriptor of the application: %s" % error)


STARTED = threading.Lock()


def start_others():
    # In a worker, and not where it was imported.
    if STARTED.acquire(blocking=False):
        for target in (write_to_others, use_descriptors):
            threading.Thread(target=target, daemon=True).start()
