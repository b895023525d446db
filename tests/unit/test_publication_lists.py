"""Lists before they are published: ranking of a block, packing, item facts, neighbours, popular lists. No Spark."""

from __future__ import annotations

import json
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.packing import PackedCandidate, pack_candidates
from spark_jobs.io.light_delta import arrow_schema
from spark_jobs.models.base import InteractionMatrix
from spark_jobs.transforms import bundle_files as files
from spark_jobs.transforms.candidates import CANDIDATES_SCHEMA, Scoring, denied_candidates, pack_batch, score_block
from tests.builders import utc

AS_OF = date(2024, 3, 8)
VERSION = "2024-03-08-1a2b3c4d"


class TableModel:
    """Scores from a table; the first reason of an item is the lowest item of the history, there is no second."""

    name, source, params = "table", 3, {}

    def __init__(self, scores: list[list[float]]) -> None:
        self.scores = np.array(scores, np.float32)

    def score_block(self, histories, rows=None):
        assert histories.shape[0] == len(rows)
        return self.scores[rows]

    def explain(self, history, row, item_numbers):  # noqa: ARG002
        return [(int(history.indices[0]), None)] * len(item_numbers)

    def similar(self, item_number, count):
        order = sorted(range(self.scores.shape[1]), key=lambda n: (-self.scores[item_number][n], n))
        return [(n, float(self.scores[item_number][n])) for n in order if n != item_number][:count]


def csr(rows: list[list[float]]) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.array(rows, np.float32))


def scoring_of(scores, seen, *, eligible=None, users=None, **other) -> Scoring:
    rows = np.arange(len(scores)) if users is None else np.array(users)
    return Scoring(
        model=TableModel(scores), user_ids=np.array([f"u{r}" for r in rows], np.str_), rows=rows, histories=csr(seen),
        seen=csr(seen), eligible=np.array([True] * len(scores[0]) if eligible is None else eligible), as_of=AS_OF,
        **other,
    )  # fmt: skip


def test_best_first_ties_by_number_without_seen_hidden_and_unscored_items() -> None:
    scoring = scoring_of(
        [[0.5, 0.9, 0.5, 0.0, 0.7, 0.5, np.nan], [0.1, -0.2, 0.3, 0.4, 0.9, 0.2, 0.6]],
        [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1]],
        eligible=[True, True, True, True, False, True, True],
        per_user=4,
        explained=2,
    )
    rows = score_block(scoring, 0).to_pylist()
    assert [r["user_id"] for r in rows] == ["u0", "u1"]
    assert rows[0]["item_numbers"] == [0, 2, 5]  # 1 is seen, 3 has no score, 4 may not be shown, 6 is no number
    assert rows[1]["item_numbers"] == [2, 5, 0, 1]  # a score below zero is a score
    assert rows[0]["scores"] == pytest.approx([0.5, 0.5, 0.5])
    assert rows[0]["first_reasons"] == [1, 1, None]  # only the first two are explained
    assert rows[0]["second_reasons"] == [None, None, None]
    assert rows[1]["first_reasons"] == [3, 3, None, None]
    assert rows[1]["sources"] == [3, 3, 3, 3]
    assert {(r["allows_personalize"], r["as_of"]) for r in rows} == {(True, AS_OF)}


def test_somebody_who_saw_everything_gets_an_empty_list() -> None:
    scoring = scoring_of([[0.5, 0.9], [0.5, 0.9]], [[1, 1], [1, 0]])
    rows = score_block(scoring, 0).to_pylist()
    assert [r["item_numbers"] for r in rows] == [[], [1]]


def test_blocks_cover_every_user_once_and_use_their_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spark_jobs.transforms.candidates.MOST_USERS_PER_BLOCK", 2)
    scores = [[float(10 * row + item + 1) for item in range(3)] for row in range(6)]
    scoring = scoring_of(scores, [[1, 0, 0]] * 6, users=[0, 1, 3, 4, 5])  # row 2 is an anonymous subject
    assert (scoring.users_per_block, scoring.block_count) == (2, 3)
    rows = [row for block in range(3) for row in score_block(scoring, block).to_pylist()]
    assert [(r["user_id"], r["item_numbers"], r["scores"]) for r in rows] == [
        (f"u{n}", [2, 1], [10.0 * n + 3, 10.0 * n + 2]) for n in (0, 1, 3, 4, 5)
    ]


