"""What a request says of placement and policy, and which attributes of its items it wants to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from feature_repo.contracts.errors import nearest
from feature_repo.contracts.filter_language import ATTRIBUTE_PREFIX
from feature_repo.contracts.times import format_timestamp, from_micros
from serving.lists import RANK
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.list_rules import GIVEN, concerns_list
from serving.pipeline.placements import Placements
from serving.pipeline.policy import SlatePolicy

PLAIN_ATTRIBUTES = ("title", "category", "price")
INCLUDABLE = (
    *PLAIN_ATTRIBUTES, "brand", "tags", "group_id", "language", "currency", "availability", "available_quantity",
    "created_at", "url", "image_url",
)  # fmt: skip
"""Attributes of an item that an answer can carry; besides these `attributes.<name>`."""


class Asks(Protocol):
    """The fields of a request that are read here."""

    @property
    def placement(self) -> str: ...
    @property
    def filter(self) -> str | None: ...
    @property
    def diversity(self) -> float | None: ...
    @property
    def exploration(self) -> float | None: ...
    @property
    def min_relevance(self) -> float | None: ...
    @property
    def item_ids(self) -> list[str] | None: ...
    @property
    def explain(self) -> bool: ...


def policy_of(wanted: Asks, placements: Placements, *, seed: str) -> SlatePolicy | None:
    """The policy of a request; None when it has none. `seed`: its recommendation id."""
    return placements.policy(
        wanted.placement,
        seed=seed,
        filter=wanted.filter,
        diversity=wanted.diversity,
        exploration=wanted.exploration,
        min_relevance=wanted.min_relevance,
        item_ids=None if wanted.item_ids is None else tuple(wanted.item_ids),
        explain=wanted.explain,
    )


def policy_in_list(
    kind: str, placement: str, placements: Placements, *, seed: str, filter: str | None = None
) -> SlatePolicy | None:
    """The policy of a list at a placement; None when it keeps to its habits alone. `filter`: of the request."""
    policy = placements.policy(placement, seed=seed, filter=filter)
    if policy is not None and kind == RANK and not concerns_list(policy, GIVEN):
        return None
    return policy


def check_attribute(name: str) -> str:
    """A name that `include` may have. Raises ValueError naming the nearest one."""
    if name in INCLUDABLE or (name.startswith(ATTRIBUTE_PREFIX) and len(name) > len(ATTRIBUTE_PREFIX)):
        return name
    raise ValueError(f"one of {', '.join(INCLUDABLE)} or attributes.<name>{nearest(name, INCLUDABLE)}")


def included_attributes(catalogue: Catalogue, item_number: int, names: Sequence[str]) -> dict[str, Any]:
    """The named attributes of one item, null for what it does not have, in the order of `names`."""
    plain, facts, stock = catalogue.attributes[item_number] or {}, catalogue.facts, catalogue.stocks[item_number]
    found: dict[str, Any] = {}
    for name in names:
        if name in PLAIN_ATTRIBUTES:
            found[name] = plain.get(name)
        elif name.startswith(ATTRIBUTE_PREFIX):
            found[name] = facts.attribute(item_number, name.removeprefix(ATTRIBUTE_PREFIX))
        elif name == "availability":
            found[name] = stock and stock.availability
        elif name == "available_quantity":
            found[name] = stock and stock.quantity
        elif name == "created_at":
            micros = facts.created_micros[item_number] if item_number < len(facts.created_micros) else None
            found[name] = None if micros is None else format_timestamp(from_micros(micros))
        else:
            column = getattr(facts, name)
            found[name] = column[item_number] if item_number < len(column) else None
    return found
