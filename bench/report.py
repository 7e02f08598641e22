"""Tables of ratios, and a picture a scenario."""

import html

# kind -> (the figure that counts, whether more is better, how it is shown)
FIGURES = {
    "throughput": ("per_second", True, lambda value: f"{value:,.0f}/s"),
    "mixed": ("p99", False, lambda value: f"{value * 1e3:.1f} ms"),
    "idle": ("bytes_per_connection", False, lambda value: f"{value / 1024:.1f} KiB"),
    "start": ("first_answer_s", False, lambda value: f"{value * 1e3:.0f} ms"),
    "memory": ("pss_bytes", False, lambda value: f"{value / 2**20:.1f} MiB"),
}


def table(result):
    key, more, show = FIGURES[result["kind"]]
    servers = result["servers"]
    ordered = sorted(servers, key=lambda name: servers[name][key]["median"], reverse=more)
    peers = [name for name in ordered if name not in ("floor", "forkmaster")]
    best = servers[peers[0]][key]["median"] if peers else None
    lines = [f"### {result['scenario']}", ""]
    if result["kind"] == "throughput":
        lines += ["| server | throughput | / floor | / best peer | CPU a request | / floor | p50 | p99 | errors | spread |"]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    else:
        lines += ["| server | figure | / best peer | spread |", "|---|---|---|---|"]
    floor = servers.get("floor")
    for name in ordered:
        figure = servers[name]
        value, spread = figure[key]["median"], f"{show(figure[key]['low'])} to {show(figure[key]['high'])}"
        to_best = f"{value / best:.2f}" if best and name != "floor" else "-"
        if result["kind"] != "throughput":
            lines.append(f"| {name} | {show(value)} | {to_best} | {spread} |")
            continue
        cpu = figure["cpu_us"]["median"]
        to_floor = f"{value / floor[key]['median']:.2f}" if floor else "-"
        cpu_to_floor = f"{cpu / floor['cpu_us']['median']:.2f}" if floor and floor["cpu_us"]["median"] else "-"
        p50, p99 = figure["p50"]["median"] * 1e3, figure["p99"]["median"] * 1e3
        errors = figure["errors"]["high"]
        lines.append(
            f"| {name} | {show(value)} | {to_floor} | {to_best} | {cpu:.1f} us | {cpu_to_floor} "
            f"| {p50:.2f} ms | {p99:.2f} ms | {errors} | {spread} |"
        )
    lines += [f"| {name} | did not run: {reason} |" for name, reason in result["failures"].items()]
    return "\n".join(lines) + "\n"


def picture(result):
    """Horizontal bars, the best first."""
    key, more, show = FIGURES[result["kind"]]
    servers = result["servers"]
    ordered = sorted(servers, key=lambda name: servers[name][key]["median"], reverse=more)
    top = max((servers[name][key]["median"] for name in ordered), default=1) or 1
    rows = []
    for index, name in enumerate(ordered):
        value, y = servers[name][key]["median"], 40 + index * 26
        width = 380 * value / top
        colour = {"forkmaster": "#c4501b", "floor": "#999999"}.get(name, "#4a6fa5")
        rows.append(
            f'<text x="140" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="150" y="{y}" width="{width:.1f}" height="20" fill="{colour}"/>'
            f'<text x="{156 + width:.1f}" y="{y + 14}">{html.escape(show(value))}</text>'
        )
    facts = result["machine"]
    better = "more is better" if more else "less is better"
    title = f"{result['scenario']} ({better}); {facts['date']}, {facts['processor']}"
    height = 60 + len(ordered) * 26
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="680" height="{height}" fill="#ffffff"/>'
        f'<text x="10" y="22" font-weight="bold">{html.escape(title)}</text>{"".join(rows)}</svg>\n'
    )
