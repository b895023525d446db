"""Trees written by hand as LightGBM writes them, whose scores can be told in the head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MISSING_IS_NAN, DEFAULT_LEFT = 8, 2


class HandTree(NamedTuple):
    """nodes: (input, threshold, left child, right child), children below 0 are leaves; a missing value goes left."""

    nodes: Sequence[tuple[str, float, int, int]]
    leaves: Sequence[float]


def tree_text(inputs: Sequence[str], trees: Sequence[HandTree]) -> str:
    """LightGBM's text of them."""
    head = [
        "tree", "version=v4", "num_class=1", "num_tree_per_iteration=1", "label_index=0",
        f"max_feature_idx={len(inputs) - 1}", "objective=lambdarank", f"feature_names={' '.join(inputs)}", "",
    ]  # fmt: skip
    for number, (nodes, leaves) in enumerate(trees):
        kind = MISSING_IS_NAN + DEFAULT_LEFT
        head += [
            f"Tree={number}", f"num_leaves={len(leaves)}", "num_cat=0",
            f"split_feature={_words(inputs.index(node[0]) for node in nodes)}",
            f"threshold={_words(node[1] for node in nodes)}",
            f"decision_type={_words(kind for _ in nodes)}",
            f"left_child={_words(node[2] for node in nodes)}", f"right_child={_words(node[3] for node in nodes)}",
            f"leaf_value={_words(leaves)}", "is_linear=0", "shrinkage=1", "", "",
        ]  # fmt: skip
    return "\n".join([*head, "end of trees", ""])


def _words(values: object) -> str:
    return " ".join(str(value) for value in values)  # type: ignore[attr-defined]


OWN = ("answer_score", "answer_rank", "list_score", "session_vote", "session_weight")
NAMES = [*OWN, "item_conversion_30d", "user_night_share_30d", "user_category_event_share_90d"]
TASTE = HandTree(
    [
        ("user_night_share_30d", 0.5, 1, 2),
        ("item_conversion_30d", 0.5, -1, -2),
        ("item_conversion_30d", 0.5, -3, -4),
    ],
    [0.0, 1.0, 1.0, 0.0],
)
"""By day people get what converts first, by night what does not."""
SHARE = HandTree([("user_category_event_share_90d", 0.5, -1, -2)], [0.0, 2.0])
"""Before all of it what is of a category that makes more than half of their events."""
