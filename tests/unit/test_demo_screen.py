"""The demo's screen says what happened: who won, what moved, what did not hold."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console

from infra.demo import screen
from infra.demo.shop_window import Cast, ShopWindow
from infra.demo.story import Check, Clicked

WINDOW = ShopWindow(
    version="2024-03-08-1a2b3c4d",
    items={
        "i1": {"title": "Red [lamp]", "category": "Home > Lamps"},
        "i2": {"title": "Blue lamp", "category": "Home > Lamps"},
        "i3": {"title": None, "category": None},
    },
    number_to_id={},
    popular_by_category={},
    popular=[],
    neighbour_count={},
)


def printed(show, *values: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(console, *values)
    return console.file.getvalue()


def item(item_id: str, rank: int, reason: str, also: str | None = None) -> dict:
    reasons = [{"item_id": "i9", "title": "Old lamp", "text": reason}]
    if also:
        reasons.append({"item_id": "i8", "title": also, "text": f"because you viewed {also}"})
    return {"item_id": item_id, "rank": rank, "score": 0.5, "source": "session", "reasons": reasons}


def clicked(before: list[dict], after: list[dict]) -> Clicked:
    rows = [
        {"item_id": i, "event_type": kind, "event_timestamp": datetime(2024, 3, 7, tzinfo=UTC)}
        for i, kind in (("i1", "view_item"), ("i2", "purchase"), ("i1", "view_item"))
    ]
    cast = Cast("u1", "u2", rows, "Home > Lamps", ["i9"])
    answers = ({"items": before}, {"items": after}, {"items": before}, {"items": []}, {"items": []})
    return Clicked(cast, *answers, acknowledge_ms=[1.0], answer_changed_ms=4.0)


def test_a_slate_shows_what_moved_and_why() -> None:
    story = clicked(
        [item("i2", 1, "x"), item("i3", 2, "x")],
        [item("i1", 1, "because you viewed Old lamp", "Gold"), item("i2", 2, "x")],
    )
    text = printed(screen.show_move, WINDOW, story)
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "new", "Red", "[lamp]", "Home", ">", "Lamps", "0.500", "session"] in lines
    assert ["2", "▼1", "Blue", "lamp", "Home", ">", "Lamps", "0.500", "session"] in lines
    assert "because you viewed Old lamp and Gold" in text


def test_a_slate_is_two_lines_an_item_on_a_narrow_screen() -> None:
    window = replace(WINDOW, items={**WINDOW.items, "i1": {"title": "A lamp " * 9, "category": "Home > Lamps"}})
    slate = {"items": [item("i1", 1, "because you viewed Old lamp", "Gold"), item("i2", 2, "popular")]}
    lines = printed(screen.show_slate, window, slate, "Theirs", width=80).splitlines()
    assert lines[:3] == ["", "Theirs", ""]
    assert len(lines) == 7
    assert max(len(line) for line in lines) <= 80
    assert lines[3].startswith(" 1  A lamp A lamp")
    assert "…" in lines[3]
    assert [line.strip() for line in lines[4::2]] == ["because you viewed Old lamp and Gold", "popular"]


def test_history_groups_an_items_events() -> None:
    text = printed(screen.show_history, WINDOW, clicked([], []))
    assert "the newest of 2 items" in text
    assert "view_item 2" in text
    assert "purchase 1" in text


def test_the_winner_is_marked_and_comes_first() -> None:
    def model(ndcg: float) -> dict:
        metrics = {"all": {"ndcg_at_20": ndcg, "recall_at_20": 0.5}, ">20": {"ndcg_at_20": ndcg / 2}}
        return {"metrics": metrics, "beyond_accuracy": {}, "fit_seconds": 0.25}

    evaluation = {
        "test": {"days": 7, "users_by_slice": {"5-20": 0, "<5": 0, ">20": 12, "all": 12}},
        "models": {"als": model(0.125), "item_knn": model(0.25)},
    }
    gate = {"verdict": "publish", "contestant": "item_knn", "reasons": ["item_knn wins [0.1]"]}
    lines = [line.split() for line in printed(screen.show_models, evaluation, gate).splitlines()]
    rows = [line for line in lines if line and line[0] in ("als", "item_knn")]
    assert rows == [
        ["item_knn", "*", "0.2500", "-", "-", "0.125", "0.500", "-", "-", "0.2"],
        ["als", "0.1250", "-", "-", "0.062", "0.500", "-", "-", "0.2"],
    ]
    assert ["-", "item_knn", "wins", "[0.1]"] in lines
    evaluation["models"]["with_session"] = {**model(0.5), "beside": "item_knn"}
    evaluation["test"] |= {"users": 30, "users_in_a_session": 4}
    told = " ".join(printed(screen.show_models, evaluation, gate).split())
    assert "with_session: item_knn's lists, blended with the session that asks; 4 of 30 had one. Not judged." in told


def test_a_claim_that_failed_stands_out() -> None:
    text = printed(screen.show_checks, [Check("holds", True, "3 of 10"), Check("fails", False, "2 of 10")])
    assert [line.split()[0] for line in text.splitlines() if "of 10" in line] == ["yes", "NO"]


def test_reports_are_sorted_by_count() -> None:
    report = {
        "kind": "events", "read": 1010, "accepted": 1000, "quarantined_total": 10, "not_stored": 0,
        "quarantined": {"a": 2, "b": 5, "c": 3}, "notes": {},
    }  # fmt: skip
    total = {"read": 1000, "kept": 990, "duplicates": 9, "quarantined": 0, "withheld": 0, "outside": 1}
    refine = {"total": total, "events": 990, "bot_events": 4, "bots": 1, "sessions": 8, "interactions": 700}
    text = printed(screen.show_counts, [report], refine)
    assert "events quarantined: b 5, c 3, a 2" in text
    assert "1,000 deliveries = 990 kept + 9 duplicates + 0 quarantined + 0 withheld + 1 after as_of" in text.replace(
        "\n", " "
    )
