"""The gate's report as a page for people (Markdown), made from what gate.json and evaluation.json say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spark_jobs.evaluation.split import SLICES
from spark_jobs.evaluation.with_ranker import WITH_RANKER

TITLES = {
    "publish": "published: a personal model won",
    "baseline": "baseline: no personal model passed",
    "refused": "refused: nothing is published",
}
LIST_COLUMNS = (
    "coverage_at_20", "gini_at_20", "novelty_at_20", "serendipity_at_20", "diversity_at_20", "miscalibration_at_20",
)  # fmt: skip
"""`list_quality` says what they are."""
COLUMNS = ("recall_at_20", "ndcg_at_20", "hit_rate_at_20", "mrr_at_20", "recall_at_10", "ndcg_at_10")


def report_markdown(gate: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """Verdict, reasons, quality of all by slice on one held-out window, their lists, comparisons with 95 % intervals,
    every check."""
    lines = [f"# Gate, as_of {gate['as_of']}: {TITLES[gate['verdict']]}", ""]
    lines += [f"- {reason}" for reason in gate["reasons"]]
    test = evaluation["test"]
    lines += [
        "",
        f"Test window: {test['days']} days from {test['start']}, {test['users']:,} persons. {test['note']}".rstrip(),
    ]
    lines += ["", "## Quality", "", _row("model", "slice", "persons", *COLUMNS), _row(*["---"] * (3 + len(COLUMNS)))]
    for name, model in evaluation["models"].items():
        for part in (s for s in SLICES if s in model["metrics"]):
            values = (f"{model['metrics'][part][c]:.4f}" for c in COLUMNS)
            lines.append(_row(name, part, f"{test['users_by_slice'][part]:,}", *values))
    for name, model in evaluation["models"].items():
        if model.get("beside"):
            words = f"{name}: not judged, {what_answers(name, model)}"
            lines += ["", f"{words}; {test['users_in_a_session']:,} of {test['users']:,} persons were in a session."]
    lines += ["", "## Lists", "", _row("model", *LIST_COLUMNS), _row(*["---"] * (1 + len(LIST_COLUMNS)))]
    for name, model in evaluation["models"].items():
        beyond = model.get("beyond_accuracy", {})
        lines.append(_row(name, *(f"{beyond[c]:.4f}" if c in beyond else "-" for c in LIST_COLUMNS)))
    if evaluation.get("blend"):
        lines += ["", f"Blend: {evaluation['blend']}."]
    if ranker := gate.get("ranker"):
        lines += ["", f"Ranker of answers: {'published' if ranker['publishes'] else 'left out'}, {ranker['words']}."]
    lines += [f"Left out: {note}." for note in evaluation.get("left_out", ())]
    lines += ["", "## Differences in NDCG@20, paired, 95 % intervals", ""]
    lines += [_row("model", "against", "slice", "persons", "difference", "relative"), _row(*["---"] * 6)]
    for c in gate["comparisons"]:
        lines.append(
            _row(c["model"], c["against"], c["slice"], f"{c['users']:,}", _span(c["difference"], "{:+.4f}"),
                 _span(c["relative"], "{:+.1%}"))
        )  # fmt: skip
    lines += ["", "## Checks", "", _row("", "check", "model", "found"), _row(*["---"] * 4)]
    for check in gate["checks"]:
        lines.append(_row("yes" if check["passed"] else "NO", check["name"], check["model"] or "", check["words"]))
    return "\n".join(lines) + "\n"


def what_answers(name: str, model: Mapping[str, Any]) -> str:
    """What a row is that is of no model."""
    if name == WITH_RANKER:
        return f"the answers of {model['beside']}, their best in the order of a ranker"
    return f"answers that blend the lists of {model['beside']} with the session that asks"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _span(interval: Mapping[str, float] | None, form: str) -> str:
    if interval is None:
        return "-"
    return f"{form} ({form} to {form})".format(interval["mean"], interval["lower"], interval["upper"])
