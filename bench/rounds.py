"""A scenario over its rounds: in each, every server is started, warmed, measured and stopped, one after the other, so
that whatever the machine does otherwise hits all of them."""

import dataclasses
import sys

import figures
import kinds
from process import DidNotStart, Server
from servers import SLOW, Setup, why_not

# After so many failures of a server in a scenario the rest of its rounds would tell nothing new.
FAILURES_MOST = 2


@dataclasses.dataclass(frozen=True)
class Contender:
    """A row of the table: a server, or one of forkmaster's variants."""

    name: str
    server: str
    setup: Setup
    connections: tuple


class Rounds:
    """`seen[connections][name]` is a list of figures, one a round; `absent[connections][name]` says why there are none,
    or fewer."""

    def __init__(self, scenario, servers):
        self.scenario = scenario
        self.seen = {connections: {} for connections in scenario.connections}
        self.absent = {connections: {} for connections in scenario.connections}
        self.failures = {connections: {} for connections in scenario.connections}
        self.contenders = []
        setup = Setup(
            scenario.app, scenario.workers, scenario.threads, scenario.close, scenario.preload, scenario.nginx,
            status=scenario.kind == "looked at",
        )
        some, others = scenario.connections[:1], scenario.connections[1:]
        for server in servers:
            if server == "floor" and not scenario.floor:
                continue
            reason = why_not(server, scenario)
            if reason:
                self._note(scenario.connections, server, reason)
                continue
            if server in SLOW:
                self._note(others, server, f"far behind with {some[0]}, left out to save time")
            takes = some if server in SLOW else scenario.connections
            self.contenders.append(Contender(server, server, setup, takes))
            for name, options in scenario.variants.items() if server == "forkmaster" else ():
                variant = dataclasses.replace(setup, **options)
                self.contenders.append(Contender(f"forkmaster, {name}", server, variant, some))

    def least_s(self, rounds, seconds):
        """How long it measures, without starting and stopping servers: some scenarios are measured longer than was asked."""
        return rounds * seconds * self.scenario.longer * sum(len(each.connections) for each in self.contenders)

    def run(self, rounds, seconds):
        for number in range(1, rounds + 1):
            if self.scenario.python_alone:
                for connections in self.scenario.connections:
                    self._try(number, "python alone", connections, kinds.python_alone, self.scenario, seconds)
            for contender in self.contenders:
                doing = f"{self.scenario.name}: round {number} of {rounds}, {contender.name}"
                print(f"{doing:<79}", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)
                self._start_and_measure(number, contender, seconds * self.scenario.longer)

    def _start_and_measure(self, number, contender, seconds):
        name, measure = contender.name, kinds.KINDS[self.scenario.kind]
        left = [some for some in contender.connections if self.failures[some].get(name, 0) < FAILURES_MOST]
        if not left:
            return
        try:
            with Server(contender.server, contender.setup) as server:
                for connections in left:
                    self._try(number, name, connections, measure, server, self.scenario, connections, seconds)
                    if server.fate():
                        self._note([connections], name, f"round {number}: {server.fate()}")
        except DidNotStart as error:
            for connections in left:
                self._failed(number, name, connections, f"did not start: {error}")

    def _try(self, number, name, connections, measure, *arguments):
        try:
            seen = measure(*arguments)
        except kinds.Failed as error:
            self._failed(number, name, connections, str(error))
        except Exception as error:
            # Whatever else goes wrong with one server: the others' hour of measuring must not end with it.
            self._failed(number, name, connections, f"{type(error).__name__}: {error}")
        else:
            self.seen[connections].setdefault(name, []).append(seen)

    def _failed(self, number, name, connections, reason):
        self.failures[connections][name] = self.failures[connections].get(name, 0) + 1
        self._note([connections], name, f"round {number}: {reason}")

    def _note(self, connections, name, reason):
        for some in connections:
            self.absent[some][name] = reason

    def results(self, facts, rounds):
        """One a number of connections."""
        for connections, title in self.scenario.titles():
            yield figures.Result(
                {
                    "scenario": title,
                    "kind": self.scenario.kind,
                    "connections": connections,
                    "ideal_per_second": self.scenario.ideal_per_second,
                    "rounds": rounds,
                    "servers": {server: figures.summary(seen) for server, seen in self.seen[connections].items()},
                    "absent": self.absent[connections],
                    "machine": facts,
                }
            )
