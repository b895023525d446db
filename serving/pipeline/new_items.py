"""What is new in the shop, for this person first where they look most."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from feature_repo.contracts.packing import Source
from feature_repo.contracts.times import from_micros
from serving.pipeline.candidates import Rung
from serving.pipeline.catalogue import CATEGORY_SEPARATOR, Catalogue
from serving.pipeline.consent import as_allowed
from serving.pipeline.list_rules import OF_THE_SHOP, eligible_in_list
from serving.pipeline.list_slate import in_words, list_slate, popular_rungs, popular_words
from serving.pipeline.session_signals import category_interests
from serving.pipeline.trending import is_within
from serving.pipeline.values import Person, Reason, Row, Slate, SlateRequest, Tuning

DAY_MICROS = 86_400_000_000
HALF_LIFE_DAYS = 7.0
"""An item a week older counts half as new."""
INTEREST_WEIGHT = 4.0
"""An item in the only category of a person's interest counts five times as new as one in which they show none."""
MOST_AHEAD_DAYS = 30.0
"""A version that has been served for longer, or a `created_at` of some other century, makes nothing newer than that."""
LIST_HEAD = 50
MOST_ROWS = 500
"""How many items one answer puts in order; they are found among the newest MOST_LOOKED_AT."""
MOST_LOOKED_AT = 20_000


def new_slate(
    request: SlateRequest,
    person: Person,
    catalogue: Catalogue,
    tuning: Tuning,
    *,
    max_age_days: float,
    now_micros: int,
    interests: Mapping[str, float] | None = None,
) -> Slate:
    """Items by `created_at`, at most `max_age_days` older than the end of the version's data; then older ones.

    score = 0.5^(age / 7 days) x (1 + 4 x interest) / 5, interest in [0, 1] by category (`interests_of`); without
    consent, or of nobody, it is 0, and the newest come first. Ties by item id. Age is counted back from the version's
    as_of: no item of it can be newer, and those that have arrived since are younger than 0. With a category in the
    request, only items in it or below it. What the person bought or dismissed leaves. Topped up with what is popular.
    fallback_level is `new`, or the first rung that had something (`older`: the newest of those that are older).
    `interests`: those of `asked_interests`, where they are known already.
    """
    if interests is None:
        interests = asked_interests(request, person, catalogue, now_micros=now_micros)
    allowed = as_allowed(request, person)
    request, person, personalized, _ = allowed
    words = popular_words(request.category, request.region)

    def tell(number: int, source: Source) -> tuple[Reason, ...]:
        if source in words and source is not Source.NEW:
            return in_words(words[source])
        liked = _interest(catalogue.category(number), interests) > 0
        return in_words(new_in_words(number, catalogue, is_liked=liked))

    return list_slate(
        _rungs(request, catalogue, interests, max_age_days),
        own="new",
        wanted=request.num_results,
        eligible=eligible_in_list(allowed, catalogue, tuning, habits=OF_THE_SHOP, now_micros=now_micros),
        catalogue=catalogue,
        tell=tell,
        personalized=personalized,
        whole=request.explain,
    )


def asked_interests(
    request: SlateRequest, person: Person, catalogue: Catalogue, *, now_micros: int
) -> Mapping[str, float]:
    """The interests that `new_slate` goes by. What a person looks at decides about items that say when they were made;
    where none does, nobody has to know."""
    allowed = as_allowed(request, person)
    asks = allowed.personalized and bool(catalogue.newest)
    return interests_of(allowed.person, catalogue, now_micros=now_micros) if asks else {}


def new_in_words(number: int, catalogue: Catalogue, *, is_liked: bool) -> str:
    """The reason of an item that is new. `is_liked`: the person shows interest in its category."""
    since = f"new since {from_micros(_created(catalogue)[number]).date().isoformat()}"
    return f"{since}, in {catalogue.category(number)}, where you look" if is_liked else since


def interests_of(person: Person, catalogue: Catalogue, *, now_micros: int) -> dict[str, float]:
    """Category path and each of its ancestors -> share of the person's interest, in (0, 1].

    By what they did lately (`category_interests`); without any by the categories of the head of the night's list, the
    better placed counting more; without a list by the segment.
    """
    by_category = category_interests(person.session, catalogue, now_micros=now_micros)
    if not by_category:
        by_category = listed_categories(person.candidates or (), catalogue)
    if not by_category and person.segment:
        by_category = {person.segment: 1.0}
    shares: dict[str, float] = {}
    for category, share in by_category.items():
        for prefix in _prefixes(category):
            shares[prefix] = shares.get(prefix, 0.0) + share
    return shares


