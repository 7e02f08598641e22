"""Every form that an application may take according to PEP 3333, and many that it may not, each under its own path.

`/NAME` calls a form as it is, `/v/NAME` with wsgiref.validate around it. `/closed/NAME` tells how often the iterable
of a form was closed; all of it is of one process.
"""

import io
import json
import os
import sys
import tempfile
import threading
import time
from wsgiref.validate import validator

PLAIN = [("Content-Type", "text/plain")]
CLOSED = {}
FORMS = {}

FILE = tempfile.NamedTemporaryFile(suffix=".txt")
FILE.write(b"0123456789" * 20000)
FILE.flush()

# Between a form that waits and the request that lets it go on.
GO = {}


def form(function):
    FORMS[function.__name__] = function
    return function


def application(environ, start_response):
    path = environ["PATH_INFO"].lstrip("/")
    if path.startswith("closed/"):
        return text(start_response, str(CLOSED.get(path[7:], 0)))
    if path.startswith("go/"):
        GO.setdefault(path[3:], threading.Semaphore(0)).release()
        return text(start_response, "gone")
    if path.startswith("v/"):
        return validator(FORMS[path[2:]])(environ, start_response)
    return FORMS[path.split("/")[0]](environ, start_response)


def text(start_response, body):
    start_response("200 OK", PLAIN)
    return [body.encode()]


class Closing:
    """An iterable that counts how often it is closed."""

    def __init__(self, name, iterable):
        self.name = name
        self.iterator = iter(iterable)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.iterator)

    def close(self):
        CLOSED[self.name] = CLOSED.get(self.name, 0) + 1


# What is returned.


@form
def one(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return [b"one"]


@form
def one_in_a_tuple(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return (b"one",)


@form
def one_by_len(environ, start_response):
    class One(Closing):
        def __len__(self):
            return 1

    start_response("200 OK", list(PLAIN))
    return One("one_by_len", [b"one"])


@form
def several(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return [b"a", b"", b"b"]


@form
def several_with_length(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "2")])
    return [b"a", b"", b"b"]


@form
def nothing(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return []


@form
def nothing_generated(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return Closing("nothing_generated", ())


@form
def generated(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return Closing("generated", (b"%d" % number for number in range(3)))


@form
def started_by_the_first_piece(environ, start_response):
    """PEP 3333: start_response must have been called before the first piece, not before the return."""

    def generate():
        start_response("200 OK", list(PLAIN))
        yield b"late"

    return Closing("started_by_the_first_piece", generate())


@form
def empty_pieces_before_start(environ, start_response):
    """PEP 3333 lets middleware yield b"" while it has nothing to say yet."""

    def generate():
        yield b""
        start_response("200 OK", list(PLAIN))
        yield b""
        yield b"late"

    return generate()


@form
def written(environ, start_response):
    write = start_response("200 OK", list(PLAIN))
    write(b"a")
    write(b"")
    write(b"b")
    return Closing("written", [b"c"])


@form
def written_with_length(environ, start_response):
    write = start_response("200 OK", PLAIN + [("Content-Length", "2")])
    write(b"a")
    return [b"b"]


@form
def no_content(environ, start_response):
    start_response("204 No Content", [])
    return []


@form
def no_content_with_body(environ, start_response):
    start_response("204 No Content", [])
    return Closing("no_content_with_body", [b"never", b"sent"])


@form
def not_modified(environ, start_response):
    start_response("304 Not Modified", [("ETag", '"1"')])
    return []


@form
def odd_status(environ, start_response):
    start_response("299 Caf\xe9 \xfc", [("Content-Type", "text/plain"), ("X-Latin", "\xe9")])
    return [b"odd"]


# Files.


@form
def file(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "200000")])
    return environ["wsgi.file_wrapper"](open(FILE.name, "rb"))


@form
def file_without_length(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return environ["wsgi.file_wrapper"](open(FILE.name, "rb"), 4096)


@form
def file_from_the_middle(environ, start_response):
    stream = open(FILE.name, "rb")
    assert stream.read(5) == b"01234"
    start_response("206 Partial Content", PLAIN + [("Content-Length", "10")])
    return environ["wsgi.file_wrapper"](stream)


@form
def file_that_is_none(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return environ["wsgi.file_wrapper"](io.BytesIO(b"0123456789"), 3)


@form
def file_as_it_is(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return open(FILE.name, "rb")


@form
def file_without_size(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return environ["wsgi.file_wrapper"](open("/proc/sys/kernel/ostype", "rb"))


@form
def file_that_counts(environ, start_response):
    class Stream(io.BytesIO):
        def close(self):
            CLOSED["file_that_counts"] = CLOSED.get("file_that_counts", 0) + 1
            super().close()

    start_response("200 OK", list(PLAIN))
    return environ["wsgi.file_wrapper"](Stream(b"0123456789"))


SHRINKING = tempfile.NamedTemporaryFile()


@form
def file_that_shrinks(environ, start_response):
    # More than sockets hold. `shrinks_now` waits for it: the client has not read anything by then.
    SHRINKING.truncate(64 * 1024 * 1024)
    start_response("200 OK", list(PLAIN))

    GO.setdefault("shrinks", threading.Semaphore(0)).release()
    return environ["wsgi.file_wrapper"](open(SHRINKING.name, "rb"))


@form
def shrinks_now(environ, start_response):
    GO.setdefault("shrinks", threading.Semaphore(0)).acquire(timeout=60)
    SHRINKING.truncate(1)
    return text(start_response, "it is short")


@form
def file_too_short(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "300000")])
    return environ["wsgi.file_wrapper"](open(FILE.name, "rb"))


# Lengths that are wrong.


@form
def too_short(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "10")])
    return Closing("too_short", [b"123"])


@form
def too_long(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "3")])
    return Closing("too_long", [b"12", b"3456", b"78"])


