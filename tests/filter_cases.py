"""Filters and items for hypothesis, and the slow and obvious answer. Trees are tuples, so that neither the parser nor
the compiled form has a part in what is expected."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NOW = 1_709_900_000_000_000
"""2024-03-08T12:13:20Z"""
DAY = 86_400_000_000

Tree = tuple[Any, ...]

TEXTS = ["a", "A", "å", "a\u030a", "ß", "a > b", "日本", "a'b", 'a"b', "a\\b", " a", "true", "5"]
PATHS = ["A", "A > B", "A > B > C", "A > BB", "Ä > B", "A > > B", "A >"]
NUMBERS = [-1.0, 0.0, 0.5, 3.0, 1e15, 9007199254740993.0]
AGES = [0, 1, DAY, 30 * DAY]
FIELDS = {"brand": "text", "language": "text", "category": "path", "tag": "tags", "price": "number",
          "available_quantity": "number", "created_at": "time", "attributes.x": "any", "attributes.größe": "any",
          "bought_at": "person_time", "in_cart": "flag"}  # fmt: skip
ANY = st.one_of(st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.booleans())


def reader(field: str) -> Any:
    """The reader of one field of an item, as `bind_filter` wants it."""
    if field.startswith("attributes."):
        return lambda item: (item.get("attributes") or {}).get(field.removeprefix("attributes."))
    return lambda item: item.get(field)


def _maybe(values: Any) -> Any:
    return st.one_of(st.none(), values)


_ATTRIBUTE = st.one_of(ANY, st.none(), st.lists(st.one_of(ANY, st.none()), max_size=3), st.integers(-3, 10**18),
                       st.just({"deep": 1}))  # fmt: skip
ITEMS = st.fixed_dictionaries(
    {
        "brand": _maybe(st.sampled_from(TEXTS)),
        "language": _maybe(st.sampled_from(TEXTS)),
        "category": _maybe(st.sampled_from(PATHS)),
        "tag": st.lists(st.sampled_from(TEXTS), max_size=3).map(tuple),
        "price": _maybe(st.sampled_from(NUMBERS)),
        "available_quantity": _maybe(st.sampled_from([0, 1, 3, 2**31 - 1])),
        "created_at": _maybe(st.sampled_from([NOW - age + late for age in AGES for late in (-1, 0, 1)])),
        "attributes": _maybe(st.fixed_dictionaries({}, optional={"x": _ATTRIBUTE, "größe": _ATTRIBUTE})),
        "bought_at": _maybe(st.sampled_from([NOW - age for age in AGES])),
        "in_cart": st.booleans(),
    }
)


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value) if value < 1e16 else f"{value:.0f}"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@st.composite
def _tests(draw: Any) -> tuple[str, Tree]:
    field = draw(st.sampled_from(sorted(FIELDS)))
    kind = FIELDS[field]
    if kind == "flag":
        return "in_cart(item)", ("one_of", field, [True])
    if kind == "person_time":
        age = draw(st.sampled_from(AGES[2:]))
        return f'bought_within("{age // DAY}d")', ("order", field, ">=", NOW - age)
    how = draw(st.sampled_from(["one_of", "order", "missing"]))
    if how == "missing":
        return f"{field} is null", ("missing", field)
    if kind == "time" or (how == "order" and kind in ("number", "any")):
        relation = draw(st.sampled_from(["<", "<=", ">", ">="]))
        if kind == "time":
            age = draw(st.sampled_from(AGES[2:]))
            return f'{field} {relation} ago("{age // DAY}d")', ("order", field, relation, NOW - age)
        bound = draw(st.sampled_from(NUMBERS))
        return f"{field} {relation} {_quoted(bound)}", ("order", field, relation, bound)
    values = {"text": TEXTS, "path": PATHS, "tags": TEXTS, "number": NUMBERS}.get(kind)
    if values is None:
        values = draw(st.sampled_from([TEXTS, NUMBERS, [True, False]]))
    chosen = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    if len(chosen) == 1 and draw(st.booleans()):
        return f"{field} == {_quoted(chosen[0])}", ("one_of", field, chosen)
    return f"{field} in [{', '.join(map(_quoted, chosen))}]", ("one_of", field, chosen)


def _not(one: tuple[str, Tree]) -> tuple[str, Tree]:
    return f"not ({one[0]})", ("not", one[1])


def _joined(word: str) -> Any:
    def join(parts: list[tuple[str, Tree]]) -> tuple[str, Tree]:
        return f" {word} ".join(f"({text})" for text, _ in parts), (word, [tree for _, tree in parts])

    return join


EXPRESSIONS = st.recursive(
    _tests(),
    lambda inner: st.one_of(
        inner.map(_not),
        st.lists(inner, min_size=2, max_size=3).map(_joined("and")),
        st.lists(inner, min_size=2, max_size=3).map(_joined("or")),
    ),
    max_leaves=6,
)


def holds(tree: Tree, item: dict[str, Any]) -> bool:
    """Whether the tree holds for the item, step by step."""
    match tree:
        case ("not", part):
            return not holds(part, item)
        case ("and", parts):
            return not [part for part in parts if not holds(part, item)]
        case ("or", parts):
            return bool([part for part in parts if holds(part, item)])
        case ("missing", field):
            return reader(field)(item) in (None, (), [], "")
        case ("order", field, relation, bound):
            value = reader(field)(item)
            if type(value) not in (int, float):
                return False
            value = float(value) if FIELDS[field] == "any" else value
            return {"<": value < bound, "<=": value <= bound, ">": value > bound, ">=": value >= bound}[relation]
        case ("one_of", field, values):
            value = reader(field)(item)
            if FIELDS[field] == "path":
                return value is not None and any(value == v or value.startswith(f"{v} > ") for v in values)
            entries = list(value) if isinstance(value, list | tuple) else [value]
            return any(_same(entry, v) for entry in entries for v in values)
    raise AssertionError(tree)


def _same(entry: Any, value: Any) -> bool:
    if isinstance(entry, bool) or isinstance(value, bool | str):
        return type(entry) is type(value) and entry == value
    return type(entry) in (int, float) and float(entry) == value
