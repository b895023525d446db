"""The night in pictures: PNG files made from what evaluation.json and gate.json say.

One look for all: a model has one colour in every picture, the reader finds the unit on the axis and the number of
people in the title. matplotlib is imported inside, and draws without a display.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_jobs.evaluation.data_profile import range_words
from spark_jobs.evaluation.gate import METRIC, RECALL
from spark_jobs.evaluation.split import SLICES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_COLOURS = {
    "popularity": "#8d99a6",
    "item_knn": "#1f77b4",
    "als": "#d9541e",
    "champion": "#6a3d9a",
    "with_session": "#14213d",
}
_SPARE = ("#2a9d5c", "#b5179e", "#0f9fb5", "#a67c00")
_STYLE: Any = {
    "figure.dpi": 120,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_NAMES = {METRIC: "NDCG@20", RECALL: "Recall@20"}
_SLICE_WORDS = {"all": "everybody", "<5": "fewer than 5 events", "5-20": "5 to 20", ">20": "more than 20"}


def draw_pictures(
    folder: Path, evaluation: Mapping[str, Any], intervals: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[Path]:
    """Write the pictures that tonight's data allows into `folder`, and return their paths.

    `intervals` are what `gate.quality_intervals` gives. Without test persons only the data is drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    drawings: dict[str, Callable[[], Figure]] = {"data_profile": lambda: _data_profile(evaluation)}
    if evaluation["test"]["users"]:
        drawings |= {
            "model_comparison": lambda: _comparison(evaluation, intervals),
            "slices": lambda: _slices(evaluation, intervals),
            "recall_by_k": lambda: _recall_by_k(evaluation),
            "popularity_concentration": lambda: _concentration(evaluation),
            "coverage": lambda: _coverage(evaluation),
        }
    paths = []
    with rc_context(_STYLE):
        for name, draw in drawings.items():
            figure = draw()
            path = folder / f"{name}.png"
            figure.savefig(path, metadata={"Software": None})
            paths.append(path)
    return paths


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure that no global state holds on to."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def _colours(names: Sequence[str]) -> dict[str, str]:
    spare = iter(_SPARE * (1 + len(names)))
    return {name: _COLOURS.get(name) or next(spare) for name in names}


def _by_quality(evaluation: Mapping[str, Any]) -> list[str]:
    models = evaluation["models"]
    return sorted(models, key=lambda name: (-models[name]["metrics"]["all"][METRIC], name))


def _night(evaluation: Mapping[str, Any]) -> str:
    test = evaluation["test"]
    days = "1 day" if test["days"] == 1 else f"{test['days']} days"
    return f"as_of {evaluation['as_of']}, {test['users']:,} people, test window {days}"


def _comparison(evaluation: Mapping[str, Any], intervals: Mapping[str, Any]) -> Figure:
    names = _by_quality(evaluation)[::-1]
    colours = _colours(list(evaluation["models"]))
    figure, axes = _figure(10, 1.9 + 0.42 * len(names), 2)
    for ax, metric in zip(axes, (METRIC, RECALL), strict=True):
        for place, name in enumerate(names):
            one = intervals[name]["all"][metric]
            _whisker(ax, one, place, colours[name], horizontal=True)
            ax.annotate(
                f"{one['mean']:.4f}", (one["mean"], place), xytext=(0, 7), textcoords="offset points", ha="center",
                color=colours[name], fontsize=9,
            )  # fmt: skip
        ax.set_title(f"{_NAMES[metric]} with 95 % interval")
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.set_ylim(-0.6, len(names) - 0.3)
        ax.grid(axis="y", visible=False)
        ax.set_xlim(left=0)
        ax.set_xlabel("all items ranked, mean over people")
    chance = evaluation["test"]["random_recall_at_20"]
    axes[1].axvline(chance, color=_MUTED, linestyle=":", linewidth=1.5)
    axes[1].annotate(
        "a random list", (chance, -0.55), xytext=(4, 2), textcoords="offset points", color=_MUTED, fontsize=8
    )
    figure.suptitle(_night(evaluation), x=0.01, ha="left", color=_MUTED, fontsize=9)
    return figure


