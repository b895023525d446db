"""Reads the columns of items.json that only filters, policies and asked-for attributes need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from sys import intern
from typing import Any

from feature_repo.contracts.times import parse_timestamp, to_micros
from serving.adapters.pace import HURRIED, Pace
from serving.pipeline.item_facts import ItemFacts, TextColumn, members_by_value


def read_item_facts(columns: Mapping[str, Sequence[Any]], size: int, pace: Pace = HURRIED) -> ItemFacts:
    """The facts by item number, `size` of them; a column that the file does not have is one of absent values.

    Raises DataError on a time that is none.
    """
    numbers = columns["item_number"]

    def by_number(name: str, default: Any = None) -> list[Any]:
        spread = [default] * size
        for number, value in pace.over(zip(numbers, columns.get(name) or [default] * len(numbers), strict=True)):
            spread[number] = default if value is None else value
        return spread

    def words(name: str) -> list[str | None]:
        return [value and intern(value) for value in pace.over(by_number(name))]

    each: dict[tuple[str, ...], tuple[str, ...]] = {}
    tags = [each.setdefault(one, one) for one in map(tuple, pace.over(by_number("tags", ())))]
    brand, group_id = words("brand"), words("group_id")
    return ItemFacts(
        brand=brand,
        group_id=group_id,
        language=words("language"),
        currency=words("currency"),
        tags=tags,
        created_micros=[value and to_micros(parse_timestamp(value)) for value in pace.over(by_number("created_at"))],
        url=TextColumn(pace.over(by_number("url"))),
        image_url=TextColumn(pace.over(by_number("image_url"))),
        attributes=TextColumn(pace.over(by_number("attributes"))),
        members=members_by_value(*map(pace.over, (by_number("category"), brand, tags, group_id))),
    )
