"""The table of a scenario, in Markdown."""

from functools import partial

from figures import percent, times


def table(result):
    """Servers with the best first, then who took no part and why."""
    columns = [(title, cells) for title, cells in _columns(result) if any(cells.values())]
    rows = [["server", *(title for title, _ in columns)], ["---"] * (len(columns) + 1)]
    for name in result.ordered():
        marked = f"**{name}**" if name == "forkmaster" else name
        rows.append([marked, *(cells[name] or "-" for _, cells in columns)])
    for reason, names in _by_reason(result).items():
        rows.append([", ".join(names), f"absent: {reason}"] + [""] * (len(columns) - 1))
    lines = [f"### {result.name}", "", *("| " + " | ".join(row) + " |" for row in rows), *_notes(result)]
    return "\n".join(lines) + "\n"


def _columns(result):
    """Titles, and what stands below them for each server: None where there is nothing to say."""
    kind, main = result.data["kind"], result.kind.columns[0]
    best, leanest = result.best_peer(main.key, result.kind.more_is_better), result.best_peer("cpu_us")
    for column in result.kind.columns:
        yield column.title, _each(result, column.show, partial(result.median, key=column.key))
        if column is main:
            yield "spread", {name: _spread(result.servers[name].get(main.key), main.show) for name in result.servers}
        if kind == "throughput" and column.key in ("per_second", "cpu_us"):
            yield "/ floor", _ratios(result, column.key, result.median("floor", column.key))
        if column is main:
            yield "/ best peer", _ratios(result, main.key, best and best[1])
        if column.key == "cpu_us":
            yield "/ best peer's", _ratios(result, "cpu_us", leanest and leanest[1])
    if result.data["ideal_per_second"]:
        yield "/ ideal", _ratios(result, "per_second", result.data["ideal_per_second"])
    yield "outside Python", _each(result, percent, partial(outside_python, result))
    yield "without the import", _each(result, main.show, partial(beyond_import, result))


def _each(result, show, figure):
    values = {name: figure(name) for name in result.servers}
    return {name: None if value is None else show(value) for name, value in values.items()}


def _ratios(result, key, to):
    def ratio(name):
        value = result.median(name, key)
        return value / to if to and value is not None and name != "python alone" else None

    return _each(result, times, ratio)


def _spread(figure, show):
    return f"{show(figure['low'])} to {show(figure['high'])}" if figure else None


def _notes(result):
    notes = []
    connections = result.data["connections"]
    starving = [
        f"{name} serves {max(result.median(name, 'served'), 1):.0f} of {connections} connections at a time"
        for name in result.ordered()
        if result.starves(name)
    ]
    if starving:
        notes += ["", "The latency is that of the few that are served: " + "; ".join(starving) + "."]
    forgetful = [name for name in result.ordered() if result.forgets_close(name)]
    if forgetful:
        notes += ["", f"No peer here: {', '.join(forgetful)}, since close() of the answers is never called (PEP 3333)."]
    failing = [f"{name}, {reason}" for name, reason in result.absent.items() if result.has(name)]
    if failing:
        notes += ["", "Not in all rounds: " + "; ".join(failing) + "."]
    return notes


def _by_reason(result):
    found = {}
    for name, reason in result.absent.items():
        if not result.has(name):
            found.setdefault(reason, []).append(name)
    return found


def outside_python(result, name):
    """The share of the processor time of a request that is not the application's."""
    alone, cpu_us = result.median("python alone", "cpu_us"), result.median(name, "cpu_us")
    if alone is None or cpu_us is None or name == "python alone":
        return None
    return 1 - alone / cpu_us


def beyond_import(result, name):
    alone, seconds = result.median("python alone", "seconds"), result.median(name, "seconds")
    if alone is None or seconds is None or name == "python alone":
        return None
    return seconds - alone
