"""What a session record says about its subject, as named numbers: the table SIGNALS, and the function that fills it.

Pure: record, instant and catalogue in, values out. The same table is the page infra/docs/session-signals.md:

    python -m serving.pipeline.session_signals > infra/docs/session-signals.md
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from feature_repo.contracts.events import EventType
from feature_repo.contracts.session_record import ItemMark, SessionEvent, SessionState
from serving.pipeline.cart import cart_contents
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.identify import MICROS, session_events

SESSION_GAP_SECONDS = 1800.0
INTEREST_HALF_LIFE_DAYS = 3.0
LOOK_TYPES = frozenset({EventType.VIEW_ITEM, EventType.SELECT_ITEM, EventType.CLICK, EventType.WATCH})
DAY_MICROS = 86_400 * MICROS

Value = float | int | str | None


def category_interests(state: SessionState, catalogue: Catalogue, *, now_micros: int) -> dict[str, float]:
    """Category path -> interest, most first; ties by path. Sums to 1, or is empty.

    The weight of each item and day (SESSION_VOTE_WEIGHTS) halves every 3 days, counted from the day's end. Items that
    were dismissed, and items whose category this version does not know, have no say.
    """
    dismissed = {mark.item_id for mark in state.dismissed}
    weights: dict[str, float] = {}
    for (day, item_id), halves in sorted(state.interests.items()):
        number = catalogue.numbers.get(item_id)
        category = None if number is None or item_id in dismissed else catalogue.category(number)
        if category is not None:
            age_days = max(0.0, now_micros / DAY_MICROS - day - 1)
            weights[category] = weights.get(category, 0.0) + halves / 2 * 0.5 ** (age_days / INTEREST_HALF_LIFE_DAYS)
    total = sum(weights.values())
    ordered = sorted(weights.items(), key=lambda row: (-row[1], row[0]))
    return {category: weight / total for category, weight in ordered} if total > 0 else {}


@dataclass
class Evidence:
    """A record as of an instant, in the light of one catalogue; what several signals need is worked out once.

    An event later than `now_micros` (a clock that runs ahead) counts as just now.
    """

    state: SessionState
    now_micros: int
    catalogue: Catalogue

    @cached_property
    def running(self) -> Sequence[SessionEvent]:
        """Events and steps of the running session, oldest first; empty when the last is more than 30 minutes old."""
        everything = sorted([*self.state.events, *self.state.steps], key=lambda event: event.micros)
        return session_events(
            SessionState(events=everything),
            session_id=None,
            recent_events=(),
            now_micros=self.now_micros,
            gap_seconds=SESSION_GAP_SECONDS,
        )

    @cached_property
    def session(self) -> Sequence[SessionEvent]:
        """Those on items."""
        return [event for event in self.running if event.item_id]

    @cached_property
    def steps(self) -> Sequence[SessionEvent]:
        """Those without."""
        return [event for event in self.running if not event.item_id]

    @cached_property
    def cart(self) -> Mapping[str, int]:
        return cart_contents(self.state)

    @cached_property
    def interests(self) -> Mapping[str, float]:
        return category_interests(self.state, self.catalogue, now_micros=self.now_micros)

    def seconds_since(self, micros: int) -> float:
        return max(0, self.now_micros - micros) / MICROS

    def of_type(self, *types: str) -> list[SessionEvent]:
        """Events of the running session of these types."""
        return [event for event in self.session if event.event_type in types]

    def count(self, *types: str) -> int:
        """Events of these types since the record began."""
        return sum(self.state.counts.get(kind, 0) for kind in types)

    def category(self, item_id: str) -> str | None:
        number = self.catalogue.numbers.get(item_id)
        return None if number is None else self.catalogue.category(number)

    def price(self, item_id: str) -> float | None:
        number = self.catalogue.numbers.get(item_id)
        facts = None if number is None else self.catalogue.attributes[number]
        price = (facts or {}).get("price")
        return None if price is None else float(price)

    def prices(self, item_ids: Iterable[str]) -> list[float]:
        """Of the distinct items that have one."""
        known = (self.price(item_id) for item_id in sorted(set(item_ids)))
        return [price for price in known if price is not None]

    def word(self, name: str) -> str | None:
        word = self.state.words.get(name)
        return word.text if word else None


class Signal(NamedTuple):
    """`unit` as in the page. `read` gives None when there is nothing that could be said."""

    name: str
    unit: str
    meaning: str
    read: Callable[[Evidence], Value]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _since_last(evidence: Evidence, *types: str) -> float | None:
    """Among the kept events."""
    times = [event.micros for event in evidence.state.events if event.event_type in types]
    return evidence.seconds_since(max(times)) if times else None


def _since_mark(evidence: Evidence, marks: Sequence[ItemMark]) -> float | None:
    return evidence.seconds_since(marks[-1].micros) if marks else None


def _duration(evidence: Evidence) -> float:
    running = evidence.running
    return (running[-1].micros - running[0].micros) / MICROS if running else 0.0


def _mean_gap(evidence: Evidence) -> float | None:
    session = evidence.session
    return (session[-1].micros - session[0].micros) / MICROS / (len(session) - 1) if len(session) > 1 else None


def _last_category(evidence: Evidence) -> str | None:
    return evidence.category(evidence.session[-1].item_id) if evidence.session else None


def _category_streak(evidence: Evidence) -> int:
    last, streak = _last_category(evidence), 0
    for event in reversed(evidence.session):
        if last is None or evidence.category(event.item_id) != last:
            break
        streak += 1
    return streak


def _distinct_categories(evidence: Evidence) -> int:
    return len({evidence.category(event.item_id) for event in evidence.session} - {None})


def _repeats(evidence: Evidence) -> float | None:
    items = [event.item_id for event in evidence.of_type(*LOOK_TYPES)]
    return _ratio(len(items) - len(set(items)), len(items))


def _cart_value(evidence: Evidence) -> float | None:
    known = [(evidence.price(item_id), quantity) for item_id, quantity in evidence.cart.items()]
    return sum(price * quantity for price, quantity in known if price is not None) if known else None


def _last_price_ratio(evidence: Evidence) -> float | None:
    prices = evidence.prices(event.item_id for event in evidence.session)
    last = evidence.price(evidence.session[-1].item_id) if evidence.session else None
    return None if last is None else _ratio(last, sum(prices) / len(prices))


def _first(values: Mapping[str, float]) -> tuple[str | None, float | None]:
    return next(iter(values.items()), (None, None))


_T = EventType
SIGNALS: tuple[Signal, ...] = (
    Signal("session_event_count", "events", "events on items in the running session (30 minutes of silence end it)",
           lambda e: len(e.session)),
    Signal("session_duration_seconds", "s", "from the first to the last event of the running session; 0 without one",
           _duration),
    Signal("session_idle_seconds", "s", "since the last event of any kind",
           lambda e: e.seconds_since(e.state.last_micros) if e.state.last_micros else None),
    Signal("session_mean_gap_seconds", "s", "between two events on items of the running session", _mean_gap),
    Signal("session_distinct_items", "items", "different items touched in the running session",
           lambda e: len({event.item_id for event in e.session})),
    Signal("session_distinct_categories", "categories", "their different categories", _distinct_categories),
    Signal("session_view_count", "events", "item views, selections, clicks and watches in the running session",
           lambda e: len(e.of_type(*LOOK_TYPES))),
    Signal("session_repeat_view_share", "0..1", "share of those views that went to an item seen before in the session",
           _repeats),
    Signal("session_cart_add_count", "events", "items put into the cart in the running session",
           lambda e: len(e.of_type(_T.ADD_TO_CART))),
    Signal("session_cart_remove_count", "events", "items taken out of the cart in the running session",
           lambda e: len(e.of_type(_T.REMOVE_FROM_CART))),
    Signal("session_wishlist_count", "events", "items wished for or liked in the running session",
           lambda e: len(e.of_type(_T.ADD_TO_WISHLIST, _T.LIKE))),
    Signal("session_purchase_count", "items", "items bought in the running session",
           lambda e: len(e.of_type(_T.PURCHASE))),
    Signal("session_search_count", "events", "searches in the running session, of the newest 30 steps",
           lambda e: sum(step.event_type == _T.SEARCH for step in e.steps)),
    Signal("session_page_view_count", "events", "page views in the running session, of the newest 30 steps",
           lambda e: sum(step.event_type == _T.PAGE_VIEW for step in e.steps)),
    Signal("session_checkout_begun", "0 or 1", "whether a checkout was begun in the running session",
           lambda e: int(any(step.event_type == _T.BEGIN_CHECKOUT for step in e.steps))),
    Signal("session_mean_price", "price", "mean catalogue price of the different items touched in the running session",
           lambda e: _mean(e.prices(event.item_id for event in e.session))),
    Signal("session_max_price", "price", "the highest of them",
           lambda e: max(e.prices(event.item_id for event in e.session), default=None)),
    Signal("session_last_price_ratio", "ratio", "price of the last item touched, divided by their mean",
           _last_price_ratio),
    Signal("session_last_item", "item id", "the last item touched in the running session",
           lambda e: e.session[-1].item_id if e.session else None),
    Signal("session_last_category", "category", "its category", _last_category),
    Signal("session_category_streak", "events", "how many of the last events in a row stayed in that category",
           _category_streak),
    Signal("cart_item_count", "items", "different items in the cart", lambda e: len(e.cart)),
    Signal("cart_quantity", "pieces", "pieces in the cart", lambda e: sum(e.cart.values())),
    Signal("cart_value", "price", "pieces in the cart times catalogue price, of the items that have one", _cart_value),
    Signal("cart_idle_seconds", "s", "since the cart was changed last",
           lambda e: e.seconds_since(e.state.cart[-1].micros) if e.state.cart else None),
    Signal("seconds_since_purchase", "s", "since something was bought last", lambda e: _since_mark(e, e.state.bought)),
    Signal("seconds_since_cart_add", "s", "since an item was put into the cart last, of the newest 50 events",
           lambda e: _since_last(e, _T.ADD_TO_CART)),
    Signal("seconds_since_dismissal", "s", "since an item was dismissed last",
           lambda e: _since_mark(e, e.state.dismissed)),
    Signal("bought_item_count", "items", "different items bought; at most 200", lambda e: len(e.state.bought)),
    Signal("dismissed_item_count", "items", "different items dismissed; at most 200",
           lambda e: len(e.state.dismissed)),
    Signal("seen_item_count", "items", "different items shown or touched; at most 100", lambda e: len(e.state.seen)),
    Signal("total_event_count", "events", "events of all kinds since the record began",
           lambda e: sum(e.state.counts.values())),
    Signal("total_purchase_count", "events", "orders since the record began", lambda e: e.count(_T.PURCHASE)),
    Signal("total_search_count", "events", "searches since the record began", lambda e: e.count(_T.SEARCH)),
    Signal("view_to_cart_rate", "ratio", "cart additions per view since the record began",
           lambda e: _ratio(e.count(_T.ADD_TO_CART), e.count(*LOOK_TYPES))),
    Signal("click_through_rate", "ratio", "selections and clicks per impression event since the record began",
           lambda e: _ratio(e.count(_T.SELECT_ITEM, _T.CLICK), e.count(_T.IMPRESSION))),
    Signal("known_for_seconds", "s", "since the first event of the record",
           lambda e: e.seconds_since(e.state.first_micros) if e.state.first_micros else None),
    Signal("top_category", "category", "the category with most interest, halving every 3 days",
           lambda e: _first(e.interests)[0]),
    Signal("top_category_share", "0..1", "its share of all interest", lambda e: _first(e.interests)[1]),
    Signal("interest_category_count", "categories", "categories with any interest", lambda e: len(e.interests)),
    Signal("device", "word", "the device last named", lambda e: e.word("device")),
    Signal("channel", "word", "the channel last named", lambda e: e.word("channel")),
    Signal("referrer", "host", "the referrer last named", lambda e: e.word("referrer")),
    Signal("first_referrer", "host", "the referrer first named", lambda e: e.word("first_referrer")),
    Signal("language", "word", "the language last named", lambda e: e.word("language")),
)  # fmt: skip


def session_signals(record: SessionState, now_micros: int, catalogue: Catalogue) -> dict[str, Value]:
    """Every signal by name, in the order of SIGNALS. None: nothing can be said (no event, no price, no word).

    `now_micros`: microseconds since 1970 (UTC). Prices and categories are those of `catalogue`.
    """
    evidence = Evidence(record, now_micros, catalogue)
    return {signal.name: signal.read(evidence) for signal in SIGNALS}


def render_page() -> str:
    """The page infra/docs/session-signals.md."""
    rows = [f"| `{signal.name}` | {signal.unit} | {signal.meaning} |" for signal in SIGNALS]
    return "\n".join([_PAGE_HEAD, "| signal | unit | what it says |", "|---|---|---|", *rows]) + "\n"


_PAGE_HEAD = f"""# Session signals

What the speed layer's record of one subject says milliseconds after the event: {len(SIGNALS)} signals. Generated:
`python -m serving.pipeline.session_signals > infra/docs/session-signals.md`.

`session_signals(record, now_micros, catalogue)` in `serving/pipeline/session_signals.py` is pure: the same record,
instant and version give the same values. The record holds facts only (events, cart changes, marks, counts); categories
and prices are those of the version that serves. A signal is null when nothing can be said: no event, no price, no word.
Events may come late and in any order: the record is a function of the set of events, within the bounds of its lists
(`feature_repo/contracts/session_record.py`).
"""

if __name__ == "__main__":
    print(render_page(), end="")
