"""Votes end with the windows that look at them: by Redis's own clock, and what comes too late is not written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import region_trend_key, trend_key, trend_regions_key
from feature_repo.contracts.trend_record import WINDOWS
from serving.native import parts
from serving.speed.trends import Stand, VoteChange, vote_changes
from tests.contract.test_first_rung import ITEMS, NOON, NewShop
from tests.serving_builders import TENANT

DAY = 2
HOURS = 475_000
"""A bucket of the window of a day: it is over at 475,001 hours since 1970, and read until a day later. One window is
kept to spare: its votes count until 475,049 hours."""
LAST = 475_049 * 3600
Changes = Callable[..., list[VoteChange]]


@pytest.fixture
async def shop(environment: Environment, redis_url: str) -> AsyncIterator[NewShop]:
    new = NewShop(environment, redis_url)
    await new.open()
    yield new
    await new.running.aclose()
    new.redis.close()


@pytest.mark.redis
async def test_every_table_and_list_ends_two_windows_after_its_bucket(shop: NewShop) -> None:
    """Of 5 minutes in buckets of one, of an hour in buckets of 5, of a day in buckets of an hour."""
    await shop.put(*ITEMS)
    now = int(shop.now.timestamp())
    await shop.send("view_item", "cup", "ann", context={"region": "FR"})
    found = {key.decode(): shop.redis.expiretime(key) for key in shop.redis.scan_iter("*trend*")}
    expected = {}
    for number, bucket_seconds, window_seconds in ((0, 60, 300), (1, 300, 3600), (2, 3600, 86_400)):
        bucket = now // bucket_seconds
        ends = bucket * bucket_seconds + bucket_seconds + 2 * window_seconds
        for partition in range(64):
            place = (number, bucket, partition)
            keys = (trend_key(*place, TENANT), trend_regions_key(*place, TENANT))
            for key in (*keys, region_trend_key(*place, "FR", TENANT)):
                if key in found:
                    expected[key] = ends
    assert len(WINDOWS) == 3
    assert (len(found), found) == (9, expected)
    assert min(found.values()) > NOON.timestamp()


def ways() -> list[Changes]:
    native = parts.batches
    return [vote_changes] if native is None else [vote_changes, native.vote_changes]


def stand(bucket: int, *, region: str | None) -> Stand:
    period, within = divmod(bucket, 24)
    return Stand({(DAY, period): {"cup": within}}, {(DAY, period, "cup"): region} if region else {})


@pytest.mark.parametrize("changes", ways(), ids=lambda way: type(way).__name__)
@pytest.mark.parametrize("region", [None, "FR"])
def test_a_vote_is_written_as_long_as_its_bucket_is_kept(changes: Changes, region: str | None) -> None:
    nothing, voted = Stand({}, {}), stand(HOURS, region=region)
    tables = ["", "FR"] if region else [""]
    came = [VoteChange(DAY, HOURS, table, "cup", False) for table in tables]
    assert changes(nothing, voted, newest=LAST - 1) == came
    assert changes(nothing, voted, newest=LAST) == []
    assert changes(nothing, voted) == came


@pytest.mark.parametrize("changes", ways(), ids=lambda way: type(way).__name__)
def test_a_vote_that_moves_out_of_an_expired_bucket_comes_into_the_new_one(changes: Changes) -> None:
    """Both are of one day: 19,792 days since 1970 begin at 475,008 hours."""
    before, after = stand(475_008, region=None), stand(475_010, region=None)
    came = VoteChange(DAY, 475_010, "", "cup", False)
    assert changes(before, after, newest=475_056 * 3600) == [VoteChange(DAY, 475_008, "", "cup", True), came]
    assert changes(before, after, newest=475_057 * 3600) == [came]
    assert changes(before, after, newest=475_059 * 3600) == []