def _slices(evaluation: Mapping[str, Any], intervals: Mapping[str, Any]) -> Figure:
    names = _by_quality(evaluation)
    colours = _colours(list(evaluation["models"]))
    parts = [part for part in SLICES if part in intervals[names[0]]]
    figure, (ax,) = _figure(10, 4.4)
    for number, name in enumerate(names):
        shift = (number - (len(names) - 1) / 2) * min(0.2, 0.7 / len(names))
        for place, part in enumerate(parts):
            _whisker(ax, intervals[name][part][METRIC], place + shift, colours[name], horizontal=False,
                     label=name if place == 0 else None)  # fmt: skip
    persons = [intervals[names[0]][part][METRIC]["persons"] for part in parts]
    words = [f"{_SLICE_WORDS[p]}\n{n:,} people" for p, n in zip(parts, persons, strict=True)]
    ax.set_xticks(range(len(parts)), words)
    ax.grid(axis="x", visible=False)
    for place in range(1, len(parts)):
        ax.axvline(place - 0.5, color=_GRID)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("NDCG@20, mean and 95 % interval")
    ax.set_title("NDCG@20 by how many events a person has in training")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(_night(evaluation), x=0.01, ha="left", color=_MUTED, fontsize=9)
    return figure


def _recall_by_k(evaluation: Mapping[str, Any]) -> Figure:
    colours = _colours(list(evaluation["models"]))
    figure, (ax,) = _figure(8, 4.4)
    ends = []
    for name in _by_quality(evaluation):
        curve = evaluation["models"][name]["recall_by_k"]
        ax.plot(range(1, len(curve) + 1), curve, color=colours[name], linewidth=2)
        ends.append((curve[-1], name, len(curve)))
    _label_ends(ax, ends, colours)
    ax.axvline(20, color=_MUTED, linestyle=":", linewidth=1.2)
    ax.annotate("the gate looks here", (20, 0), xytext=(4, 4), textcoords="offset points", color=_MUTED, fontsize=8)
    ax.set_xlim(1, max(end[2] for end in ends) * 1.18)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("k, length of the list")
    ax.set_ylabel("recall, mean over people")
    ax.set_title("Share of what people came for that a list of k items has")
    figure.suptitle(_night(evaluation), x=0.01, ha="left", color=_MUTED, fontsize=9)
    return figure


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, int]], colours: Mapping[str, str]) -> None:
    """Names at the ends of the curves, pushed apart so that none hides another."""
    gap = 0.045 * max(0.01, *(value for value, _, _ in ends))
    last = float("-inf")
    for value, name, length in sorted(ends):
        last = max(value, last + gap)
        ax.annotate(name, (length, last), xytext=(5, -3), textcoords="offset points", color=colours[name])


def _concentration(evaluation: Mapping[str, Any]) -> Figure:
    colours = _colours(list(evaluation["models"]))
    known = evaluation["test"]["known_items"]
    figure, (ax,) = _figure(8, 4.8)
    for name in sorted(evaluation["models"], key=lambda n: evaluation["models"][n]["beyond_accuracy"]["gini_at_20"]):
        model = evaluation["models"][name]
        curve, beyond = model["lorenz_at_20"], model["beyond_accuracy"]
        share = [100 * n / (len(curve) - 1) for n in range(len(curve))]
        label = f"{name}: Gini {beyond['gini_at_20']:.2f}, top 20 items take {beyond['top_share_at_20']:.0%}"
        ax.plot(share, [100 * v for v in curve], color=colours[name], linewidth=2, label=label)
    ax.plot([0, 100], [0, 100], color=_MUTED, linestyle=":", linewidth=1.2)
    ax.annotate("all items alike", (52, 56), color=_MUTED, rotation=27, fontsize=8)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    ax.set_xlabel(f"% of the {known:,} items with a training event, least shown first")
    ax.set_ylabel("% of all places in the top 20s")
    ax.set_title("How recommendations fall on the items (Lorenz curves)")
    ax.legend(loc="upper left")
    figure.suptitle(_night(evaluation), x=0.01, ha="left", color=_MUTED, fontsize=9)
    return figure


