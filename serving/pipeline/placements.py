"""Placements: the places where slates are shown, each with its rules, as typed configuration.

A file (TOML, or JSON of the same shape; NIGHTJAR_SERVING_PLACEMENTS) has a table for each placement:

    [placements.home]            # starts from the preset of its name, else from `default`
    num_results = 24
    filter = 'not tag == "adult"'
    max_per_brand = 3

    [placements.newsletter]
    preset = "email"             # or from the one that is named
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from feature_repo.contracts.errors import DataError, FilterError, nearest
from feature_repo.contracts.filter_language import parse_filter, parse_span
from feature_repo.contracts.placement_shapes import PRESET_SHAPES
from serving.pipeline.policy import (
    EXCLUDE,
    KEEP,
    MAX_EXPLORATION,
    NO_RULES,
    OFF,
    RANKER_OFF,
    RANKER_PUBLISHED,
    SESSION,
    SlatePolicy,
    SlateRules,
)

DEFAULT = "default"
MAX_NAME_LENGTH = 64
MAX_RESULTS = 100


@dataclass(frozen=True, slots=True)
class Placement:
    """A place. `num_results`: items of a slate when the request does not say. `reasons`: whether each item says why."""

    name: str
    num_results: int = 10
    reasons: bool = True
    rules: SlateRules = NO_RULES

    @property
    def is_plain(self) -> bool:
        """Whether its slates need no policy."""
        return self.rules == NO_RULES and self.reasons


_HOME = SlateRules(one_per_group=True, diversity=0.3, rotation=0.1, fatigue=0.3)
_CART = SlateRules(filter=PRESET_SHAPES["cart"].filter, seen=KEEP, one_per_group=True, max_per_category=2)
_EMAIL = SlateRules(one_per_group=True, max_per_category=2, diversity=0.4, rotation=0.2, fatigue=0.6)

_RULES = {
    "home": _HOME,
    "product_page": SlateRules(one_per_group=True, diversity=0.1),
    "cart": _CART,
    "search": SlateRules(seen=KEEP, bought=KEEP),
    "email": _EMAIL,
    "raw": OFF,
}
PRESETS: Mapping[str, Placement] = {
    name: Placement(name, shape.num_results, reasons=name != "search", rules=_RULES.get(name, NO_RULES))
    for name, shape in PRESET_SHAPES.items()
}
"""What there is without a file. `default` keeps to no rules; `raw` shows what the models say."""


@dataclass(frozen=True, slots=True)
class Placements:
    """All placements of an installation, by name."""

    by_name: Mapping[str, Placement] = field(default_factory=lambda: PRESETS)

    @property
    def ask_ranker(self) -> bool:
        """Whether any of them asks for a ranker."""
        return any(placement.rules.ranker == RANKER_PUBLISHED for placement in self.by_name.values())

    def find(self, name: str) -> tuple[Placement, bool]:
        """(the placement, True), or the default one and False for a name that is none."""
        found = self.by_name.get(name)
        return (self.by_name[DEFAULT], False) if found is None else (found, True)

    def misspelt(self, name: str) -> str | None:
        """What to say of a name that is no placement but looks like one; None of all others. A name of one's own, which
        only tells answers apart, is nobody's mistake."""
        hint = "" if name in self.by_name else nearest(name[:MAX_NAME_LENGTH], self.by_name)
        return f"no placement {name[:80]!r}{hint} The rules of {DEFAULT!r} hold" if hint else None

    def policy(
        self,
        name: str,
        *,
        seed: str,
        filter: str | None = None,
        diversity: float | None = None,
        exploration: float | None = None,
        min_relevance: float | None = None,
        item_ids: tuple[str, ...] | None = None,
        explain: bool = False,
    ) -> SlatePolicy | None:
        """The policy of one request at this placement; what the request says of a number wins over the placement.

        None when nothing is asked for beyond what every slate keeps to; with `explain` a policy is always there for a
        name that is no placement, so that the trace can say so.
        """
        placement, is_known = self.find(name)
        rules = placement.rules
        said = {"diversity": diversity, "exploration": exploration, "min_relevance": min_relevance}
        changed = {name: value for name, value in said.items() if value is not None}
        if changed:
            rules = replace(rules, **changed)  # type: ignore[arg-type]
        asks_nothing = filter is None and item_ids is None and not changed
        if placement.is_plain and asks_nothing and (is_known or not explain):
            return None
        return SlatePolicy(rules, placement.name, is_known, filter, item_ids, placement.reasons, seed)


