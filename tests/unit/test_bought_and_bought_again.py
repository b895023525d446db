"""What is bought together, against a slow oracle; what users buy, against the kernel; how both are published."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.keys import parse_purchases_key, purchases_key
from feature_repo.contracts.publication import PURCHASES_PART, Manifest, candidates_checksum
from feature_repo.contracts.purchase_record import MAX_PURCHASES, Purchase, pack_purchases, unpack_purchases
from serving.pipeline.own_items import readiness
from spark_jobs.io.publication import Publication, purchases_part
from spark_jobs.models.factory import build_sequence_model
from spark_jobs.models.matrix import sort_interactions
from spark_jobs.models.sequences import build_sequences
from spark_jobs.transforms.bought_together import together_rows
from spark_jobs.transforms.purchases import purchases_of_users

AS_OF = datetime(2024, 3, 8, tzinfo=UTC)
CUT_OFF = int(AS_OF.timestamp()) * 1_000_000
VERSION = "2024-03-08-1a2b3c4d"


def baskets_table(baskets: list[list[int]]) -> pa.Table:
    rows = [(f"s{n}", item) for n, basket in enumerate(baskets) for item in basket]
    names, items = [basket for basket, _ in rows], [item for _, item in rows]
    return pa.table({"basket": pa.array(names, pa.string()), "item_number": pa.array(items, pa.int32())})


def together_oracle(baskets: list[list[int]], eligible: list[bool], shrinkage: float, count: int) -> list[Any]:
    sets = [set(basket) for basket in baskets if 2 <= len(set(basket)) <= 4]
    singles = Counter(item for basket in sets for item in basket)
    pairs = Counter(pair for basket in sets for pair in itertools.permutations(basket, 2))
    rows: list[Any] = []
    for item in range(len(eligible)):
        found = []
        for (one, other), both in pairs.items():
            if one == item and both >= 2 and eligible[other]:
                cosine = both / sqrt(singles[one] * singles[other])
                found.append((other, cosine * both / (both + shrinkage)))
        rows.append(sorted(found, key=lambda row: (-row[1], row[0]))[:count])
    return rows


def test_together_is_what_the_slow_way_finds() -> None:
    chance = random.Random(7)
    baskets = [[chance.randrange(8) for _ in range(chance.randrange(1, 7))] for _ in range(60)]
    eligible = [True, True, False, True, True, True, True, True, True, True]  # 8 and 9 were never bought
    found = together_rows(
        baskets_table(baskets), np.array(eligible), count=3, least_baskets=2, most_items=4, shrinkage=5.0
    )
    expected = together_oracle(baskets, eligible, 5.0, 3)
    assert [[n for n, _ in row] for row in found] == [[n for n, _ in row] for row in expected]
    np.testing.assert_allclose([s for row in found for _, s in row], [s for row in expected for _, s in row])
    assert sum(map(bool, found)) == 8
    assert found[2], "an item that is not eligible keeps its row"
    assert all(n != 2 for row in found for n, _ in row)


def test_ties_go_by_number_and_a_single_basket_says_nothing() -> None:
    found = together_rows(baskets_table([[0, 2, 1], [1, 0, 2], [3, 0], [5]]), np.ones(6, bool))
    assert [n for n, _ in found[0]] == [1, 2]
    assert found[0][0][1] == found[0][1][1] == pytest.approx(2 / sqrt(3 * 2) * 2 / 7)
    assert (found[3], found[5]) == ([], [])
    assert together_rows(baskets_table([]), np.ones(2, bool)) == [[], []]


def bought(rows: list[tuple[str, int, str, float]]) -> pa.Table:
    """(subject, item, event type, days before the cut-off)."""
    return sort_interactions(
        pa.table(
            {
                "subject_key": [row[0] for row in rows],
                "item_number": pa.array([row[1] for row in rows], pa.int32()),
                "event_type": [row[2] for row in rows],
                "micros": pa.array([CUT_OFF - int(row[3] * 86_400e6) for row in rows], pa.int64()),
            }
        )
    )


EVENTS = bought(
    [
        ("u:ann", 0, "purchase", 30), ("u:ann", 0, "purchase", 20), ("u:ann", 0, "purchase", 20),  # one visit
        ("u:ann", 1, "purchase", 5), ("u:ann", 2, "view_item", 1), ("u:ann", 3, "purchase", 2),
        ("u:bob", 1, "purchase", 50), ("u:bob", 1, "purchase", 10),
        ("u:cid", 0, "purchase", 3),
        ("a:tab", 0, "purchase", 3),
        ("u:dan", 2, "view_item", 3), ("u:eve", 3, "purchase", 3), ("u:fay", 0, "purchase", -1),
    ]
)  # fmt: skip
PARAMS = {"half_life_days": 10.0, "due_power": 0.5, "prior": 1.0}
ELIGIBLE = np.array([True, True, True, False])


def test_purchases_of_users_by_hand() -> None:
    found = dict(purchases_of_users(EVENTS, PARAMS, ELIGIBLE, denied=["cid"], cut_off=AS_OF))
    assert list(found) == ["ann", "bob"]  # cid denies, tab is a device, dan bought nothing, eve nothing eligible
    # item 0 comes again after 10 days, item 1 after 40
    seconds = CUT_OFF // 1_000_000
    assert [row[:4] for row in found["ann"]] == [
        (1, 1, seconds - 5 * 86_400, 40.0), (0, 2, seconds - 20 * 86_400, 10.0),
    ]  # fmt: skip
    assert [row.worth for row in found["ann"]] == pytest.approx([2**-0.5, 2**-3 + 2**-2])
    assert [row[:4] for row in found["bob"]] == [(1, 2, seconds - 10 * 86_400, 40.0)]
    assert found["bob"][0].worth == pytest.approx(2**-5 + 2**-1)


def test_a_request_at_the_cut_off_scores_as_the_model_does() -> None:
    model = build_sequence_model("repurchase", PARAMS)
    subjects, sequences = build_sequences(
        EVENTS, item_count=4, weights={"purchase": 1.0}, cut_off_micros=CUT_OFF, collapse=False
    )
    model.fit(sequences)
    scores = model.score_sequences(sequences)
    compared = 0
    for user, rows in purchases_of_users(EVENTS, PARAMS, np.ones(4, bool), denied=(), cut_off=AS_OF):
        packed = unpack_purchases(pack_purchases(VERSION, rows), expected_version=VERSION)
        expected = scores[subjects.tolist().index(f"u:{user}")]
        for row in packed:
            online = row.worth * readiness(row, 0.5, now_micros=CUT_OFF)
            assert online == pytest.approx(expected[row.item_number], rel=1e-5)
            compared += 1
    assert compared == 6


def test_the_record_has_an_inverse_and_refuses_what_is_none() -> None:
    rows = [Purchase(7, 3, 1_709_000_000, 12.5, 2.25), Purchase(0, 65_535, 0, 0.5, 0.125)]
    record = pack_purchases(VERSION, rows)
    assert (len(record), unpack_purchases(record)) == (12 + 2 * 18, rows)
    assert unpack_purchases(pack_purchases(VERSION, [])) == []
    for damaged in (b"", record[:-1], b"\x02" + record[1:]):
        with pytest.raises(ContractError):
            unpack_purchases(damaged)
    with pytest.raises(ContractError, match="at most 100"):
        pack_purchases(VERSION, rows * (MAX_PURCHASES // 2 + 1))
    with pytest.raises(ContractError, match="cannot hold"):
        pack_purchases(VERSION, [Purchase(-1, 1, 0, 1.0, 1.0)])
    key = purchases_key(VERSION, "ü /{}:*", "shop")
    assert parse_purchases_key(key, "shop") == (VERSION, "ü /{}:*")
    with pytest.raises(ContractError):
        parse_purchases_key(key, "default")


def test_a_golden_record_reads_for_ever() -> None:
    golden = (Path(__file__).parents[1] / "golden" / "purchases_v1.bin").read_bytes()
    # format 1, 0, one row, day 19790 and the hash of the version; item 5, 2 visits, 2023-11-14T22:13:20Z, 7.5 days, 1.5
    assert golden.hex(" ", 1)[:35] == "01 00 01 00 4e 4d 00 00 4d 3c 2b 1a"
    row = Purchase(5, 2, 1_700_000_000, 7.5, 1.5)
    assert unpack_purchases(golden, expected_version=VERSION) == [row]
    assert pack_purchases(VERSION, [row]) == golden


@pytest.mark.redis
def test_a_version_is_whole_only_with_its_purchases_and_leaves_with_them(redis_url: str) -> None:
    publication = Publication(redis_url)
    purchases = [("ann", [Purchase(1, 2, 5, 1.0, 2.0)]), ("ü b", [Purchase(2, 1, 6, 1.0, 1.0)])]
    client: Any = redis.Redis.from_url(redis_url)

    def publish(day: int) -> str:
        manifest = Manifest(
            as_of=f"2024-03-{day:02d}", model="als", recipe={}, user_count=0, item_count=1,
            candidates_checksum=candidates_checksum([]), last_event_at=None,
            parts={PURCHASES_PART: purchases_part(purchases, PARAMS)},
            volatile={"published_at": f"2024-03-{day:02d}T01:00:00Z"},
        )  # fmt: skip
        version = publication.announce(manifest)
        publication.put_purchases(version, purchases)
        return version

    version = publish(8)
    assert publication.verify(version, []).differences == []
    assert publication.manifest(version).parts[PURCHASES_PART]["user_count"] == 2
    key = purchases_key(version, "ann")
    whole = client.get(key)
    client.set(key, pack_purchases(version, [Purchase(1, 3, 5, 1.0, 2.0)]))
    assert publication.verify(version, []).differences == [
        "purchases: they are not those that the manifest has the checksum of"
    ]
    client.set(key, b"x")
    assert "1 records are damaged" in publication.verify(version, []).differences[0]
    client.delete(key)
    assert publication.verify(version, []).differences == ["purchases: found 1 records, the manifest says 2"]
    client.set(key, whole)
    publication.mark_verified(version, at=AS_OF)
    publication.flip(version)
    for day in (9, 10, 11):
        later = publish(day)
        publication.mark_verified(later, at=AS_OF + timedelta(days=1))
        publication.flip(later)
    assert client.get(key) is None
    assert len(client.keys("nj:default:buys:*")) == 3 * 2
    client.close()


def test_a_manifest_without_parts_keeps_its_name() -> None:
    bare = Manifest("2024-03-08", "als", {}, 0, 0, "0", None)
    assert "parts" not in bare.to_json()
    assert Manifest.from_json(bare.to_json()) == bare
    more = Manifest("2024-03-08", "als", {}, 0, 0, "0", None, parts={"purchases": {"user_count": 1}})
    assert more.version() != bare.version()
    assert Manifest.from_json(more.to_json()) == more