@form
def endless_beyond_length(environ, start_response):
    def generate():
        while True:
            yield b"123"

    start_response("200 OK", PLAIN + [("Content-Length", "3")])
    return Closing("endless_beyond_length", generate())


@form
def written_beyond_length(environ, start_response):
    write = start_response("200 OK", PLAIN + [("Content-Length", "3")])
    while True:
        write(b"123")


@form
def reset_content(environ, start_response):
    start_response("205 Reset Content", list(PLAIN))
    return [b"none of it"]


@form
def too_long_in_one(environ, start_response):
    start_response("200 OK", PLAIN + [("Content-Length", "3")])
    return [b"123456"]


@form
def proxied(environ, start_response):
    # As wrapt.ObjectProxy, in which agents wrap answers: the type has a length, the object behind it has none.
    class Proxy(Closing):
        def __len__(self):
            return len(self.iterator)

    start_response("200 OK", list(PLAIN))
    return Proxy("proxied", iter([b"pro", b"xied"]))


@form
def blanks_around_values(environ, start_response):
    start_response("200 OK", [*PLAIN, ("X-Blanks", "  a  b ")])
    return [b"blanks"]


@form
def len_that_lies(environ, start_response):
    class Liar(list):
        def __len__(self):
            return 1

    start_response("200 OK", list(PLAIN))
    return Liar([b"123", b"456"])


# start_response again.


@form
def started_twice(environ, start_response):
    start_response("200 OK", list(PLAIN))
    start_response("201 Created", list(PLAIN))
    return [b"never"]


@form
def started_again_before(environ, start_response):
    start_response("200 OK", PLAIN + [("X-First", "1")])
    try:
        raise ValueError("changed my mind")
    except ValueError:
        start_response("503 Service Unavailable", PLAIN + [("X-Second", "1")], sys.exc_info())
    return [b"second"]


@form
def started_again_after(environ, start_response):
    def generate():
        start_response("200 OK", list(PLAIN))
        yield b"first"
        try:
            raise ValueError("too late to say")
        except ValueError:
            start_response("500 Internal Server Error", list(PLAIN), sys.exc_info())
        yield b"never"

    return Closing("started_again_after", generate())


@form
def started_with_no_exc_info(environ, start_response):
    start_response("200 OK", list(PLAIN), None)
    return [b"fine"]


@form
def started_by_names(environ, start_response):
    start_response("200 OK", headers=list(PLAIN), exc_info=None)
    try:
        raise ValueError("changed my mind")
    except ValueError:
        start_response(exc_info=sys.exc_info(), response_headers=list(PLAIN), status="503 Service Unavailable")
    return [b"second"]


