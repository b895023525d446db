"""The rules of the quality gate on small profiles: what stops a night, what is told, what is a normal week."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.errors import DataError
from spark_jobs.quality.judging import (
    Catalogue,
    Evidence,
    Verdict,
    breach_message,
    choose_judged_days,
    judge,
    usual_volumes,
)
from spark_jobs.quality.limits import DEFAULTS, Limits, accepted_limits, limits_from, read_limits, with_stop
from spark_jobs.quality.page import render_page
from spark_jobs.quality.profile import Day, Part
from tests.builders import make_run

AS_OF = date(2024, 3, 29)  # a Friday; the judged day is Thursday 28 March
THURSDAY = AS_OF - timedelta(days=1)
SHAPE = (60, 70, 50, 105, 65, 130, 120)  # Monday ... Sunday, deliveries / 10


def part(deliveries: int, *, has: float = 1.0, price: float = 20.0, quantity: float = 2.0) -> Part:
    """A part whose user_id is known in three of four, all else in `has` of its deliveries."""
    filled = {"item_id": deliveries, "price": round(deliveries * has), "quantity": round(deliveries * has)}
    return Part(
        deliveries=deliveries, filled={**filled, "user_id": deliveries * 3 // 4}, with_event_id=deliveries,
        event_ids=deliveries, contents=deliveries, items=50, in_catalogue=deliveries, priced=deliveries,
        first_second=60, last_second=23 * 3600 + 3000, price=(price / 2, price, price * 2),
        quantity=(1.0, 1.0, quantity),
    )  # fmt: skip


def shop_day(day: date, *, deliveries: int | None = None, **shape: float) -> Day:
    """A day of a shop with two event types; Saturdays like SHAPE, with a little noise by the week."""
    count = deliveries if deliveries is not None else SHAPE[day.weekday()] * 10 + day.day
    views, buys = part(count - count // 5, **shape), part(count // 5, **shape)
    total = part(count, **shape)
    return Day(
        day, total, {"view_item": views, "purchase": buys}, {"bronze.events_import": count}, {"EUR": count},
        property_keys={"colour": count}, subjects=count // 4, users=count // 5, busiest_deliveries=20,
    )  # fmt: skip


def evidence(change: Callable[[Day], Day] = lambda day: day, *, closed: tuple[int, ...] = (), **other: Any) -> Evidence:
    """28 days; the last is judged and changed by `change`; `closed` are weekdays without deliveries."""
    days = [AS_OF - timedelta(days=28 - n) for n in range(28)]
    shop = [Day(day) if day.weekday() in closed else shop_day(day) for day in days]
    return Evidence(AS_OF, [*shop[:-1], change(shop[-1])], [THURSDAY], **other)


def found(verdict: Verdict) -> list[tuple[str, str, str]]:
    return [(finding.limit, finding.level, finding.subject) for finding in verdict.findings]


def with_total(**changes: Any) -> Callable[[Day], Day]:
    return lambda day: replace(day, total=replace(day.total, **changes))


def test_a_normal_night_passes() -> None:
    verdict = judge(evidence(), Limits())
    assert (verdict.level, verdict.findings, verdict.notes, verdict.history_days) == ("pass", (), (), 27)


BREACHES: dict[str, tuple[Callable[[Day], Day], str, str, str]] = {
    # name: change of the judged day, limit, subject, words; a usual Thursday has 1,050 + 7, 14 or 21, so 1,064;
    # the middle of all 27 days is Tuesday the 12th with 712
    "ten times": (lambda d: shop_day(d.day, deliveries=10_640), "volume_high", "",
                  "2024-03-28 has 10,640 deliveries, usually about 1,064 on a Thursday: 10.0 times as many; "
                  "warns above 2.5 times, stops above 6 times"),
    "a trickle": (lambda d: shop_day(d.day, deliveries=53), "volume_low", "",
                  "2024-03-28 has 53 deliveries, usually about 1,064 on a Thursday: 20.1 times fewer"),
    "missing": (lambda d: Day(d.day), "missing_day", "",
                "no deliveries on 2024-03-28, usually about 712 a day (3 of 3 Thursdays before had some)"),
    "nulls": (lambda d: shop_day(d.day, has=0.1), "null_share", "price",
              "price is null in 970 of 1,078 deliveries (90%), usually in 0%"),
    "other prices": (lambda d: shop_day(d.day, price=2000.0), "price_level", "view_item",
                     "the median price of view_item is 2,000, usually 20"),
    "quantities": (lambda d: shop_day(d.day, quantity=90.0), "quantity_level", "view_item", "is 90, usually 2"),
    "copies": (lambda d: replace(d, total=replace(d.total, contents=539)), "copied_share", "",
               "539 of 1,078 events say what another one says, under an id of their own (50.0%, usually 0.0%)"),
    "repeats": (lambda d: replace(d, total=replace(d.total, event_ids=539, contents=539)), "repeated_id_share", "",
                "539 of 1,078 deliveries repeat an event_id"),
    "unknown items": (with_total(in_catalogue=100), "unknown_item_share", "",
                      "978 of 1,078 deliveries have an item_id that the catalogue does not know"),
    "far prices": (with_total(far_priced=1000), "far_price_share", "", "1,000 of 1,078 prices are ten times"),
    "one subject": (lambda d: replace(d, busiest_deliveries=900), "busiest_subject_share", "", "one and the same"),
    "crawled": (lambda d: replace(d, bots=3, bot_deliveries=900), "bot_share", "", "are from 3 bots"),
    "no purchases": (lambda d: replace(d, types={"view_item": d.types["view_item"]}), "vanished_event_type",
                     "purchase", "2024-03-28 has no purchase, usually about 142 a day"),
    "morning only": (with_total(last_second=11 * 3600), "day_cut_short", "",
                     "2024-03-28 ends at 11:00 UTC, usually at 23:50"),
    "currency": (lambda d: replace(d, currencies={"USD": 1000, "EUR": 78}), "new_currency_share", "",
                 "brings currencies that were never seen: USD 1,000 of 1,078 deliveries"),
    "no users": (lambda d: replace(d, total=replace(d.total, filled={**d.total.filled, "user_id": 20})),
                 "known_user_loss", "", "user_id is null in 1,058 of 1,078 deliveries (98%), usually in 25%"),
}  # fmt: skip
TOLD_ONLY = {"no purchases"}  # 20 % of the deliveries is the bound itself


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_has_its_limit_and_its_words(name: str) -> None:
    change, limit, subject, words = BREACHES[name]
    verdict = judge(evidence(change), Limits())
    own = [f for f in verdict.findings if (f.limit, f.subject) == (limit, subject)]
    assert len(own) == 1, found(verdict)
    assert words in own[0].words
    assert own[0].level == ("warn" if name in TOLD_ONLY else "stop")
    assert verdict.level == own[0].level or verdict.level == "stop"
    if name not in TOLD_ONLY:
        message = breach_message(evidence(change), verdict)
        assert f"[{limit}]" in message
        assert "Silver was left as it was" in message
        accepted = judge(evidence(change), Limits(), frozenset(f.limit for f in verdict.stopping))
        assert (accepted.level, accepted.stopping) == ("warn", ())
        assert all(f.is_accepted for f in accepted.findings if f.level == "stop")


def test_a_weekend_and_a_peak_are_normal() -> None:
    peak = judge(evidence(lambda d: shop_day(d.day, deliveries=2_600)), Limits())  # 2.4 times
    assert peak.level == "pass"
    christmas = judge(evidence(lambda d: shop_day(d.day, deliveries=3_900)), Limits())
    assert found(christmas) == [("volume_high", "warn", "")]


def test_a_weekday_that_is_always_closed_is_not_missing() -> None:
    thursdays = evidence(lambda d: Day(d.day), closed=(3,))
    assert judge(thursdays, Limits()).level == "pass"


def test_an_empty_day_stops_only_at_the_end_of_a_night_that_publishes() -> None:
    wednesday = THURSDAY - timedelta(days=1)
    empty = evidence(lambda d: Day(d.day))
    assert judge(empty, Limits()).level == "stop"
    assert judge(replace(empty, publishes=False), Limits()).level == "warn"
    assert judge(empty, replace(Limits(), closed_days=frozenset({THURSDAY}))).level == "pass"

    went_on = evidence()
    days = [Day(day.day) if day.day == wednesday else day for day in went_on.days]
    verdict = judge(replace(went_on, days=days, judged=[wednesday, THURSDAY]), Limits())
    assert found(verdict) == [("missing_day", "warn", "")]
    assert "no deliveries on 2024-03-27" in verdict.findings[0].words


def test_a_day_that_goes_on_is_not_judged_for_what_is_to_come() -> None:
    def noon(day: Day) -> Day:
        few = replace(part(40), last_second=12 * 3600)
        quiet = replace(shop_day(day.day, deliveries=60), busiest_deliveries=3)
        return replace(quiet, total=replace(few, deliveries=60), types={"view_item": few})

    assert {f.limit for f in judge(evidence(noon), Limits()).findings} >= {
        "volume_low", "day_cut_short", "vanished_event_type",
    }  # fmt: skip
    verdict = judge(evidence(noon, last_day_is_over=False), Limits())
    assert verdict.level == "pass"
    assert verdict.notes[0].startswith("2024-03-28 was not over when the run started")
    assert judge(evidence(lambda d: Day(d.day), last_day_is_over=False), Limits()).level == "pass"
    tenfold = evidence(lambda d: shop_day(d.day, deliveries=10_640), last_day_is_over=False)
    assert judge(tenfold, Limits()).level == "stop"


def test_too_little_history_judges_only_what_needs_none() -> None:
    days = [shop_day(THURSDAY - timedelta(days=n)) for n in (6, 5, 4, 3, 2, 1)]
    tenfold = replace(shop_day(THURSDAY, deliveries=10_000), busiest_deliveries=9_000)
    tenfold = replace(tenfold, total=replace(tenfold.total, contents=5_000))
    verdict = judge(Evidence(AS_OF, [*days, tenfold], [THURSDAY]), Limits())
    assert found(verdict) == [("copied_share", "stop", "")]
    assert verdict.notes == (
        "Only 6 days of history lie in the window (7 are needed): nothing is usual yet, so only the limits that need "
        "no history were judged.",
    )


def test_a_day_too_small_for_shares_says_so() -> None:
    tiny = replace(shop_day(THURSDAY, deliveries=49), busiest_deliveries=49)
    verdict = judge(Evidence(AS_OF, [tiny], [THURSDAY]), Limits())
    assert verdict.level == "pass"
    assert verdict.notes[1] == "2024-03-28 has 49 deliveries, too few for shares (min_deliveries 50)."


def test_a_share_of_few_is_not_judged() -> None:
    assert judge(evidence(with_total(priced=49, far_priced=49)), Limits()).level == "pass"
    assert judge(evidence(with_total(priced=50, far_priced=50)), Limits()).level == "stop"


def test_shops_whose_days_differ_much_get_wider_bounds_but_never_ten_times() -> None:
    wild = [400, 4_000, 900, 2_500, 600, 3_000, 1_200]
    days = [shop_day(AS_OF - timedelta(days=28 - n), deliveries=wild[n % 5]) for n in range(27)]

    def level(deliveries: int) -> str:
        verdict = judge(Evidence(AS_OF, [*days, shop_day(THURSDAY, deliveries=deliveries)], [THURSDAY]), Limits())
        return next((f.level for f in verdict.findings if f.limit == "volume_high"), "pass")

    usual = usual_volumes(Evidence(AS_OF, [*days, shop_day(THURSDAY)], [THURSDAY]), Limits())[THURSDAY][0]
    assert level(round(usual * 3)) == "pass"  # above 2.5, within a quarter more
    assert level(round(usual * 7)) == "warn"
    assert level(round(usual * 10)) == "stop"


def test_the_run_as_a_whole() -> None:
    broken = judge(evidence(derived=1_000, quarantined={"invalid_price": 201, "unknown_event_type": 1}), Limits())
    assert found(broken) == [("quarantined_share", "stop", "")]
    assert broken.findings[0].words.startswith(
        "202 of 1,000 deliveries before 2024-03-29 break a rule (invalid_price 201, unknown_event_type 1)"
    )
    assert (
        judge(evidence(derived=1_000, quarantined={"x": 202}), with_stop(Limits(), "quarantined_share", 0.3)).level
        == "warn"
    )
    refused = judge(evidence(refused={"unreadable": 900}, arrived=100), Limits())
    assert found(refused) == [("refused_share", "stop", "")]
    assert (
        "900 of 1,000 lines and events of the judged days were refused at the entrance (unreadable 900)"
        in refused.findings[0].words
    )
    drift = judge(evidence(missing_columns=["bronze.events.price"], new_columns=["bronze.events.colour"]), Limits())
    assert found(drift) == [("missing_column", "stop", ""), ("new_column", "warn", "")]
    assert found(judge(evidence(beyond=5_000), Limits())) == [("beyond_as_of", "warn", "")]
    shrunk = evidence(catalogue=Catalogue(300, 30), catalogue_before=Catalogue(800, 800))
    assert found(judge(shrunk, Limits())) == [("catalogue_shrunk", "stop", ""), ("catalogue_price_loss", "stop", "")]


def test_properties_and_types_that_are_new_are_told() -> None:
    renamed = lambda d: replace(d, property_keys={"color": 1_000}, types={**d.types, "like": part(5)})  # noqa: E731
    assert found(judge(evidence(renamed), Limits())) == [
        ("new_event_type", "warn", ""), ("property_drift", "warn", "color"), ("property_drift", "warn", "colour"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("derive", "events", "judged"),
    [
        (None, (1, 2, 9), [9]),
        ((9,), (1, 8, 9), [9]),
        ((7, 9), (1, 5, 7, 9), [6, 7, 8, 9]),  # 6 and 8 are empty: since 5, nothing was derived
        ((3, 9), (1, 3, 8, 9), [3, 9]),  # 3 March gained late events
        ((), (1, 8), [9]),  # nothing came
        ((), (1, 9), []),  # the same as_of again
        ((1, 2), (1, 2), [1, 2]),  # everything is new: no other day tells where it began
    ],
)
def test_which_days_are_judged(derive: tuple[int, ...] | None, events: tuple[int, ...], judged: list[int]) -> None:
    def march(day: int) -> date:
        return date(2024, 3, day)

    given = None if derive is None else [march(day) for day in (*derive,)]
    chosen = choose_judged_days(march(10), date(2024, 2, 10), given, [march(day) for day in events])
    assert chosen == [march(day) for day in judged]


# --- limits ---------------------------------------------------------------------------------------------------------


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(
        'window_days = 35\nclosed_days = ["2024-12-25", 2024-12-26]\n[limits.volume_high]\nstop = 20\n'
        '[limits.late_share]\nwarn = "off"\n'
    )
    limits = read_limits(str(path))
    assert (limits.window_days, limits.min_history_days) == (35, 7)
    assert limits.closed_days == {date(2024, 12, 25), date(2024, 12, 26)}
    assert (limits.bounds["volume_high"].warn, limits.bounds["volume_high"].stop) == (2.5, 20.0)
    assert (limits.bounds["late_share"].warn, limits.bounds["late_share"].stop) == (None, 0.6)
    (tmp_path / "limits.json").write_text('{"limits": {"volume_high": {"stop": 20}}}')
    assert read_limits(str(tmp_path / "limits.json")).bounds["volume_high"].stop == 20
    assert read_limits("") == Limits()
    assert DEFAULTS["volume_high"].stop == 6.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"window_dayz": 3}, "unknown setting 'window_dayz'; did you mean 'window_days'?"),
        ({"window_days": 3}, "window_days is a whole number of 7 to 366, got 3"),
        ({"limits": {"volume_hig": {}}}, "no quality limit 'volume_hig'; did you mean 'volume_high'?"),
        ({"limits": {"volume_high": {"stopp": 3}}}, "limit volume_high takes warn and stop, got {'stopp': 3}"),
        ({"limits": {"volume_high": {"stop": -1}}}, 'limits.volume_high.stop is a number >= 0 or "off", got -1'),
        ({"limits": {"volume_high": {"stop": 2}}}, "limit volume_high warns at 2.5 and stops at 2: warn first"),
        ({"closed_days": ["tomorrow"]}, "a day is such as 2025-12-25, got 'tomorrow'"),
        ([], "quality limits are a table, got []"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(values: Any, words: str) -> None:
    with pytest.raises(DataError) as raised:
        limits_from(values)
    assert words in str(raised.value)


def test_accepting_needs_a_name_that_exists() -> None:
    assert accepted_limits(" volume_high, missing_day,") == {"volume_high", "missing_day"}
    assert accepted_limits(None) == frozenset()
    with pytest.raises(DataError, match=r"no quality limit 'volume'.*; known: missing_day, "):
        accepted_limits("volume")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the quality limits .*absent\.toml cannot be read"):
        read_limits(str(tmp_path / "absent.toml"))


def test_the_documentation_has_every_limit() -> None:
    text = (Path(__file__).parents[2] / "infra" / "docs" / "quality-gates.md").read_text()

    def bound(value: float | None) -> str:
        return "off" if value is None else f"{value:g}"

    missing = [
        name
        for name, limit in DEFAULTS.items()
        if f"| `{name}` | {limit.unit} | {bound(limit.warn)} | {bound(limit.stop)} |" not in text
    ]
    assert missing == []


# --- the page -------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Counts elements and collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href", "srcset")]


def page_of(given: Evidence) -> tuple[str, _Page]:
    run = make_run(environment_of_no_place, AS_OF, run_key="<night>")
    text = render_page(run, given, Limits(), judge(given, Limits()))
    parsed = _Page()
    parsed.feed(text)
    return text, parsed


class environment_of_no_place:  # noqa: N801 - stands where an Environment is read for its tenant
    tenant = "default"


def test_the_page_stands_alone_and_escapes_what_came_with_the_data() -> None:
    def hostile(day: Day) -> Day:
        return replace(day, property_keys={"<script>alert(1)</script>": 1_000})

    text, parsed = page_of(evidence(hostile, refused={"<b>": 3}, arrived=1_000))
    assert parsed.fetched == []
    assert "script" not in parsed.tags
    assert "url(" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert parsed.tags["svg"] >= 4
    assert "&lt;night&gt;" in text


def test_the_first_screen_says_what_happened() -> None:
    text, _ = page_of(evidence(BREACHES["ten times"][0]))
    head = text[text.index("<h1>") : text.index("<h2>")]
    assert "The data of 2024-03-28 is not what usually comes, so the night stopped" in head
    assert "10,640 deliveries, usually about 1,064 on a Thursday" in head
    assert "accept_quality=volume_high" in head
    calm, _ = page_of(evidence())
    assert "The data of 2024-03-28 is what usually comes" in calm
    nothing, _ = page_of(replace(evidence(), judged=[]))
    assert "Nothing new to judge" in nothing
