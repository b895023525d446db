"""The page of features, made from `contracts.feature_table`: python -m feature_repo.features_page > infra/docs/features.md"""

from __future__ import annotations

from feature_repo.contracts.feature_table import FEATURE_VIEWS, Feature, FeatureView, features

_HEAD = """# Features

<!-- Made from feature_repo/contracts/feature_table.py: python -m feature_repo.features_page > infra/docs/features.md -->

{count} features in {views} views. A name is `<grain>_<measure>_<window>`. Windows are half-open, in days of 24 hours, and end at the row's
`feature_timestamp`, the as_of of the night that made it (00:00 UTC): **no value sees an event at or after that instant**. Bots count nowhere. Money and
durations are summed as decimals, so equal events give equal values.

Each feature is defined once, in [feature_table.py](../../feature_repo/contracts/feature_table.py): the gold Delta tables, the Feast views and this page follow
from it. How it is computed stands in `spark_jobs/transforms/` (`user_features.py`, `item_features.py`).

*Null* says when a row has no value. *Default* is what a reader who needs a number takes for a null, or for an entity without a row; where there is none (–),
no number would be honest.

To add one: a line in the table, an expression in the transform and its like in `features_of_arrays.py`, its value by hand in `tests/spark/test_features.py`. The next night adds the column to a table
that is there already; its older rows have null in it.
"""

_TAIL = """
## Training frames

`training_frame` gives each example what was known at its instant: the newest value stamped at or before it, and not older than the view's {days} days.
Rows keep their order and their duplicates; who was not known then has nulls.

```python
import os
import pandas as pd
from feature_repo.contracts.environment import Environment
from spark_jobs.io.feature_store import training_frame

rows = pd.DataFrame(
    {{
        "user_id": ["u0001", "u0001"],
        "item_id": ["i0001", "i0002"],
        "event_timestamp": pd.to_datetime(["2025-07-01T09:30:00Z", "2025-07-01T09:31:00Z"]),
        "label": [1, 0],
    }}
)
frame = training_frame(Environment.from_mapping(os.environ), rows, "ranking_v1")
```

Run it where the stack's variables are set (`NIGHTJAR_HOME` at least, and its Redis running). `ranking_v1` joins all three views; the category is the
item's in the catalogue unless the rows bring a column `category`. `fill_defaults=True` puts the defaults of the tables above in the place of nulls. Feature
services are listed in [services.py](../../feature_repo/definitions/services.py). A night makes one value a day: examples of days without a
night (older than the first, or more than {days} days after the last) have nulls until those days are derived.

## Online

Serving reads Feast's layout in Redis itself; what it reads is what the SDK gives ([0006](../adr/0006-feast-holds-features-candidates-are-ours.md)). Rows that a ranker needs are kept in the worker until Redis says that they changed, absent ones too:
a night, a deletion and a flush are seen by the next answer ([0027](../adr/0027-rows-kept-until-redis-says-that-they-changed.md)). `nightjar_api_feature_rows_total{{where}}` tells how many were kept. `nightjar bench features` compares with the SDK.

## Stale values

Feast does not apply a view's age limit when it reads online. The serving process compares the time stamp itself: a value more than {days} days behind
the served version counts as absent, the answer says `degraded` with the reason `feature_stale`, and `nightjar_api_stale_features_total{{view}}` counts it.
`nightjar status` names a view that was not brought online for the served version, its age, and what to do.
"""


def render_page() -> str:
    """The whole page as Markdown."""
    head = _HEAD.format(count=len(features()), views=len(FEATURE_VIEWS))
    days = next(iter(FEATURE_VIEWS.values())).fresh_for.days
    return head + "".join(_section(view) for view in FEATURE_VIEWS.values()) + _TAIL.format(days=days)


def _section(view: FeatureView) -> str:
    lines = [
        f"\n## {view.name}\n",
        f"{view.description} Table `{view.table}`, one row is {view.row}; joined by {', '.join(view.join_keys)}; "
        f"fresh for {view.fresh_for.days} days.\n",
        "| feature | type | days | unit | what | null | default |",
        "|---|---|---|---|---|---|---|",
        *(_row(feature) for feature in view.features),
    ]
    return "\n".join(lines) + "\n"


def _row(feature: Feature) -> str:
    window = "all" if feature.window is None else str(feature.window)
    default = "–" if feature.default is None else f"{feature.default:g}"
    cells = (
        f"`{feature.name}`",
        feature.type,
        window,
        feature.unit,
        feature.description,
        feature.null_means or "never",
    )
    return f"| {' | '.join(cells)} | {default} |"


if __name__ == "__main__":
    print(render_page(), end="")
