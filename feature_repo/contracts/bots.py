"""Who is no person: one definition for the speed layer and for the night.

A subject is judged by UTC day of event time, from counters that are small and forget nothing that a rule asks for. The
night computes the same counters in Spark (`spark_jobs.transforms.bots`; a test holds the two to each other). What each
limit lets pass of real shops' logs is in infra/docs/event-quality.md.

The rules look at what a page does when somebody looks at it. Order lines, impressions and lists come in bulk from
people too, so they prove nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any

from feature_repo.contracts.events import EventType

BROWSING_TYPES = (
    EventType.VIEW_ITEM, EventType.SELECT_ITEM, EventType.CLICK, EventType.SEARCH, EventType.PAGE_VIEW,
)  # fmt: skip
"""What the rates count, line by line. `view_item_list` is not among them: one list is many lines at one instant."""

VIEWING_TYPE = EventType.VIEW_ITEM
"""What dwell, sweep and rhythm look at. A page that sends `page_view` at the same instant changes nothing there."""


class BotRule(StrEnum):
    """Why a subject is taken for a bot. Stable words: they are stored and shown."""

    CRAWLER_AGENT = "crawler_agent"
    PER_SECOND = "per_second"
    PER_MINUTE = "per_minute"
    PER_HOUR = "per_hour"
    PER_DAY = "per_day"
    NO_DWELL = "no_dwell"
    SWEEP = "sweep"
    RHYTHM = "rhythm"


MAX_PER_SECOND = 20
"""Browsing events in one second: a page of tabs restored at once is less."""
MAX_PER_MINUTE = 30
LEAST_FOR_MINUTE = 200
"""One every two seconds for a minute, on a day of more than LEAST_FOR_MINUTE: fast once, and at it for long."""
MAX_PER_HOUR = 600
"""One every six seconds for a whole hour."""
MAX_PER_DAY = 2_000
"""Eight hours with one every fifteen seconds."""
QUICK_MICROS = 1_000_000
LEAST_QUICK_GAPS = 100
MAX_QUICK_SHARE = 0.9
"""Of at least LEAST_QUICK_GAPS steps from one viewed item to the next, this share and more took under a second."""
MAX_ITEMS = 1_000
"""Different items looked at in one day."""
LEAST_STEPS = 100
STEADY_SHARE_OF_STEP = 0.05
LEAST_STEP_MICROS = 1_500_000
MAX_STEADY_SHARE = 0.8
"""Of at least LEAST_STEPS pairs of consecutive steps, this share and more differ by at most 5 %. Steps below 1.5 s are
not looked at: clocks that count whole seconds make them equal."""

LEAST_BUSY = MAX_PER_SECOND
"""A subject with at most so many browsing events on a day can break no rule but `crawler_agent`."""
LEAST_FOR_LONG_RULES = 1 + min(
    LEAST_FOR_MINUTE, MAX_PER_HOUR, MAX_PER_DAY, LEAST_QUICK_GAPS, MAX_ITEMS, LEAST_STEPS + 1
)
"""A subject with fewer browsing events on a day can break no rule but `crawler_agent` and `per_second`: a step lies
between two events, a pair of steps between three."""

AGENT_FIELDS = ("user_agent", "userAgent")
"""Where `context` names the program that was used: ours, and Segment's."""

CRAWLER_WORDS = (
    "bot/", "bot;", "bot)", "+http", "crawler", "spider", "slurp", "facebookexternalhit", "headlesschrome", "phantomjs",
    "lighthouse", "pingdom", "uptimerobot", "python-requests", "python-httpx", "aiohttp/", "scrapy", "curl/", "wget/",
    "go-http-client",
)  # fmt: skip
"""In lower case. Crawlers that mean no harm say what they are, and most link to a page about themselves (`+http`)."""
NOT_CRAWLERS = ("cubot",)
"""A maker of phones, taken out before the words above are looked for."""


@lru_cache(maxsize=8192)
def is_crawler_agent(user_agent: str) -> bool:
    """Whether a user agent names a crawler or a program that fetches pages."""
    text = user_agent.lower()
    for word in NOT_CRAWLERS:
        text = text.replace(word, "")
    return any(word in text for word in CRAWLER_WORDS)


def user_agent_of(context: object) -> str | None:
    """The user agent in an event's `context`, or None."""
    if type(context) is dict or isinstance(context, Mapping):
        for name in AGENT_FIELDS:
            if name in context:
                value = context[name]
                if value and isinstance(value, str):
                    return value
    return None