@form
def started_by_wrong_names(environ, start_response):
    said = []
    for arguments, names in [
        (["200 OK"], {"header": []}),
        (["200 OK", []], {"status": "200 OK"}),
        (["200 OK"], {"exc_info": None}),
        (["200 OK", [], None], {"exc_info": None}),
        ([], {"headers": []}),
    ]:
        try:
            start_response(*arguments, **names)
        except TypeError as error:
            said.append(str(error))
    start_response("200 OK", list(PLAIN))
    return ["; ".join(said).encode()]


# Exceptions.


@form
def raises_at_once(environ, start_response):
    raise RuntimeError("secret at once")


@form
def raises_after_start(environ, start_response):
    start_response("200 OK", [("X-Secret", "header")])
    raise RuntimeError("secret after start")


@form
def raises_at_the_first_piece(environ, start_response):
    def generate():
        start_response("200 OK", [("X-Secret", "header")])
        raise RuntimeError("secret at the first piece")
        yield b""

    return Closing("raises_at_the_first_piece", generate())


@form
def raises_in_the_middle(environ, start_response):
    def generate():
        yield b"begun"
        raise RuntimeError("secret in the middle")

    start_response("200 OK", list(PLAIN))
    return Closing("raises_in_the_middle", generate())


@form
def raises_in_the_middle_of_a_length(environ, start_response):
    def generate():
        yield b"begun"
        raise RuntimeError("secret before its end")

    start_response("200 OK", PLAIN + [("Content-Length", "100")])
    return Closing("raises_in_the_middle_of_a_length", generate())


@form
def raises_at_close(environ, start_response):
    class Raising(Closing):
        def close(self):
            super().close()
            raise RuntimeError("secret at close")

    start_response("200 OK", PLAIN + [("Content-Length", "4")])
    return Raising("raises_at_close", [b"done"])


@form
def exits(environ, start_response):
    sys.exit("secret exit")


@form
def interrupted(environ, start_response):
    raise KeyboardInterrupt("secret interrupt")


# What is no answer.


@form
def never_starts(environ, start_response):
    return Closing("never_starts", [b"secret"])


@form
def never_starts_and_says_nothing(environ, start_response):
    return []


@form
def returns_none(environ, start_response):
    start_response("200 OK", list(PLAIN))


