"""Changes of items and users: the rules, the merge against a slow replay, and the overlay over a version."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.changes import (
    DELETE,
    ITEMS,
    PATCH,
    PUT,
    USERS,
    Change,
    RecordState,
    changed_row,
    check_change,
)
from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.events import Reason
from feature_repo.contracts.tables import table
from serving.adapters.change_feed import CatalogueTail, Compacted, MemoryChangeFeed
from serving.adapters.memory_event_log import MemoryEventLog
from serving.pipeline import overlay as overlay_module
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.filters import SlateFilter
from serving.pipeline.overlay import SERVED_FIELDS, CatalogueOverlay
from tests.serving_builders import Shop

NOON = datetime(2024, 3, 8, 12, tzinfo=UTC)
NOON_MICROS = 1_709_899_200_000_000
SECOND = 1_000_000


def change(operation: str, record: Any, kind: str = ITEMS) -> Change:
    found, rejection = check_change(kind, operation, record, received_at=NOON)
    assert found is not None, rejection
    return found


def rejected(operation: str, record: Any, kind: str = ITEMS) -> tuple[Reason, str | None]:
    found, rejection = check_change(kind, operation, record, received_at=NOON)
    assert found is None
    assert rejection is not None
    return rejection.reason, rejection.field


class TestRules:
    def test_a_patch_says_only_what_it_names(self) -> None:
        record = {"item_id": "i", "price": 3, "expire_time": None, "tags": None, "colour": "red",
                  "attributes": {"size": None, "shape": "round"}}  # fmt: skip
        assert change(PATCH, record) == Change(
            ITEMS, "i", PATCH, NOON_MICROS, NOON_MICROS,
            {"price": 3.0, "expire_time": None, "attributes.colour": "red", "attributes.shape": "round",
             "attributes.size": None, "attributes.tags": None},
        )  # fmt: skip
        assert change(PATCH, {"item_id": "i", "categories": ["A > B", "C"]}).fields == {"category": "A > B"}
        assert change(PATCH, {"item_id": "i", "attributes": None}).fields == {"attributes": None}

    def test_null_means_what_absent_means_to_the_table(self) -> None:
        emptied = change(PATCH, {"item_id": "i", "availability": None, "is_hidden": None, "title": None})
        assert emptied.fields == {"availability": "IN_STOCK", "is_hidden": False, "title": None}

    def test_a_put_says_everything(self) -> None:
        said = change(PUT, {"item_id": "i", "title": "T", "expire_time": "2024-04-01T02:00:00+02:00"})
        assert said.fields == {
            "title": "T", "category": None, "brand": None, "price": None, "currency": None, "availability": "IN_STOCK",
            "available_quantity": None, "created_at": None, "expire_time": "2024-04-01T00:00:00Z", "is_hidden": False,
            "url": None, "image_url": None, "attributes": None,
        }  # fmt: skip

    def test_a_consent_changes_only_by_being_said(self) -> None:
        assert set(change(PUT, {"user_id": "u", "consent": {"store": False}}, USERS).fields) == {
            "region", "created_at", "attributes", "consent_store",
        }  # fmt: skip
        patch = change(PATCH, {"user_id": "u", "consent": {"personalize": None}, "consent_train": "no"}, USERS)
        assert patch.fields == {"consent_personalize": None, "consent_train": False}
        everything = change(PATCH, {"user_id": "u", "consent": None}, USERS).fields
        assert everything == dict.fromkeys([f"consent_{p}" for p in ("store", "train", "personalize", "share")])

    def test_a_delete_hides_an_item_and_forgets_a_user_but_no_consent(self) -> None:
        assert change(DELETE, "i").fields == {"is_hidden": True}
        assert change(DELETE, {"item_id": "i", "title": "of no consequence"}).fields == {"is_hidden": True}
        assert change(DELETE, "u", USERS).fields == {"region": None, "created_at": None, "attributes": None}

    def test_updated_at_orders_changes_and_must_not_lie_far_ahead(self) -> None:
        said = change(PATCH, {"item_id": "i", "price": 1, "updated_at": "2024-03-08T11:00:00Z"})
        assert (said.at_micros, said.received_micros) == (NOON_MICROS - 3600 * SECOND, NOON_MICROS)
        assert said.fields == {"price": 1.0}
        tomorrow = {"item_id": "i", "updated_at": "2024-03-09T12:00:00.000001Z"}
        assert rejected(PATCH, tomorrow) == (Reason.TIMESTAMP_IN_FUTURE, "updated_at")

    @pytest.mark.parametrize(
        ("kind", "operation", "record", "expected"),
        [
            (ITEMS, PATCH, {"price": 1}, (Reason.MISSING_ITEM_ID, "item_id")),
            (ITEMS, PUT, {"item_id": "i", "price": -1}, (Reason.INVALID_PRICE, "price")),
            (ITEMS, PATCH, "i", (Reason.UNREADABLE, None)),
            (ITEMS, DELETE, "", (Reason.INVALID_ITEM_ID, "item_id")),
            (ITEMS, DELETE, 7, (Reason.UNREADABLE, None)),
            (USERS, PATCH, {"user_id": "u", "consent": {"sell": True}}, (Reason.INVALID_FIELD, "consent")),
            (USERS, DELETE, {}, (Reason.MISSING_SUBJECT, "user_id")),
            (ITEMS, PATCH, {"item_id": "i", "attributes": {"available_time": "soon"}},
             (Reason.INVALID_TIMESTAMP, "attributes.available_time")),
            (ITEMS, PUT, {"item_id": "i", **{f"f{n}": n for n in range(201)}}, (Reason.INVALID_FIELD, "attributes")),
        ],
    )  # fmt: skip
    def test_what_breaks_a_rule_is_rejected(self, kind: str, operation: str, record: Any, expected: Any) -> None:
        assert rejected(operation, record, kind) == expected

    def test_nesting_has_a_bound(self) -> None:
        deep: Any = 1
        for _ in range(33):
            deep = [deep]
        assert rejected(PUT, {"item_id": "i", "x": deep}) == (Reason.NESTED_TOO_DEEPLY, None)

    def test_an_attribute_that_is_called_updated_at_is_no_time_of_ours(self) -> None:
        said = change(PATCH, {"item_id": "i", "attributes": {"updated_at": "whenever", "size": 1}})
        assert (said.at_micros, said.fields) == (NOON_MICROS, {"attributes.size": 1})
        row = {**dict.fromkeys(table("bronze.items").columns), "item_id": "i", "attributes": '{"updated_at": "once"}'}
        found = changed_row(ITEMS, row, [(said, 0)])
        assert found is not None
        assert found["attributes"] == '{"size": 1, "updated_at": "once"}'

    @pytest.mark.parametrize(
        ("name", "bad", "good"),
        [
            ("available_quantity", True, 3), ("available_quantity", "3", 0), ("price", "3", 2.5), ("price", False, 3),
            ("is_hidden", None, False), ("is_hidden", 1, True), ("availability", None, "BACKORDER"),
            ("consent_store", "no", None), ("expire_time", "soon", "2024-03-08T12:00:00Z"), ("title", 7, None),
            ("attributes.available_time", 7, None), ("attributes", "x", None), ("attributes.any", None, [1]),
        ],
    )  # fmt: skip
    def test_a_log_may_hold_anything_but_not_as_a_change(self, name: str, bad: Any, good: Any) -> None:
        fine = Change(ITEMS, "i", PATCH, 0, 0, {name: good})
        assert Change.from_json(fine.to_json()) == fine
        if name != "attributes.any":
            with pytest.raises(ContractError, match="not a change"):
                Change.from_json(Change(ITEMS, "i", PATCH, 0, 0, {name: bad}).to_json())

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind":"items"}', b"\xff"])
    def test_what_is_no_change_is_refused(self, text: str | bytes) -> None:
        with pytest.raises(ContractError, match="not a change"):
            Change.from_json(text)
        with pytest.raises(ContractError, match="not the record"):
            RecordState.from_json(text)


NAMES = ("price", "title", "consent_store", "attributes.a", "attributes.b")


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Change, int]]:
    """Up to eight changes of one record as (change, position), in some order of arrival; times collide often."""
    size = draw(st.integers(1, 8))
    made = []
    for position in draw(st.permutations(range(size))):
        operation = draw(st.sampled_from([PUT, PATCH]))
        named = draw(st.sets(st.sampled_from([*NAMES, "attributes"]), min_size=1))
        fields = {name: None if name == "attributes" else draw(st.none() | st.integers(0, 9)) for name in named}
        if operation == PUT:
            fields = {"price": None, "title": None, "attributes": None, **fields}
        made.append((Change(ITEMS, "i", operation, draw(st.integers(0, 3)), 0, fields), position))
    return made


def replayed(history: Iterable[tuple[Change, int]]) -> dict[str, Any]:
    """The slow way: from the first word to the last, each on top of the one before."""
    values: dict[str, Any] = {}
    for said, _ in sorted(history, key=lambda one: (one[0].at_micros, one[1])):
        if said.operation == PUT:
            values = {name: value for name, value in values.items() if name.startswith("consent_")}
        if "attributes" in said.fields:
            values = {name: value for name, value in values.items() if not name.startswith("attributes.")}
        values |= said.fields
    return {name: value for name, value in values.items() if value is not None}


def known(state: RecordState) -> dict[str, Any]:
    words = {name: state.word(name) for name in NAMES}
    return {name: word[0] for name, word in words.items() if word is not None and word[0] is not None}


class TestMerge:
    @given(history=histories(), again=st.integers(0, 7), cut=st.integers(0, 8))
    @settings(max_examples=150, deadline=None)
    def test_any_order_any_repetition_any_compaction_is_a_replay(
        self, history: list[tuple[Change, int]], again: int, cut: int
    ) -> None:
        expected = replayed(history)
        straight, mended = RecordState(), RecordState()
        for said, position in [*history, *history[:again]]:
            straight.take(said, position)
        assert known(straight) == expected
        compacted = RecordState()
        for said, position in history[:cut]:
            compacted.take(said, position)
        for said, position in history[cut:]:
            mended.take(said, position)
        mended.merge(RecordState.from_json(compacted.to_json()))
        assert known(mended) == expected
        mended.merge(compacted)
        assert known(mended) == expected

    def test_a_late_change_is_told_so_field_by_field(self) -> None:
        state = RecordState()
        assert state.take(Change(ITEMS, "i", PATCH, 5, 0, {"price": 1.0}), 1) == (("price",), ())
        both = Change(ITEMS, "i", PATCH, 4, 0, {"price": 2.0, "title": "T"})
        assert state.take(both, 2) == (("title",), ("price",))
        assert state.take(Change(ITEMS, "i", PATCH, 5, 0, {"price": 3.0}), 3).late == ()  # a tie: the later one
        assert state.word("price") == (3.0, (5, 3))

    def test_a_row_with_its_changes(self) -> None:
        row = {**dict.fromkeys(table("bronze.items").columns), "item_id": "i", "price": 9.0, "is_hidden": False,
               "source": "file", "attributes": '{"colour": "red", "updated_at": "2024-03-08T10:00:00Z"}'}  # fmt: skip
        early = change(PATCH, {"item_id": "i", "price": 1, "updated_at": "2024-03-08T09:59:59Z"})
        late = change(PATCH, {"item_id": "i", "title": "T", "colour": None, "expire_time": "2024-04-01T00:00:00Z"})
        found = changed_row(ITEMS, row, [(early, 0), (late, 1)])
        assert found == {
            **row, "title": "T", "expire_time": datetime(2024, 4, 1, tzinfo=UTC),
            "attributes": '{"updated_at": "2024-03-08T10:00:00Z"}',
        }  # fmt: skip

    def test_what_exists(self) -> None:
        assert changed_row(ITEMS, None, [(change(PATCH, {"item_id": "i", "price": 1}), 0)]) is None
        assert changed_row(ITEMS, None, [(change(DELETE, "i"), 0)]) is None
        made = changed_row(ITEMS, None, [(change(DELETE, "i"), 1), (change(PUT, {"item_id": "i", "price": 1}), 0)])
        assert made is not None
        assert list(made) != []
        assert set(made) == set(table("bronze.items").columns)
        assert (made["item_id"], made["price"], made["is_hidden"], made["source"]) == ("i", 1.0, True, "api")
        refusal = changed_row(USERS, None, [(change(PATCH, {"user_id": "u", "consent": {"store": False}}, USERS), 0)])
        assert refusal is not None
        assert (refusal["user_id"], refusal["consent_store"], refusal["consent_train"]) == ("u", False, None)

    def test_a_newer_import_that_says_nothing_of_a_consent_leaves_the_refusal(self) -> None:
        row = {**dict.fromkeys(table("bronze.users").columns), "user_id": "u", "region": "GB",
               "attributes": '{"updated_at": "2024-03-08T13:00:00Z"}'}  # fmt: skip
        said = change(PATCH, {"user_id": "u", "region": "FR", "consent": {"personalize": False}}, USERS)
        found = changed_row(USERS, row, [(said, 0)])
        assert found is not None
        assert (found["region"], found["consent_personalize"]) == ("GB", False)
        spoken = changed_row(USERS, {**row, "consent_personalize": True}, [(said, 0)])
        assert spoken is not None
        assert spoken["consent_personalize"] is True


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    facts = {"title": "T", "category": "A", "price": 2.0}
    return Shop({"a": facts, "b": {**facts, "is_hidden": True}, "c": facts}, first_number=1).catalogue(tmp_path)


class TestOverlay:
    async def test_changes_are_in_the_filters_and_the_attributes_at_once(self, catalogue: Catalogue) -> None:
        overlay, numbers = CatalogueOverlay(), itertools.count()
        await overlay.attach(catalogue)

        def refusals(*said: Any) -> list[str | None]:
            for operation, record in said:
                overlay.take(change(operation, record), next(numbers))
            found = [catalogue.refusal(n, NOON_MICROS) for n in (1, 2, 3)]
            admitted = SlateFilter(catalogue, taken_out={}, now_micros=NOON_MICROS)
            assert [admitted.admits(n) for n in (1, 2, 3)] == [refusal is None for refusal in found]
            return found

        assert refusals() == [None, "hidden", None]
        assert refusals((PATCH, {"item_id": "a", "available_quantity": 0}))[0] == "out_of_stock"
        assert refusals((PATCH, {"item_id": "a", "availability": "BACKORDER"}))[0] is None
        assert refusals((PATCH, {"item_id": "b", "is_hidden": False}))[1] is None
        assert refusals((PATCH, {"item_id": "c", "expire_time": "2024-03-08T12:00:00Z"}))[2] == "expired"
        assert refusals((PATCH, {"item_id": "c", "expire_time": None}))[2] is None
        later = {"item_id": "c", "available_time": "2024-03-08T12:00:00.000001Z"}
        assert refusals((PATCH, later))[2] == "not_yet_available"
        assert refusals((PATCH, {"item_id": "c", "availability": "PREORDER"}))[2] is None
        assert refusals((PATCH, {"item_id": "c", "availability": None}))[2] == "not_yet_available"
        assert refusals((PUT, {"item_id": "c", "title": "New"}))[2] is None
        assert refusals((DELETE, "a"), (DELETE, "of no version"))[0] == "hidden"
        assert catalogue.attributes[3] == {"title": "New", "category": "A", "price": None}
        assert catalogue.title(1) == "T"

    async def test_a_new_version_gets_what_is_newer_than_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overlay_module, "_ATTACHED_AT_ONCE", 1)
        shop = Shop({"a": {"price": 2.0}, "b": {"price": 2.0}, "c": {"price": 2.0}})
        overlay = CatalogueOverlay()
        yesterday = {"updated_at": "2024-03-07T12:00:00Z", "price": 1}
        overlay.take(change(PATCH, {"item_id": "c", "price": 1}), 9)  # said of a time after as_of, 2024-03-08
        overlay.take(change(PATCH, {"item_id": "a", **yesterday}), 10)  # the night of as_of 2024-03-08 knew it
        overlay.take(change(PATCH, {"item_id": "b", **yesterday}), 11)  # it came too late for that night
        shop.manifest.volatile["item_changes_position"] = 10  # type: ignore[index]
        new = shop.catalogue(tmp_path)
        await overlay.attach(new)
        assert [(facts or {})["price"] for facts in new.attributes] == [2.0, 1.0, 1.0]
        overlay.detach(new)
        overlay.take(change(PATCH, {"item_id": "a", "price": 7}), 20)
        assert (new.attributes[0] or {})["price"] == 2.0

    async def test_compacted_records_are_as_good_as_the_changes(self, catalogue: Catalogue) -> None:
        overlay, record = CatalogueOverlay(), RecordState()
        await overlay.attach(catalogue)
        record.take(change(DELETE, "a"), 5, keeps=SERVED_FIELDS[ITEMS])
        overlay.merge(ITEMS, "a", RecordState.from_json(record.to_json()))
        assert catalogue.refusals[1] == "hidden"

    async def test_items_that_no_version_knows_have_a_bound(
        self, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Damaged ids cost nothing for ever; what a version knows is kept, and a version that comes later gets all."""
        monkeypatch.setattr(overlay_module, "MAX_UNKNOWN_ITEMS", 2)
        log = MemoryEventLog(tenant="default")
        feed, overlay = MemoryChangeFeed(log), CatalogueOverlay()
        tail = CatalogueTail(feed, overlay, wall_micros=lambda: NOON_MICROS)
        hide = {"is_hidden": True}
        said = [change(PATCH, {"item_id": name, **hide}) for name in ("c", "x1", "a", "x2", "b", "x3", "x4")]
        await log.append_changes([one.to_json() for one in said])
        await tail.start()
        assert len(overlay._unknown) == 7  # before a version is there
        await overlay.attach(catalogue)
        assert catalogue.refusals[1:] == ["hidden"] * 3
        assert (sorted(overlay._items), list(overlay._unknown), overlay.wants_records) == (
            ["a", "b", "c"], ["x3", "x4"], False,
        )  # fmt: skip
        await log.append_changes([change(PATCH, {"item_id": "x5", **hide}).to_json()])
        await tail.step(waits=False)
        assert list(overlay._unknown) == ["x4", "x5"]
        states = []
        for position, one in enumerate([*said, change(PATCH, {"item_id": "x5", **hide})], start=1):
            state = RecordState()
            state.take(one, position << 20, keeps=SERVED_FIELDS[ITEMS])
            states.append(Compacted(ITEMS, one.record_id, state.to_json()))
        feed.compact(states, overlay.position)
        later = replace(
            catalogue, numbers={"x1": 0, "x5": 1, "a": 2}, stocks=[None] * 3, refusals=[None] * 3, attributes=[None] * 3
        )
        await overlay.attach(later)
        assert (later.refusals, overlay.wants_records) == ([None, "hidden", "hidden"], True)
        await tail.step(waits=False)
        assert (later.refusals, overlay.wants_records) == (["hidden"] * 3, False)
        assert len(overlay._unknown) == 2

    def test_a_refusal_stays_and_the_newest_word_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(overlay_module, "MAX_USERS_LATELY", 2)
        overlay, numbers = CatalogueOverlay(), itertools.count()

        def says(user: str, **consent: Any) -> tuple[bool, bool]:
            overlay.take(change(PATCH, {"user_id": user, "consent": consent}, USERS), next(numbers))
            return overlay.refuses_personalization(user), overlay.refuses_storing(user)

        assert says("t", train=False) == (False, False)
        assert [check("t") for check in (overlay.refuses_training, overlay.ever_refused)] == [True, True]
        assert [check("u0") for check in (overlay.refuses_training, overlay.ever_refused)] == [False, False]

        assert says("p", personalize=False) == (True, False)
        assert says("s", store=False) == (True, True)
        assert [says(f"u{n}", store=True) for n in range(5)] == [(False, False)] * 5
        assert len(overlay._lately) == 2
        overlay.take(change(PUT, {"user_id": "p", "region": "GB"}, USERS), next(numbers))
        overlay.take(change(DELETE, "p", USERS), next(numbers))
        assert overlay.refuses_personalization("p")
        old = {"user_id": "p", "consent": {"personalize": True}, "updated_at": "2024-03-08T11:00:00Z"}
        overlay.take(change(PATCH, old, USERS), late := next(numbers))
        assert overlay.late_fields(change(PATCH, old, USERS), late) == ("consent_personalize",)
        assert overlay.refuses_personalization("p")
        assert says("p", personalize=True) == (False, False)
        assert not overlay.refuses_personalization(None)

    def test_nothing_is_taken_twice_and_late_marks_have_a_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(overlay_module, "MAX_LATE_KEPT", 2)
        overlay = CatalogueOverlay()
        overlay.take(change(PATCH, {"item_id": "a", "price": 1}), 10)
        late = change(PATCH, {"item_id": "a", "price": 2, "updated_at": "2024-03-08T11:00:00Z"})
        assert overlay.late_fields(late, 11) == ("price",)  # not here yet: judged by what is known
        for position in (11, 12, 13, 13):
            overlay.take(late, position)
        assert [bool(overlay.late_fields(late, p)) for p in (11, 12, 13)] == [False, True, True]


