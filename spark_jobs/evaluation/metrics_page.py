"""metrics.html: what the answers of four weeks brought, as one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from typing import Any

from spark_jobs.evaluation.filters_section import filters_section
from spark_jobs.quality.page import PAGE_CSS

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 360, 150, 46, 22, 10
_MOST_PLACEMENTS = 8
_MOST_POSITIONS = 20
_LEVELS = ("personal", "segment", "category", "region", "popular", "static", "session", "similar", "none")
"""In this order in the stack: the best rung at the bottom."""
_LEVEL_COLOURS = (
    "#2d6cb5", "#5b9bd5", "#4aa58d", "#8cc084", "#d9a441", "#a8a29a", "#8a63b8", "#c07ab8", "#b3261e",
)  # fmt: skip
_CSS = """
.whisker{stroke:var(--data);stroke-width:1.6}.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px;
color:var(--soft);margin-top:6px}.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;
margin-right:5px}
"""

Part = Mapping[str, Any]


def render_metrics_page(report: Mapping[str, Any]) -> str:
    """The report as HTML. Every text that came with the data is escaped."""
    total = report["total"]
    title = f"Recommendations before {report['as_of']}"
    body = _summary(report)
    if total["decisions"]:
        body += "".join((_clicks(report), _levels(report), _tables(report), _footer(report)))
    body += filters_section(report.get("filters"))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_CSS}{_CSS}</style><main>{body}</main></html>\n"
    )


def _summary(report: Mapping[str, Any]) -> str:
    total, window = report["total"], report["window"]
    if not total["decisions"]:
        return (
            "<h1>No answers were logged yet</h1><p>The API logs every answer it gives, and the archiver brings it to "
            f"<code>silver.decisions</code>. In the {window['days']} days before {report['as_of']} there is none.</p>"
        )
    ctr = total["ctr"]
    headline = (
        f"{_share(ctr['value'])} of the items that were seen were clicked"
        if ctr
        else f"{total['decisions']:,} answers, and no impression came back"
    )
    note = (
        ""
        if ctr
        else "<p>Click-through counts impressions: events of type <code>impression</code> with the answer's "
        "<code>recommendation_id</code>. Without them there are no shares, only counts.</p>"
    )
    conversion = total["conversion"]
    revenue = (
        " / ".join(f"{one['net']:,.2f} {escape(currency)}" for currency, one in total["revenue"].items()) or "none"
    )
    tiles = (
        ("Answers", f"{total['decisions']:,}", f"{total['slots']:,} items in them"),
        (
            "Impressions",
            f"{total['impressions']:,}",
            f"{_share(total['impressions'] / (total['slots'] or 1))} of the items",
        ),
        ("Clicks", f"{total['clicks']:,}", f"CTR {_interval(ctr)}"),
        ("Put into carts", f"{total['carts']:,}", "credited to an answer"),
        ("Purchases", f"{total['purchases']:,}", f"conversion {_interval(conversion)}"),
        ("Revenue", revenue, f"refunds taken off; {total['refunds']:,} of them"),
    )
    shown = "".join(
        f'<div class="tile"><span>{name}</span><strong>{value}</strong><span>{told}</span></div>'
        for name, value, told in tiles
    )
    return (
        f"<h1>{escape(headline)}</h1>{note}"
        f'<p class="soft small">{window["days"]} days before {report["as_of"]}, run '
        f"<code>{escape(report['run_key'])}</code>. Intervals are Wilson's, 95 %.</p>"
        f'<div class="tiles">{shown}</div>'
    )


# --- charts ---------------------------------------------------------------------------------------------------------


def _clicks(report: Mapping[str, Any]) -> str:
    busiest = sorted(report["placements"], key=lambda p: (-p["impressions"], p["placement"]))[:_MOST_PLACEMENTS]
    figures = [
        _whiskers("Click-through by placement", "95 % interval", [(p["placement"], p) for p in busiest]),
        _whiskers("Click-through by day", "95 % interval", [(_day(d["metric_date"]), d) for d in report["days"]]),
    ]
    for placement in busiest:
        name = placement["placement"]
        places = [p for p in report["positions"] if p["placement"] == name and p["position"] <= _MOST_POSITIONS]
        figures.append(
            _whiskers(
                f"By position: {name}", f"{placement['impressions']:,} seen", [(str(p["position"]), p) for p in places]
            )
        )
    told = "Of the items that a client says were seen, the share that was clicked. Nothing seen, no dot."
    return _section("Clicks", told, "".join(figures))


def _whiskers(title: str, told: str, parts: Sequence[tuple[str, Part]]) -> str:
    known = [(label, part["ctr"], part["impressions"]) for label, part in parts if part["ctr"]]
    highest = max((ctr["upper"] for _, ctr, _ in known), default=0.0)
    # few impressions have intervals up to 1, which would flatten everything else
    top = min(highest, 3 * max((ctr["value"] for _, ctr, _ in known), default=0.0) or highest) or 1.0
    step = (_WIDTH - _LEFT - 6) / max(len(parts), 1)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - min(value, top) / top * (_HEIGHT - _BOTTOM - _TOP)

    marks = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>'
        f'<text x="{_LEFT - 5}" y="{y(level) + 4:.1f}" text-anchor="end">{_share(level)}</text>'
        for level in (0.0, top / 2, top)
    ]
    every = max(1, -(-len(parts) // max(1, int((_WIDTH - _LEFT) / 42))))
    for number, (label, part) in enumerate(parts):
        x = _LEFT + (number + 0.5) * step
        if number % every == 0:
            short = label if len(label) <= 10 else f"{label[:9]}…"
            marks.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(short)}</text>')
        if part["ctr"]:
            low, middle, high = (y(part["ctr"][name]) for name in ("lower", "value", "upper"))
            marks.append(
                f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
                f'<circle class="dot" cx="{x:.1f}" cy="{middle:.1f}" r="3.2">'
                f"<title>{escape(label)}: {_interval(part['ctr'])}, {part['impressions']:,} seen</title></circle>"
            )
    return _figure(title, told, "".join(marks))


def _levels(report: Mapping[str, Any]) -> str:
    days = sorted({row["metric_date"] for row in report["levels_by_day"]})
    found = {(row["metric_date"], row["fallback_level"]): row["decisions"] for row in report["levels_by_day"]}
    known = {row["fallback_level"] for row in report["levels"]}
    order = [level for level in _LEVELS if level in known] + sorted(known - set(_LEVELS))
    colours = {
        level: _LEVEL_COLOURS[n % len(_LEVEL_COLOURS)] for n, level in enumerate((*_LEVELS, *order[len(_LEVELS) :]))
    }
    width = _WIDTH * 3
    step = (width - _LEFT - 6) / max(len(days), 1)
    bar = min(step * 0.8, 60)
    inner = _HEIGHT - _BOTTOM - _TOP
    marks = [
        f'<text x="{_LEFT - 5}" y="{_TOP + inner * (1 - level) + 4:.1f}" text-anchor="end">{level:.0%}</text>'
        for level in (0.0, 0.5, 1.0)
    ]
    every = max(1, -(-len(days) // 20))
    for number, day in enumerate(days):
        whole = sum(found.get((day, level), 0) for level in order)
        x, at = _LEFT + number * step + (step - bar) / 2, 0.0
        for level in order:
            share = found.get((day, level), 0) / whole if whole else 0.0
            if share:
                marks.append(
                    f'<rect fill="{colours[level]}" x="{x:.1f}" y="{_TOP + inner * (1 - at - share):.1f}" '
                    f'width="{bar:.1f}" height="{inner * share:.1f}">'
                    f"<title>{day}, {escape(level)}: {share:.1%} of {whole:,}</title></rect>"
                )
            at += share
        if number % every == 0:
            marks.append(f'<text x="{x + bar / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{_day(day)}</text>')
    shares = {row["fallback_level"]: row["share"] for row in report["levels"]}
    legend = "".join(
        f'<span><i style="background:{colours[level]}"></i>{escape(level)} {shares[level]:.1%}</span>'
        for level in order
    )
    picture = _figure("Answers by fallback level", "share of the day", "".join(marks), width=width, below=legend)
    told = (
        "The best rung that gave an item; <code>none</code> is an empty slate. More of the lower rungs: fewer people "
    )
    return _section("Coverage", told + "that the night knew, or stores that did not answer.", picture)


def _figure(title: str, told: str, marks: str, *, width: int = _WIDTH, below: str = "") -> str:
    wide = ' class="wide"' if width > _WIDTH else ""
    legend = f'<div class="legend">{below}</div>' if below else ""
    return (
        f"<figure{wide}><figcaption>{escape(title)} <span>{escape(told)}</span></figcaption>"
        f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{escape(title)}">{marks}</svg>{legend}</figure>'
    )


# --- tables ---------------------------------------------------------------------------------------------------------

_COLUMNS = ("answers", "seen", "clicks", "CTR", "carts", "purchases", "conversion", "net revenue")


def _tables(report: Mapping[str, Any]) -> str:
    parts = [
        ("By placement", ("placement",), report["placements"]),
        ("By placement and position", ("placement", "position"), report["positions"]),
        ("By version", ("model_version",), report["versions"]),
    ]
    if report["arms"]:
        parts.append(("By arm", ("arm",), report["arms"]))
    return "".join(_table(title, names, rows) for title, names, rows in parts)


def _table(title: str, names: tuple[str, ...], rows: Sequence[Part]) -> str:
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in names)
    head += "".join(f'<th class="n">{name}</th>' for name in _COLUMNS)
    lines = []
    for row in rows:
        money = ", ".join(f"{one['net']:,.2f} {escape(currency)}" for currency, one in row["revenue"].items()) or "-"
        cells = (
            f"{row['decisions']:,}", f"{row['impressions']:,}", f"{row['clicks']:,}", _interval(row["ctr"]),
            f"{row['carts']:,}", f"{row['purchases']:,}", _interval(row["conversion"]), money,
        )  # fmt: skip
        keys = "".join(f"<td>{escape(str(row[name]))}</td>" for name in names)
        values = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        lines.append(f"<tr>{keys}{values}</tr>")
    return (
        f'<h2>{title}</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _footer(report: Mapping[str, Any]) -> str:
    open_days = report["incomplete_days"]
    told = f"Not over yet, more may be credited: {escape(', '.join(open_days))}. " if open_days else ""
    return (
        f'<p class="soft small" style="margin-top:28px">{told}Clicks, carts and purchases are events; CTR and '
        "conversion count items seen that were clicked or bought at least once. What is credited to what: "
        "infra/docs/decisions.md.</p>"
    )


def _section(title: str, told: str, figures: str) -> str:
    return f'<h2>{title}</h2><p class="soft small">{told}</p><div class="charts">{figures}</div>'


def _interval(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{_share(found['value'])} ({_share(found['lower'])} to {_share(found['upper'])})"


def _share(value: float) -> str:
    return f"{value:.1%}" if value >= 0.1 or value == 0 else f"{value:.2%}"


def _day(text: str) -> str:
    return f"{date.fromisoformat(text):%d %b}"
