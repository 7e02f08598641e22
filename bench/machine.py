"""The machine: its processors, which of them serve and which one loads, and the facts that stand beside figures."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

PACKAGES = ("gunicorn", "gunicorn_h1c", "granian", "uwsgi", "bjoern", "fastwsgi", "waitress", "flask", "django")

# The share of processor time from which on a run says that it was not alone.
BUSY = 0.05

_ALL = sorted(os.sched_getaffinity(0))
# Server and load on different processors, so that they do not take each other's time.
LOAD = {_ALL[-1]}


def server_processors(workers):
    """One a worker, as far as there are so many."""
    return set(_ALL[:-1][:workers])


def pin_load():
    if len(_ALL) < 2:
        raise SystemExit("bench: needs two processors, one for the server and one for the load")
    os.sched_setaffinity(0, LOAD)


@contextlib.contextmanager
def as_server(workers=1):
    """Processes started meanwhile run where servers do. By inheritance and not by taskset, which takes a millisecond
    to start and would stand in every start to first answer."""
    os.sched_setaffinity(0, server_processors(workers))
    try:
        yield
    finally:
        os.sched_setaffinity(0, LOAD)


def facts():
    with open("/proc/cpuinfo") as cpuinfo:
        models = [line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")]
    with open("/proc/meminfo") as meminfo:
        memory_kib = int(meminfo.readline().split()[1])
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": models[0] if models else platform.machine(),
        "processors": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "busy_otherwise": _busy(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {"forkmaster": _forkmaster(), **{name: _version(name) for name in PACKAGES}},
    }


def sentence(facts):
    busy = f", {facts['busy_otherwise']:.0%} busy otherwise" if facts["busy_otherwise"] > BUSY else ""
    return (
        f"{facts['date']}, {facts['processors']} x {facts['processor']}, {facts['memory_gib']} GiB, "
        f"Linux {facts['kernel']}, Python {facts['python']}{busy}"
    )


def versions(facts):
    return ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)


def _busy():
    """The share of processor time that others took in one second before the run."""

    def times():
        with open("/proc/stat") as stat:
            values = [int(value) for value in stat.readline().split()[1:9]]
        # idle and iowait: proc_stat(5).
        return sum(values), values[3] + values[4]

    (all_before, idle_before), _, (all_after, idle_after) = times(), time.sleep(1), times()
    return 1 - (idle_after - idle_before) / (all_after - all_before)


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _forkmaster():
    def said(*command):
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
        except OSError:
            return ""

    version = said(os.path.join(ROOT, "target/release/forkmaster"), "--version").removeprefix("forkmaster ")
    commit = said("git", "describe", "--always", "--dirty")
    return f"{version} ({commit})" if commit else version
