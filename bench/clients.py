"""Clients of our own, for what wrk cannot do: single questions, idle connections, and clients that pause."""

import contextlib
import dataclasses
import heapq
import multiprocessing
import os
import random
import select
import socket
import threading
import time

HELLO = b"Hello, World!"
TIMEOUT_S = 10


@dataclasses.dataclass
class Answer:
    status: int
    head: str
    body: bytes

    def header(self, name):
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name.lower():
                return value
        return None


def ask(port, path="/"):
    """One request on a connection of its own. OSError where there is no whole answer."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return _read_answer(client)


def _read_answer(client):
    read = b""
    while True:
        piece = client.recv(65_536)
        read += piece
        head, blank, body = read.partition(b"\r\n\r\n")
        answer = Answer(int(head[9:12] or 0), head.decode("latin-1"), body) if blank else None
        if answer and len(body) >= int(answer.header("Content-Length") or len(body) + bool(piece)):
            return answer
        if not piece:
            raise ConnectionResetError("closed before the answer")


def hold_idle(port, count):
    """Keep-alive connections that had one answer each and stay open."""
    held = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _read_answer(client)
        held.append(client)
    return held


def still_open(held):
    """How many of these the server has not closed: one that was closed is readable."""
    poll = select.poll()
    for client in held:
        poll.register(client, select.POLLIN)
    return len(held) - len(poll.poll(0))


# What the status page asks, what Prometheus does, and `forkmaster status --json`: the socket, the question, and the end
# of a good answer.
LOOKS = (
    ("status.sock", b"GET /status.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    ("status.sock", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
    ("control.sock", b'{"command":"status"}\n'),
)


class Looker:
    """Looks at forkmaster in each of these ways, so often a second, while it is told to."""

    def __init__(self, directory, per_second):
        self.directory, self.pause_s = directory, 1 / per_second
        self.active, self.over = threading.Event(), threading.Event()
        self.looks, self.failure = 0, None
        self.thread = threading.Thread(target=self._run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.active.set()
        self.thread.join()
        if self.failure:
            raise self.failure

    @contextlib.contextmanager
    def looking(self):
        self.active.set()
        try:
            yield
        finally:
            self.active.clear()

    def _run(self):
        while self.active.wait() and not self.over.is_set():
            for name, question in LOOKS:
                try:
                    self._look(name, question)
                except (OSError, ValueError) as error:
                    self.failure = error
                    return
                self.looks += 1
            self.over.wait(self.pause_s)

    def _look(self, name, question):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT_S)
            client.connect(os.path.join(self.directory, name))
            client.sendall(question)
            answer = b""
            # The control socket stays open after its line.
            while piece := client.recv(65_536):
                answer += piece
                if name == "control.sock" and piece.endswith(b"\n"):
                    break
        if b'"ok":true' not in answer and not answer.startswith(b"HTTP/1.1 200 "):
            raise ValueError(f"{name} answered {answer[:100]}")


class Client:
    """Asks for hello, or for something slow that ends with it, and pauses before it asks again."""

    def __init__(self, port, path="/", keep_alive=True, pause_s=0.0):
        self.port, self.keep_alive, self.pause_s = port, keep_alive, pause_s
        self.request = self._request(path)
        self.socket, self.read = None, b""
        # None while it pauses.
        self.begun = None
        self.latencies, self.errors = [], 0

    def _request(self, path):
        connection = "" if self.keep_alive else "Connection: close\r\n"
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{connection}\r\n".encode()

    def next_request(self):
        return self.request

    def next_pause_s(self):
        return self.pause_s

    def answered(self, latency_s):
        self.latencies.append(latency_s)


class RandomClient(Client):
    """Pauses of random length, exponential with the given mean, and now and then a slow request. The same seed asks the
    same of every server. Only the latencies of fast requests are kept."""

    def __init__(self, port, seed, pause_s, slow_share, keep_alive=True):
        super().__init__(port, "/", keep_alive, pause_s)
        self.random, self.slow_share = random.Random(seed), slow_share
        self.slow_request, self.is_slow = self._request("/slow"), False

    def next_request(self):
        self.is_slow = self.random.random() < self.slow_share
        return self.slow_request if self.is_slow else self.request

    def next_pause_s(self):
        return self.random.expovariate(1 / self.pause_s)

    def answered(self, latency_s):
        if not self.is_slow:
            self.latencies.append(latency_s)


class Crowd:
    """Clients at once, on one thread: the latency seen must be the server's and not the wait for a lock here."""

    def __init__(self, clients):
        self.clients = clients
        self.poll, self.by_descriptor = select.epoll(), {}
        # When each of those that pause begins again, and its place in the list.
        self.queue = []

    def run(self, seconds):
        begun = time.monotonic()
        end = begun + seconds
        for n, client in enumerate(self.clients):
            # They begin spread over their pause and not all in one moment.
            self.queue.append((begun + client.pause_s * n / len(self.clients), n))
        heapq.heapify(self.queue)
        while (now := time.monotonic()) < end:
            while self.queue and self.queue[0][0] <= now:
                self._begin(heapq.heappop(self.queue)[1])
            until = min(self.queue[0][0], end) if self.queue else end
            for descriptor, _ in self.poll.poll(max(until - time.monotonic(), 0)):
                self._go_on(self.by_descriptor[descriptor])
        for client in self.clients:
            if client.begun is not None:
                # Who still waits counts with the time of that: a client that is never served must not be forgotten.
                client.answered(time.monotonic() - client.begun)
            self._close(client)
        self.poll.close()

    def _begin(self, n):
        client = self.clients[n]
        client.begun, client.read = time.monotonic(), b""
        try:
            if client.socket is None:
                client.socket = socket.create_connection(("127.0.0.1", client.port), TIMEOUT_S)
                self.by_descriptor[client.socket.fileno()] = n
                self.poll.register(client.socket, select.EPOLLIN)
            client.socket.sendall(client.next_request())
        except OSError:
            self._fail(n)

    def _go_on(self, n):
        client = self.clients[n]
        try:
            piece = client.socket.recv(65_536)
        except OSError:
            piece = b""
        client.read += piece
        if client.begun is None:
            # Closed by the server in a pause, as it may.
            self._close(client)
        elif client.read.endswith(HELLO):
            client.answered(time.monotonic() - client.begun)
            if not client.keep_alive or b"connection: close" in client.read.lower():
                self._close(client)
            self._pause(n)
        elif not piece:
            self._fail(n)

    def _fail(self, n):
        self.clients[n].errors += 1
        self._close(self.clients[n])
        self._pause(n)

    def _pause(self, n):
        self.clients[n].begun = None
        heapq.heappush(self.queue, (time.monotonic() + self.clients[n].next_pause_s(), n))

    def _close(self, client):
        if client.socket is not None:
            self.by_descriptor.pop(client.socket.fileno(), None)
            client.socket.close()
            client.socket = None


