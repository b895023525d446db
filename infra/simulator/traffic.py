"""One day of a simulated shop: sessions with an intent, and what people and crawlers do in them.

Everything is numpy over the whole day; the day has a random generator of its own, so days can be made in any grouping.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from feature_repo.contracts.events import EventType
from infra.simulator.catalogue import TASTE_SIZE, Catalogue
from infra.simulator.config import BOT_BURST, ShopConfig, burst_count
from infra.simulator.people import People

TYPES = (
    EventType.SEARCH, EventType.VIEW_ITEM, EventType.ADD_TO_WISHLIST, EventType.NOT_INTERESTED, EventType.ADD_TO_CART,
    EventType.REMOVE_FROM_CART, EventType.PURCHASE, EventType.REFUND,
)  # fmt: skip
"""Codes of event types, in the order of the funnel (ties in time are sorted by it)."""
SEARCH, VIEW, WISH, DISMISS, CART, UNCART, PURCHASE, REFUND = range(len(TYPES))

DAY_MS = 86_400_000
EVENTS_PER_SESSION = 5.75
"""Measured mean, funnel included; turns a target of events into a number of sessions."""
_LONGEST_LEG = 8
_CELLS_AT_ONCE = 4_000_000
_HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 7, 9, 10, 11, 12, 13, 11, 10, 10, 11, 13, 16, 19, 20, 17, 10, 5], float)
_WEEKDAYS = np.array([1.0, 0.95, 0.95, 1.0, 1.1, 1.3, 1.35])

ONE_OFF, BOT = -1, -2
"""Values of `Deliveries.user` that are no row of People; `subject` then tells who."""


@dataclass(frozen=True)
class Deliveries:
    """Event lines as equal-length arrays.

    at, delivered   ms since the shop's first midnight; delivered is at, or later
    user            row of People, ONE_OFF or BOT
    subject         number of the one-off visitor, or index of the crawler; else 0
    is_logged_in    whether user_id is sent;  sends_device: whether anonymous_id is sent
    session         number within the day, -1 when the client names none
    item            row of Catalogue, -1 for none
    said_no         0, or 1 store / 2 train / 3 personalize: what the event's own consent refuses
    day, serial     make the event_id; a repeated delivery has the same
    is_repeated     whether this is the second delivery of its event
    """

    at: NDArray[np.int64]
    delivered: NDArray[np.int64]
    user: NDArray[np.int32]
    subject: NDArray[np.int32]
    is_logged_in: NDArray[np.bool_]
    sends_device: NDArray[np.bool_]
    session: NDArray[np.int32]
    item: NDArray[np.int32]
    kind: NDArray[np.int8]
    quantity: NDArray[np.int32]
    said_no: NDArray[np.int8]
    day: NDArray[np.int32]
    serial: NDArray[np.int32]
    is_repeated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: NDArray) -> Deliveries:
        """The lines of a mask or of row numbers, in that order."""
        return Deliveries(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def join(parts: list[Deliveries]) -> Deliveries:
    """The parts one after another."""
    return Deliveries(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Deliveries)})


def share_of_day(config: ShopConfig) -> NDArray[np.float64]:
    """Each day's share of the traffic: weekday, and a shop that grows by 40 % over its history."""
    days = np.arange(config.days)
    weight = _WEEKDAYS[(config.start_day.weekday() + days) % 7] * (1 + 0.4 * days / config.days)
    return weight / weight.sum()


def people_events(config: ShopConfig) -> float:
    """How many distinct events people should cause: the target without crawlers, repeats and malformed lines."""
    return config.event_count * (1 - config.bot_share - config.duplicate_share - config.malformed_share)


def simulate_day(config: ShopConfig, catalogue: Catalogue, people: People, day: int) -> Deliveries:
    """All lines that originate on `day` (some happen or arrive later), sorted by arrival."""
    rng = np.random.default_rng([config.seed, 1, day])
    session_count = round(people_events(config) * share_of_day(config)[day] / EVENTS_PER_SESSION)
    parts = [
        _shopping(config, catalogue, people, day, session_count, rng),
        _crawling(config, catalogue, people, day, rng),
    ]
    lines = join(parts)
    lines = lines.take(np.lexsort((lines.kind, lines.user, lines.at)))
    lines.serial[:] = np.arange(len(lines))
    lines.day[:] = day
    _delay(config, lines, rng)
    repeated = lines.take(_chosen(lines, config.duplicate_share, rng))
    repeated.delivered[:] += 500 + rng.exponential(600_000, len(repeated)).astype(np.int64)
    repeated.is_repeated[:] = True
    lines = join([lines, repeated])
    lines = lines.take(lines.at < config.days * DAY_MS)
    return lines.take(np.argsort(lines.delivered, kind="stable"))


def _delay(config: ShopConfig, lines: Deliveries, rng: np.random.Generator) -> None:
    is_late = _chosen(lines, config.late_share, rng)
    hours = rng.uniform(2, 36, int(is_late.sum()))
    lines.delivered[:] = lines.at
    lines.delivered[is_late] += (hours * 3_600_000).astype(np.int64)


