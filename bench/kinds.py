"""How each kind of scenario is measured: a function that takes a running server and returns its figures."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import clients
import ideal
import machine
import takeover
from process import pss_bytes
from wrk import Failed, post_script, wrk

WARM_UP_S = 0.5
# A server that has just answered for the first time may still be starting its other workers.
REST_S = 0.5
ANSWER_DEADLINE_S = 20
WORKERS_DEADLINE_S = 3
IDLE_CONNECTIONS = 10_000
SLOW_CLIENTS, FAST_CLIENTS = 3, 24
BALANCE_CLIENTS = 32
RANDOM_CLIENTS, SLOW_S = 24, 0.2
# Connections one after the other to workers that are idle otherwise.
HERD_CONNECTIONS, HERD_PAUSE_S = 400, 0.005
# Each of three: the page, a scraper, `status --json`. Long enough for some looks, short beside the machine's whims.
LOOKS_A_SECOND, LOOKED_AT_SLICE_S = 10, 0.5
UPLOADS, UPLOAD_BYTES = 32, 60_000_000
SLOW_READERS, SLOW_READER_BYTES_PER_S, ATTACK_S, ATTACK_PAUSE_S = 1_000, 2_000, 5.0, 0.01


def throughput(server, scenario, connections, seconds):
    script = post_script(server.directory, scenario.body) if scenario.body else None
    pss_before = server.pss_bytes()
    wrk(server.port, WARM_UP_S, connections, scenario.close, script)
    before = server.cpu()
    seen = wrk(server.port, seconds, connections, scenario.close, script)
    cpu_s = server.cpu().since(before)
    if not seen.requests:
        raise Failed(f"no answer in {seconds} s, {seen.errors} errors")
    closed = {"closed": float(_closes(server))} if scenario.tells_closed else {}
    return closed | {
        "per_second": seen.per_second,
        "cpu_us": cpu_s / seen.requests * 1e6,
        "p50_s": seen.p50_s,
        "p99_s": seen.p99_s,
        # Little's law: as many connections as were waited on at a time. Fewer than there are: the others starved.
        "served": seen.per_second * seen.mean_s,
        "error_share": seen.errors / seen.requests,
        "pss_bytes": server.pss_bytes(),
        "grown_bytes": server.pss_bytes() - pss_before,
    }


def looked_at(server, scenario, connections, seconds):
    """Slices of load, in every other of which somebody looks all the time. Ratios of neighbours: the machine's speed
    changes within a minute."""
    wrk(server.port, WARM_UP_S, connections, scenario.close)
    alone, looked = [], []
    with clients.Looker(server.directory, LOOKS_A_SECOND) as looker:
        for number in range(2 * round(seconds / (2 * LOOKED_AT_SLICE_S))):
            # Who comes first changes with each pair.
            looks = number % 4 in (1, 2)
            before = server.cpu()
            with looker.looking() if looks else contextlib.nullcontext():
                seen = wrk(server.port, LOOKED_AT_SLICE_S, connections, scenario.close)
            if not seen.requests:
                raise Failed(f"no answer in {LOOKED_AT_SLICE_S} s, {seen.errors} errors")
            cpu_us = server.cpu().since(before) / seen.requests * 1e6
            (looked if looks else alone).append((seen.per_second, cpu_us, seen.errors / seen.requests))
    pairs = list(zip(looked, alone, strict=True))
    return {
        "cpu_to_alone": statistics.median(one[1] / other[1] for one, other in pairs),
        "to_alone": statistics.median(one[0] / other[0] for one, other in pairs),
        "per_second": statistics.median(one[0] for one in alone),
        "looks": looker.looks / (len(looked) * LOOKED_AT_SLICE_S),
        "error_share": max(one[2] for one in looked),
    }


def _closes(server):
    clients.ask(server.port, "/closed")
    return int(clients.ask(server.port, "/closed").body) > 0


def mixed(server, scenario, connections, seconds):
    """Latency of fast requests while others loop on a slow one."""
    # Long enough for all workers to be up.
    wrk(server.port, 2 * WARM_UP_S, FAST_CLIENTS, close=True)
    slow = [clients.Client(server.port, "/slow") for _ in range(SLOW_CLIENTS)]
    fast = [clients.Client(server.port, "/", not scenario.close, scenario.pause_s) for _ in range(FAST_CLIENTS)]
    clients.Crowd(slow + fast).run(seconds)
    latencies = [latency for client in fast for latency in client.latencies]
    return {
        "p50_s": clients.percentile(latencies, 0.50),
        "p99_s": clients.percentile(latencies, 0.99),
        "per_second": len(latencies) / seconds,
        "slow_p50_s": clients.percentile([latency for client in slow for latency in client.latencies], 0.50),
        "error_share": sum(client.errors for client in slow + fast) / len(latencies),
    }


def random_slow(server, scenario, connections, seconds):
    """Latency of fast requests where any keep-alive connection may ask for something slow, now and then."""
    wrk(server.port, 2 * WARM_UP_S, RANDOM_CLIENTS, close=True)
    crowd = [
        clients.RandomClient(server.port, seed, scenario.pause_s, scenario.slow_share) for seed in range(RANDOM_CLIENTS)
    ]
    clients.Crowd(crowd).run(seconds)
    latencies = [latency for client in crowd for latency in client.latencies]
    if not latencies:
        raise Failed("no fast request was answered")
    p50_s, p99_s = clients.percentile(latencies, 0.50), clients.percentile(latencies, 0.99)
    at_best_s = ideal.shared_queue_p99_s(
        RANDOM_CLIENTS, scenario.workers * scenario.threads, scenario.pause_s, scenario.slow_share, SLOW_S, p50_s
    )
    return {
        "p99_s": p99_s,
        "p50_s": p50_s,
        "to_ideal": p99_s / at_best_s,
        "ideal_p99_s": at_best_s,
        "per_second": len(latencies) / seconds,
        "error_share": sum(client.errors for client in crowd) / len(latencies),
    }


def slow_readers(server, scenario, connections, seconds):
    """Ordinary requests, one after the other, in the first seconds of an attack by slow readers."""
    clients.ask(server.port)
    time.sleep(REST_S)
    latencies, errors = [], 0
    with clients.Others(server.port, clients.read_slowly, "/large", SLOW_READERS, SLOW_READER_BYTES_PER_S) as readers:
        end = time.monotonic() + ATTACK_S
        while (begun := time.monotonic()) < end:
            try:
                clients.ask(server.port)
            except OSError:
                errors += 1
            latencies.append(time.monotonic() - begun)
            time.sleep(ATTACK_PAUSE_S)
    return {
        "p99_s": clients.percentile(latencies, 0.99),
        "p50_s": clients.percentile(latencies, 0.50),
        "longest_s": max(latencies),
        "attackers_begun": readers.begun,
        "error_share": errors / len(latencies),
    }


def uploads(server, scenario, connections, seconds):
    """Something small on one connection, while others upload."""
    clients.ask(server.port)
    time.sleep(REST_S)
    small = clients.Client(server.port)
    with clients.Others(server.port, clients.upload, UPLOADS, UPLOAD_BYTES) as others:
        time.sleep(REST_S)
        before = server.cpu()
        clients.Crowd([small]).run(seconds)
        cpu_s = server.cpu().since(before)
    return {
        "p50_s": clients.percentile(small.latencies, 0.50),
        "p99_s": clients.percentile(small.latencies, 0.99),
        "longest_s": max(small.latencies),
        "uploads_begun": others.begun,
        "cpu_share": cpu_s / seconds,
        "error_share": small.errors / len(small.latencies),
    }


def herd(server, scenario, connections, seconds):
    """What a connection costs where all workers are idle: processor time and context switches."""
    for _ in range(4 * scenario.workers):
        clients.ask(server.port)
    time.sleep(REST_S)
    cpu, switches = server.cpu(), server.switches()
    latencies = []
    for _ in range(HERD_CONNECTIONS):
        begun = time.monotonic()
        clients.ask(server.port)
        latencies.append(time.monotonic() - begun)
        time.sleep(HERD_PAUSE_S)
    return {
        "cpu_us": server.cpu().since(cpu) / HERD_CONNECTIONS * 1e6,
        "switches": (server.switches() - switches) / HERD_CONNECTIONS,
        "p50_s": clients.percentile(latencies, 0.50),
        "p99_s": clients.percentile(latencies, 0.99),
    }


def alternating(server, scenario, connections, seconds):
    """An application that waits for a second and computes for a second, beside what it has with only one of the two."""

    def per_second(path, seconds):
        return wrk(server.port, seconds, connections, path=path).per_second

    wrk(server.port, WARM_UP_S, connections)
    waiting, computing = per_second("/wait", seconds), per_second("/compute", seconds)
    # Each of the two kinds has half of the time, if these are whole pairs of seconds.
    both = per_second("/", 2 * max(round(seconds), 1))
    return {"to_both": both / ((waiting + computing) / 2), "per_second": both, "waiting": waiting, "computing": computing}


def ticker(server, scenario, connections, seconds):
    """How late a Python thread comes that wants its turn every 10 ms, while hello runs at full speed."""
    wrk(server.port, WARM_UP_S, connections)
    clients.ask(server.port, "/late")
    seen = wrk(server.port, seconds, connections)
    ticks, late_s = clients.ask(server.port, "/late").body.split()
    return {"late_s": float(late_s), "ticks": int(ticks), "per_second": seen.per_second}


def balance(server, scenario, connections, seconds):
    """Requests of the busiest worker to those of the idlest. With pauses the processor is free now and then."""
    # A worker that is not up yet must not count as one that gets nothing.
    deadline = time.monotonic() + WORKERS_DEADLINE_S
    while len(server.counts()) < scenario.workers and time.monotonic() < deadline:
        wrk(server.port, 0.2, BALANCE_CLIENTS, close=True)
    before = server.counts()
    if scenario.pause_s:
        crowd = [clients.Client(server.port, pause_s=scenario.pause_s) for _ in range(BALANCE_CLIENTS)]
        clients.Crowd(crowd).run(seconds)
    else:
        wrk(server.port, seconds, BALANCE_CLIENTS, scenario.close)
    counts = [count - before.get(worker, 0) for worker, count in server.counts().items()]
    counts += [0] * (scenario.workers - len(counts))
    return {
        "most_to_least": max(counts) / max(min(counts), 1),
        "most_share": max(counts) / sum(counts),
        "least_share": min(counts) / sum(counts),
        "per_second": sum(counts) / seconds,
    }


def idle(server, scenario, connections, seconds):
    """User space memory of a keep-alive connection that had its answer and waits."""
    for client in clients.hold_idle(server.port, 100):
        client.close()
    time.sleep(REST_S)
    before = server.pss_bytes()
    held = clients.hold_idle(server.port, IDLE_CONNECTIONS)
    after = server.pss_bytes()
    kept = clients.still_open(held)
    for client in held:
        client.close()
    if kept < IDLE_CONNECTIONS:
        raise Failed(f"kept {kept:,} of {IDLE_CONNECTIONS:,} connections")
    return {"bytes_per_connection": (after - before) / IDLE_CONNECTIONS, "before_bytes": before}


def memory(server, scenario, connections, seconds):
    """Of all processes, after every worker had work."""
    time.sleep(REST_S)
    wrk(server.port, 1.0, connections, scenario.close)
    return {"pss_bytes": server.pss_bytes(), "main_bytes": pss_bytes(server.process.pid)}


def start(server, scenario, connections, seconds):
    return {"seconds": server.first_answer_s}


def reload(server, scenario, connections, seconds):
    """From HUP to the first answer of the new release, and whether requests failed meanwhile."""
    time.sleep(REST_S)
    server.release("2")
    begun = time.monotonic()
    os.kill(server.process.pid, 1)
    failed = _until(server, begun, lambda answer: answer.header("X-Instance").split()[0] == "2")
    return {"seconds": time.monotonic() - begun, "failed": failed}


def take_over(server, scenario, connections, seconds):
    """A reload of several workers under load."""
    # All workers are up.
    time.sleep(WORKERS_DEADLINE_S)
    return takeover.take_over(server)


def respawn(server, scenario, connections, seconds):
    """From kill -9 of the only worker to the next answer."""
    time.sleep(REST_S)
    pid = clients.ask(server.port).header("X-Instance").split()[1]
    begun = time.monotonic()
    os.kill(int(pid), 9)
    failed = _until(server, begun, lambda answer: answer.header("X-Instance").split()[1] != pid)
    return {"seconds": time.monotonic() - begun, "failed": failed}


def _until(server, begun, reached):
    """Asks until an answer is as wanted; how many requests failed until then. After an answer that is not it pauses
    longer: answering takes processor time that the successor needs, and more of it than the pause blurs the figure."""
    failed = 0
    while time.monotonic() < begun + ANSWER_DEADLINE_S:
        try:
            if reached(clients.ask(server.port)):
                return failed
            time.sleep(0.004)
        except OSError:
            failed += 1
            time.sleep(0.001)
    raise Failed(f"no such answer within {ANSWER_DEADLINE_S} s")


def python_alone(scenario, seconds):
    """The application without a server: called in a loop, or only imported."""
    what = ["call", scenario.app, str(seconds)] if scenario.kind == "throughput" else ["import", scenario.app]
    script = os.path.join(machine.HERE, "in_process.py")
    with tempfile.TemporaryDirectory(prefix="forkmaster-bench-") as directory, machine.as_server():
        # For apps/instance.py.
        with open(os.path.join(directory, "release"), "w") as file:
            file.write("1")
        environment = {**os.environ, "BENCH_DIRECTORY": directory}
        said = subprocess.run([sys.executable, script, *what], env=environment, capture_output=True, text=True)
    if said.returncode:
        raise Failed(said.stderr.strip().splitlines()[-1])
    return json.loads(said.stdout)


KINDS = {
    "throughput": throughput,
    "looked at": looked_at,
    "mixed": mixed,
    "random slow": random_slow,
    "slow readers": slow_readers,
    "uploads": uploads,
    "herd": herd,
    "alternating": alternating,
    "ticker": ticker,
    "balance": balance,
    "idle": idle,
    "memory": memory,
    "start": start,
    "reload": reload,
    "take over": take_over,
    "respawn": respawn,
}
