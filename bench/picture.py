"""A picture of a scenario: horizontal bars with their spread, the best first; two panels where CPU time counts too."""

import html

import machine
from figures import REFERENCES

WIDTH, NAMES, ROW, BAR, TOP = 900, 170, 28, 16, 78
# Room right of a bar for its figure.
FIGURE = 96
# Where less is better a bar is cut at so many times the best server's: one that is far behind must not press the rest
# into a line.
CUT = 5
GAP = 16
INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
OURS, VARIANT, PEER, REFERENCE = "#d9541e", "#eda07f", "#5b7fa8", "#b4bcc5"


def svg(result):
    panels = [(result.kind.columns[0], result.kind.more_is_better)]
    if result.data["kind"] == "throughput":
        panels.append((result.kind.columns[1], False))
    names = [name for name in result.ordered() if result.median(name, panels[0][0].key) is not None]
    width = (WIDTH - NAMES - GAP * len(panels)) / len(panels)
    bottom = TOP + ROW * len(names)
    parts = [_text(GAP, 28, result.name, size=17, weight=600)]
    facts = result.data["machine"]
    parts.append(_text(GAP, bottom + 24, machine.sentence(facts), fill=MUTED, size=11))
    medians = f"Medians of {result.data['rounds']} interleaved rounds; the line is the spread."
    parts.append(_text(GAP, bottom + 40, medians, fill=MUTED, size=11))
    for row, name in enumerate(names):
        weight = 600 if name == "forkmaster" else 400
        parts.append(_text(NAMES - 8, TOP + ROW * row + 17, name, anchor="end", weight=weight))
    for number, (column, more_is_better) in enumerate(panels):
        left = NAMES + number * (width + GAP)
        better = "more is better" if more_is_better else "less is better"
        parts.append(
            _text(left, TOP - 16, column.title, weight=600)
            + _text(left + width - GAP, TOP - 16, better, anchor="end", fill=MUTED, size=11)
        )
        parts.append(f'<path d="M{left} {TOP - 6}V{bottom}" stroke="{MUTED}"/>')
        parts += _bars(result, names, column, more_is_better, left, width - FIGURE)
    height = bottom + 54
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, Segoe UI, Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bars(result, names, column, more_is_better, left, width):
    figures = {name: result.servers[name][column.key] for name in names if column.key in result.servers[name]}
    longest = max((figure["high"] for figure in figures.values()), default=0)
    best = min((figure["median"] for name, figure in figures.items() if name not in REFERENCES), default=0)
    if not more_is_better and best > 0:
        longest = min(longest, CUT * best)
    scale = width / (longest or 1)
    for row, name in enumerate(names):
        if name not in figures:
            continue
        median, low, high = (min(max(figures[name][key] * scale, 0), width) for key in ("median", "low", "high"))
        y, middle = TOP + ROW * row + (ROW - BAR) / 2, TOP + ROW * row + ROW / 2
        yield f'<rect x="{left}" y="{y}" width="{max(median, 1):.1f}" height="{BAR}" rx="2" fill="{_colour(name)}"/>'
        if low < high:
            line = f"M{left + low:.1f} {middle}H{left + high:.1f}"
            yield f'<path d="{line}" stroke="{INK}" stroke-opacity="0.7" stroke-width="2"/>'
        if figures[name]["median"] > longest:
            cut = left + width - 22
            yield f'<path d="M{cut} {y + BAR + 2}l6 -{BAR + 4}" stroke="#ffffff" stroke-width="4"/>'
        yield _text(left + max(median, high) + 7, middle + 4.5, column.show(figures[name]["median"]), size=12)


def _colour(name):
    if name == "forkmaster":
        return OURS
    if name.startswith("forkmaster"):
        return VARIANT
    return REFERENCE if name in REFERENCES else PEER


def _text(x, y, text, anchor="start", fill=INK, size=13, weight=400):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{html.escape(text)}</text>'
    )