def read_placements(text: str, *, is_json: bool) -> Placements:
    """The presets and, over them, the placements of a file. Raises DataError naming the placement, the key, what it
    says and what it may say."""
    try:
        document = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:
        raise DataError(f"placements: not {'JSON' if is_json else 'TOML'}: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("placements", {}), dict):
        raise DataError("placements: the file has a table [placements.NAME] for each placement")
    for key in document:
        if key != "placements":
            hint = nearest(str(key), ["placements"])
            raise DataError(f"placements: no key {key!r} at the top{hint}; a placement is a table [placements.NAME]")
    found = dict(PRESETS)
    for name, said in document.get("placements", {}).items():
        found[name] = _placement(name, said)
    return Placements(found)


_OWN_KEYS = ("preset", "num_results", "reasons")
_RULE_KEYS = tuple(one.name for one in fields(SlateRules))
_KEYS = (*_OWN_KEYS, *_RULE_KEYS)
_NUMBERS = {
    "diversity": (0.0, 1.0), "min_relevance": (0.0, 1.0), "exploration": (0.0, MAX_EXPLORATION),
    "exploration_new": (0.0, 1.0), "rotation": (0.0, 1.0), "fatigue": (0.0, 1.0),
}  # fmt: skip
_COUNTS = {
    "num_results": (1, MAX_RESULTS), "max_per_category": (1, MAX_RESULTS), "category_depth": (1, 20),
    "max_per_brand": (1, MAX_RESULTS), "fatigue_days": (1, 30),
    "frequency_cap": (1, 1000), "frequency_days": (1, 30),
}  # fmt: skip
_MAY_BE_OFF = ("max_per_category", "category_depth", "max_per_brand", "filter", "frequency_cap")
_WORDS = {"seen": (SESSION, KEEP), "bought": (EXCLUDE, KEEP)}
_CHOICES = {"ranker": (RANKER_OFF, RANKER_PUBLISHED)}


def _placement(name: str, said: Any) -> Placement:
    where = f"placements.{name}"
    if not name or len(name) > MAX_NAME_LENGTH:
        raise DataError(f"{where}: a name has 1 to {MAX_NAME_LENGTH} characters", field=where)
    if not isinstance(said, dict):
        raise DataError(f"{where} is a table, got {str(said)[:40]!r}", field=where)
    for key in said:
        if key not in _KEYS:
            raise DataError(f"{where}: no key {key!r}{nearest(str(key), _KEYS)}; known are {', '.join(_KEYS)}")
    preset = said.get("preset", name if name in PRESETS else DEFAULT)
    if preset not in PRESETS:
        hint = nearest(str(preset), PRESETS)
        raise DataError(f"{where}.preset is one of {', '.join(PRESETS)}; got {preset!r}{hint}", field=f"{where}.preset")
    checked = {key: _checked(f"{where}.{key}", key, value) for key, value in said.items() if key != "preset"}
    base = PRESETS[preset]
    return Placement(
        name,
        checked.get("num_results", base.num_results),
        checked.get("reasons", base.reasons),
        replace(base.rules, **{key: value for key, value in checked.items() if key in _RULE_KEYS}),
    )


def _checked(where: str, key: str, value: Any) -> Any:
    if key in _MAY_BE_OFF and (value is False or value is None):
        return None  # TOML has no null: false turns off what a preset has
    if key in _NUMBERS:
        least, most = _NUMBERS[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _refusal(where, f"a number from {least:g} to {most:g}", value)
        return float(value)
    if key in _COUNTS:
        least, most = _COUNTS[key]
        if type(value) is not int or not least <= value <= most:
            off = ", or false for none" if key in _MAY_BE_OFF else ""
            raise _refusal(where, f"a whole number from {least} to {most}{off}", value)
        return value
    if key in ("one_per_group", "reasons"):
        if not isinstance(value, bool):
            raise _refusal(where, "true or false", value)
        return value
    if not isinstance(value, str):
        raise _refusal(where, "a text", value)
    if key in _WORDS:
        return _word(where, key, value)
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            hint = nearest(value, _CHOICES[key])
            raise DataError(f"{where} is {' or '.join(_CHOICES[key])}, got {value[:40]!r}{hint}", field=where)
        return value
    try:
        parse_filter(value)
    except FilterError as error:
        raise DataError(f"{where}: {error}", field=where) from error
    return value


def _word(where: str, key: str, value: str) -> str:
    if value not in _WORDS[key]:
        try:
            parse_span(value)
        except DataError:
            wanted = f"{', '.join(_WORDS[key])} or a span such as 30d"
            raise DataError(
                f"{where} is {wanted}, got {value[:40]!r}{nearest(value, _WORDS[key])}", field=where
            ) from None
    return value


def _refusal(where: str, expected: str, value: Any) -> DataError:
    return DataError(f"{where} is {expected}, got {str(value)[:40]!r}", field=where)
