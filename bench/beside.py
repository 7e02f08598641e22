"""Two binaries beside each other in short slices, for differences of a few percent.

The speed of a virtual machine changes by tens of percent within a minute, so servers that run one after the other cannot
be compared so closely. Here both binaries run all the time, and the load goes to one of them for half a second at a time. Each slice
gives a ratio of processor time a request; what is told is the median of the ratios. The old binary runs twice: the
ratio of the old to the old is the noise."""

import os
import random
import statistics
import tempfile

from kinds import WARM_UP_S
from process import DidNotStart, Server
from rounds import Contender
from servers import Setup
from wrk import Failed, post_script, wrk

SLICE_S = 0.5
# Two thousand connections take most of half a second to open where the machine is slow.
MANY, SLICE_OF_MANY_S = 500, 2.0
# Slices of one set of processes. Then all are started again: where a process's memory lies makes a difference too.
SLICES = 16
NEW, OLD, AGAIN = "forkmaster", "forkmaster before", "forkmaster before, again"


class Slice:
    """The load of one slice on one server."""

    def __init__(self, server, scenario, connections, script):
        slice_s = SLICE_OF_MANY_S if connections > MANY else SLICE_S
        before = server.cpu()
        seen = wrk(server.port, slice_s, connections, scenario.close, script)
        if not seen.requests:
            raise Failed(f"no answer in {slice_s} s")
        self.cpu_us = server.cpu().since(before) / seen.requests * 1e6
        self.per_second = seen.per_second
        self.errors = seen.errors


def contenders(scenario, connections):
    setup = Setup(scenario.app, scenario.workers, scenario.threads, scenario.close, scenario.preload, scenario.nginx)
    return [Contender(name, name, setup, (connections,)) for name in (OLD, NEW, AGAIN)]


def beside(scenario, connections, rounds):
    """The slices by server, as many of each."""
    seen = {name: [] for name in (OLD, NEW, AGAIN)}
    with tempfile.TemporaryDirectory() as directory:
        script = post_script(directory, scenario.body) if scenario.body else None
        for _ in range(rounds):
            servers = {c.name: Server(c.server, c.setup) for c in contenders(scenario, connections)}
            try:
                for server in servers.values():
                    wrk(server.port, WARM_UP_S, connections, scenario.close, script)
                for number in range(SLICES):
                    # Who comes first changes, so that a machine that slows down hits all of them alike.
                    order = list(servers)[number % 3 :] + list(servers)[: number % 3]
                    for name in order:
                        seen[name].append(Slice(servers[name], scenario, connections, script))
            finally:
                for server in servers.values():
                    server.stop()
    return seen


def ratio(seen, this, that, what):
    """The median of the slices' ratios, and where it lies in 95 of 100 samples of them."""
    ratios = [getattr(a, what) / getattr(b, what) for a, b in zip(seen[this], seen[that], strict=True)]
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return statistics.median(ratios), medians[25], medians[974]


def table(scenarios, rounds):
    lines = ["| scenario | CPU a request | new / old | old / old | throughput, new / old | old / old | errors |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for scenario in scenarios:
        for connections, title in scenario.titles():
            try:
                seen = beside(scenario, connections, rounds)
            except (Failed, DidNotStart) as error:
                # The others' minutes of measuring must not end with it.
                lines.append(f"| {title} | not measured: {error} | | | | | |")
                print(lines[-1], flush=True)
                continue
            cells = [title, f"{statistics.median(s.cpu_us for s in seen[NEW]):.1f} µs"]
            for what in ("cpu_us", "per_second"):
                for this in (NEW, AGAIN):
                    cells.append("{:.3f} ({:.3f} to {:.3f})".format(*ratio(seen, this, OLD, what)))
            cells.append(str(sum(s.errors for s in seen[NEW])))
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def write(scenarios, rounds, out, sentence):
    text = f"{sentence}\n\n{rounds * SLICES} slices of {SLICE_S} s, {rounds} sets of processes.\n\n"
    text += table(scenarios, rounds)
    with open(os.path.join(out, "beside.md"), "w") as file:
        file.write(text)
    return text
