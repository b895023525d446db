"""Every session signal with numbers worked out by hand, and the page that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from feature_repo.contracts.session_record import CartChange, ItemMark, SessionEvent, SessionState, Word, session_hash
from serving.pipeline.cart import cart_contents
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.session_signals import SIGNALS, category_interests, render_page, session_signals
from tests.serving_builders import Shop

PAGE = Path(__file__).parents[2] / "infra" / "docs" / "session-signals.md"
SECOND = 1_000_000
DAY = 19_790  # 2024-03-08
NOW = DAY * 86_400 * SECOND + 43_200 * SECOND  # noon
SHOP = Shop(
    {
        "mug": {"title": "Mug", "category": "Home > Kitchen", "price": 4.0},
        "cup": {"title": "Cup", "category": "Home > Kitchen", "price": 8.0},
        "lamp": {"title": "Lamp", "category": "Home", "price": 30.0},
        "bare": {"title": "Bare"},
    },
    first_number=1,
)
HERE = session_hash("s1")


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return SHOP.catalogue(tmp_path_factory.mktemp("publications"))


def ago(seconds: float) -> int:
    return NOW - int(seconds * SECOND)


STATE = SessionState(
    events=[
        SessionEvent(ago(9000), "purchase", session_hash("s0"), "bare"),
        SessionEvent(ago(600), "view_item", HERE, "lamp"),
        SessionEvent(ago(300), "view_item", HERE, "mug"),
        SessionEvent(ago(240), "add_to_cart", HERE, "mug"),
        SessionEvent(ago(180), "click", HERE, "mug"),
        SessionEvent(ago(60), "add_to_wishlist", HERE, "cup"),
    ],
    steps=[
        SessionEvent(ago(9500), "search", session_hash("s0"), ""),
        SessionEvent(ago(700), "page_view", HERE, ""),
        SessionEvent(ago(650), "search", HERE, ""),
        SessionEvent(ago(30), "begin_checkout", HERE, ""),
    ],
    cart=[
        CartChange(ago(9100), False, 1, "bare"),
        CartChange(ago(240), False, 3, "mug"),
        CartChange(ago(200), True, 1, "mug"),
        CartChange(ago(100), False, 1, "unknown"),
    ],
    bought=[ItemMark(ago(9000), "bare")],
    dismissed=[ItemMark(ago(500), "lamp")],
    seen={"lamp": ago(600), "mug": ago(180), "cup": ago(60), "bare": ago(9000)},
    interests={(DAY, "mug"): 6, (DAY - 1, "mug"): 2, (DAY - 4, "cup"): 8, (DAY, "lamp"): 40, (DAY, "unknown"): 9},
    counts={"view_item": 4, "click": 1, "add_to_cart": 2, "purchase": 1, "search": 2, "impression": 4, "page_view": 1},
    words={name: Word(1, name[:3]) for name in ("device", "channel", "referrer", "first_referrer", "language")},
    first_micros=ago(10_000),
    last_micros=ago(30),
)


def test_every_signal_by_hand(catalogue: Catalogue) -> None:
    """The running session: six lines of `s1` on mug, cup and lamp. Kitchen's interest: today 3 x 1 for the mug,
    yesterday 1 x 2^(-0.5/3), four days ago 4 x 2^(-3.5/3); the lamp was dismissed."""
    found = session_signals(STATE, NOW, catalogue)
    assert found == {
        "session_event_count": 5,
        "session_duration_seconds": 670.0,  # the first page view to the checkout
        "session_idle_seconds": 30.0,
        "session_mean_gap_seconds": 135.0,  # 540 s, four gaps
        "session_distinct_items": 3,
        "session_distinct_categories": 2,
        "session_view_count": 3,
        "session_repeat_view_share": pytest.approx(1 / 3),
        "session_cart_add_count": 1,
        "session_cart_remove_count": 0,
        "session_wishlist_count": 1,
        "session_purchase_count": 0,
        "session_search_count": 1,
        "session_page_view_count": 1,
        "session_checkout_begun": 1,
        "session_mean_price": 14.0,
        "session_max_price": 30.0,
        "session_last_price_ratio": pytest.approx(8 / 14),
        "session_last_item": "cup",
        "session_last_category": "Home > Kitchen",
        "session_category_streak": 4,
        "cart_item_count": 2,
        "cart_quantity": 3,
        "cart_value": 8.0,
        "cart_idle_seconds": 100.0,
        "seconds_since_purchase": 9000.0,
        "seconds_since_cart_add": 240.0,
        "seconds_since_dismissal": 500.0,
        "bought_item_count": 1,
        "dismissed_item_count": 1,
        "seen_item_count": 4,
        "total_event_count": 15,
        "total_purchase_count": 1,
        "total_search_count": 2,
        "view_to_cart_rate": pytest.approx(2 / 5),
        "click_through_rate": pytest.approx(1 / 4),
        "known_for_seconds": 10_000.0,
        "top_category": "Home > Kitchen",
        "top_category_share": 1.0,
        "interest_category_count": 1,
        "device": "dev",
        "channel": "cha",
        "referrer": "ref",
        "first_referrer": "fir",
        "language": "lan",
    }
    assert list(found) == [signal.name for signal in SIGNALS]


def test_interests_halve_every_three_days_and_follow_the_category_of_the_version(catalogue: Catalogue) -> None:
    two = SessionState(interests={(DAY, "mug"): 4, (DAY - 4, "lamp"): 8, (DAY - 1, "bare"): 90})
    kitchen, home = 2.0, 4 * 0.5 ** (3.5 / 3)
    assert category_interests(two, catalogue, now_micros=NOW) == {
        "Home > Kitchen": pytest.approx(kitchen / (kitchen + home)), "Home": pytest.approx(home / (kitchen + home)),
    }  # fmt: skip
    assert list(category_interests(two, catalogue, now_micros=NOW)) == ["Home > Kitchen", "Home"]


def test_nobody_has_no_signals_and_an_old_session_is_over(catalogue: Catalogue) -> None:
    nothing = session_signals(SessionState(), NOW, catalogue)
    counts = {name for name, value in nothing.items() if value == 0}
    assert {name for name, value in nothing.items() if value is not None} == counts
    assert {name for name in nothing if name.endswith(("_count", "_quantity"))} <= counts
    still = session_signals(STATE, NOW + 1770 * SECOND, catalogue)  # 1,800 s after the last step
    assert (still["session_event_count"], still["session_checkout_begun"]) == (5, 1)
    later = session_signals(STATE, NOW + 1771 * SECOND, catalogue)
    assert (later["session_event_count"], later["session_checkout_begun"]) == (0, 0)
    assert later["cart_item_count"] == 2
    ahead = session_signals(STATE, ago(60), catalogue)
    assert (ahead["session_idle_seconds"], ahead["session_event_count"]) == (0.0, 5)


def test_a_cart_that_was_bought_is_empty_until_something_comes_in_again() -> None:
    changes = [
        CartChange(10, False, 2, "a"),
        CartChange(30, False, 1, "a"),
        CartChange(20, False, 1, "b"),
    ]  # that very instant
    state = SessionState(cart=sorted(changes), bought=[ItemMark(20, "a"), ItemMark(20, "b")])
    assert dict(cart_contents(state)) == {"a": 1}
    assert dict(cart_contents(SessionState(cart=[CartChange(1, True, 0, "a"), CartChange(2, True, 5, "b")]))) == {}


def test_there_are_thirty_and_more_each_named_once_and_the_page_is_current() -> None:
    names = [signal.name for signal in SIGNALS]
    assert len(names) >= 30
    assert len(set(names)) == len(names)
    command = "python -m serving.pipeline.session_signals > infra/docs/session-signals.md"
    assert PAGE.read_text(encoding="utf-8") == render_page(), command
