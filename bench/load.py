"""The load: wrk for throughput, and a few clients of our own for what wrk cannot do."""

import re
import socket
import subprocess
import threading
import time

from servers import LOAD_CPU


class Load:
    """What one run of wrk saw."""

    def __init__(self, text, seconds):
        def number(pattern, default=None):
            found = re.search(pattern, text)
            if found is None and default is None:
                raise RuntimeError(f"wrk said: {text}")
            return found.group(1) if found else default

        self.requests = int(number(r"(\d+) requests in"))
        self.per_second = float(number(r"Requests/sec:\s+([\d.]+)"))
        self.p50 = _seconds(number(r"50%\s+([\d.]+\w+)"))
        self.p99 = _seconds(number(r"99%\s+([\d.]+\w+)"))
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        self.errors = sum(map(int, errors.groups())) if errors else 0
        self.errors += int(number(r"Non-2xx or 3xx responses: (\d+)", "0"))


def _seconds(text):
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(value) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60}[unit]


def wrk(port, seconds, connections, script=None, path="/", close=False):
    command = ["taskset", "-c", LOAD_CPU, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    if script is not None:
        command += ["-s", script]
    if close:
        command += ["-H", "Connection: close"]
    out = subprocess.run(command + [f"http://127.0.0.1:{port}{path}"], capture_output=True, text=True, timeout=seconds + 60)
    return Load(out.stdout, seconds)


def hold_idle(port, count):
    """Opens keep-alive connections that have had one answer each and stay open."""
    held = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.recv(65536)
        held.append(client)
    return held


def mixed(port, seconds, fast_clients=24, slow_clients=3, keep_alive=True):
    """Latencies of fast requests while others loop on a slow one. Raw sockets, a thread a client."""
    end = time.monotonic() + seconds
    latencies, lock = [], threading.Lock()

    def loop(path, record):
        mine, client = [], None
        connection = b"" if keep_alive or not record else b"Connection: close\r\n"
        request = b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + connection + b"\r\n"
        while time.monotonic() < end:
            begun = time.monotonic()
            try:
                if client is None:
                    client = socket.create_connection(("127.0.0.1", port), timeout=30)
                client.sendall(request)
                answer = client.recv(65536)
                closing = not answer or b"connection: close" in answer.lower() or connection
                if not answer:
                    client = None
                    continue
                if closing:
                    client.close()
                    client = None
            except OSError:
                client = None
                continue
            mine.append(time.monotonic() - begun)
            # A person's pace rather than a flood: what is measured is waiting, not throughput.
            time.sleep(0.005)
        if record:
            with lock:
                latencies.extend(mine)

    clients = [threading.Thread(target=loop, args=(b"/slow", False)) for _ in range(slow_clients)]
    clients += [threading.Thread(target=loop, args=(b"/", True)) for _ in range(fast_clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    latencies.sort()
    return {
        "requests": len(latencies),
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[int(len(latencies) * 0.99)],
    }
