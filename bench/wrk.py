"""wrk, the load generator for throughput, and what it says."""

import os
import re
import signal
import subprocess
import time

# It ends at once but for the connections that it waits to open.
END_DEADLINE_S = 60
AGAIN_S = 1


class Failed(Exception):
    """No figure, with what was said instead."""


class Load:
    """What one run saw."""

    def __init__(self, text):
        def number(pattern, default=None):
            found = re.search(pattern, text)
            if found is None and default is None:
                raise Failed(f"wrk said: {text.strip()}")
            return found.group(1) if found else default

        self.requests = int(number(r"(\d+) requests in"))
        self.per_second = float(number(r"Requests/sec:\s+([\d.]+)"))
        self.mean_s = _seconds(number(r"Latency\s+([\d.]+\w+)"))
        self.p50_s = _seconds(number(r"50%\s+([\d.]+\w+)"))
        self.p99_s = _seconds(number(r"99%\s+([\d.]+\w+)"))
        sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
        self.errors = sum(map(int, sockets.groups())) if sockets else 0
        self.errors += int(number(r"Non-2xx or 3xx responses: (\d+)", "0"))


def _seconds(text):
    value, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()
    return float(value) * {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[unit]


def wrk(port, seconds, connections, close=False, script=None, path="/"):
    command = ["wrk", "-t1", f"-c{connections}", "-d600s", "--latency", "--timeout", "30s"]
    command += ["-s", script] if script else []
    command += ["-H", "Connection: close"] if close else []
    command += [f"http://127.0.0.1:{port}{path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    try:
        said = _end(process)
    finally:
        process.kill()
    return Load(said)


def _end(process):
    """It takes whole seconds only, but ends orderly when interrupted and knows how long it ran. An interrupt between its setting
    a handler and its going to sleep is lost, and with a body of 50 MB it takes about as long as a warm-up to get there: so it is
    told until it hears."""
    deadline = time.monotonic() + END_DEADLINE_S
    while time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=AGAIN_S)[0]
        except subprocess.TimeoutExpired:
            pass
    raise Failed(f"wrk does not end in {END_DEADLINE_S} s")


def post_script(directory, length):
    """wrk takes a body from Lua only."""
    path = os.path.join(directory, f"post-{length}.lua")
    with open(path, "w") as file:
        file.write(
            f'wrk.method = "POST"\nwrk.body = string.rep("x", {length})\n'
            'wrk.headers["Content-Type"] = "application/octet-stream"\n'
        )
    return path