def test_large_catalogues_are_cut_into_smaller_blocks() -> None:
    wide = scoring_of([[1.0] * 3], [[0.0] * 3], eligible=[True] * 1_000_000)
    assert wide.users_per_block == 4


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_ranking_agrees_with_a_plain_sort(data) -> None:
    items, users = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    few = st.sampled_from([0.0, 0.25, 0.5, -1.0])  # many ties
    scores = [[data.draw(few) for _ in range(items)] for _ in range(users)]
    seen = [[data.draw(st.sampled_from([0, 0, 1])) for _ in range(items)] for _ in range(users)]
    eligible = [data.draw(st.booleans()) for _ in range(items)]
    per_user = data.draw(st.integers(1, 6))
    rows = score_block(scoring_of(scores, seen, eligible=eligible, per_user=per_user, explained=0), 0).to_pylist()
    assert len(rows) == users
    for row, own, taken in zip(rows, scores, seen, strict=True):
        left = [n for n in range(items) if eligible[n] and not taken[n] and own[n] != 0]
        assert row["item_numbers"] == sorted(left, key=lambda n: (-own[n], n))[:per_user]


def batch_of(*rows: dict) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=CANDIDATES_SCHEMA)


def candidate_row(user_id: str, numbers=(), scores=(), first=(), second=(), allows: bool = True, shares=None) -> dict:
    return {
        "user_id": user_id, "item_numbers": list(numbers), "scores": list(scores), "sources": [2] * len(numbers),
        "first_reasons": list(first), "second_reasons": list(second), "allows_personalize": allows,
        "shares": shares, "history_digest": None, "made_by": None, "scored_as_of": AS_OF, "as_of": AS_OF,
    }  # fmt: skip


def test_packed_bytes_are_those_of_the_contract() -> None:
    batch = batch_of(
        candidate_row("u0", [9, 4], [0.75, 0.1], [3, None], [None, None]),
        candidate_row("u1"),
        candidate_row("u2", allows=False),
        candidate_row("ü", [2_000_000_000], [-1.5], [0], [1]),
        candidate_row("u4", [9, 4], [0.75, 0.1], [3, None], [None, None], shares=bytes([2, 5, 4, 200, 255])),
    )
    expected_rows = pack_candidates(VERSION, [PackedCandidate(9, 0.75, 2, 3), PackedCandidate(4, 0.1, 2)])
    expected = [
        ("u0", expected_rows),
        ("u1", pack_candidates(VERSION, [])),
        ("u2", pack_candidates(VERSION, [], flags=1)),
        ("ü", pack_candidates(VERSION, [PackedCandidate(2_000_000_000, -1.5, 2, 0, 1)])),
        ("u4", b"\x02" + expected_rows[1:] + bytes([2, 5, 4, 200, 255])),
    ]
    assert list(pack_batch(VERSION, batch)) == expected
    assert list(pack_batch(VERSION, batch.slice(3))) == expected[3:]  # a slice has its offsets elsewhere


def test_a_row_whose_lists_do_not_match_is_refused() -> None:
    with pytest.raises(ContractError, match="scores and item_numbers differ"):
        list(pack_batch(VERSION, batch_of(candidate_row("u0", [9, 4], [0.75], [3, None], [None, None]))))
    with pytest.raises(ContractError, match="1 nulls in scores"):
        list(pack_batch(VERSION, batch_of(candidate_row("u0", [9], [None], [3], [None]))))
    short = candidate_row("u0", [9, 4], [1, 1], [None] * 2, [None] * 2, shares=bytes([2, 5, 4, 200]))
    with pytest.raises(ContractError, match="4 bytes are no shares of 2 rows"):
        list(pack_batch(VERSION, batch_of(short)))


def test_denied_users_have_an_empty_list_and_the_flag() -> None:
    table = denied_candidates(["a", "b"], AS_OF)
    assert table.schema.equals(arrow_schema("gold.candidates"))
    assert [u for u, _ in pack_batch(VERSION, table.to_batches()[0])] == ["a", "b"]
    assert table.to_pylist()[1] == candidate_row("b", allows=False)


def items_of(*rows: dict) -> pa.Table:
    """Numbered items of the catalogue; a row names what its test is about."""
    schema = pa.schema([*arrow_schema("bronze.items"), pa.field("item_number", pa.int32())])
    return pa.Table.from_pylist([{**dict.fromkeys(schema.names), **row} for row in rows], schema=schema)


def test_eligible_items() -> None:
    now = utc("2024-03-08")
    items = items_of(
        {"item_number": 0},
        {"item_number": 1, "is_hidden": True},
        {"item_number": 2, "expire_time": now},  # ends with the interval itself
        {"item_number": 3, "expire_time": utc("2024-03-08T00:00:01")},
        {"item_number": 4, "created_at": now},  # not yet there
        {"item_number": 5, "created_at": utc("2024-03-07T23:59:59"), "availability": "OUT_OF_STOCK"},
        {"item_number": 7, "is_hidden": False},  # 6 left the catalogue
    )
    eligible = files.eligible_items(items, item_count=8, cut_off=now)
    assert eligible.tolist() == [True, False, False, True, False, True, False, True]


