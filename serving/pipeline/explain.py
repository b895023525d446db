"""Why each item is there: its source, and the past items that spoke for it, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from feature_repo.contracts.events import EventType
from feature_repo.contracts.packing import Source
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.score import Ballot
from serving.pipeline.values import Origin, Person, Pool, Reason, SlateItem, SlateRequest

MAX_REASONS = 2

_DEEDS = {
    EventType.ADD_TO_CART: "because you put {title} in your cart",
    EventType.ADD_TO_WISHLIST: "because you put {title} on your wishlist",
    EventType.LIKE: "because you liked {title}",
    EventType.SHARE: "because you shared {title}",
    EventType.WATCH: "because you watched {title}",
    EventType.PURCHASE: "because you bought {title}",
}
_VIEWED = "because you viewed {title}"

_WORDS: Mapping[int, str] = {Source.POPULARITY: "popular with everybody", Source.STATIC: "chosen by the shop"}


def is_owed_to_session(item_number: int, base: float, vote: float, weight: float, base_slate: Collection[int]) -> bool:
    """True when the item would not be in the slate without the session's votes, or owes them most of its score."""
    return vote > 0 and (item_number not in base_slate or weight * vote > base)


def session_reasons(item_number: int, ballots: Sequence[Ballot], catalogue: Catalogue) -> tuple[Reason, ...]:
    """The items of the session that voted most for the item, at most two, loudest first; ties by item id.

    Several events on one item add up; the words are those of its loudest event.
    """
    voices: dict[int, list[tuple[float, Ballot]]] = {}
    for ballot in ballots:
        loudness = ballot.weight * ballot.similarities.get(item_number, 0.0)
        if loudness > 0:
            voices.setdefault(ballot.item_number, []).append((loudness, ballot))
    loudest = sorted(
        voices.items(), key=lambda voice: (-sum(part for part, _ in voice[1]), catalogue.item_id(voice[0]))
    )
    reasons = []
    for number, parts in loudest[:MAX_REASONS]:
        _, ballot = max(parts, key=lambda part: part[0])
        title = catalogue.title(number)
        words = _DEEDS.get(EventType(ballot.event.event_type), _VIEWED)
        reasons.append(Reason(catalogue.item_id(number), title, words.format(title=title)))
    return tuple(reasons)


def base_reasons(origin: Origin, catalogue: Catalogue, request: SlateRequest, person: Person) -> tuple[Reason, ...]:
    """Why the night, or a rung of the ladder, offered the item. A past item that left the catalogue is not named."""
    source, *past_items = origin
    named = []
    for number in past_items:
        if number < len(catalogue.item_ids) and catalogue.item_ids[number] is not None:
            title = catalogue.title(number)
            named.append(Reason(catalogue.item_id(number), title, f"because of your interest in {title}"))
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

    `base_slate` has the item numbers of the slate as it would be without votes.
    """
    items = []
    for number in slate:
        base, vote = pool.bases.get(number, 0.0), votes.get(number, 0.0)
        if is_owed_to_session(number, base, vote, weight, base_slate):
            source, reasons = Source.SESSION, session_reasons(number, ballots, catalogue)
        else:
            origin = pool.origins[number]
            source, reasons = Source(origin[0]), base_reasons(origin, catalogue, request, person)
        items.append(SlateItem(number, catalogue.item_id(number), scores[number], base, vote, source, reasons))
    return items
