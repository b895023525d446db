"""The session index from sessions to answers: its bytes, its parity with the model, and its place in a slate."""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.packing import SessionEvent, SessionState, Source
from feature_repo.contracts.publication import SESSION_INDEX_FILE
from feature_repo.contracts.session_index import pack_session_index, unpack_session_index
from serving.adapters.bundle import load_catalogue
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.score import session_ballots
from serving.pipeline.session_index import read_session_index
from serving.pipeline.slate import build_slate
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from spark_jobs.models.factory import build_sequence_model
from spark_jobs.models.ranking import top_items
from spark_jobs.models.recipes import default_sequence_recipe
from spark_jobs.models.sequences import make_sequences
from spark_jobs.models.session_transitions import ItemLists
from spark_jobs.transforms.session_index import (
    fit_session_index,
    session_index_bytes,
    session_index_table,
    session_sequences,
)
from tests.builders import utc
from tests.serving_builders import TENANT, Shop

RECIPE = {"model": "session_transitions", "params": {"reads": [3, 1], "place_decay": 2.0}, "sessions": 4}


def planted_sessions(seed: int, *, items: int, sessions: int) -> list[list[int]]:
    """Walks over a ring: what comes next is mostly near, sometimes anywhere, sometimes the same again."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(sessions):
        walk = [int(rng.integers(items))]
        for _ in range(int(rng.integers(0, 9))):
            step = int(rng.integers(0, 4)) if rng.random() < 0.8 else int(rng.integers(items))
            walk.append((walk[-1] + step) % items)
        found.append(walk)
    return found


class TestBytes:
    def test_known_bytes_and_their_inverse(self) -> None:
        packed = pack_session_index(RECIPE, [0, 2, 2, 3], [2, 0, 1], [0.5, 0.25, 2.0])
        text = b'{"model":"session_transitions","params":{"place_decay":2.0,"reads":[3,1]},"sessions":4}'
        text += b" " * (-len(text) % 4)
        assert packed == b"".join(
            [
                struct.pack("<4sIII", b"NJS1", 3, 3, len(text)),
                text,
                struct.pack("<4I3I3f", 0, 2, 2, 3, 2, 0, 1, 0.5, 0.25, 2),
            ]
        )
        found = unpack_session_index(packed)
        assert found.recipe == RECIPE
        assert [column.tolist() for column in found[1:]] == [[0, 2, 2, 3], [2, 0, 1], [0.5, 0.25, 2.0]]
        empty = unpack_session_index(pack_session_index(RECIPE, [0], [], []))
        assert [column.tolist() for column in empty[1:]] == [[0], [], []]

    @pytest.mark.parametrize("cut", [0, 10, 100, -1])
    def test_what_is_cut_short_is_refused(self, cut: int) -> None:
        packed = pack_session_index(RECIPE, [0, 1], [0], [1.0])
        with pytest.raises(ContractError, match=r"session_index\.bin"):
            unpack_session_index(packed[:cut])
        with pytest.raises(ContractError, match=r"session_index\.bin"):
            unpack_session_index(b"NJN1" + packed[4:])

    @pytest.mark.parametrize(
        ("offsets", "weights"), [([0, 2], [1.0]), ([1, 1], [1.0]), ([], [1.0]), ([0, 1], [1.0, 2.0])]
    )
    def test_columns_that_do_not_fit_are_refused(self, offsets: list[int], weights: list[float]) -> None:
        with pytest.raises(ContractError, match="as many numbers as weights"):
            pack_session_index(RECIPE, offsets, [0], weights)

    @pytest.mark.parametrize(
        "params", [{"reads": []}, {"reads": [0]}, {"reads": [600, 600]}, {"reads": [2], "place_decay": 0.0}]
    )
    def test_a_recipe_that_cannot_be_read_in_bounded_time_is_refused(self, params: dict) -> None:
        with pytest.raises(ContractError, match="sum to at most 1000"):
            pack_session_index({**RECIPE, "params": {"place_decay": 1.0, **params}}, [0], [], [])


class TestScores:
    def test_by_hand(self) -> None:
        index = read_session_index(pack_session_index(RECIPE, [0, 2, 2, 5], [2, 1, 0, 1, 2], [4, 2, 8, 4, 1]))
        fading = float(np.exp(-0.5))
        assert index.scores([0]) == {2: 4.0, 1: 2.0}
        assert index.scores([2, 0]) == pytest.approx({2: 4.0, 1: 2.0, 0: 8 * fading})  # of the older one entry alone
        assert index.scores([2, 2, 0, 0]) == index.scores([1, 2, 0]) == index.scores([2, 0])  # two places are read
        assert index.scores([0, 2, 0]) == pytest.approx({2: 4.0, 1: 2.0, 0: 8 * fading})  # the latest place of 0
        assert (index.scores([]), index.scores([1]), index.scores([77, -1])) == ({}, {}, {})
        assert (index.row(2, 2), index.row(2, 9), index.row(3, 9)) == ({0: 8.0, 1: 4.0}, {0: 8.0, 1: 4.0, 2: 1.0}, {})

    @pytest.mark.parametrize(
        "changed", [{}, {"reads": [60, 3], "hop": 0.0}, {"sessions_per_item": 5, "reach": 2}], ids=str
    )
    def test_the_ranking_is_the_one_of_the_model(self, changed: dict) -> None:
        """The same 20 items in the same order, ties by item number, for sessions that the model never saw."""
        sessions = planted_sessions(1, items=90, sessions=700)
        recipe = default_sequence_recipe("session_transitions")
        recipe["params"].update(changed)
        learned = make_sequences(sessions[:600], item_count=90)
        index = read_session_index(
            session_index_bytes(recipe, fit_session_index(recipe, learned, np.ones(90, bool)), session_count=600)
        )
        model = build_sequence_model(recipe["model"], recipe["params"])
        model.fit(learned)
        asked = [session for session in sessions[600:] if session]
        numbers, values = top_items(model.score_sequences(make_sequences(asked, item_count=90)), 20)
        compared = 0
        for row, session in enumerate(asked):
            scores = index.scores(session)
            mine = sorted(scores, key=lambda number: (-np.float32(scores[number]), number))[:20]
            assert mine == [int(n) for n, v in zip(numbers[row], values[row], strict=True) if v > 0]
            compared += len(mine)
        assert compared > 500
        assert index.recipe["sessions"] == 600


def test_sessions_begin_with_the_oldest_and_name_nobody() -> None:
    rows = [  # session, item, micros
        (7, 3, 50), (7, 1, 40), (7, 1, 90),
        (-5, 2, 10),
        (9, 4, 40),  # begins with session 7 and comes after it
    ]  # fmt: skip
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, names=["session", "item_number", "micros"])
    found = session_sequences(table, item_count=5, cut_off=utc("2024-03-08"))
    assert found.starts.tolist() == [0, 1, 4, 5]
    assert found.items.tolist() == [2, 1, 3, 1, 4]
    assert found.micros.tolist() == [10, 40, 50, 90, 40]
    assert len(session_sequences(table.slice(0, 0), item_count=5, cut_off=utc("2024-03-08"))) == 0


def test_what_happened_at_one_moment_has_no_order_that_could_be_learned() -> None:
    """Each order has items 0 to 9 at once: no item stands before another more often than behind it, nearly."""
    sessions, items = (column.ravel() for column in np.mgrid[0:400, 0:10])
    shuffled = np.random.default_rng(1).permutation(len(items))
    tables = [
        pa.table({"session": sessions[order], "item_number": items[order], "micros": np.zeros(len(order), np.int64)})
        for order in (np.arange(len(items)), shuffled)
    ]
    found, again = (session_sequences(table, item_count=10, cut_off=utc("2024-03-08")) for table in tables)
    assert found.items.tolist() == again.items.tolist()
    orders = found.items.reshape(400, 10)
    assert (np.sort(orders, axis=1) == np.arange(10)).all()
    places = np.argsort(orders, axis=1).mean(axis=0)
    assert places.min() > 3.9  # 4.5 is the middle; in order of numbers they would go from 0 to 9
    assert places.max() < 5.1


def test_only_eligible_items_are_led_to_and_the_table_says_the_same_as_the_file() -> None:
    lists = ItemLists(
        np.array([0, 2, 2, 5]), np.array([1, 2, 0, 1, 2], np.int32), np.array([4, 2, 8, 4, 1], np.float32)
    )
    left = lists.among(np.array([True, True, False]))
    assert [part.tolist() for part in left] == [[0, 1, 1, 3], [1, 0, 1], [4.0, 8.0, 4.0]]
    table = session_index_table(left, utc("2024-03-08").date())
    assert table.select(["item_number", "next_numbers", "weights"]).to_pylist() == [
        {"item_number": 0, "next_numbers": [1], "weights": [4.0]},
        {"item_number": 2, "next_numbers": [0, 1], "weights": [8.0, 4.0]},
    ]
    file = unpack_session_index(session_index_bytes(RECIPE, left, session_count=3))
    assert array("f", file.weights).tolist() == [4.0, 8.0, 4.0]


SHOP = Shop(
    {name: {} for name in ("mug", "cup", "pan", "lamp", "rug", "pot")},
    neighbours={"mug": [("rug", 1.0)], "cup": [("rug", 1.0)]},
    popular=[("rug", 90.0), ("lamp", 60.0), ("pan", 30.0)],
    leads_to={
        "mug": [("cup", 4.0), ("pan", 2.0), ("mug", 1.0)],
        "cup": [("pan", 3.0), ("lamp", 1.5)],
        "pan": [("lamp", 8.0)],
    },
)
NOW = 1_709_902_800_000_000
TUNING = Tuning(session_weight=3.0, half_life_seconds=600.0)


def event(item: str, seconds_ago: float = 0, kind: str = "view_item") -> SessionEvent:
    return SessionEvent(NOW - int(seconds_ago * 1_000_000), kind, 0, item)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return SHOP.catalogue(tmp_path)


def slate(catalogue: Catalogue, *events: SessionEvent, person: Person | None = None, count: int = 4) -> Slate:
    request = SlateRequest(num_results=count, user_id="u1", recent_events=events)
    return build_slate(request, person or Person(), catalogue, TUNING, now_micros=NOW, timer=lambda: 0)


@pytest.mark.usefixtures("either_way")
class TestSlates:
    def test_the_file_is_mapped_checked_and_read(self, tmp_path: Path, catalogue: Catalogue) -> None:
        assert catalogue.session_index is not None
        assert catalogue.session_index.scores([0]) == {1: 4.0, 2: 2.0, 0: 1.0}
        path = tmp_path / TENANT / SHOP.version / SESSION_INDEX_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
        with pytest.raises(ContractError, match=SESSION_INDEX_FILE):
            load_catalogue(str(tmp_path), SHOP.version, tenant=TENANT)

    def test_a_version_without_an_index_is_served_from_its_neighbours(self, tmp_path: Path) -> None:
        shop = Shop({"mug": {}, "rug": {}}, neighbours={"mug": [("rug", 1.0)]})
        catalogue = shop.catalogue(tmp_path)
        assert catalogue.session_index is None
        assert [item.item_id for item in slate(catalogue, event("mug")).items] == ["rug"]

    def test_ballots_count_places_as_the_model_does(self, catalogue: Catalogue) -> None:
        session = [
            event("mug", 1200), event("cup", 600), event("ghost", 400), event("mug", 310, "add_to_cart"),
            event("mug", 300), event("pot", 200), event("pan", 100, "search"), event("cup", 0),
        ]  # fmt: skip
        found = session_ballots(session, catalogue, TUNING)
        # From the end: cup; pot, which leads nowhere, has a place; mug, twice in a row: its cart speaks louder than its
        # view although it is older; the cup and the mug before are heard already. A search is no vote, a ghost no item.
        assert [(b.event.item_id, b.event.event_type) for b in found] == [("cup", "view_item"), ("mug", "add_to_cart")]
        assert [b.weight for b in found] == pytest.approx([1.0, 2 * np.exp(-1) * 0.5 ** (310 / 600)])
        assert found[1].similarities == {1: 4.0, 2: 2.0, 0: 1.0}
        quiet = session_ballots(session, catalogue, TUNING, silenced=frozenset([1]))
        assert [b.event.item_id for b in quiet] == ["mug"]
        assert quiet[0].weight == pytest.approx(2 * np.exp(-0.5) * 0.5 ** (110 / 600))  # pot is the newest now

    def test_a_stranger_gets_the_session_first_and_then_what_is_popular(self, catalogue: Catalogue) -> None:
        found = slate(catalogue, event("mug"), count=5)
        # mug was touched; cup and pan by the index, the rest by popularity (rug before lamp)
        assert [(i.item_id, i.source) for i in found.items] == [
            ("cup", Source.SESSION), ("pan", Source.SESSION), ("rug", Source.POPULARITY), ("lamp", Source.POPULARITY),
        ]  # fmt: skip
        assert found.session_weight == pytest.approx(TUNING.session_weight_alone / 2)
        assert [reason.item_id for reason in found.items[0].reasons] == ["mug"]

    def test_a_known_person_gets_both(self, catalogue: Catalogue) -> None:
        person = Person(candidates=[(5, 1.0, 1, 0, 0), (3, 0.5, 1, 0, 0)])
        found = slate(catalogue, event("mug"), person=person, count=2)
        # weight 3 / 2: cup 1.5 x 1, pot 1, pan 1.5 x 0.5, lamp 0.5, each / 2.5
        assert [(i.item_id, round(i.score, 6)) for i in found.items] == [("cup", 0.6), ("pot", 0.4)]
        assert found.session_weight == 1.5

    def test_what_was_bought_or_dismissed_leaves_and_the_dismissed_has_no_voice(self, catalogue: Catalogue) -> None:
        state = SessionState(bought=[], dismissed=[])
        events = [event("mug", 9), event("cup", 5, "purchase"), event("pan", 1, "not_interested")]
        found = slate(catalogue, *events, person=Person(session=state), count=6)
        assert {"mug", "cup", "pan"}.isdisjoint(item.item_id for item in found.items)
        assert found.items[0].item_id == "lamp"  # by the cup that was bought; the pan would have said it louder
        assert [reason.item_id for reason in found.items[0].reasons] == ["cup"]
