"""The figures of a scenario: how each is shown, which one counts, and medians of rounds with their spread."""

import dataclasses
import statistics

# Rows that are no servers to choose from.
REFERENCES = ("floor", "python alone")
# Of the connections that the load holds, the share that must be served at a time for a latency to mean anything. Well
# below one, because the time of connecting is not in wrk's latency.
SERVED_LEAST = 0.2
# More failed requests than this, and the figure is not one of a server that works.
ERROR_SHARE_MOST = 0.001


def per_second(value):
    return f"{value:,.0f}/s"


def us(value):
    return f"{value:,.1f} µs"


def ms(value):
    value *= 1e3
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def kib(value):
    return f"{value / 2**10:.1f} KiB"


def mib(value):
    return f"{value / 2**20:.1f} MiB"


def percent(value):
    return f"{value * 100:.3g} %"


def times(value):
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def thousandths(value):
    return f"{value:.3f}"


def count(value):
    return f"{value:,.0f}"


@dataclasses.dataclass(frozen=True)
class Column:
    key: str
    title: str
    show: callable


@dataclasses.dataclass(frozen=True)
class Kind:
    # The first column is the figure that counts.
    columns: tuple
    more_is_better: bool = False


LOOKED_AT = (
    Column("cpu_to_alone", "CPU a request, looked at / alone", thousandths),
    Column("to_alone", "throughput, looked at / alone", thousandths),
    Column("per_second", "throughput alone", per_second),
    Column("looks", "looks a second", count),
    Column("error_share", "errors", percent),
)
MIXED = (
    Column("p99_s", "p99 of fast requests", ms),
    Column("p50_s", "p50", ms),
    Column("slow_p50_s", "p50 of slow requests", ms),
    Column("per_second", "fast requests", per_second),
    Column("error_share", "errors", percent),
)
RANDOM_SLOW = (
    Column("p99_s", "p99 of fast requests", ms),
    Column("p50_s", "p50", ms),
    Column("to_ideal", "p99 / ideal shared queue", times),
    Column("ideal_p99_s", "its p99", ms),
    Column("per_second", "fast requests", per_second),
    Column("error_share", "errors", percent),
)
SLOW_READERS = (
    Column("p99_s", "p99 of ordinary requests", ms),
    Column("p50_s", "p50", ms),
    Column("longest_s", "longest", ms),
    Column("attackers_begun", "attackers whose answer has begun", count),
    Column("error_share", "errors", percent),
)
UPLOADS = (
    Column("p50_s", "p50 of small requests", ms),
    Column("p99_s", "p99", ms),
    Column("longest_s", "longest", ms),
    Column("uploads_begun", "uploads begun", count),
    Column("cpu_share", "CPU", percent),
    Column("error_share", "errors", percent),
)
HERD = (
    Column("cpu_us", "CPU a connection", us),
    Column("switches", "context switches", times),
    Column("p50_s", "p50", ms),
    Column("p99_s", "p99", ms),
)
ALTERNATING = (
    Column("to_both", "throughput / mean of both kinds", times),
    Column("per_second", "throughput", per_second),
    Column("waiting", "where it only waits", per_second),
    Column("computing", "where it only computes", per_second),
)
BALANCE = (
    Column("most_to_least", "busiest / idlest worker", times),
    Column("most_share", "share of the busiest", percent),
    Column("least_share", "of the idlest", percent),
    Column("per_second", "throughput", per_second),
)
MEMORY = (Column("pss_bytes", "PSS of all processes", mib), Column("main_bytes", "of the first process alone", mib))
TICKER = (
    Column("late_s", "latest tick", ms),
    Column("ticks", "ticks", count),
    Column("per_second", "throughput", per_second),
)
IDLE = (Column("bytes_per_connection", "a connection", kib), Column("before_bytes", "PSS without them", mib))
THROUGHPUT = (
    Column("per_second", "throughput", per_second),
    Column("cpu_us", "CPU a request", us),
    Column("p50_s", "p50", ms),
    Column("p99_s", "p99", ms),
    Column("pss_bytes", "PSS", mib),
    Column("error_share", "errors", percent),
)

KINDS = {
    "throughput": Kind(THROUGHPUT, more_is_better=True),
    "looked at": Kind(LOOKED_AT),
    "mixed": Kind(MIXED),
    "random slow": Kind(RANDOM_SLOW),
    "slow readers": Kind(SLOW_READERS),
    "uploads": Kind(UPLOADS),
    "herd": Kind(HERD),
    "alternating": Kind(ALTERNATING, more_is_better=True),
    "balance": Kind(BALANCE),
    "ticker": Kind(TICKER),
    "idle": Kind(IDLE),
    "memory": Kind(MEMORY),
    "start": Kind((Column("seconds", "first answer", ms),)),
    "reload": Kind((Column("seconds", "first new answer", ms), Column("failed", "failed requests", count))),
    "take over": Kind(
        (
            Column("seconds", "reload to the end", ms),
            Column("longest_s", "longest wait for an answer", ms),
            Column("old_after_new", "old answers after a new one", count),
            Column("failed", "failed requests", count),
        )
    ),
    "respawn": Kind((Column("seconds", "next answer", ms), Column("failed", "failed requests", count))),
}


def summary(rounds):
    """Median, lowest and highest of each figure over the rounds, and all of them in their order."""
    return {
        key: {
            "median": statistics.median(figures[key] for figures in rounds),
            "low": min(figures[key] for figures in rounds),
            "high": max(figures[key] for figures in rounds),
            "rounds": [figures[key] for figures in rounds],
        }
        for key in rounds[0]
    }


class Result:
    """What one scenario gave, as it is in its JSON file."""

    def __init__(self, data):
        self.data = data
        self.name, self.servers, self.absent = data["scenario"], data["servers"], data["absent"]
        self.kind = KINDS[data["kind"]]

    def has(self, server):
        return server in self.servers

    def median(self, server, key):
        """None where the server or the figure is missing."""
        return self.servers.get(server, {}).get(key, {}).get("median")

    def highest(self, server, key):
        return self.servers.get(server, {}).get(key, {}).get("high")

    def lowest(self, server, key):
        return self.servers.get(server, {}).get(key, {}).get("low")

    def ordered(self):
        """Servers with the best first; floor and the application alone above them."""
        key, best_first = self.kind.columns[0].key, -1 if self.kind.more_is_better else 1
        return sorted(self.servers, key=lambda name: (name not in REFERENCES, best_first * self.median(name, key)))

    def peers(self):
        return [name for name in self.ordered() if name not in REFERENCES and not name.startswith("forkmaster")]

    def best_peer(self, key, more_is_better=False, serving_all=False):
        """The best figure of a peer that works, and where asked serves all its connections: (peer, figure) or None."""
        found = [
            (name, self.median(name, key))
            for name in self.peers()
            if self.median(name, key) is not None
            and not self.has_errors(name)
            and not self.forgets_close(name)
            and not (serving_all and self.starves(name))
        ]
        return (max if more_is_better else min)(found, key=lambda pair: pair[1], default=None)

    def has_errors(self, server):
        return (self.median(server, "error_share") or 0) > ERROR_SHARE_MOST

    def forgets_close(self, server):
        """It does less than PEP 3333 demands: what an application does at the end of a request is never done."""
        return self.median(server, "closed") == 0

    def starves(self, server):
        served = self.median(server, "served")
        return served is not None and served < SERVED_LEAST * self.data["connections"]