def _chosen(lines: Deliveries, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    return (rng.random(len(lines)) < share) & (lines.user != BOT)


def _shopping(
    config: ShopConfig, catalogue: Catalogue, people: People, day: int, session_count: int, rng: np.random.Generator
) -> Deliveries:
    """Sessions of people: one or two legs (category intents), each an anchor item and its neighbours in style."""
    weight = np.cumsum(people.activity * (people.joined_on <= day))
    users = np.searchsorted(weight, rng.random(session_count) * weight[-1], side="right").astype(np.int32)
    categories = _intents(config, catalogue, people, users, day, rng)
    has_second = rng.random(session_count) < 0.25
    legs = np.concatenate([np.arange(session_count), np.flatnonzero(has_second)])
    leg_category = np.concatenate([categories[:, 0], categories[has_second, 1]])
    leg_length = np.minimum(rng.geometric(0.27, len(legs)), _LONGEST_LEG)
    leg, place, item = _looked_at(catalogue, people, users[legs], leg_category, leg_length, day, rng)

    order = np.lexsort((place, leg >= session_count, legs[leg]))
    session, item = legs[leg][order], item[order]
    hours = rng.choice(24, session_count, p=_HOURS / _HOURS.sum())
    start = day * DAY_MS + (hours + rng.random(session_count)) * 3_600_000
    gap = 1_000 * rng.lognormal(np.log(35), 0.8, len(session))
    elapsed = np.cumsum(gap)
    first = np.searchsorted(session, np.arange(session_count))  # a session without an item on show starts nowhere
    before = np.concatenate([[0.0], elapsed])[first]
    at = (start[session] + elapsed - before[session]).astype(np.int64)
    rows, kinds, moments = _funnel(catalogue, people, users[session], session, item, at, day, rng)
    return _as_lines(config, users, session[rows], np.where(kinds == SEARCH, -1, item[rows]), kinds, moments, rng)


def _intents(
    config: ShopConfig,
    catalogue: Catalogue,
    people: People,
    users: NDArray[np.int32],
    day: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Two categories per session, drawn without replacement by taste, visibility and season."""
    taste = people.factors[users, :TASTE_SIZE]
    count = len(catalogue.category_names)
    size = np.bincount(catalogue.categories, weights=catalogue.visibility(day), minlength=count)
    season = 1 + 0.4 * np.sin(2 * np.pi * (day / max(config.days, 30) + np.arange(count) / count))
    appeal = np.exp(1.1 * np.einsum("ud,cd->uc", taste, catalogue.category_factors)) * (np.sqrt(size) * season)
    race = rng.standard_exponential(appeal.shape) / np.maximum(appeal, 1e-12)
    return np.argpartition(race, 1, axis=1)[:, :2] if count > 2 else np.argsort(race, axis=1)


def _looked_at(
    catalogue: Catalogue,
    people: People,
    users: NDArray[np.int32],
    categories: NDArray[np.int64],
    lengths: NDArray[np.int64],
    day: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """(leg, place in the leg, item) of every view: an anchor by taste and exposure, then items also like the anchor."""
    visibility = catalogue.visibility(day)
    found: list[tuple[NDArray, NDArray, NDArray]] = []
    for category in range(len(catalogue.category_names)):
        items = np.flatnonzero((catalogue.categories == category) & (visibility > 0)).astype(np.int32)
        all_legs = np.flatnonzero(categories == category)
        if not len(items):
            continue
        style = catalogue.factors[items, :TASTE_SIZE]
        for legs in np.array_split(all_legs, max(1, len(all_legs) * len(items) // _CELLS_AT_ONCE)):
            utility = np.einsum("ud,id->ui", people.factors[users[legs]], catalogue.factors[items])
            weight = np.exp(1.2 * utility) * visibility[items]
            race = rng.standard_exponential(weight.shape, dtype=np.float32) / np.maximum(weight, 1e-20)
            anchor = race.argmin(axis=1)
            closeness = np.einsum("ud,id->ui", style[anchor], style) / TASTE_SIZE
            race = rng.standard_exponential(weight.shape, dtype=np.float32)
            race /= np.maximum(weight * np.exp(1.0 * closeness), 1e-20)
            race[np.arange(len(legs)), anchor] = -1.0  # the anchor comes first
            picks = np.argsort(race, axis=1)[:, :_LONGEST_LEG]
            row, place = np.nonzero(np.arange(picks.shape[1]) < lengths[legs][:, None])
            found.append((legs[row], place, items[picks[row, place]]))
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


def _funnel(
    catalogue: Catalogue,
    people: People,
    users: NDArray[np.int32],
    session: NDArray[np.int64],
    item: NDArray[np.int32],
    at: NDArray[np.int64],
    day: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int8], NDArray[np.int64]]:
    """(row of the view it follows, kind, moment) of views and of what they lead to. Liked items go further."""
    utility = np.einsum("nd,nd->n", people.factors[users], catalogue.factors[item])
    preference = 1 / (1 + np.exp(-utility))
    views = np.arange(len(item))
    chance = rng.random((6, len(item)))
    in_stock = catalogue.sold_out_from[item] > day
    is_last = np.append(session[1:] != session[:-1], True)
    ends = at[np.flatnonzero(is_last)]
    session_end = ends[np.cumsum(np.append(0, is_last[:-1]))]

    carts = views[(chance[0] < 0.30 * preference) & in_stock]
    bought = carts[chance[1, carts] < 0.25 + 0.35 * preference[carts]]
    left = np.setdiff1d(carts, bought, assume_unique=True)
    dropped = left[chance[2, left] < 0.2]
    refunded = bought[chance[3, bought] < 0.03]
    wished = views[chance[4] < 0.08 * preference]
    dismissed = views[(chance[4] > 0.99) & (preference < 0.3)]
    searches = np.flatnonzero(np.append(True, session[1:] != session[:-1]) & (chance[5] < 0.15))
    later = rng.integers(DAY_MS, 12 * DAY_MS, len(refunded))
    steps = (
        (searches, SEARCH, np.maximum(at[searches] - 8_000, 0)),
        (views, VIEW, at),
        (wished, WISH, at[wished] + 6_000),
        (dismissed, DISMISS, at[dismissed] + 4_000),
        (carts, CART, at[carts] + 9_000),
        (dropped, UNCART, session_end[dropped] + 20_000),
        (bought, PURCHASE, session_end[bought] + 75_000),
        (refunded, REFUND, session_end[refunded] + later),
    )
    return (
        np.concatenate([rows for rows, _, _ in steps]),
        np.concatenate([np.full(len(rows), kind, np.int8) for rows, kind, _ in steps]),
        np.concatenate([moments for _, _, moments in steps]),
    )


def _as_lines(
    config: ShopConfig,
    session_users: NDArray[np.int32],
    session: NDArray[np.int64],
    item: NDArray[np.int32],
    kind: NDArray[np.int8],
    at: NDArray[np.int64],
    rng: np.random.Generator,
) -> Deliveries:
    """Who is told of each line: most are logged in, some are known by their device only, some come once."""
    sessions = len(session_users)
    lot = rng.random(sessions)
    is_one_off = lot < config.anonymous_share / 2
    is_logged_in = lot >= config.anonymous_share
    sends_device = ~is_logged_in | (rng.random(sessions) < 0.5)
    names_session = rng.random(sessions) < 0.9
    refusal = rng.random(sessions)
    said_no = np.select([refusal < 0.002, refusal < 0.006, refusal < 0.010], [1, 2, 3], 0)
    users = np.where(is_one_off, ONE_OFF, session_users)
    takes_quantity = np.isin(kind, (CART, PURCHASE, REFUND))
    return Deliveries(
        at=at,
        delivered=at.copy(),
        user=users[session].astype(np.int32),
        subject=np.where(is_one_off, np.arange(sessions), 0)[session].astype(np.int32),
        is_logged_in=is_logged_in[session],
        sends_device=sends_device[session],
        session=np.where(names_session, np.arange(sessions), -1)[session].astype(np.int32),
        item=item.astype(np.int32),
        kind=kind,
        quantity=np.where(takes_quantity, 1 + (session + item) % 11 // 9, 0).astype(np.int32),
        said_no=said_no[session].astype(np.int8),
        day=np.zeros(len(at), np.int32),
        serial=np.zeros(len(at), np.int32),
        is_repeated=np.zeros(len(at), bool),
    )


def _crawling(
    config: ShopConfig, catalogue: Catalogue, people: People, day: int, rng: np.random.Generator
) -> Deliveries:
    """Bursts of views of anything on show, one or two seconds apart; bursts are spread evenly over the days."""
    first, end = (burst_count(config) * d // config.days for d in (day, day + 1))
    bursts = end - first
    serial = np.arange(first, end)
    count = bursts * BOT_BURST
    shown = np.flatnonzero(catalogue.visibility(day) > 0)
    start = rng.integers(day * DAY_MS, (day + 1) * DAY_MS - BOT_BURST * 2_000, bursts)
    at = (start[:, None] + np.cumsum(rng.integers(800, 1_900, (bursts, BOT_BURST)), axis=1)).ravel().astype(np.int64)
    bot = np.repeat(serial % max(1, len(people.bot_ids)), BOT_BURST).astype(np.int32)
    return Deliveries(
        at=at,
        delivered=at.copy(),
        user=np.full(count, BOT, np.int32),
        subject=bot,
        is_logged_in=np.zeros(count, bool),
        sends_device=np.zeros(count, bool),
        session=np.full(count, -1, np.int32),
        item=rng.choice(shown, count).astype(np.int32) if count else np.zeros(0, np.int32),
        kind=np.full(count, VIEW, np.int8),
        quantity=np.zeros(count, np.int32),
        said_no=np.zeros(count, np.int8),
        day=np.zeros(count, np.int32),
        serial=np.zeros(count, np.int32),
        is_repeated=np.zeros(count, bool),
    )