@form
def returns_text(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return Closing("returns_text", ["secret"])


@form
def returns_bytes(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return b"secret"


@form
def says_close(environ, start_response):
    start_response("200 OK", [*PLAIN, ("Connection", "close")])
    return [b"closing"]


@form
def says_keep_alive(environ, start_response):
    start_response("200 OK", [*PLAIN, ("Connection", "keep-alive"), ("Keep-Alive", "timeout=5")])
    return [b"keeping"]


def bad(name, status="200 OK", headers=()):
    def function(environ, start_response):
        start_response(status, [("X-Secret", "header"), *headers] if isinstance(headers, tuple) else headers)
        return [b"secret"]

    FORMS[name] = function


bad("bad_hop_by_hop", headers=(("Connection", "upgrade"),))
bad("bad_transfer_encoding", headers=(("Transfer-Encoding", "chunked"),))
bad("bad_line_feed", headers=(("X-Other", "a\nSet-Cookie: b"),))
bad("bad_carriage_return", headers=(("X-Other", "a\r\nSet-Cookie: b"),))
bad("bad_nul", headers=(("X-Other", "a\0"),))
bad("bad_unicode", headers=(("X-Other", "\u20ac"),))
bad("bad_name", headers=(("X Other", "a"),))
bad("bad_name_latin", headers=(("X-\xe9", "a"),))
bad("bad_name_empty", headers=(("", "a"),))
bad("bad_bytes", headers=(("X-Other", b"a"),))
bad("bad_number", headers=(("X-Other", 1),))
bad("bad_triple", headers=(("X-Other", "a", "b"),))
bad("bad_none", headers=None)
bad("bad_two_lengths", headers=(("Content-Length", "6"), ("content-length", "6")))
bad("bad_length", headers=(("Content-Length", "6 "), ("X", "\x7f")))
bad("bad_length_sign", headers=(("Content-Length", "+6"),))
bad("bad_status_number", status=200)
bad("bad_status_bytes", status=b"200 OK")
bad("bad_status_word", status="OK")
bad("bad_status_interim", status="103 Early Hints")
bad("bad_status_line", status="200 OK\r\nX: y")
bad("bad_status_unicode", status="200 \u20ac")


# The body of the request, read in every way. The answer says what came.


def answer_pieces(start_response, pieces):
    body = json.dumps([piece.decode("latin-1") for piece in pieces]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


@form
def input_read(environ, start_response):
    """In pieces, and beyond the end, which never blocks."""
    stream = environ["wsgi.input"]
    pieces = []
    while True:
        piece = stream.read(1000)
        if not piece:
            break
        pieces.append(piece)
    assert stream.read(10) == b"" and stream.readline() == b"" and stream.read(0) == b""
    return answer_pieces(start_response, pieces)


@form
def input_read_more_than_there_is(environ, start_response):
    stream = environ["wsgi.input"]
    return answer_pieces(start_response, [stream.read(10**9), stream.read(1)])


@form
def input_read_all(environ, start_response):
    stream = environ["wsgi.input"]
    return answer_pieces(start_response, [stream.read(), stream.read(), stream.read(-1), stream.read(None)])


@form
def input_readline(environ, start_response):
    stream = environ["wsgi.input"]
    return answer_pieces(start_response, list(iter(stream.readline, b"")))


@form
def input_readline_sized(environ, start_response):
    stream = environ["wsgi.input"]
    return answer_pieces(start_response, list(iter(lambda: stream.readline(4), b"")))


@form
def input_readlines(environ, start_response):
    stream = environ["wsgi.input"]
    return answer_pieces(start_response, stream.readlines() + stream.readlines())


@form
def input_readlines_hint(environ, start_response):
    stream = environ["wsgi.input"]
    return answer_pieces(start_response, [b"".join(stream.readlines(5)), *stream.readlines(10**9)])


@form
def input_iterated(environ, start_response):
    return answer_pieces(start_response, list(environ["wsgi.input"]))


@form
def input_ignored(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return [b"ignored"]


@form
def input_sought_in_nothing(environ, start_response):
    stream = environ["wsgi.input"]
    assert stream.tell() == 0
    assert stream.seek(5) == 5 == stream.tell() and stream.read() == b"" == stream.readline()
    return text(start_response, str(stream.seek(2, io.SEEK_CUR)))


@form
def input_as_a_file(environ, start_response):
    stream = environ["wsgi.input"]
    assert isinstance(stream, io.BufferedIOBase) and stream.readable() and stream.seekable() and not stream.writable()
    wrapper = io.TextIOWrapper(stream, "latin-1", newline="")
    lines = [line.encode("latin-1") for line in wrapper]
    wrapper.close()
    assert stream.seek(0) == 0 and not stream.closed
    with io.BufferedReader(stream) as reader:
        whole = reader.read()
    assert b"".join(lines) == whole, (len(whole), len(lines))
    assert stream.seek(-4, io.SEEK_END) == len(whole) - 4 and stream.read() == whole[-4:]
    assert stream.seek(2) == 2 and stream.seek(1, io.SEEK_CUR) == 3 and stream.read1(5) == whole[3:8]
    buffer = bytearray(10)
    assert stream.readinto(memoryview(buffer)[2:6]) == 4 and bytes(buffer[2:6]) == whole[8:12] and stream.tell() == 12
    # Lines across what was read ahead, and back.
    assert stream.readline() == whole[12 : whole.index(b"\n", 12) + 1]
    assert stream.seek(len(whole) + 10) == len(whole) + 10 and stream.read() == b"" == stream.readline()
    for unsupported in (lambda: stream.write(b"x"), stream.fileno, stream.truncate, stream.detach):
        try:
            unsupported()
        except io.UnsupportedOperation:
            continue
        raise AssertionError(unsupported)
    with stream:
        stream.close()
    stream.seek(0)
    return answer_pieces(start_response, list(stream))


@form
def input_taken_away(environ, start_response):
    """An application may keep it as its own, in place of the environ's."""
    GO["input"] = environ.pop("wsgi.input")
    return one(environ, start_response)


@form
def input_of_before(environ, start_response):
    return text(start_response, str(len(GO.pop("input").read())))


@form
def input_kept(environ, start_response):
    """An application may keep the stream: it then has this request's body, never another's."""
    stream = environ["wsgi.input"]
    kept = GO.setdefault("kept", stream)
    start_response("200 OK", list(PLAIN))
    return [b"first" if kept is stream else kept.read(100)]


# What is in the environ.


@form
def environ_of(environ, start_response):
    plain = {key: value for key, value in environ.items() if isinstance(value, (str, bool, int))}
    plain["wsgi.version"] = list(environ["wsgi.version"])
    body = json.dumps(plain, sort_keys=True).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


@form
def target_of(environ, start_response):
    """What the environ says of the target; then it is spoilt, as an application may do with its own."""
    keys = ("PATH_INFO", "RAW_URI", "REQUEST_URI", "QUERY_STRING")
    said = " ".join(environ[key] for key in keys).encode()
    for key in keys:
        environ[key] = "/spoilt"
    start_response("200 OK", list(PLAIN))
    return [said]


@form
def errors(environ, start_response):
    stream = environ["wsgi.errors"]
    stream.write("errors: written \u20ac\n")
    stream.writelines(["errors: one of ", "several\n"])
    stream.flush()
    return one(environ, start_response)


@form
def errors_printed(environ, start_response):
    print("errors: printed", 1, 2, file=environ["wsgi.errors"])
    return one(environ, start_response)


# Clients that leave or look on.


@form
def endless(environ, start_response):
    """Until the client has left."""

    def generate():
        while True:
            yield b"x" * 65536

    start_response("200 OK", list(PLAIN))
    return Closing("endless", generate())


@form
def endless_no_content(environ, start_response):
    def generate():
        while True:
            yield b"never sent"

    start_response("204 No Content", [])
    return Closing("endless_no_content", generate())


@form
def endless_not_modified(environ, start_response):
    def generate():
        while True:
            yield b"never sent"

    start_response("304 Not Modified", [("ETag", '"1"')])
    return Closing("endless_not_modified", generate())


@form
def large(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return [b"x" * (20 << 20)]


@form
def large_stream(environ, start_response):
    start_response("200 OK", list(PLAIN))
    return (b"x" * 65536 for _ in range(320))


@form
def hinted(environ, start_response):
    environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload"), ("X-Blanks", " a ")])
    return one(environ, start_response)


@form
def watched(environ, start_response):
    """Until the client has left."""
    disconnected = environ["forkmaster.client_disconnected"]
    CLOSED["asked"] = CLOSED.get("asked", 0) + 1
    assert disconnected() is False
    while not disconnected():
        time.sleep(0.001)
    CLOSED["watched"] = CLOSED.get("watched", 0) + 1
    return one(environ, start_response)


@form
def endless_written(environ, start_response):
    write = start_response("200 OK", list(PLAIN))
    for _ in range(2000):
        write(b"x" * 65536)
    return Closing("endless_written", [b"end"])


@form
def stepped(environ, start_response):
    """The next piece only after somebody has asked for `/go/stepped`."""
    go = GO.setdefault("stepped", threading.Semaphore(0))

    def generate():
        for number in range(4):
            yield b"step %d\n" % number
            if not go.acquire(timeout=20):
                yield b"nobody said go\n"

    start_response("200 OK", list(PLAIN))
    return Closing("stepped", generate())


@form
def kept_start_response(environ, start_response):
    """What is kept of a request that is over does nothing to the next one."""
    kept = GO.get("start_response")
    GO["start_response"] = start_response
    if kept is None:
        GO["write"] = start_response("200 OK", list(PLAIN))
        return [b"kept"]
    outcomes = []
    for call in (lambda: kept("500 No", []), lambda: GO["write"](b"no")):
        try:
            call()
            outcomes.append("done")
        except RuntimeError as error:
            outcomes.append(str(error))
    return text(start_response, "; ".join(outcomes))


@form
def pid(environ, start_response):
    return text(start_response, str(os.getpid()))
