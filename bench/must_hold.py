"""What must hold, judged by the results of a run. A bound whose scenario did not run is not mentioned."""

from __future__ import annotations

import dataclasses

import machine
from figures import count, kib, mib, ms
from report import beyond_import, outside_python

OURS = "forkmaster"


def ratio(value):
    """Finer than in the tables: 0.968 must not look as if it were 0.97."""
    return f"{value:,.3f}" if value < 100 else f"{value:,.0f}"


@dataclasses.dataclass(frozen=True)
class Bound:
    text: str
    scenario: str
    # Takes the result of that scenario and all of them by name; gives (figure, what it was measured against), or
    # nothing where one of the two is missing.
    figure: callable
    # None: a figure to write down, without a bound.
    limit: float | None
    at_least: bool = False
    show: callable = ratio


@dataclasses.dataclass(frozen=True)
class Verdict:
    bound: Bound
    figure: float | None
    against: str
    # Whether requests failed: then the figure proves nothing.
    errors: bool

    def holds(self):
        if self.bound.limit is None:
            return None
        if self.figure is None or self.errors:
            return False
        return self.figure >= self.bound.limit if self.bound.at_least else self.figure <= self.bound.limit

    def row(self):
        bound, limit = self.bound, "-"
        if bound.limit is not None:
            limit = ("≥ " if bound.at_least else "≤ ") + bound.show(bound.limit)
        figure = "not measured" if self.figure is None else bound.show(self.figure)
        figure += ", with errors" if self.errors else ""
        word = {True: "holds", False: "**does not hold**", None: "-"}[self.holds()]
        return f"| {bound.scenario} | {bound.text} | {limit} | {figure} | {self.against or '-'} | {word} |"

    def data(self):
        return {
            "scenario": self.bound.scenario,
            "bound": self.bound.text,
            "limit": self.bound.limit,
            "at_least": self.bound.at_least,
            "figure": self.figure,
            "against": self.against,
            "errors": self.errors,
            "holds": self.holds(),
        }


def _to_best_peer(key="per_second", more_is_better=True, serving_all=False):
    def figure(result, results):
        best = result.best_peer(key, more_is_better, serving_all)
        ours = result.median(OURS, key)
        return best and ours is not None and (ours / best[1], best[0])

    return figure


def _to_floor(result, results):
    ours, floor = result.median(OURS, "cpu_us"), result.median("floor", "cpu_us")
    return ours and floor and (ours / floor, "floor")


def _variant_to_plain(name, key="per_second"):
    def figure(result, results):
        variant, plain = result.median(f"{OURS}, {name}", key), result.median(OURS, key)
        return variant and plain and (variant / plain, OURS)

    return figure


def _to_scenario(other, key="per_second"):
    def figure(result, results):
        ours, theirs = result.median(OURS, key), other in results and results[other].median(OURS, key)
        return ours and theirs and (ours / theirs, other)

    return figure


def _worst_to_worst_peer(result, results):
    """Our slowest process beside the slowest one of the peer that is best by its median."""
    best, ours = result.best_peer("per_second", True), result.lowest(OURS, "per_second")
    return best and ours and (ours / result.lowest(best[0], "per_second"), f"{best[0]}'s slowest")


def _to_peer(peer, key):
    def figure(result, results):
        ours, theirs = result.median(OURS, key), result.median(peer, key)
        return ours and theirs and (ours / theirs, peer)

    return figure


def _to_ideal(result, results):
    ours = result.median(OURS, "per_second")
    return ours and (ours / result.data["ideal_per_second"], "ideal")


def _plain(key):
    def figure(result, results):
        ours = result.median(OURS, key)
        return ours is not None and (ours, "")

    return figure


def _worst(key):
    """Of all rounds: what is never to happen must not have happened in one of them."""

    def figure(result, results):
        ours = result.highest(OURS, key)
        return ours is not None and (ours, "worst of all rounds")

    return figure


def _beyond_import(result, results):
    beyond = beyond_import(result, OURS)
    return beyond is not None and (beyond, f"{ms(result.median('python alone', 'seconds'))} of import taken off")


