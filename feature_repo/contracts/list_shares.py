"""What each part of the night's model has of what speaks for the items of a list: the end of a candidates record v2.

    parts    B    how many parts are told, 1 to MAX_PARTS
    names    B    each part, as `ListPart`; those with most of the list come first
    shares   B    row by row of the record: of all parts but the last, in UNIT-ths; the last part has what is missing to
                  the whole. UNTOLD at each place: nothing speaks for the item

A part that speaks against an item has no share of it. Of more than MAX_PARTS parts the first three of the list are
told, the others are one: OTHER.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

from feature_repo.contracts.errors import ContractError

MAX_PARTS = 4
UNIT = 250
UNTOLD = 255


class ListPart(IntEnum):
    """What a list may be made of: the models of a night, by their names. Numbers are stored: append, never renumber."""

    OTHER = 0
    POPULARITY = 1
    TRENDING = 2
    SEGMENT_POPULARITY = 3
    ITEM_KNN = 4
    ALS = 5
    IALS = 6
    RP3BETA = 7
    GRAPH_FILTER = 8
    EASE = 9
    SEQUENTIAL_RULES = 10
    SESSION_KNN = 11
    SESSION_TRANSITIONS = 12
    CONTENT = 13
    REPURCHASE = 14


_NAMES = {int(part): part.name.lower() for part in ListPart}
_OF_WHOLE = [units / UNIT for units in range(UNIT + 1)]
_NUMBERS = {name: number for number, name in _NAMES.items()}


def part_number(model: str) -> int:
    """The number of a model's name; OTHER of one that has none."""
    return _NUMBERS.get(model, int(ListPart.OTHER))


def part_name(number: int) -> str:
    """Its inverse; a number that a later night wrote is `other`."""
    return _NAMES.get(number, _NAMES[ListPart.OTHER])


def pack_shares(parts: Sequence[int], rows: Sequence[Sequence[int] | None]) -> bytes:
    """`rows`: of each item of the list the shares of the parts, which sum to UNIT; None where nothing speaks for it.

    Raises ContractError on shares that do not, on too many parts, and on one part that not every item has.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        raise ContractError(f"a list tells 1 to {MAX_PARTS} parts, got {len(parts)}")
    packed = bytearray((len(parts), *parts))
    for row in rows:
        if row is None:
            if len(parts) == 1:
                raise ContractError("of a list of one part every item has that part")
            packed += bytes([UNTOLD]) * (len(parts) - 1)
        elif len(row) == len(parts) and sum(row) == UNIT and min(row) >= 0:
            packed += bytes(row[:-1])
        else:
            raise ContractError(f"shares of {len(parts)} parts sum to {UNIT}, got {list(row)}")
    return bytes(packed)


def shares_size(record: bytes, at: int, count: int) -> int:
    """How many bytes the shares of `count` rows take that begin at `at`; -1 where there is no such table."""
    parts = record[at] if at < len(record) else 0
    return 1 + parts + count * (parts - 1) if 1 <= parts <= MAX_PARTS else -1


def read_shares(packed: bytes, place: int) -> list[tuple[str, float]]:
    """(part, share) of the item at this place of the list, in the order of the table; empty where nothing speaks for
    it. Shares of a part of 0 are left out, and parts without a name of their own are one."""
    parts = packed[0]
    at = 1 + parts + place * (parts - 1)
    told = list(packed[at : at + parts - 1])
    rest = UNIT - sum(told)
    if UNTOLD in told or rest < 0:
        return []
    found: dict[str, int] = {}
    for number, share in zip(packed[1 : 1 + parts], [*told, rest], strict=True):
        if share:
            name = part_name(number)
            found[name] = found.get(name, 0) + share
    return [(name, share / UNIT) for name, share in found.items()]


def read_many_shares(packed: bytes, places: Iterable[int]) -> list[list[tuple[str, float]]]:
    """`read_shares` of each place: what concerns the table is read once."""
    parts = packed[0]
    names, width, begin = [part_name(number) for number in packed[1 : 1 + parts]], parts - 1, 1 + parts
    if len(set(names)) < parts:
        return [read_shares(packed, place) for place in places]
    found: list[list[tuple[str, float]]] = []
    for place in places:
        at = begin + place * width
        told = packed[at : at + width]
        rest = UNIT - sum(told)
        if rest < 0 or UNTOLD in told:
            found.append([])
            continue
        shares = [(name, _OF_WHOLE[units]) for name, units in zip(names, told, strict=False) if units]
        if rest:
            shares.append((names[-1], _OF_WHOLE[rest]))
        found.append(shares)
    return found
