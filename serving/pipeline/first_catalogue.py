"""The catalogue of a shop whose first night is still to come: what the items API was told, the newest first.

It has no lists of persons, no neighbours and no features; what people touch now is laid over it (`with_votes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from feature_repo.contracts.changes import RecordState
from feature_repo.contracts.publication import Manifest, pack_neighbours, unpack_neighbours
from feature_repo.contracts.times import from_micros, parse_timestamp, to_micros
from serving.pipeline.candidates import by_place
from serving.pipeline.catalogue import FIRST_VERSION, Catalogue, PopularList, RankedList, Refusals
from serving.pipeline.item_facts import ItemFacts, members_by_value
from serving.pipeline.live_items import CATEGORY, CREATED_AT, WRITTEN_FIELDS, write_values

MAX_FIRST_ITEMS = 5_000
"""Of a larger shop a first catalogue has only so many; a night has all."""
MOST_VOTED = 1000


def first_catalogue(records: Mapping[str, RecordState], *, now_micros: int) -> Catalogue:
    """The items of these records, numbered from the newest to the oldest; ties by item id.

    An item's time is its `created_at`, else when it was put last. One that was never put, only changed, is none. The
    catalogue is as of `now_micros`, of version FIRST_VERSION, and nobody's model.
    """
    found = []
    for item_id, state in records.items():
        if state.whole is not None:
            created = state.put_value(CREATED_AT)
            micros = state.whole.at_micros if created is None else to_micros(parse_timestamp(created))
            found.append((-micros, item_id))
    found.sort()
    size = len(found)
    categories = [records[item_id].put_value(CATEGORY) or None for _, item_id in found]
    offsets, numbers, similarities = unpack_neighbours(memoryview(pack_neighbours([])))
    catalogue = Catalogue(
        version=FIRST_VERSION,
        manifest=Manifest(from_micros(now_micros).date().isoformat(), "none", {}, 0, size, "", None),
        item_ids=[item_id for _, item_id in found],
        numbers={item_id: number for number, (_, item_id) in enumerate(found)},
        attributes=[{"title": None, "category": category, "price": None} for category in categories],
        refusals=Refusals([None] * size),
        stocks=[None] * size,
        expire_micros={},
        neighbour_offsets=offsets,
        neighbour_numbers=numbers,
        similarities=similarities,
        together_offsets=offsets,
        together_numbers=numbers,
        together_scores=similarities,
        popular=RankedList(),
        popular_by_category={},
        popular_by_region={},
        static=RankedList((number, by_place(number, size)) for number in range(size)),
        newest=[(number, -negative) for number, (negative, _) in enumerate(found)],
        as_of_micros=now_micros,
        facts=ItemFacts(members=members_by_value(categories, (), (), ())),
    )
    for number, (_, item_id) in enumerate(found):
        put_value = records[item_id].put_value
        write_values(catalogue, number, {name: put_value(name) for name in WRITTEN_FIELDS})
    return catalogue


def with_votes(
    catalogue: Catalogue, votes: Mapping[str, int], *, by_region: Mapping[str, PopularList] | None = None
) -> Catalogue:
    """A first catalogue in which what was touched is popular. `votes`: item id -> votes, most first; MOST_VOTED count.
    `by_region`: what is touched in a region, as far as it is known.

    Columns of items, and the filters over them, are shared with the given one, so a change of stock shows in both.
    """
    numbers = catalogue.numbers
    rows = [(numbers[item_id], float(count)) for item_id, count in votes.items() if item_id in numbers][:MOST_VOTED]
    return replace(
        catalogue,
        popular=RankedList(rows),
        popularity=dict(rows),
        popular_by_region={} if by_region is None else by_region,
        remembered={},
    )
