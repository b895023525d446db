"""The part of metrics.html that says what the filters of placements leave of the catalogue and of people's lists."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_COLUMNS = ("items left", "a slate has", "personal lists", "too short for a slate", "with nothing left")


def filters_section(report: Mapping[str, Any] | None) -> str:
    """Of placements.json as HTML; empty where no night wrote one, or no placement has a filter and nothing is wrong."""
    if report is None or not (report["placements"] or report["warnings"]):
        return ""
    warnings = "".join(f'<p style="color:#b3261e"><strong>{escape(words)}</strong></p>' for words in report["warnings"])
    return (
        '<h2>Filters of placements</h2><p class="soft small">What they leave of the items that may be published, by '
        "what the night knows of them, and of the lists of people. What asks about a person is asked for nobody.</p>"
        f"{warnings}{_table(report)}"
    )


def _table(report: Mapping[str, Any]) -> str:
    head = "<th>placement</th><th>filter</th>" + "".join(f'<th class="n">{name}</th>' for name in _COLUMNS)
    lines = []
    for line in report["placements"]:
        cells = (
            f"{line['items_left']:,} of {line['items']:,}",
            str(line["num_results"]),
            *(f"{line[name]:,}" for name in ("lists", "short_lists", "empty_lists")),
        )
        values = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        name, text = escape(line["placement"]), escape(line["filter"])
        lines.append(f"<tr><td>{name}</td><td><code>{text}</code></td>{values}</tr>")
    if not lines:
        return ""
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