class TestBeforeTheFirstVersion:
    def overlay(self, *records: dict[str, Any]) -> CatalogueOverlay:
        overlay = CatalogueOverlay()
        for position, record in enumerate(records):
            overlay.take(change(PUT, record), position)
        return overlay

    def test_the_newest_comes_first(self) -> None:
        found = self.overlay(
            {"item_id": "b", "created_at": "2024-03-08T11:59:59Z"}, {"item_id": "c"}, {"item_id": "a"}
        ).first(NOON_MICROS)
        assert list(found.numbers) == found.item_ids == ["a", "c", "b"]  # put at noon, ties by id
        assert [row[0] for row in found.newest] == [0, 1, 2]
        assert (found.is_first, found.trained_micros) == (True, None)

    def test_stock_is_as_of_now_and_a_new_item_waits_for_a_moment(self) -> None:
        overlay = self.overlay({"item_id": "a"}, {"item_id": "b"})
        first = overlay.first(NOON_MICROS)
        overlay.take(change(PATCH, {"item_id": "b", "available_quantity": 0}), 7)
        overlay.take(change(PUT, {"item_id": "c"}), 8)
        pause = 2 * overlay_module.FIRST_PAUSE_MICROS  # of two items
        assert overlay.first(NOON_MICROS + pause - 1) is first
        assert first.refusal(first.numbers["b"], NOON_MICROS) == "out_of_stock"
        second = overlay.first(NOON_MICROS + pause)
        assert list(second.numbers) == ["a", "b", "c"]
        assert second.refusal(second.numbers["b"], NOON_MICROS) == "out_of_stock"
        assert overlay.first(NOON_MICROS + 10 * pause) is second  # nothing new
        overlay.take(change(PUT, {"item_id": "d"}), 9)
        assert "d" in overlay.first(NOON_MICROS).numbers  # a clock that went back waits for nothing

    def test_of_too_many_those_of_which_something_was_said_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(overlay_module, "MAX_FIRST_ITEMS", 2)
        overlay = self.overlay({"item_id": "a"}, {"item_id": "b"}, {"item_id": "c"})
        overlay.take(change(PATCH, {"item_id": "a", "price": 1}), 7)
        assert list(overlay.first(NOON_MICROS).numbers) == ["a", "c"]