def listed_categories(rows: Sequence[Row], catalogue: Catalogue) -> dict[str, float]:
    """Category path -> share of the head of a night's list, the better placed counting more; most first, ties by path.
    Sums to 1, or is empty."""
    weights: dict[str, float] = {}
    for place, row in enumerate(rows[:LIST_HEAD]):
        category = catalogue.category(row[0]) if row[0] < len(catalogue.attributes) else None
        if category is not None:
            weights[category] = weights.get(category, 0.0) + 1 / (1 + place)
    total = sum(weights.values())
    return {name: weight / total for name, weight in sorted(weights.items(), key=lambda one: (-one[1], one[0]))}


def _rungs(
    request: SlateRequest, catalogue: Catalogue, interests: Mapping[str, float], max_age_days: float
) -> Iterator[Rung]:
    oldest = catalogue.as_of_micros - max_age_days * DAY_MICROS
    asked = request.category
    lifts: dict[str | None, float] = {}
    scored: list[tuple[int, float]] = []
    for number, micros, fresh, category in fresh_items(catalogue):
        if micros < oldest or len(scored) == MOST_ROWS:
            break
        lift = lifts.get(category)
        if lift is None:
            wanted = asked is None or is_within(category, asked)
            interest = _interest(category, interests)
            lift = lifts[category] = (1 + INTEREST_WEIGHT * interest) / (1 + INTEREST_WEIGHT) if wanted else 0.0
        if lift > 0:
            scored.append((number, fresh * lift))
    if scored:
        if len(lifts) > 1:
            scored.sort(key=lambda row: (-row[1], row[0]))
        yield Rung("new", scored, Source.NEW)
    if older := older_rows(catalogue, asked, oldest):
        yield Rung("older", older, Source.NEW)
    yield from popular_rungs(catalogue, request.category, request.region)


def older_rows(catalogue: Catalogue, category: str | None, oldest: float) -> list[tuple[int, float]]:
    """The newest of the items, in the category, that were made before `oldest` (us). Scored by place: their ages differ
    by less than the scale of a score could show."""
    newest = catalogue.newest
    recent = bisect_right(newest, -oldest, key=lambda row: -row[1])
    older = [
        number
        for number, _ in newest[recent : recent + MOST_ROWS]
        if category is None or is_within(catalogue.category(number), category)
    ]
    return [(number, 1 / (1 + place)) for place, number in enumerate(older)]


def fresh_items(catalogue: Catalogue) -> list[tuple[int, float, float, str | None]]:
    """(item number, created at, freshness, category) of the newest items, in order: the same in every request."""
    remembered = catalogue.remember("fresh items")
    found: list[tuple[int, float, float, str | None]] | None = remembered.get("rows")
    if found is None:
        found = remembered["rows"] = [
            (number, int(micros), _freshness(catalogue, number, micros), catalogue.category(number))
            for number, micros in catalogue.newest[:MOST_LOOKED_AT]
        ]
    return found


def enter_new(catalogue: Catalogue, at: int, number: int, micros: int) -> None:
    """An item has come into `newest`, behind `at` others: what is remembered of those learns of it."""
    created = catalogue.remember("creation times")
    if created:
        created[number] = micros
    fresh = _freshness(catalogue, number, micros)
    rows = catalogue.remember("fresh items").get("rows")
    if rows is not None and at < MOST_LOOKED_AT:
        rows.insert(at, (number, micros, fresh, catalogue.category(number)))
        del rows[MOST_LOOKED_AT:]
    native = catalogue.remember("native").get("fresh")
    if native is not None:
        native.insert(at, number, micros, fresh)


def forget_new(catalogue: Catalogue) -> None:
    """What is remembered of the newest items is made anew when somebody asks: one of them was changed."""
    for subject in ("fresh items", "creation times", "native words of new items"):
        catalogue.remember(subject).clear()
    catalogue.remember("native").pop("fresh", None)


def _freshness(catalogue: Catalogue, number: int, micros: float) -> float:
    """0.5^(age / 7 days). No item of the version is younger than 0, none that has arrived than -MOST_AHEAD_DAYS."""
    least = 0.0 if number < catalogue.arrivals.first else -MOST_AHEAD_DAYS
    return 0.5 ** (max(least, (catalogue.as_of_micros - micros) / DAY_MICROS) / HALF_LIFE_DAYS)


def _created(catalogue: Catalogue) -> Mapping[int, int]:
    remembered = catalogue.remember("creation times")
    if not remembered:
        remembered.update({number: int(micros) for number, micros in catalogue.newest})
    return remembered


def _interest(category: str | None, interests: Mapping[str, float]) -> float:
    """The mean share over the category and its ancestors."""
    if not interests or category is None:
        return 0.0
    prefixes = _prefixes(category)
    return sum(interests.get(prefix, 0.0) for prefix in prefixes) / len(prefixes)


@lru_cache(maxsize=16_384)
def _prefixes(path: str) -> tuple[str, ...]:
    parts = path.split(CATEGORY_SEPARATOR)
    return tuple(CATEGORY_SEPARATOR.join(parts[: depth + 1]) for depth in range(len(parts)))