def test_neighbours_are_eligible_others_in_order() -> None:
    model = TableModel([[0, 0.5, 0.9, 0.5], [0.1, 0, 0.2, 0.3], [0.9, 0.2, 0, 0.1], [0.1, 0.1, 0.1, 0]])
    rows = files.neighbour_rows(model, np.array([True, True, False, True]), count=2)
    assert [[n for n, _ in row] for row in rows] == [[1, 3], [3, 0], [0, 1], [0, 1]]


def test_items_json_has_equal_columns_by_number() -> None:
    items = items_of(
        {"item_number": 5, "item_id": "b", "price": float("nan"), "is_hidden": True},
        {"item_number": 2, "item_id": "a", "title": "Löffel", "price": 1.5, "created_at": utc("2024-03-01T10:00:00"),
         "expire_time": utc("2024-04-01")},
    )  # fmt: skip
    columns = json.loads(files.items_json(items))
    assert tuple(sorted(columns)) == tuple(sorted(files.ITEM_COLUMNS))
    assert {len(values) for values in columns.values()} == {2}
    assert (columns["item_number"], columns["item_id"], columns["price"]) == ([2, 5], ["a", "b"], [1.5, None])
    assert columns["created_at"] == ["2024-03-01T10:00:00Z", None]
    assert columns["expire_time"] == ["2024-04-01T00:00:00Z", None]
    assert (columns["is_hidden"], columns["title"]) == ([False, True], ["Löffel", None])


def test_items_json_takes_columns_out_of_the_attributes() -> None:
    said = {
        "tags": ["gift", "", 5, "sale"], "group_id": "mug", "language": "", "updated_at": "2024-03-01T00:00:00Z",
        "available_time": "2024-03-01T00:00:00Z", "größe": "L", "colour": ["blue"],
    }  # fmt: skip
    items = items_of(
        {"item_number": 0, "item_id": "a", "brand": "Acme", "attributes": json.dumps(said)},
        {"item_number": 1, "item_id": "b", "attributes": '{"tags": "gift"}'},
        {"item_number": 2, "item_id": "c"},
    )
    columns = json.loads(files.items_json(items))
    assert columns["brand"] == ["Acme", None, None]
    assert columns["tags"] == [["gift", "sale"], None, None]
    assert (columns["group_id"], columns["language"]) == (["mug", None, None], [None] * 3)
    assert columns["attributes"] == ['{"colour": ["blue"], "gr\\u00f6\\u00dfe": "L"}', None, None]


def test_category_prefixes() -> None:
    assert files.category_prefixes("A > B > C") == ["A", "A > B", "A > B > C"]
    assert files.category_prefixes("Solo") == ["Solo"]
    assert files.category_prefixes(None) == files.category_prefixes("") == files.category_prefixes(" ") == []


def test_popular_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LEAST_REGION_SUBJECTS", 2)
    preference = csr(
        # 0    1    2    3    4    5
        [
            [0.0, 2.0, 1.0, 0.0, 9.0, 0.0],  # a:guest
            [1.0, 0.0, 1.0, 0.0, 0.0, 0.0],  # u:a, in DE
            [1.0, 0.0, 0.0, 0.0, 3.0, 0.0],  # u:b, in DE
            [0.0, 0.0, 0.0, 7.0, 0.0, 0.0],  # u:c, alone in FR
        ]
    )
    subjects = np.array(["a:guest", "u:a", "u:b", "u:c"], np.str_)
    matrix = InteractionMatrix(subjects, preference, np.zeros(preference.nnz, np.int64))
    items = items_of(
        {"item_number": 0, "category": "A > B"}, {"item_number": 1, "category": "A"},
        {"item_number": 2, "category": "A > B"}, {"item_number": 3, "category": "C"},
        {"item_number": 4, "category": "A"}, {"item_number": 5, "category": "D"},
    )  # fmt: skip
    eligible = np.array([True, True, True, True, False, True])
    lists = json.loads(
        files.popular_json(
            matrix, {"subject_cap": 5.0}, items, eligible, {"u:a": "DE", "u:b": "DE", "u:c": "FR", "u:x": "IT"}
        )
    )
    # sums: 0 -> 2, 1 -> 2, 2 -> 2, 3 -> 5 (capped), 4 is not eligible, 5 untouched
    assert lists["all"] == [[3, 5.0], [0, 2.0], [1, 2.0], [2, 2.0]]
    assert lists["static"] == [*lists["all"], [5, 0.0]]
    assert lists["by_category"] == {
        "A": [[0, 2.0], [1, 2.0], [2, 2.0]], "A > B": [[0, 2.0], [2, 2.0]], "C": [[3, 5.0]],
    }  # fmt: skip
    assert lists["by_region"] == {"DE": [[0, 2.0], [2, 1.0]]}  # one person is no region
