"""Why each item is there: its source, and the past items that spoke for it, in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from feature_repo.contracts.events import EventType
from feature_repo.contracts.packing import Source
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.score import Ballot
from serving.pipeline.values import Person, Reason, ScoredCandidate, SlateItem, SlateRequest

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


def is_owed_to_session(scored: ScoredCandidate, weight: float, base_slate: Collection[int]) -> bool:
    """True when the item would not be in the slate without the session's votes, or owes them most of its score."""
    if not scored.vote:
        return False
    return scored.candidate.item_number not in base_slate or weight * scored.vote > scored.candidate.base


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


def base_reasons(
    scored: ScoredCandidate, catalogue: Catalogue, request: SlateRequest, person: Person
) -> tuple[Reason, ...]:
    """Why the night, or a rung of the ladder, offered the item. A past item that left the catalogue is not named."""
    candidate = scored.candidate
    named = []
    for number in (candidate.first_reason, candidate.second_reason):
        if number is not None and number < len(catalogue.item_ids) and catalogue.item_ids[number] is not None:
            title = catalogue.title(number)
            named.append(Reason(catalogue.item_id(number), title, f"because of your interest in {title}"))
    if named:
        return tuple(named)
    text = {
        Source.SEGMENT: f"popular in {_listed(catalogue, person.segment)}, where you look most",
        Source.CATEGORY: f"popular in {_listed(catalogue, request.category)}",
        Source.REGION: f"popular in {request.region}",
        Source.POPULARITY: "popular with everybody",
        Source.STATIC: "chosen by the shop",
    }.get(candidate.source, "similar to what you and others like you chose")
    return (Reason(None, None, text),)


def _listed(catalogue: Catalogue, category: str | None) -> str:
    """The category whose list was used: the asked one or its nearest ancestor with a list."""
    found = catalogue.popular_in_category(category)
    return found[0] if found else "its category"


def explain_slate(
    slate: Sequence[ScoredCandidate],
    *,
    ballots: Sequence[Ballot],
    weight: float,
    base_slate: Collection[int],
    catalogue: Catalogue,
    request: SlateRequest,
    person: Person,
) -> list[SlateItem]:
    """The slate with source and reasons of each item. `base_slate` has the item numbers of the slate without votes."""
    items = []
    for scored in slate:
        candidate = scored.candidate
        if is_owed_to_session(scored, weight, base_slate):
            source, reasons = Source.SESSION, session_reasons(candidate.item_number, ballots, catalogue)
        else:
            source, reasons = candidate.source, base_reasons(scored, catalogue, request, person)
        items.append(
            SlateItem(candidate.item_number, scored.item_id, scored.score, candidate.base, scored.vote, source, reasons)
        )
    return items