def _json(result, results):
    """As throughput to the best peer; beside it, what of the time is not the application's."""
    best = _to_best_peer()(result, results)
    outside = outside_python(result, OURS)
    return best and (best[0], best[1] + (f", {outside:.0%} of CPU outside Python" if outside is not None else ""))


HELLO, CLOSE, LOOKED_AT = "hello keep-alive", "hello close", "looked at 30 times a second"
THROUGHPUT, CPU_PEER, CPU_FLOOR = "throughput / best peer", "CPU a request / best peer's", "CPU a request / floor"

BOUNDS = [
    Bound(THROUGHPUT, HELLO, _to_best_peer(), 1.10, at_least=True),
    Bound(CPU_FLOOR, HELLO, _to_floor, 1.30),
    Bound(CPU_PEER, HELLO, _to_best_peer("cpu_us", False), 0.90),
    Bound("throughput, 4 threads / 1 thread", HELLO, _variant_to_plain("4 threads"), 0.90, at_least=True),
    Bound("throughput, default settings / these", HELLO, _variant_to_plain("defaults"), 0.90, at_least=True),
    Bound("throughput, with / without access log", HELLO, _variant_to_plain("access log"), 0.90, at_least=True),
    Bound("CPU a request, looked at / alone", LOOKED_AT, _plain("cpu_to_alone"), 1.01),
    Bound(THROUGHPUT, CLOSE, _to_best_peer(), 1.00, at_least=True),
    Bound(CPU_FLOOR, CLOSE, _to_floor, 1.20),
    Bound("throughput, default settings / these", CLOSE, _variant_to_plain("defaults"), 0.90, at_least=True),
    Bound("throughput, with / without access log", CLOSE, _variant_to_plain("access log"), 0.90, at_least=True),
    Bound("throughput, 2,000 connections / 32", f"{HELLO} 2000 connections", _to_scenario(HELLO), 0.90, at_least=True),
    Bound("p99 / best peer's", f"{HELLO} 2000 connections", _to_best_peer("p99_s", False, serving_all=True), 1.00),
    Bound("throughput / 1 worker's", f"{CLOSE} 4 workers", _to_scenario(CLOSE), 0.95, at_least=True),
    Bound("p50 / 1 worker's", f"{CLOSE} 4 workers", _to_scenario(CLOSE, "p50_s"), 1.10),
    Bound(
        "throughput / 1 worker's",
        f"{CLOSE} 4 workers 128 connections",
        _to_scenario(f"{CLOSE} 128 connections"),
        0.95,
        at_least=True,
    ),
    Bound(
        "p50 / 1 worker's", f"{CLOSE} 4 workers 128 connections", _to_scenario(f"{CLOSE} 128 connections", "p50_s"), 1.10
    ),
    *(
        bound
        for scenario in ("flask json", "django json")
        for bound in (
            Bound(THROUGHPUT, scenario, _json, 1.05, at_least=True),
            Bound("slowest process / best peer's slowest", scenario, _worst_to_worst_peer, 0.90, at_least=True),
            Bound("throughput, 4 threads / 1 thread", scenario, _variant_to_plain("4 threads"), 0.95, at_least=True),
            Bound("p99, 4 threads / 1 thread", scenario, _variant_to_plain("4 threads", "p99_s"), 1.30),
        )
    ),
    Bound("throughput / ideal", "wait 2 ms, compute 300 us in 8 threads", _to_ideal, 0.95, at_least=True),
    Bound("throughput / mean of both kinds", "waits and computes in turn", _plain("to_both"), 0.90, at_least=True),
    Bound("p99 of fast requests", "0.3 % slow, pauses of 20 ms", _plain("p99_s"), 0.010, show=ms),
    Bound("p99 / Gunicorn sync's", "0.3 % slow, pauses of 20 ms", _to_peer("gunicorn-sync", "p99_s"), 2.0),
    Bound("p99 / ideal shared queue's", "0.3 % slow, pauses of 5 ms", _plain("to_ideal"), 1.5),
    Bound("p50 of small requests", "32 uploads of 60 MB", _plain("p50_s"), 0.005, show=ms),
    Bound("p99 of ordinary requests", "1000 slow readers of 5 MB", _plain("p99_s"), 0.250, show=ms),
    Bound("CPU a connection / 1 worker's", "64 idle workers", _to_scenario("1 idle worker", "cpu_us"), 1.5),
    Bound("context switches / 1 worker's", "64 idle workers", _to_scenario("1 idle worker", "switches"), 1.5),
    Bound(THROUGHPUT, "post 200 kB", _to_best_peer(), 1.00, at_least=True),
    Bound(THROUGHPUT, "post 50 MB", _to_best_peer(), 1.00, at_least=True),
    Bound("memory that it takes", "post 50 MB", _plain("grown_bytes"), 4 * 2**20, show=mib),
    Bound(THROUGHPUT, "download 5 MB", _to_best_peer(), 1.00, at_least=True),
    Bound(THROUGHPUT, "file_wrapper 5 MB", _to_best_peer(), 1.00, at_least=True),
    Bound("throughput / ideal", "sleep 5 ms in 8 threads", _to_ideal, 0.97, at_least=True),
    Bound("memory of a connection", "10000 idle connections", _plain("bytes_per_connection"), 4096, show=kib),
    Bound("first answer without the import", "start", _beyond_import, 0.030, show=ms),
    Bound("first answer without the import", "start django", _beyond_import, 0.030, show=ms),
    Bound("next answer", "respawn django preloaded", _plain("seconds"), 0.015, show=ms),
    Bound("first new answer without the import", "reload", _beyond_import, 0.050, show=ms),
    Bound("first new answer without the import", "reload django", _beyond_import, 0.050, show=ms),
    Bound("reload to commit, imports of 0.5 s", "reload 8 workers", _plain("seconds"), 1.5, show=ms),
    Bound("longest wait for an answer meanwhile", "reload 8 workers", _plain("longest_s"), 0.020, show=ms),
    Bound("old answers after a new one", "reload 8 workers", _worst("old_after_new"), 0, show=count),
    Bound("PSS of the master", "4 django workers", _plain("main_bytes"), 4 * 2**20, show=mib),
    Bound("PSS of all processes", "4 django workers preloaded", _plain("pss_bytes"), 60 * 2**20, show=mib),
    Bound("lateness of a tick", "background thread", _worst("late_s"), 0.050, show=ms),
    Bound("p99 of fast requests", "mixed close", _plain("p99_s"), 0.010, show=ms),
    Bound("p99 of fast requests", "mixed keep-alive", _plain("p99_s"), None, show=ms),
    Bound("busiest / idlest worker", "balance keep-alive", _plain("most_to_least"), 1.5),
    Bound("busiest / idlest worker", "balance close", _plain("most_to_least"), 1.5),
    Bound("busiest / idlest worker", "balance keep-alive with pauses", _plain("most_to_least"), 1.5),
]


def judge(results):
    by_name = {result.name: result for result in results}
    verdicts = []
    for bound in BOUNDS:
        if bound.scenario in by_name:
            result = by_name[bound.scenario]
            figure, against = bound.figure(result, by_name) or (None, "")
            verdicts.append(Verdict(bound, figure, against, result.has_errors(OURS)))
    return verdicts


def table(verdicts, results):
    lines = ["## Must hold", ""]
    for sentence in sorted({machine.sentence(result.data["machine"]) for result in results}):
        lines += [sentence + ".", ""]
    rounds = sorted({result.data["rounds"] for result in results})
    few = "; fewer than five prove nothing" if rounds and rounds[0] < 5 else ""
    lines += [f"Medians of {' or '.join(map(str, rounds))} interleaved rounds{few}.", ""]
    lines += ["| scenario | what | bound | measured | against | |", "|---|---|---|---|---|---|"]
    lines += [verdict.row() for verdict in verdicts]
    judged = [verdict.holds() for verdict in verdicts if verdict.holds() is not None]
    return "\n".join([*lines, "", f"{sum(judged)} of {len(judged)} hold."]) + "\n"
