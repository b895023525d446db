"""A model card, generated from what the night found (after Mitchell et al. 2019, Model Cards for Model Reporting)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spark_jobs.evaluation.gate import METRIC, RECALL
from spark_jobs.evaluation.report import TITLES
from spark_jobs.evaluation.split import SLICES
from spark_jobs.models.recipes import flat_recipe

_WHAT = {
    "popularity": "what most people preferred lately, the same list for everybody; the baseline",
    "item_knn": "items whose buyers and viewers overlap with those of a person's own items",
    "als": "implicit-feedback matrix factorization: people and items as vectors, by alternating least squares",
    "ials": "implicit-feedback matrix factorization with a weight for what was not observed",
    "rp3beta": "a walk from a person over their items and those items' people, popular ends damped",
    "graph_filter": "a history smoothed over the graph of people and items",
    "ease": "a linear model from items to items, in closed form",
    "sequential_rules": "what tends to follow the last items of a person",
    "session_knn": "what stood near the same items in other people's histories",
    "repurchase": "what a person buys again, how often and how lately",
    "content": "items like those of a person, by what the catalogue says of them",
    "segment_popularity": "what most people prefer in the categories where a person looks",
    "trending": "what people prefer in the last days more than usual, the same list for everybody",
    "ranker": "a second stage of trees that orders the best of the first by features of the person and the items",
    "blend": "the standardised scores of several models, weighted by what did best on a validation window",
}


def model_card(
    name: str,
    evaluation: Mapping[str, Any],
    gate: Mapping[str, Any],
    *,
    code_version: str,
    pins: Mapping[str, int],
    tenant: str,
) -> str:
    """Markdown. `gate` is what gate.json says (its `intervals` too), `pins` the versions of the bronze tables."""
    model, test, profile = evaluation["models"][name], evaluation["test"], evaluation["profile"]
    recipe = model["recipe"]
    won = gate["contestant"] == name
    if won:
        verdict = (
            f"{TITLES[gate['verdict']]}. It is refitted on all data before {evaluation['as_of']} and scores everybody."
        )
    else:
        verdict = f"not taken tonight ({TITLES[gate['verdict']]})."
    lines = [
        f"# {name}, as_of {evaluation['as_of']}",
        "",
        f"**What it is.** {recipe['model']}: {_WHAT.get(recipe['model'], 'see its module')}. "
        "It ranks the items of the shop for a person from their past events. In: a user id. Out: item ids, best first, "
        "with scores.",
        "",
        f"**The gate says:** {verdict}",
        "",
        "## Quality",
        "",
        f"Time split: trained on events before {test['start']}, asked for what {test['users']:,} people came for in "
        f"the {test['days']} days after. All {test['item_count']:,} items are ranked, those a person had are left out. "
        f"{test['note']}".rstrip(),
        "Means over people with 95 % bootstrap intervals.",
        "",
        "| people by training events | people | NDCG@20 | Recall@20 |",
        "| --- | ---: | --- | --- |",
    ]
    intervals = gate["intervals"][name]
    for part in (s for s in SLICES if s in intervals):
        found = intervals[part]
        lines.append(f"| {part} | {found[METRIC]['persons']:,} | {_span(found[METRIC])} | {_span(found[RECALL])} |")
    if not intervals:
        lines.append("| nobody | 0 | not tested | not tested |")
    further, counts = model["further_slices"], test["users_by_further_slice"]
    if further:
        lines += ["", "| further slice | people | Recall@20 |", "| --- | ---: | --- |"]
        lines += [f"| {part} | {counts[part]:,} | {found[RECALL]:.4f} |" for part, found in further.items()]
        lines += ["", "A slice of items counts people with a test item in it, and how many of those their lists held."]
    beyond = model["beyond_accuracy"]
    lines += [
        "",
        f"Coverage of the top 20s {beyond['coverage_at_20']:.1%} of the items, Gini {beyond['gini_at_20']:.2f}; the 20 "
        f"most shown items take {beyond['top_share_at_20']:.1%} of the places. A random list reaches Recall@20 "
        f"{test['random_recall_at_20']:.4f}.",
        "",
        "## Data",
        "",
        f"{profile['events']:,} interactions of {profile['subjects']:,} subjects with "
        f"{profile['items_with_events']:,} items, "
        f"{profile['first_event_at']} to {profile['last_event_at']}; density {profile['density']:.3%}.",
        "",
        "**Consent.** Events of people who deny `store` were never kept; those of people who deny `train` are in no "
        "interaction, so neither in this model nor in its test. Who denies `personalize` gets no personal list from "
        "it. Bots are left out.",
        "",
        "## Meant for",
        "",
        "Ordering items on the pages of this shop for people with a past, nightly; the session adjusts the list within "
        "the request. Not meant for prices, credit, eligibility, or anything about a person beyond which items to "
        "show.",
        "",
        "## Limits",
        "",
        "- It knows only what was clicked and bought, so it repeats what was shown before: nothing here corrects for "
        "exposure.",
        "- People without events get no list from it (the fallback ladder serves them), items without events no place "
        "in item_knn and als.",
        f"- {_weakest(intervals)}",
        "- Offline numbers say how well the past week is found, not what an experiment would.",
        "",
        "## Pins",
        "",
        "| | |", "| --- | --- |",
        f"| code | `{code_version}` |",
        f"| tenant | `{tenant}` |",
        f"| run | `{evaluation['run_key']}` |",
        *(f"| {table} | Delta version {at} |" for table, at in {**pins, **evaluation["delta_versions"]}.items()),
        f"| manifest | SHA-256 `{model['manifest_sha256']}` |",
        "",
        "## Recipe",
        "",
        "| parameter | value |", "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in sorted(flat_recipe(recipe).items()) if key != "model"),
    ]  # fmt: skip
    if "trials" in model:
        lines += ["", f"How it was chosen: {model['trials']['why']}."]
    return "\n".join(lines) + "\n"


def _span(one: Mapping[str, Any]) -> str:
    return f"{one['mean']:.4f} ({one['lower']:.4f} to {one['upper']:.4f})"


def _weakest(intervals: Mapping[str, Any]) -> str:
    parts = {part: found[METRIC] for part, found in intervals.items() if part != "all"}
    if not parts:
        return "Nobody could be tested: its quality tonight is not known."
    part = min(parts, key=lambda p: parts[p]["mean"])
    wide = max(parts, key=lambda p: parts[p]["upper"] - parts[p]["lower"])
    return (
        f"It is weakest for people with {part} training events (NDCG@20 {parts[part]['mean']:.4f}), and known least "
        f"well for {wide} ({parts[wide]['persons']:,} people)."
    )
