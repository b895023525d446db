"""quality.html: one night's verdict on its data as one file that needs nothing else. First for a person in a hurry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from html import escape
from statistics import median, quantiles

from feature_repo.contracts.run import Run
from spark_jobs.quality.judging import PASS, STOP, WARN, Evidence, Finding, Verdict, usual_volumes
from spark_jobs.quality.limits import Limits
from spark_jobs.quality.profile import Day
from spark_jobs.transforms.quality import NULLABLE_COLUMNS

Band = Mapping[date, tuple[float, float]]

_BADGES = {PASS: "As usual", WARN: "Unusual, goes on", STOP: "Stopped"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 360, 132, 46, 20, 8
_MOST_TYPES = 12
PAGE_CSS = """
:root{--bg:#fbfbfa;--card:#fff;--ink:#1c2126;--soft:#5d6670;--line:#dfe3e6;--data:#2d6cb5;--band:#2d6cb522;--judged:#c2410c;
--pass:#1a7f4b;--warn:#9a6700;--stop:#b3261e;--passbg:#e3f4ea;--warnbg:#fdf1d0;--stopbg:#fde4e1;color-scheme:light dark}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e7eaed;--soft:#9aa4ae;--line:#333a41;
--data:#7db3f0;--band:#7db3f02b;--judged:#ff9a62;--pass:#6fd39b;--warn:#f0c75e;--stop:#ff9389;--passbg:#173325;
--warnbg:#3a2f10;--stopbg:#43201d}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px 60px}h1{font-size:26px;line-height:1.25;margin:4px 0 6px}
h2{font-size:18px;margin:36px 0 4px}p{margin:4px 0 10px}.soft,.soft td{color:var(--soft)}.small{font-size:13px}
.badge{display:inline-block;padding:3px 12px;border-radius:99px;font-weight:600}
.pass{color:var(--pass);background:var(--passbg)}.warn{color:var(--warn);background:var(--warnbg)}
.stop{color:var(--stop);background:var(--stopbg)}ul.findings{list-style:none;padding:0;margin:14px 0}
.findings li{background:var(--card);border:1px solid var(--line);border-left:5px solid var(--warn);border-radius:6px;
padding:8px 14px;margin:8px 0}.findings li.isstop{border-left-color:var(--stop)}.findings b{margin-right:6px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.tile strong{display:block;font-size:22px;line-height:1.3}.tile span{color:var(--soft);font-size:13px;display:block}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:12px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
figure.wide{grid-column:1/-1}figcaption{font-size:14px;font-weight:600}
figcaption span{font-weight:400;color:var(--soft)}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.bar{fill:var(--data)}.bar.judged,.dot.judged{fill:var(--judged)}.line{fill:none;stroke:var(--data);stroke-width:1.6}
.dot{fill:var(--data)}.band{fill:var(--band)}.grid{stroke:var(--line);stroke-width:1}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px;background:var(--card)}
th,td{text-align:left;padding:5px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.judged td{background:color-mix(in srgb,var(--judged) 12%,transparent)}code{font-size:13px}
"""


def render_page(run: Run, evidence: Evidence, limits: Limits, verdict: Verdict) -> str:
    """The report as HTML. Every text that came with the data is escaped."""
    judged = set(evidence.judged)
    tonight = [day for day in evidence.days if day.day in judged]
    history = [day for day in evidence.days if day.day not in judged and day.total.deliveries]
    body = "".join(
        (
            _summary(run, evidence, verdict, tonight, history),
            _volumes(evidence, limits, judged),
            _shares(evidence, judged, history),
            _nulls(tonight, history),
            _refused(evidence),
            _drift(tonight, history, evidence),
            _days_table(evidence, judged),
            _limits_table(limits, verdict),
            _origin(run, evidence, limits),
        )
    )
    title = f"Data quality before {evidence.as_of}: {_BADGES[verdict.level]}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_CSS}</style><main>{body}</main></html>\n"
    )


def _summary(run: Run, evidence: Evidence, verdict: Verdict, tonight: Sequence[Day], history: Sequence[Day]) -> str:
    days = _listed([day.day for day in tonight]) or "no new day"
    stops, warns = len(verdict.stopping), len(verdict.findings) - len(verdict.stopping)
    headline = {
        PASS: f"The data of {days} is what usually comes" if tonight else "Nothing new to judge",
        WARN: f"The data of {days} is used; {_count(warns, 'thing is', 'things are')} unusual",
        STOP: f"The data of {days} is not what usually comes, so the night stopped",
    }[verdict.level]
    after = {
        PASS: "The night goes on.",
        WARN: "Nothing that is not accepted breaks a limit that stops. The night goes on.",
        STOP: f"{_count(stops, 'limit is', 'limits are')} broken. Nothing was derived from this data, and the version "
        "that was being served still serves. Mend the data and start a new run; if the data is right, start one with "
        f"<code>accept_quality={','.join(dict.fromkeys(f.limit for f in verdict.stopping))}</code>.",
    }[verdict.level]
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in verdict.notes)
    return (
        f'<span class="badge {verdict.level}">{_BADGES[verdict.level]}</span>'
        f"<h1>{escape(headline)}</h1><p>{after}</p>"
        f'<p class="soft small">Night with as_of {evidence.as_of}, run <code>{escape(run.run_key)}</code>; compared '
        f"with {verdict.history_days} other days of the {len(evidence.days)} before as_of that have deliveries.</p>"
        f'{_findings(verdict.findings)}{notes}<div class="tiles">{_tiles(evidence, tonight, history)}</div>'
    )


def _findings(findings: Sequence[Finding]) -> str:
    lines = []
    for found in findings:
        accepted = " Accepted for this night." if found.is_accepted else ""
        is_stop = found.level == STOP and not found.is_accepted
        lines.append(
            f'<li class="{"isstop" if is_stop else ""}"><b class="badge small {STOP if is_stop else WARN}">'
            f"{'stops' if is_stop else 'unusual'}</b>{escape(found.words)}.{accepted} "
            f'<code class="soft">{found.limit}</code></li>'
        )
    return f'<ul class="findings">{"".join(lines)}</ul>' if lines else ""


def _tiles(evidence: Evidence, tonight: Sequence[Day], history: Sequence[Day]) -> str:
    def usual(of: Callable[[Day], float]) -> float | None:
        return median(map(of, history)) if history else None

    def tile(title: str, value: str, usually: str | None) -> str:
        told = f"usually {usually} a day" if usually is not None else "nothing to compare with"
        return f'<div class="tile"><span>{title}</span><strong>{value}</strong><span>{told}</span></div>'

    def count(title: str, of: Callable[[Day], int]) -> str:
        normal = usual(of)
        return tile(title, f"{sum(map(of, tonight)):,}", None if normal is None else f"{normal:,.0f}")

    refused = sum(evidence.refused.values())
    came = refused + evidence.arrived
    of = f"of {came:,} that came" if came else "nothing came for just these days"
    return "".join(
        (
            count("Deliveries", lambda day: day.total.deliveries),
            count("Known users", lambda day: day.users),
            count("Purchases", lambda day: day.types["purchase"].deliveries if "purchase" in day.types else 0),
            count("Repeated", lambda day: day.repeated_ids),
            count("From bots", lambda day: day.bot_deliveries),
            f'<div class="tile"><span>Refused at the entrance</span><strong>{refused:,}</strong>'
            f"<span>{of}</span></div>",
        )
    )


# --- charts ---------------------------------------------------------------------------------------------------------


def _volumes(evidence: Evidence, limits: Limits, judged: set[date]) -> str:
    band = {day: (low, high) for day, (_, low, high) in usual_volumes(evidence, limits).items()}
    figures = [
        _figure(
            "Deliveries by day",
            "band: no warning inside",
            evidence.days,
            lambda d: float(d.total.deliveries),
            judged,
            band=band,
            wide=True,
        )
    ]
    totals: dict[str, int] = {}
    for day in evidence.days:
        for kind, part in day.types.items():
            totals[kind] = totals.get(kind, 0) + part.deliveries
    for kind in sorted(totals, key=lambda name: (-totals[name], name))[:_MOST_TYPES]:

        def count(day: Day, kind: str = kind) -> float:
            return float(day.types[kind].deliveries) if kind in day.types else 0.0

        figures.append(
            _figure(
                kind,
                f"{totals[kind]:,} in the window",
                evidence.days,
                count,
                judged,
                band=_spread(evidence, judged, count),
            )
        )
    told = (
        "Deliveries as they came: duplicates, bots and refused rows count. Orange: judged tonight. Shaded: the usual "
        "(by event type, the middle 90 % of the other days)."
    )
    return _section("Volumes", told, figures)


def _shares(evidence: Evidence, judged: set[date], history: Sequence[Day]) -> str:
    def share(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    kinds: list[tuple[str, str, Callable[[Day], float | None]]] = [
        ("Repeated deliveries", "same event_id", lambda d: share(d.repeated_ids, d.total.deliveries)),
        ("Copies", "same content, another event_id", lambda d: share(d.copies, d.total.event_ids)),
        ("Late", "API only, over an hour", lambda d: share(d.total.late, d.total.live)),
        ("From bots", "of deliveries", lambda d: share(d.bot_deliveries, d.total.deliveries)),
        ("Busiest subject", "of deliveries, bots aside", lambda d: share(d.busiest_deliveries, d.total.deliveries)),
        ("Break a rule", "of deliveries in bronze", lambda d: share(d.total.broken, d.total.deliveries)),
        ("Unknown items", "not in the catalogue",
         lambda d: share(d.total.filled.get("item_id", 0) - d.total.in_catalogue, d.total.filled.get("item_id", 0))),
        ("Prices far off", "ten times the catalogue's, or a tenth",
         lambda d: share(d.total.far_priced, d.total.priced)),
    ]  # fmt: skip
    figures = [
        _figure(title, told, evidence.days, of, judged, band=_spread(evidence, judged, of), as_share=True)
        for title, told, of in kinds
        if any(of(day) for day in evidence.days)
    ]
    never = [title.lower() for title, _, of in kinds if not any(of(day) for day in evidence.days)]
    for kind in ("purchase", "view_item"):

        def middle(day: Day, kind: str = kind) -> float | None:
            part = day.types.get(kind)
            return part.price[1] if part is not None and part.price is not None else None

        if any(middle(day) is not None for day in history):
            figures.append(
                _figure("Median price", kind, evidence.days, middle, judged, band=_spread(evidence, judged, middle))
            )
    said = "By day; shaded is the middle 90 % of the other days."
    if never:
        said += f" Nothing on any day: {', '.join(never)}."
    return _section("Shares and prices", said, figures)


def _spread(evidence: Evidence, judged: set[date], of: Callable[[Day], float | None]) -> Band:
    values = [
        value for day in evidence.days if day.day not in judged and day.total.deliveries
        for value in (of(day),) if value is not None
    ]  # fmt: skip
    if len(values) < 5:
        return {}
    cuts = quantiles(values, n=20, method="inclusive")
    return {day.day: (cuts[0], cuts[-1]) for day in evidence.days}


def _figure(
    title: str,
    told: str,
    days: Sequence[Day],
    of: Callable[[Day], float | None],
    judged: set[date],
    *,
    band: Band,
    as_share: bool = False,
    wide: bool = False,
) -> str:
    values = [of(day) for day in days]
    width = _WIDTH * 3 if wide else _WIDTH
    highest = max([value for value in values if value is not None] + [high for _, high in band.values()] + [0.0])
    top = highest * 1.05 or 1.0
    step = (width - _LEFT - 6) / max(len(days), 1)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _BOTTOM - _TOP)

    def label(value: float) -> str:
        if as_share:
            return f"{value:.1%}" if top < 0.1 else f"{value:.0%}"
        return f"{value:,.0f}" if top >= 10 or float(value).is_integer() else f"{value:,.2f}"

    parts = []
    for level in (0.0, highest / 2, highest) if highest else (0.0,):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y(level) + 4:.1f}" text-anchor="end">{label(level)}</text>')
    for number, day in enumerate(days):
        if day.day in band:
            low, high = band[day.day]
            height = max(y(low) - y(high), 1.0)
            parts.append(
                f'<rect class="band" x="{_LEFT + number * step:.1f}" y="{y(high):.1f}" width="{step + 0.3:.1f}" '
                f'height="{height:.1f}"/>'
            )
    for number, (day, value) in enumerate(zip(days, values, strict=True)):
        if value is None:
            continue
        x = _LEFT + number * step
        mark = " judged" if day.day in judged else ""
        tip = f"<title>{day.day:%a} {day.day}: {label(value)}</title>"
        parts.append(
            f'<rect class="bar{mark}" x="{x + step * 0.15:.1f}" y="{y(value):.1f}" width="{step * 0.7:.1f}" '
            f'height="{max(_HEIGHT - _BOTTOM - y(value), 0.8):.1f}">{tip}</rect>'
        )
    if days:
        for number, anchor in ((0, "start"), (len(days) - 1, "end")):
            x = _LEFT + (number + (anchor == "end")) * step
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 5}" text-anchor="{anchor}">{days[number].day:%d %b}</text>')
    last = next((value for day, value in zip(reversed(days), reversed(values), strict=True) if day.day in judged), None)
    now = "" if last is None else f": {label(last)}"
    return (
        f'<figure class="{"wide" if wide else ""}"><figcaption>{escape(title)}{now} <span>{escape(told)}</span>'
        f'</figcaption><svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{escape(title)} by day">'
        f"{''.join(parts)}</svg></figure>"
    )


# --- tables ---------------------------------------------------------------------------------------------------------


def _nulls(tonight: Sequence[Day], history: Sequence[Day]) -> str:
    whole = sum(day.total.deliveries for day in tonight)
    rows = []
    for column in NULLABLE_COLUMNS:
        filled = sum(day.total.filled.get(column, 0) for day in tonight)
        before = [1 - day.total.filled.get(column, 0) / day.total.deliveries for day in history]
        usual, low, high = (f"{v:.1%}" for v in (median(before), min(before), max(before))) if before else ("-",) * 3
        now = f"{1 - filled / whole:.1%}" if whole else "-"
        rows.append((f"<code>{column}</code>", now, usual, f"{low} to {high}" if before else "-"))
    return _section("Nulls", "Share of deliveries without a value. Many are null by nature: only purchases have a "
                    "value, only visitors that are not logged in lack a user_id.",
                    table=_table(("column", "tonight", "usually", "lowest to highest day"), rows))  # fmt: skip


def _refused(evidence: Evidence) -> str:
    rows = [(escape(reason), "at the entrance", f"{count:,}") for reason, count in _largest(evidence.refused)]
    rows += [
        (escape(reason), "in bronze, by the night", f"{count:,}") for reason, count in _largest(evidence.quarantined)
    ]
    told = (
        "What came for the judged days and was refused. Every refused row is kept with its bytes in bronze.quarantine, "
        "bronze.quarantine_import, bronze.quarantine_kafka or silver.quarantine."
    )
    return _section("Quarantine by reason", told if rows else "Nothing was refused.",
                    table=_table(("reason", "where", "deliveries"), rows) if rows else "")  # fmt: skip


def _drift(tonight: Sequence[Day], history: Sequence[Day], evidence: Evidence) -> str:
    rows: list[tuple[str, ...]] = []

    def compare(what: str, of: Callable[[Day], Mapping[str, int]]) -> None:
        now, before = _summed(map(of, tonight)), _summed(map(of, history))
        whole, all_before = (sum(d.total.deliveries for d in days) for days in (tonight, history))
        for name in sorted(now.keys() | before.keys(), key=lambda n: (-now.get(n, 0) - before.get(n, 0), n))[:20]:
            share = f"{now.get(name, 0) / whole:.1%}" if whole else "-"
            usual = f"{before.get(name, 0) / all_before:.1%}" if all_before else "-"
            mark = "new" if history and name not in before else "gone" if tonight and name not in now else ""
            rows.append((what, f"<code>{escape(name)}</code>", share, usual, mark))

    compare("event type", lambda day: {kind: part.deliveries for kind, part in day.types.items()})
    compare("currency", lambda day: day.currencies)
    compare("property", lambda day: day.property_keys)
    compare("table", lambda day: day.tables)
    rows += [("column", f"<code>{escape(name)}</code>", "", "", "missing") for name in evidence.missing_columns]
    rows += [("column", f"<code>{escape(name)}</code>", "", "", "new") for name in evidence.new_columns]
    now, before = evidence.catalogue, evidence.catalogue_before
    told = "What the deliveries are made of, as a share of all of them."
    if now is not None:
        told += f" The catalogue has {now.items:,} items, {now.priced:,} with a price"
        told += f" ({before.items:,} and {before.priced:,} at the last run)." if before is not None else "."
    return _section("Schema and mix", told, table=_table(("kind", "name", "tonight", "usually", ""), rows))


def _days_table(evidence: Evidence, judged: set[date]) -> str:
    names = (
        "day",
        "deliveries",
        "users",
        "items",
        "repeated",
        "copies",
        "late",
        "bots",
        "broken",
        "first",
        "last (UTC)",
    )
    rows, classes = [], []
    for day in reversed(evidence.days):
        total = day.total
        rows.append(
            (
                f"{day.day:%a} {day.day}", *(f"{n:,}" for n in (
                    total.deliveries, day.users, total.items, day.repeated_ids, day.copies, total.late,
                    day.bot_deliveries, total.broken)),
                _clock(total.first_second), _clock(total.last_second),
            )
        )  # fmt: skip
        classes.append("judged" if day.day in judged else "" if total.deliveries else "soft")
    return _section("Day by day", "", table=_table(names, rows, classes))


def _limits_table(limits: Limits, verdict: Verdict) -> str:
    found: dict[str, str] = {}
    for finding in reversed(verdict.findings):
        found[finding.limit] = "accepted" if finding.is_accepted else finding.level
    rows = []
    for name, limit in limits.bounds.items():
        state = (
            f'<span class="badge small {found[name]}">{found[name]}</span>'
            if found.get(name) in _BADGES
            else found.get(name, "")
        )
        bounds = (("-" if bound is None else f"{bound:g}") for bound in (limit.warn, limit.stop))
        rows.append(
            (f"{escape(limit.title)}<br><code>{name}</code>", limit.unit, *bounds, state, escape(limit.meaning))
        )
    told = (
        "share: how much of 1 more than usual; loss: share of the usual values gone; times: times the usual, or "
        "fewer; open: how often such a day has deliveries."
    )
    head = ("limit", "unit", "warns above", "stops above", "tonight", "meaning")
    return _section("Limits in force", told, table=_table(head, rows))


def _origin(run: Run, evidence: Evidence, limits: Limits) -> str:
    pins = ", ".join(f"{name} {version}" for name, version in sorted(run.pins.items()))
    first = evidence.days[0].day if evidence.days else evidence.as_of
    return (
        f'<p class="soft small">Window {first} to {evidence.as_of} (exclusive), {limits.window_days} days. Delta '
        f"versions read: {escape(pins)}. Code {escape(run.code_version)}. Distinct counts of large days "
        "are estimates within 1 %.</p>"
    )


def _section(title: str, told: str, figures: Iterable[str] = (), table: str = "") -> str:
    charts = "".join(figures)
    shown = f'<div class="charts">{charts}</div>' if charts else ""
    return f'<h2>{title}</h2><p class="soft">{told}</p>{shown}{table}'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None) -> str:
    def is_number(text: str) -> bool:
        return text[:1].isdigit() or text == "-"

    lines = [
        f'<tr class="{name}">' + "".join(f"<td{' class=n' if is_number(c) else ''}>{c}</td>" for c in row) + "</tr>"
        for row, name in zip(rows, classes or [""] * len(rows), strict=True)
    ]
    numeric = [all(is_number(row[i]) for row in rows) for i in range(len(head))] if rows else [False] * len(head)
    top = "".join(f"<th{' class=n' if n else ''}>{name}</th>" for name, n in zip(head, numeric, strict=True))
    return f'<div class="scroll"><table><tr>{top}</tr>{"".join(lines)}</table></div>'


def _listed(days: Sequence[date]) -> str:
    if len(days) <= 3:
        return ", ".join(str(day) for day in days)
    return f"{days[0]} to {days[-1]} ({len(days)} days)"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _clock(seconds: int | None) -> str:
    return "-" if seconds is None else f"{seconds // 3600:02d}:{seconds % 3600 // 60:02d}"


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _summed(mappings: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for mapping in mappings:
        for name, count in mapping.items():
            total[name] = total.get(name, 0) + count
    return total