@dataclass(slots=True)
class BotCounters:
    """What one subject did on one UTC day, in order of event time.

    browsing            events of BROWSING_TYPES
    *_peak              the most of them in one clock second, minute, hour
    gaps, quick_gaps    steps from one view to the next; those under QUICK_MICROS
    steps, steady_steps pairs of consecutive steps that are long enough for `rhythm`; those that are alike
    items               hashes of the items viewed, at most MAX_ITEMS + 1 of them
    """

    browsing: int = 0
    second_peak: int = 0
    minute_peak: int = 0
    hour_peak: int = 0
    gaps: int = 0
    quick_gaps: int = 0
    steps: int = 0
    steady_steps: int = 0
    is_crawler: bool = False
    items: set[int] = field(default_factory=set)
    _second: int = -1
    _in_second: int = 0
    _minute: int = -1
    _in_minute: int = 0
    _hour: int = -1
    _in_hour: int = 0
    _last_view: int = -1
    _last_gap: int = -1

    def add(self, event_type: str, micros: int, item_id: str | None, *, context: Any = None) -> None:
        """Count one event, or one line of one. `micros` is event time, us since 1970.

        An event that is older than its predecessor counts for the day only: rates and steps are those of what came in
        order. So a shuffled stream is judged more mildly here than by the night, which sorts.
        """
        if context and not self.is_crawler:
            agent = user_agent_of(context)
            self.is_crawler = agent is not None and is_crawler_agent(agent)
        if event_type not in BROWSING_NAMES:
            return
        self.browsing += 1
        second = micros // 1_000_000
        if second == self._second:
            self._in_second += 1
            self._in_minute += 1
            self._in_hour += 1
        elif second > self._second:
            minute, hour = second // 60, second // 3600
            self._in_second = 1
            self._in_minute = self._in_minute + 1 if minute == self._minute else 1
            self._in_hour = self._in_hour + 1 if hour == self._hour else 1
            self._second, self._minute, self._hour = second, minute, hour
        if self._in_second > self.second_peak:
            self.second_peak = self._in_second
        if self._in_minute > self.minute_peak:
            self.minute_peak = self._in_minute
        if self._in_hour > self.hour_peak:
            self.hour_peak = self._in_hour
        if event_type == _VIEWING:
            self._view(micros, item_id)

    def _view(self, micros: int, item_id: str | None) -> None:
        if item_id is not None and len(self.items) <= MAX_ITEMS:
            self.items.add(hash(item_id))
        if self._last_view >= 0:
            gap = micros - self._last_view
            if gap < 0:
                return
            self.gaps += 1
            self.quick_gaps += gap < QUICK_MICROS
            if self._last_gap >= LEAST_STEP_MICROS and gap >= LEAST_STEP_MICROS:
                self.steps += 1
                self.steady_steps += abs(gap - self._last_gap) <= STEADY_SHARE_OF_STEP * self._last_gap
            self._last_gap = gap
        self._last_view = micros


_VIEWING = VIEWING_TYPE.value
BROWSING_NAMES = frozenset(str(kind) for kind in BROWSING_TYPES)
"""Of an event of any other type the counters note its user agent, and nothing of its lines."""


def is_bot(counters: BotCounters) -> bool:
    """Whether any rule is broken; fast for the many who did little."""
    return counters.is_crawler or (counters.browsing > LEAST_BUSY and bool(broken_bot_rules(counters)))


def broken_bot_rules(counters: BotCounters) -> list[BotRule]:
    """The rules that these counters break, in the order of `BotRule`; empty for a person."""
    c = counters
    broken = {
        BotRule.CRAWLER_AGENT: c.is_crawler,
        BotRule.PER_SECOND: c.second_peak > MAX_PER_SECOND,
        BotRule.PER_MINUTE: c.minute_peak > MAX_PER_MINUTE and c.browsing > LEAST_FOR_MINUTE,
        BotRule.PER_HOUR: c.hour_peak > MAX_PER_HOUR,
        BotRule.PER_DAY: c.browsing > MAX_PER_DAY,
        BotRule.NO_DWELL: c.gaps >= LEAST_QUICK_GAPS and c.quick_gaps >= MAX_QUICK_SHARE * c.gaps,
        BotRule.SWEEP: len(c.items) > MAX_ITEMS,
        BotRule.RHYTHM: c.steps >= LEAST_STEPS and c.steady_steps >= MAX_STEADY_SHARE * c.steps,
    }
    return [rule for rule, is_broken in broken.items() if is_broken]
