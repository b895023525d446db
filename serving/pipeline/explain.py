"""Why each item is there: its source, and the past items that spoke for it, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from feature_repo.contracts.events import EventType
from feature_repo.contracts.packing import Source
from serving.pipeline.catalogue import MAX_REMEMBERED, Catalogue
from serving.pipeline.score import Ballot
from serving.pipeline.values import Origin, Person, Pool, Reason, SlateItem, SlateRequest

MAX_REASONS = 2
_SOURCES = {int(source): source for source in Source}

_DEEDS = {
    EventType.ADD_TO_CART: "because you put {title} in your cart",
    EventType.ADD_TO_WISHLIST: "because you put {title} on your wishlist",
    EventType.LIKE: "because you liked {title}",
    EventType.SHARE: "because you shared {title}",
    EventType.WATCH: "because you watched {title}",
    EventType.PURCHASE: "because you bought {title}",
}
_VIEWED = "because you viewed {title}"

_WORDS: Mapping[int, str] = {
    Source.POPULARITY: "popular with everybody",
    Source.STATIC: "chosen by the shop",
    Source.TRENDING: "trending in the last day",
    Source.NEW: "new in the shop",
}


def session_reasons(item_number: int, ballots: Sequence[Ballot], catalogue: Catalogue) -> tuple[Reason, ...]:
    """The items of the session that voted most for the item, at most two, loudest first; ties by item id.

    Several events on one item add up; the words are those of its loudest event.
    """
    voices: dict[int, tuple[float, float, Ballot]] = {}  # voting item: all it says, its loudest ballot
    for ballot in ballots:
        loudness = ballot.weight * ballot.similarities.get(item_number, 0.0)
        if loudness > 0:
            number = ballot.item_number
            voice = voices.get(number)
            if voice is None:
                voices[number] = (loudness, loudness, ballot)
            else:
                total, most, loudest = voice
                voices[number] = (total + loudness, *((loudness, ballot) if loudness > most else (most, loudest)))
    found = sorted(voices.values(), key=lambda voice: (-voice[0], catalogue.item_id(voice[2].item_number)))
    return tuple(
        [session_reason(ballot.item_number, ballot.event.event_type, catalogue) for _, _, ballot in found[:MAX_REASONS]]
    )


class SessionReasons:
    """`session_reasons` of many items: what concerns the ballots alone is done once."""

    def __init__(self, ballots: Sequence[Ballot], catalogue: Catalogue) -> None:
        self._ballots, self._catalogue = ballots, catalogue
        self._voices: list[tuple[float, Mapping[int, float], str, Reason]] | None = None
        if len({ballot[1] for ballot in ballots}) == len(ballots):
            remembered, attributes = catalogue.remember("session reasons"), catalogue.attributes
            self._voices = []
            for ballot in ballots:
                event, number, weight, similarities = ballot
                found = remembered.get((number, event[1]))
                if found is not None and found[0] is attributes[number]:
                    reason: Reason = found[1]
                else:
                    reason = session_reason(number, event[1], catalogue)
                self._voices.append((-weight, similarities, catalogue.item_id(number), reason))

    def of(self, item_number: int) -> tuple[Reason, ...]:
        """The reasons of one item."""
        if self._voices is None:
            return session_reasons(item_number, self._ballots, self._catalogue)
        loud = [
            (weight * similarities[item_number], item_id, reason)
            for weight, similarities, item_id, reason in self._voices
            if item_number in similarities
        ]
        if len(loud) == 1:
            return (loud[0][2],) if loud[0][0] < 0 else ()
        loud.sort()  # loudest first: loudness is negative here
        return tuple([reason for loudness, _, reason in loud[:MAX_REASONS] if loudness < 0])


def session_reason(number: int, kind: str, catalogue: Catalogue) -> Reason:
    """An event of this type on the item as a reason."""
    remembered, facts = catalogue.remember("session reasons"), catalogue.attributes[number]
    found = remembered.get((number, kind))
    if found is not None and found[0] is facts:
        reason: Reason = found[1]
        return reason
    title = catalogue.title(number)
    reason = Reason(catalogue.item_id(number), title, _DEEDS.get(EventType(kind), _VIEWED).format(title=title))
    if len(remembered) >= MAX_REMEMBERED:
        remembered.clear()
    remembered[number, kind] = (facts, reason)
    return reason


def interest_reason(number: int, catalogue: Catalogue) -> Reason:
    """An item of the past as a reason."""
    remembered, facts = catalogue.remember("interest reasons"), catalogue.attributes[number]
    found = remembered.get(number)
    if found is not None and found[0] is facts:
        reason: Reason = found[1]
        return reason
    title = catalogue.title(number)
    reason = Reason(catalogue.item_id(number), title, f"because of your interest in {title}")
    if len(remembered) >= MAX_REMEMBERED:
        remembered.clear()
    remembered[number] = (facts, reason)
    return reason


def base_reasons(origin: Origin, catalogue: Catalogue, request: SlateRequest, person: Person) -> tuple[Reason, ...]:
    """Why the night, or a rung of the ladder, offered the item. A past item that left the catalogue is not named."""
    source, *past_items = origin
    item_ids = catalogue.item_ids
    named = [
        interest_reason(number, catalogue)
        for number in past_items
        if number < len(item_ids) and item_ids[number] is not None
    ]
    if named:
        return tuple(named)
    match source:
        case Source.SEGMENT:
            text = f"popular in {_listed(catalogue, person.segment)}, where you look most"
        case Source.CATEGORY:
            text = f"popular in {_listed(catalogue, request.category)}"
        case Source.REGION:
            text = f"popular in {request.region}"
        case _:
            text = _WORDS.get(source, "similar to what you and others like you chose")
    return (Reason(None, None, text),)


def _listed(catalogue: Catalogue, category: str | None) -> str:
    """The category whose list was used: the asked one or its nearest ancestor with a list."""
    found = catalogue.popular_in_category(category)
    return found[0] if found else "its category"


def explain_slate(
    slate: Sequence[int],
    *,
    scores: Mapping[int, float],
    votes: Mapping[int, float],
    pool: Pool,
    ballots: Sequence[Ballot],
    weight: float,
    base_slate: Collection[int],
    catalogue: Catalogue,
    request: SlateRequest,
    person: Person,
) -> list[SlateItem]:
    """The slate (item numbers, best first) with source and reasons of each item.

    `base_slate` has the item numbers of the slate as it would be without votes: an item that would not be in it, or
    owes the votes most of its score, is the session's.
    """
    items = []
    of_origin: dict[Origin, tuple[Reason, ...]] = {}
    item_ids = catalogue.item_ids
    of_session: SessionReasons | None = None
    for number in slate:
        base, vote = pool.bases.get(number, 0.0), votes.get(number, 0.0)
        if vote > 0 and (number not in base_slate or weight * vote > base):
            if of_session is None:
                of_session = SessionReasons(ballots, catalogue)
            source, reasons = Source.SESSION, of_session.of(number)
        else:
            origin = pool.origins[number]
            source = _SOURCES.get(origin[0]) or Source(origin[0])
            said = of_origin.get(origin)
            if said is None:
                said = of_origin[origin] = base_reasons(origin, catalogue, request, person)
            reasons = said
        one = (number, item_ids[number], scores[number], base, vote, source, reasons)
        items.append(tuple.__new__(SlateItem, one))  # what its constructor does, without the call
    return items
