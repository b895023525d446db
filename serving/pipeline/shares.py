"""What each source has of an item's relevance, and that in a sentence: only for answers that are to be explained.

Relevance is what the blend says, before any ranker and rule: base + w x vote. The session has w x vote of it. The base
is the night's list, which tells what each part of its model has (`contracts.list_shares`), or the rung of the ladder
that offered the item. An item that chance put where it stands has one source, exploration.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

from feature_repo.contracts.packing import CandidateRows, Source
from serving.pipeline.values import Origin, Reason, Row, Shares, Slate, SlateItem, SourceShare

EXPLORATION, LIST = "exploration", "list"
SESSION = Source.SESSION.name.lower()
_DIGITS = 4
_WHOLE = 10**_DIGITS
_CLOSE = 0.499_999
_NAMES = {int(source): source.name.lower() for source in Source}
_share_of = tuple.__new__
"""What the constructor of a share does, without the call: a long slate has hundreds of them."""

_WORDS: Mapping[str, str] = {
    "als": "liked by people with a taste like yours",
    "ials": "liked by people with a taste like yours",
    "item_knn": "like items that you chose",
    "rp3beta": "like items that you chose",
    "graph_filter": "like items that you chose",
    "ease": "like items that you chose",
    "content": "described like items that you chose",
    "sequential_rules": "what tends to follow items that you chose",
    "session_knn": "what tends to follow items that you chose",
    "session_transitions": "what tends to follow items that you chose",
    "session": "what goes with what you do right now",
    "repurchase": "what you buy again and again",
    "popularity": "popular with everybody",
    "trending": "trending",
    "segment_popularity": "popular where you look most",
    "segment": "popular where you look most",
    "category": "popular in its category",
    "region": "popular in your region",
    "static": "chosen by the shop",
    "new": "new in the shop",
    "given": "in the order given",
    "together": "often bought together",
    "continued": "what you began",
    "list": "on your list of last night",
    "other": "other parts of the model",
    "exploration": "tried out by chance, to learn whether people like it",
}


class SharesOfList:
    """What the parts of the night's model have of the items of one's own list."""

    def __init__(self, candidates: Sequence[Row] | None, numbers: Collection[int]) -> None:
        """Only these items will be asked for. A list that tells nothing is one source, `list`."""
        self._told: Mapping[int, Sequence[tuple[str, float]]] = {}
        if isinstance(candidates, CandidateRows):
            self._told = candidates.shares_of(frozenset(numbers))
        elif candidates:
            self._told = {row[0]: () for row in candidates}

    def of(self, number: int, origin: Origin | None) -> Sequence[tuple[str, float]]:
        """Of an item with a base above zero; `origin` says which rung offered it, where the list did not."""
        if number in self._told:
            return self._told[number] or ((LIST, 1.0),)
        assert origin is not None
        return ((_NAMES[origin[0]], 1.0),)


def slate_shares(
    items: Sequence[SlateItem],
    *,
    weight: float,
    candidates: Sequence[Row] | None,
    origins: Mapping[int, Origin],
    explored: Collection[int] = (),
) -> list[Shares]:
    """Of each item, with the largest share first, ties by name; each sums to 1.

    weight    of the session's votes
    origins   by item number: where it comes from, of those with a base above zero
    explored  places (from 0) that were given to chance
    """
    of_list = SharesOfList(candidates, [item.item_number for item in items])
    found = []
    for place, (number, _, _, base, vote, source, _) in enumerate(items):
        said = weight * vote
        if place in explored:
            found.append(sole_source(EXPLORATION))
        elif not base + said > 0:
            found.append(sole_source(_NAMES[source]))
        elif not base > 0:
            found.append(sole_source(SESSION))
        else:
            told = of_list.of(number, origins.get(number))
            if len(told) == 1 and (not said > 0 or told[0][0] == SESSION):
                found.append(sole_source(told[0][0]))
            else:
                speaking = [(-(share * base), name) for name, share in told]
                if said > 0:
                    speaking.append((-said, SESSION))
                found.append(_rounded(speaking))
    return found


@lru_cache(maxsize=256)
def sole_source(name: str) -> Shares:
    """The shares of an item that one source alone brought."""
    return (SourceShare(name, 1.0),)


def shares_of_slate(slate: Slate) -> Sequence[Shares]:
    """Those that the slate tells; of a list without a blend each item's one source."""
    if slate.shares:
        return slate.shares
    explored = explored_places(slate.policy)
    return [
        sole_source(EXPLORATION if place in explored else _NAMES[item.source])
        for place, item in enumerate(slate.items)
    ]  # fmt: skip


def explored_places(trace: Mapping[str, object] | None) -> frozenset[int]:
    """The places (from 0) that a policy gave to chance, by its trace."""
    told = (trace or {}).get("exploration")
    return frozenset(rank - 1 for rank in told["ranks"]) if isinstance(told, Mapping) else frozenset()


def in_a_sentence(shares: Shares, reasons: Sequence[Reason]) -> str:
    """The three largest sources with their shares, and the past items that spoke for the item: `Liked by people with a
    taste like yours (62 %), what goes with what you do right now (38 %), because of your interest in Pot.`"""
    because = "" if shares[0].name == EXPLORATION else reasons_in_words(reasons)
    return f"{sources_in_words(shares)}{because}."


def sources_in_words(shares: Shares) -> str:
    """How the sentence begins."""
    named: dict[str, float] = {}
    for name, share in shares:
        words = _WORDS.get(name, name)
        named[words] = named.get(words, 0.0) + share
    if len(named) == 1:
        text = next(iter(named))
    else:
        largest = sorted(named, key=named.__getitem__, reverse=True)[:3]
        text = ", ".join([f"{words} ({_percent(named[words])})" for words in largest])
    return f"{text[:1].upper()}{text[1:]}"


def reasons_in_words(reasons: Sequence[Reason]) -> str:
    """How it goes on, with its comma; nothing where no past item spoke for the item."""
    because = [reason.text for reason in reasons if reason.item_id is not None]
    return f", {' and '.join(because)}" if because else ""


@lru_cache(maxsize=16_384)
def _percent(share: float) -> str:
    if 0.01 <= share <= 0.99:
        return f"{share:.0%}".replace("%", " %")
    return "less than 1 %" if share < 0.01 else "more than 99 %"


def _rounded(speaking: list[tuple[float, str]]) -> Shares:
    """Values, each with its sign turned, as shares that sum to 1 with so many places: what lies between the rounded
    marks of a rule on which the values lie behind each other, the largest first. Values of 0 have no share;
    of values that are all too small to be told from 0 the first has all."""
    speaking.sort()
    total = 0.0
    for less, _ in speaking:
        total += less
    if not total:
        return sole_source(speaking[0][1])
    ahead, before, shares = 0.0, 0, []
    for less, name in speaking:
        ahead += less
        scaled = ahead / total * _WHOLE
        mark = int(scaled + 0.5)
        if not -_CLOSE < scaled - mark < _CLOSE:  # near a half it is `round` that knows
            mark = round(round(ahead / total, _DIGITS) * _WHOLE)
        if mark > before:
            shares.append(_share_of(SourceShare, (name, (mark - before) / _WHOLE)))
            before = mark
    return tuple(shares)
