"""The table of a scenario, in Markdown."""

from figures import percent, times


def table(result):
    """Servers with the best first, then who took no part and why."""
    main = result.kind.columns[0]
    best = result.best_peer(main.key, result.kind.more_is_better)
    head, rows = ["server"], {name: [_marked(name)] for name in result.ordered()}

    def add(title, cell):
        cells = {name: cell(name) for name in rows}
        if any(cell != "-" for cell in cells.values()):
            head.append(title)
            for name, row in rows.items():
                row.append(cells[name])

    def ratio(key, to):
        def cell(name):
            value = result.median(name, key)
            return times(value / to) if value is not None and to and name != "python alone" else "-"

        return cell

    for column in result.kind.columns:
        add(column.title, lambda name: _shown(result.median(name, column.key), column.show))
        if column is main:
            add("spread", lambda name: _spread(result.servers[name].get(column.key), column.show))
        if column.key in ("per_second", "cpu_us") and result.data["kind"] == "throughput":
            add("/ floor", ratio(column.key, result.median("floor", column.key)))
        if column is main:
            add("/ best peer", ratio(column.key, best and best[1]))
        if column.key == "cpu_us":
            leanest = result.best_peer("cpu_us")
            add("/ best peer's", ratio("cpu_us", leanest and leanest[1]))
    if result.data.get("ideal_per_second"):
        add("/ ideal", ratio("per_second", result.data["ideal_per_second"]))
    if result.data["kind"] == "throughput":
        add("outside Python", lambda name: _shown(outside_python(result, name), percent))
    if result.data["kind"] in ("start", "reload", "respawn"):
        add("without the import", lambda name: _shown(beyond_import(result, name), main.show))

    for reason, names in _by_reason(result).items():
        rows[reason] = [", ".join(names), f"absent: {reason}"] + [""] * (len(head) - 2)
    lines = [f"### {result.name}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows.values()]
    return "\n".join(lines + _notes(result)) + "\n"


def _notes(result):
    notes = []
    starving = [
        f"{name} serves {max(result.median(name, 'served'), 1):.0f} of {result.data['connections']} connections at a time"
        for name in result.ordered()
        if result.starves(name)
    ]
    if starving:
        notes += ["", "The latency is that of the few that are served: " + "; ".join(starving) + "."]
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


def _marked(name):
    return f"**{name}**" if name == "forkmaster" else name


def _shown(value, show):
    return "-" if value is None else show(value)


def _spread(figure, show):
    return f"{show(figure['low'])} to {show(figure['high'])}" if figure else "-"