def _coverage(evaluation: Mapping[str, Any]) -> Figure:
    names = _by_quality(evaluation)[::-1]
    colours = _colours(list(evaluation["models"]))
    test = evaluation["test"]
    most = max(evaluation["models"][n]["beyond_accuracy"][f"coverage_at_{k}"] for n in names for k in (10, 20))
    figure, axes = _figure(10, 1.7 + 0.42 * len(names), 2)
    for ax, k in zip(axes, (10, 20), strict=True):
        beyond = [evaluation["models"][name]["beyond_accuracy"] for name in names]
        values = [100 * b[f"coverage_at_{k}"] for b in beyond]
        ax.barh(range(len(names)), values, color=[colours[n] for n in names], height=0.6)
        for place, (value, b) in enumerate(zip(values, beyond, strict=True)):
            words = f"{value:.1f} %  ({b[f'distinct_items_at_{k}']:,.0f} items)"
            ax.annotate(words, (value, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, max(5.0, 135 * most))
        ax.set_xticks([t for t in ax.get_xticks() if t <= 100])
        ax.set_title(f"Coverage, top {k}")
        ax.set_xlabel(f"% of the {test['known_items']:,} items with a training event")
    figure.suptitle(_night(evaluation), x=0.01, ha="left", color=_MUTED, fontsize=9)
    return figure


def _data_profile(evaluation: Mapping[str, Any]) -> Figure:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    profile = evaluation["profile"]
    figure, (over_time, lengths) = _figure(11, 4.2, 2)
    days = [date.fromisoformat(day) for day in profile["events_by_day"]]
    ranked = sorted(profile["events_by_type"], key=lambda name: (-profile["events_by_type"][name], name))
    palette = ("#1f77b4", "#d9541e", "#2a9d5c", "#6a3d9a", "#a67c00", "#b5179e", "#0f9fb5", "#8d99a6", "#52606d")
    below = [0.0] * len(days)
    for name, colour in zip(ranked, palette * 4, strict=False):
        counts = [float(found.get(name, 0)) for found in profile["events_by_day"].values()]
        over_time.bar(days, counts, bottom=below, width=1.0, color=colour, label=name)  # type: ignore[arg-type]
        below = [a + b for a, b in zip(below, counts, strict=True)]
    over_time.set_title(f"{profile['events']:,} interactions by UTC day")
    over_time.set_ylabel("events")
    over_time.grid(axis="x", visible=False)
    over_time.set_ylim(0, 1.35 * max(below))
    over_time.legend(fontsize=8, ncols=3, loc="upper left")
    locator = AutoDateLocator(minticks=3, maxticks=7)
    over_time.xaxis.set_major_locator(locator)
    over_time.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    ranges = profile["history_length"]["ranges"]
    counts = [r["subjects"] for r in ranges]
    lengths.bar(range(len(ranges)), counts, color="#1f77b4", width=0.75)
    for place, count in enumerate(counts):
        words = f"{count:,}\n{count / profile['subjects']:.0%}"
        lengths.annotate(words, (place, count), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8)
    lengths.set_xticks(range(len(ranges)), [range_words(r) for r in ranges])
    lengths.set_ylim(0, 1.2 * max(counts))
    lengths.grid(axis="x", visible=False)
    lengths.set_title(f"{profile['subjects']:,} subjects by number of events")
    lengths.set_xlabel("events of a subject")
    lengths.set_ylabel("subjects")
    head = ", ".join(f"top {float(share):.0%} of items: {value:.0%}" for share, value in profile["head"].items())
    note = f"before {evaluation['as_of']}; density {profile['density']:.3%}; share of events on the {head}"
    figure.suptitle(note, x=0.01, ha="left", color=_MUTED, fontsize=9)
    return figure


def _whisker(
    ax: Axes, one: Mapping[str, Any], place: float, colour: str, *, horizontal: bool, label: str | None = None
) -> None:
    span = [[one["mean"] - one["lower"]], [one["upper"] - one["mean"]]]
    style = {"fmt": "o", "color": colour, "capsize": 4, "markersize": 6, "linewidth": 2, "label": label}
    if horizontal:
        ax.errorbar([one["mean"]], [place], xerr=span, **style)  # type: ignore[arg-type]
    else:
        ax.errorbar([place], [one["mean"]], yerr=span, **style)  # type: ignore[arg-type]
