"""Trends: tables with a stated error, who may say how much in them, and what is trending in the end."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.keys import region_trend_key, trend_key, trend_regions_key
from feature_repo.contracts.trend_record import (
    KEPT_ITEMS,
    WINDOWS,
    TrendTable,
    pack_regions,
    pack_trend,
    trend_window,
)
from serving.adapters.trends import MemoryTrendStore, RedisTrendStore, TrendStore
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.trending import Scope, Votes, add_up, is_within, voted_rows
from serving.speed.trends import Stand, VoteChange, stand_of, vote_changes
from tests.serving_builders import Shop

SECOND = 1_000_000
NOON = 1_709_899_200  # 2024-03-08T12:00:00Z
SHOP = Shop(
    {
        "mug": {"title": "Mug", "category": "Home > Kitchen"},
        "cup": {"title": "Cup", "category": "Home > Kitchen > Cups"},
        "lamp": {"title": "Lamp", "category": "Home"},
        "sofa": {"title": "Sofa", "category": "Home", "availability": "OUT_OF_STOCK"},
        "soap": {"title": "Soap", "category": "Homes"},
        "bare": {"title": "Bare"},
    },
    first_number=1,
)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return SHOP.catalogue(tmp_path_factory.mktemp("publications"))


def test_buckets_cover_the_window_and_no_more() -> None:
    for window in WINDOWS:
        assert window.seconds % window.bucket_seconds == 0
        assert 86_400 % window.bucket_seconds == 0
    day = trend_window("1d")
    assert day.buckets_at(NOON * SECOND) == range(NOON // 3600 - 23, NOON // 3600 + 1)
    assert day.buckets_at((NOON + 3599) * SECOND)[-1] == NOON // 3600
    assert day.expires_at(NOON // 3600) == NOON + 3600 + 2 * 86_400
    with pytest.raises(ContractError, match=r"no trend window '2h', there are 5m, 1h, 1d"):
        trend_window("2h")


def test_a_table_is_exact_until_it_is_full() -> None:
    table = TrendTable(0, 1)
    for number in range(2 * KEPT_ITEMS):
        table.add(f"i{number}")
    table.add("i7")
    table.withdraw("i8")
    table.withdraw("never there")
    assert (len(table.votes), table.lost, table.counted) == (2 * KEPT_ITEMS - 1, 0, 2 * KEPT_ITEMS + 1)
    assert (table.votes["i7"], table.votes.get("i8")) == (2, None)


def test_a_table_is_packed_as_one_that_never_was_before() -> None:
    """Names that are remembered from one packing to the next: votes come and go, items too, and the table is cut."""
    random = Random(6)
    table = TrendTable(0, 1)
    for number in range(2 * KEPT_ITEMS - 20):
        table.add(f"f{number}")
    was_cut = False
    for _ in range(4_000):
        item = f"i{random.randrange(60)}"
        if random.random() < 0.5:
            table.add(item)
        else:
            table.withdraw(item)
        was_cut = was_cut or table.lost > 0
        fresh = TrendTable(0, 1, dict(table.votes), table.counted, table.lost)
        assert pack_trend(table) == pack_trend(fresh)
    assert was_cut


def test_a_full_table_is_short_by_no_more_than_it_says() -> None:
    """30,000 votes on a long tail of items, against exact counts."""
    random = Random(5)
    table, exact = TrendTable(0, 1), Counter[str]()
    for number in range(30_000):
        item = f"i{int(random.paretovariate(0.8)) if number % 2 else random.randrange(6000)}"
        exact[item] += 1
        table.add(item)
        if number % 7 == 0:
            exact[item] -= 1
            table.withdraw(item)
        assert len(table.votes) <= 2 * KEPT_ITEMS
    assert len(exact) > 4 * KEPT_ITEMS
    assert 0 < table.lost <= table.counted / (KEPT_ITEMS + 1)
    for item, votes in exact.items():
        assert votes - table.lost <= table.votes.get(item, 0) <= votes, item
    assert all(item in table.votes for item, votes in exact.items() if votes > table.lost)


def test_votes_that_come_move_and_give_way() -> None:
    before = {(0, 10): {"a": 1, "b": 2}, (0, 9): {"old": 0}, (2, 1): {"a": 5}}
    after = {(0, 10): {"a": 0, "c": 2}, (0, 11): {"a": 4}, (2, 1): {"a": 5}}
    changes = vote_changes(Stand(before, {}), Stand(after, {}))
    assert sorted(changes) == [
        VoteChange(0, 50, "", "a", False), VoteChange(0, 51, "", "a", True), VoteChange(0, 52, "", "b", True),
        VoteChange(0, 52, "", "c", False), VoteChange(0, 59, "", "a", False),
    ]  # fmt: skip
    assert vote_changes(Stand(after, {}), Stand(after, {})) == []


def test_a_vote_leaves_the_region_to_which_it_went() -> None:
    """Of six votes: one moves to an earlier bucket and another region, one only to an earlier bucket, one only to
    another region, one comes from no region, one gives way, and one stays."""
    before = Stand(
        {(0, 10): {"both": 3, "earlier": 3, "elsewhere": 3, "nowhere": 3, "gone": 3, "stays": 3}},
        {(0, 10, "both"): "DE", (0, 10, "earlier"): "DE", (0, 10, "elsewhere"): "FR", (0, 10, "gone"): "FR",
         (0, 10, "stays"): "DE"},
    )  # fmt: skip
    after = Stand(
        {(0, 10): {"both": 1, "earlier": 1, "elsewhere": 3, "nowhere": 3, "stays": 3}},
        {(0, 10, "both"): "FR", (0, 10, "earlier"): "DE", (0, 10, "elsewhere"): "DE", (0, 10, "nowhere"): "FR",
         (0, 10, "stays"): "DE"},
    )  # fmt: skip
    assert sorted(vote_changes(before, after), key=lambda change: (change.item_id, change)) == [
        VoteChange(0, 51, "", "both", False), VoteChange(0, 51, "FR", "both", False),
        VoteChange(0, 53, "", "both", True), VoteChange(0, 53, "DE", "both", True),
        VoteChange(0, 51, "", "earlier", False), VoteChange(0, 51, "DE", "earlier", False),
        VoteChange(0, 53, "", "earlier", True), VoteChange(0, 53, "DE", "earlier", True),
        VoteChange(0, 53, "DE", "elsewhere", False), VoteChange(0, 53, "FR", "elsewhere", True),
        VoteChange(0, 53, "", "gone", True), VoteChange(0, 53, "FR", "gone", True),
        VoteChange(0, 53, "FR", "nowhere", False),
    ]  # fmt: skip


def test_what_an_answer_looks_at_is_the_sum_of_the_tables_for_all_or_one_category(catalogue: Catalogue) -> None:
    """In stock or not: that is asked when a list is made."""
    tables = [
        TrendTable(1, 5, {"mug": 2, "sofa": 90, "unknown": 80, "cup": 4}, lost=3),
        TrendTable(1, 6, {"mug": 2, "lamp": 7, "soap": 1, "bare": 4}, lost=1),
    ]
    votes = add_up(tables)

    def voted(category: str | None = None) -> list[tuple[str, int]]:
        found = voted_rows(votes, catalogue, category, None)
        assert (found.scope, found.region_votes) == (Scope.ALL, None)
        return [(catalogue.item_id(number), count) for number, count in found.rows]

    assert votes.error == 4
    assert voted() == [("sofa", 90), ("lamp", 7), ("bare", 4), ("cup", 4), ("mug", 4), ("soap", 1)]
    assert voted("Home") == [("sofa", 90), ("lamp", 7), ("cup", 4), ("mug", 4)]
    assert voted("Home > Kitchen") == [("cup", 4), ("mug", 4)]
    assert voted("Garden") == []
    assert add_up([]) == Votes([], 0)
    assert not is_within(None, "Home")


@pytest.mark.parametrize("form", ["redis", "memory"])
async def test_a_store_brings_the_tables_of_the_window(form: str, request: pytest.FixtureRequest) -> None:
    import redis.asyncio

    hour = NOON // 3600
    inside = [TrendTable(2, hour, {"a": 1}), TrendTable(2, hour - 23, {"b": 2})]
    strings = {
        trend_key(2, hour, 3, "shop"): pack_trend(inside[0]),
        trend_key(2, hour - 23, 0, "shop"): pack_trend(inside[1]),
        trend_key(2, hour - 24, 0, "shop"): pack_trend(TrendTable(2, hour - 24, {"too old": 1})),
        trend_key(2, hour + 1, 0, "shop"): pack_trend(TrendTable(2, hour + 1, {"to come": 1})),
        trend_key(1, hour, 0, "shop"): pack_trend(TrendTable(1, hour, {"other window": 1})),
        trend_key(2, hour, 1, "shop"): b"damaged",
        region_trend_key(2, hour, 0, "US:NY", "shop"): pack_trend(inside[0]),
        region_trend_key(2, hour - 23, 3, "US:NY", "shop"): pack_trend(inside[1]),
        region_trend_key(2, hour, 0, "US:NY", "other"): pack_trend(TrendTable(2, hour, {"other tenant": 1})),
        region_trend_key(2, hour - 24, 0, "US:NY", "shop"): pack_trend(TrendTable(2, hour, {"too old": 1})),
        trend_regions_key(2, hour, 0, "shop"): pack_regions(["US:NY", "DE"]),
        trend_regions_key(2, hour - 23, 3, "shop"): pack_regions(["US:NY", "FR"]),
        trend_regions_key(2, hour - 24, 3, "shop"): pack_regions(["too old"]),
        trend_regions_key(2, hour, 1, "shop"): b"damaged",
    }
    store: TrendStore = MemoryTrendStore(strings, tenant="shop")
    if form == "redis":
        client = redis.asyncio.Redis.from_url(request.getfixturevalue("redis_url"))
        await client.mset(strings)
        store = RedisTrendStore(client, tenant="shop", timeout_seconds=5)
    found = await store.read("1d", now_micros=(NOON + 1800) * SECOND)
    assert sorted(found.tables, key=lambda table: -table.bucket) == inside
    assert found.regions == {"US:NY", "DE", "FR"}
    own = await store.read("1d", now_micros=(NOON + 1800) * SECOND, region="US:NY")
    assert (sorted(own.tables, key=lambda table: -table.bucket), own.regions) == (inside, frozenset())
    assert (await store.read("1d", now_micros=(NOON + 1800) * SECOND, region="NL")).tables == []
    if form == "redis":
        await client.aclose()
        gone = redis.asyncio.Redis.from_url("redis://127.0.0.1:1/0")
        with pytest.raises(DependencyError, match="online store does not answer"):
            await RedisTrendStore(gone, tenant="shop", timeout_seconds=0.2).read("5m", now_micros=0)


def test_one_subject_cannot_move_a_trend() -> None:
    """10,000 clicks of one subject on three items and on a thousand, against twenty shoppers with one click each."""
    from datetime import UTC, datetime, timedelta

    from serving.speed.session_state import replay_session

    def clicks(items: list[str], count: int) -> list[dict[str, object]]:
        start = datetime(2024, 3, 8, 12, tzinfo=UTC)
        return [
            {"event_id": f"e{n}", "event_type": "click", "item_id": items[n % len(items)],
             "timestamp": start + timedelta(seconds=n % 3600)}
            for n in range(count)
        ]  # fmt: skip

    subjects = [clicks(["x", "y", "z"], 3000), clicks([f"i{n}" for n in range(1000)], 3000)]
    subjects += [clicks(["honest"], 1) for _ in range(20)]
    tables: dict[tuple[int, int], TrendTable] = {}
    for events in subjects:
        for change in vote_changes(Stand({}, {}), stand_of(replay_session(events))):
            tables.setdefault(change[:2], TrendTable(*change[:2])).add(change.item_id)
    assert len(WINDOWS) == 3
    for window in WINDOWS[1:]:
        total: Counter[str] = Counter()
        for (number, _), table in tables.items():
            if number == window.number:
                total.update(table.votes)
        assert (total["honest"], total["x"], max(total[f"i{n}"] for n in range(1000))) == (20, 1, 1), window
        assert sum(total.values()) == 20 + 3 + 8
