"""What a slate must keep to beyond relevance: the rules of a placement, and what one request adds to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

KEEP, SESSION, EXCLUDE = "keep", "session", "exclude"
RANKER_OFF, RANKER_PUBLISHED = "off", "published"
MAX_EXPLORATION = 0.2


@dataclass(frozen=True, slots=True)
class SlateRules:
    """The rules of a placement. The defaults are what a slate keeps to without any.

    filter             items that may be shown (`contracts.filter_language`); None: all
    seen               `session`: what the running session touched leaves; `keep`: nothing leaves for having been seen;
                       a span such as 7d: what was shown or touched that recently leaves as well
    bought             `exclude`: what was bought leaves; `keep`: nothing leaves for it; a span: only as long as that
    max_per_category   places of one category, its path cut after `category_depth` levels (None: the whole path);
                       None: any number. Items without a category are not counted
    max_per_brand      the same for brands
    one_per_group      of the variants of one product (group_id) only the best place
    diversity          [0, 1]: 0 orders by relevance alone, 1 by unlikeness to the places above alone
    min_relevance      [0, 1]: items that score lower leave, also when the slate gets shorter
    exploration        [0, 0.2]: the chance of each place to be given to one of the next best items
    exploration_new    [0, 1]: of the places that exploration gives away the share that goes to `untried_items`
    rotation           [0, 1]: the largest share of its score that an item loses to chance, anew every day and person
    fatigue            [0, 1]: the share of its score that an item loses that was just shown and left alone, once for
                       each time that it was shown; it comes back evenly over `fatigue_days`
    ranker             `published`: the best candidates are put into the order of the version's ranker, when it has one
                       (`pipeline.ranker`); `off`: the order is that of their scores
    frequency_cap      an item that was shown so often within `frequency_days` (today is one), on whatever channel,
                       leaves; None: however often
    """

    filter: str | None = None
    seen: str = SESSION
    bought: str = EXCLUDE
    max_per_category: int | None = None
    category_depth: int | None = None
    max_per_brand: int | None = None
    one_per_group: bool = False
    diversity: float = 0.0
    min_relevance: float = 0.0
    exploration: float = 0.0
    exploration_new: float = 0.0
    rotation: float = 0.0
    fatigue: float = 0.0
    fatigue_days: int = 7
    frequency_cap: int | None = None
    frequency_days: int = 7
    ranker: str = RANKER_OFF

    @property
    def arrange(self) -> bool:
        """Whether more is made of the candidates than those that may be shown, best first."""
        return bool(
            self.diversity or self.exploration or self.rotation or self.fatigue or self.one_per_group
            or self.max_per_category or self.max_per_brand or self.min_relevance
        )  # fmt: skip

    def said(self) -> dict[str, Any]:
        """Only what differs from the defaults."""
        return dict(_said(self))


@lru_cache(maxsize=1024)
def _said(rules: SlateRules) -> Mapping[str, Any]:
    plain = SlateRules()
    said = {one.name: (getattr(rules, one.name), getattr(plain, one.name)) for one in fields(SlateRules)}
    return {name: value for name, (value, usual) in said.items() if value != usual}


NO_RULES = SlateRules()
OFF = SlateRules(seen=KEEP, bought=KEEP)
"""Policies off: what the models say, but for what the person dismissed, the request excluded or nobody may see."""


@dataclass(frozen=True, slots=True)
class SlatePolicy:
    """The rules of one answer. A request whose answer has none has no policy at all.

    placement  the placement whose rules hold; `is_known` is False when the request named another one
    filter     of the request, besides that of the rules
    item_ids   only these may be answered, None: any. What no list offers comes last, in this order
    reasons    whether each item says why it is there
    seed       all chance of this answer; the same seed gives the same slate
    """

    rules: SlateRules
    placement: str
    is_known: bool = True
    filter: str | None = None
    item_ids: tuple[str, ...] | None = None
    reasons: bool = True
    seed: str = ""

    @property
    def asks_ranker(self) -> bool:
        """Whether the version's ranker is to order the best."""
        return self.rules.ranker == RANKER_PUBLISHED

    def inputs(self) -> dict[str, Any]:
        """What an answer depended on here, for the decision log, where the seed is the decision's id.

        Inverse: `from_inputs`, but for the item ids, which the log keeps where it keeps those that are excluded.
        """
        said: dict[str, Any] = {"placement": self.placement, "rules": self.rules.said()}
        if self.filter is not None:
            said["filter"] = self.filter
        if not self.reasons:
            said["reasons"] = False
        return said

    @classmethod
    def from_inputs(cls, said: Mapping[str, Any], *, item_ids: Sequence[str] | None = None, seed: str) -> SlatePolicy:
        """The policy of a logged decision; rules that this version does not know are left out."""
        known = {one.name for one in fields(SlateRules)}
        rules = SlateRules(**{name: value for name, value in said["rules"].items() if name in known})
        return cls(
            rules,
            said["placement"],
            filter=said.get("filter"),
            item_ids=None if item_ids is None else tuple(item_ids),
            reasons=said.get("reasons", True),
            seed=seed,
        )
