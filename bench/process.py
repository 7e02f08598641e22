"""A running server: its processes, their processor time and memory."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import machine
import nginx
from clients import ask
from servers import APPS, COMMANDS

START_DEADLINE_S = 20
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class DidNotStart(Exception):
    """With the end of the server's log, which says why."""


class Server:
    """Started, pinned, and answering."""

    def __init__(self, name, setup):
        self.name = name
        self.port = _free_port()
        self.directory = tempfile.mkdtemp(prefix="forkmaster-bench-")
        self.release("1")
        command = COMMANDS[name](setup, self.port, self.directory)
        self.binary = command[0]
        with open(os.path.join(self.directory, "log"), "w") as log, machine.as_server(setup.workers):
            begun = time.monotonic()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=APPS,
                # The second is where forkmaster with default settings puts its control socket.
                env={**os.environ, "BENCH_DIRECTORY": self.directory, "RUNTIME_DIRECTORY": self.directory},
            )
        self._wait_for_an_answer(begun + START_DEADLINE_S)
        self.first_answer_s = time.monotonic() - begun
        self.nginx = None
        if setup.nginx:
            # From here on the port is the one that clients come to.
            behind, self.port = self.port, _free_port()
            self.nginx = nginx.start(setup.nginx, self.port, behind, self.directory)
            self._wait_for_an_answer(time.monotonic() + START_DEADLINE_S)

    def _wait_for_an_answer(self, deadline):
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if ask(self.port).status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.001)
        with open(os.path.join(self.directory, "log")) as log:
            said = log.read().strip().splitlines()[-1:] or ["no output"]
        self.stop()
        raise DidNotStart(said[0][:200])

    def fate(self):
        """A sentence if its first process has ended, as none should."""
        code = self.process.poll()
        if code is None:
            return None
        return f"the server was killed by {signal.Signals(-code).name}" if code < 0 else f"the server ended with {code}"

    def release(self, name):
        """Writes what a new release of apps/instance.py would bring."""
        with open(os.path.join(self.directory, "release"), "w") as file:
            file.write(name)

    def counts(self):
        """Requests by worker, as apps/counted.py counts them. A worker that had none is not there."""
        counts = {}
        for name in os.listdir(self.directory):
            if name.startswith("count-"):
                with open(os.path.join(self.directory, name), "rb") as file:
                    counts[name] = int.from_bytes(file.read(8), "little")
        return counts

    def pids(self):
        """The server's processes: the one that was started and all that descend from it."""
        children = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{entry}/stat") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue += children.get(pid, [])
        return found

    def cpu(self):
        return Cpu(self.pids())

    def switches(self):
        """Context switches of all its threads until now, voluntary and not: proc_pid_status(5)."""
        found = 0
        for pid in self.pids():
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/status") as status:
                    found += sum(int(line.split()[1]) for line in status if "ctxt_switches:" in line)
        return found

    def pss_bytes(self):
        return sum(map(pss_bytes, self.pids()))

    def stop(self):
        # Stopped first, so that it starts no worker that would be missed.
        if getattr(self, "nginx", None):
            self.nginx.terminate()
            self.nginx.wait()
        self._kill(self.process.pid, signal.SIGSTOP)
        for pid in self.pids():
            self._kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @staticmethod
    def _kill(pid, number):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Cpu:
    """Processor time of some processes, at one moment."""

    def __init__(self, pids):
        self.threads, self.ticks = {}, 0
        for pid in pids:
            try:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    # Nanoseconds on a processor: sched-stats in the kernel's documentation.
                    with open(f"/proc/{pid}/task/{thread}/schedstat") as stat:
                        self.threads[pid, thread] = int(stat.read().split()[0])
            except OSError:
                # It ended meanwhile, or this kernel keeps no such statistics.
                pass
            try:
                with open(f"/proc/{pid}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
            except OSError:
                continue
            # utime, stime, and those of reaped children: proc_pid_stat(5).
            self.ticks += sum(map(int, fields[11:15]))

    def since(self, before):
        """Seconds. The ticks of /proc/PID/stat are 10 ms coarse, but they remember threads and children that ended."""
        if self.threads and before.threads.keys() <= self.threads.keys():
            return sum(time - before.threads.get(thread, 0) for thread, time in self.threads.items()) / 1e9
        return (self.ticks - before.ticks) / TICKS_A_SECOND


def pss_bytes(pid):
    """Memory in proportion: a page that n processes share counts 1/n in each."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return sum(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    except OSError:
        return 0


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
