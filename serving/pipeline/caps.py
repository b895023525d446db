"""How many places one category, one brand and one product may have in a slate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from serving.pipeline.catalogue import CATEGORY_SEPARATOR, Catalogue
from serving.pipeline.policy import SlateRules

SAME_GROUP, CATEGORY_CAP, BRAND_CAP = "same_group", "category_cap", "brand_cap"


def variants_of(item_ids: Iterable[str], catalogue: Catalogue) -> frozenset[str]:
    """The items of the version that are variants of the same products (group_id) as these, these among them; of items
    without a group none."""
    groups, members = catalogue.facts.group_id, catalogue.facts.members.get("group_id", {})
    found: set[str] = set()
    for item_id in item_ids:
        number = catalogue.numbers.get(item_id)
        if number is not None and number < len(groups) and (group := groups[number]):
            found.update(catalogue.item_id(other) for other in members.get(group, ()))
    return frozenset(found)


class SlateCaps:
    """Counts the places of a slate that is being filled. Items without the thing that is counted are never refused."""

    def __init__(self, rules: SlateRules, catalogue: Catalogue) -> None:
        self._rules = rules
        self._catalogue = catalogue
        facts, size = catalogue.facts, len(catalogue.item_ids)
        self._brand = facts.brand if rules.max_per_brand is not None and len(facts.brand) == size else None
        self._group = facts.group_id if rules.one_per_group and len(facts.group_id) == size else None
        self._categories: Counter[str] = Counter()
        self._brands: Counter[str] = Counter()
        self._groups: set[str] = set()

    def refusal(self, item_number: int) -> str | None:
        """The cap that an item would break, or None: same_group, category_cap or brand_cap, in this order."""
        rules = self._rules
        if self._group is not None and self._group[item_number] in self._groups:
            return SAME_GROUP
        if rules.max_per_category is not None:
            category = self._category(item_number)
            if category is not None and self._categories[category] >= rules.max_per_category:
                return CATEGORY_CAP
        if self._brand is not None and rules.max_per_brand is not None:
            brand = self._brand[item_number]
            if brand and self._brands[brand] >= rules.max_per_brand:
                return BRAND_CAP
        return None

    def take(self, item_number: int) -> None:
        """The item has a place now."""
        if self._group is not None and (group := self._group[item_number]):
            self._groups.add(group)
        if self._rules.max_per_category is not None and (category := self._category(item_number)):
            self._categories[category] += 1
        if self._brand is not None and (brand := self._brand[item_number]):
            self._brands[brand] += 1

    def _category(self, item_number: int) -> str | None:
        path = self._catalogue.category(item_number)
        depth = self._rules.category_depth
        if path is None or depth is None:
            return path
        return CATEGORY_SEPARATOR.join(path.split(CATEGORY_SEPARATOR, depth)[:depth])