class Others:
    """Clients in a process of their own, so that they take no time from those that are measured. `what` gets the port and
    the end of a pipe that becomes readable when it shall end; it says then for how many clients it has begun."""

    def __init__(self, port, what, *arguments):
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=what, args=(port, theirs, *arguments), daemon=True)

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *exc_info):
        self.pipe.send("end")
        self.begun = self.pipe.recv()
        self.process.join()


def read_slowly(port, pipe, path, count, bytes_per_s):
    """Each asks for something large and reads a little of it every second."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    readers = []
    for _ in range(count):
        reader = socket.socket()
        # A small window, so that the server has to keep the answer and not the kernel.
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        reader.connect(("127.0.0.1", port))
        reader.sendall(request)
        reader.setblocking(False)
        readers.append(reader)
    seen = set()
    while not pipe.poll(1.0):
        for reader in readers:
            try:
                if reader.recv(bytes_per_s):
                    seen.add(reader)
            except OSError:
                pass
    pipe.recv()
    pipe.send(len(seen))


def upload(port, pipe, count, length):
    """Each sends a body as fast as it is taken, and another when it is answered."""
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
    piece, uploads, poll, begun = memoryview(bytes(256 * 1024)), {}, select.epoll(), 0
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        client.setblocking(False)
        uploads[client.fileno()] = [client, 0]
        poll.register(client, select.EPOLLIN | select.EPOLLOUT)
    while not pipe.poll(0):
        for descriptor, events in poll.poll(0.1):
            client, sent = uploads[descriptor]
            try:
                if sent == 0:
                    client.send(head)
                    begun += 1
                    sent = len(head)
                left = len(head) + length - sent
                if events & select.EPOLLOUT and left:
                    sent += client.send(piece[:left])
                elif events & select.EPOLLIN and client.recv(65_536):
                    sent = 0
            except BlockingIOError:
                pass
            uploads[descriptor][1] = sent
    pipe.recv()
    pipe.send(begun)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
