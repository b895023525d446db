"""The trend tables of the partitions that one consumer owns: of all regions together, and of each region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError
from feature_repo.contracts.keys import region_trend_key, trend_key, trend_regions_key
from feature_repo.contracts.trend_record import (
    KEPT_ITEMS,
    KEPT_OF_REGION,
    MAX_REGIONS,
    TrendTable,
    pack_regions,
    pack_trend,
    unpack_regions,
    unpack_trend,
)
from serving.speed.stores import Transaction, Write
from serving.speed.trends import VoteChange, expires_at

KEPT_TABLES = 256
"""Tables of all owned partitions that stay in memory between two batches."""
KEPT_REGION_TABLES = KEPT_TABLES * KEPT_ITEMS // KEPT_OF_REGION
"""As many of regions, which are smaller."""

DAMAGED_TREND = "damaged_trend"
LEFT_OUT = "region_votes_left_out"
"""Votes for regions beyond the first MAX_REGIONS of their bucket: they count for all regions together alone."""


class _Place(NamedTuple):
    """Of a table. `region` "": of all regions."""

    partition: int
    window: int
    bucket: int
    region: str


class TrendTables:
    """What is in memory is what the last transaction wrote; whoever fails to write must `forget`."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._tables: dict[_Place, TrendTable] = {}
        self._of_regions: dict[_Place, TrendTable] = {}
        self._regions: dict[_Place, list[str]] = {}
        """Of a bucket, as the place of its table of all regions: the regions that have tables in it."""

    def forget(self, partition: int) -> None:
        """Read its tables again when they are asked for."""
        held: tuple[dict[_Place, Any], ...] = (self._tables, self._of_regions, self._regions)
        for places in held:
            for place in [place for place in places if place.partition == partition]:
                del places[place]

    def count(
        self, transaction: Transaction, votes: Mapping[int, Sequence[VoteChange]], counts: Counter[str]
    ) -> list[Write]:
        """Take the vote changes of each partition into its tables; what is to be written."""
        touched: dict[_Place, list[VoteChange]] = {}
        for partition, changes in votes.items():
            by_table: dict[tuple[int, int, str], list[VoteChange]] = {}
            for change in changes:
                by_table.setdefault(change[:3], []).append(change)
            touched.update((_Place(partition, *table), some) for table, some in by_table.items())
        self._load(transaction, list(touched), counts)
        writes: list[Write] = []
        grown: dict[_Place, None] = {}
        for place, changes in touched.items():
            tables = self._held(place.region)
            if place.region and not self._admits(place, changes, grown, counts):
                del tables[place]
                continue
            table = tables[place]
            for change in changes:
                if change[4]:  # is withdrawn
                    table.withdraw(change[3])
                else:
                    table.add(change[3])
            writes.append(Write(self._key(place), pack_trend(table), until=expires_at(*place[1:3])))
        for place in grown:
            writes.append(
                Write(self._list_key(place), pack_regions(self._regions[place]), until=expires_at(*place[1:3]))
            )
        return writes

    def _held(self, region: str) -> dict[_Place, TrendTable]:
        return self._of_regions if region else self._tables

    def _key(self, place: _Place) -> str:
        partition, window, bucket, region = place
        if region:
            return region_trend_key(window, bucket, partition, region, self._tenant)
        return trend_key(window, bucket, partition, self._tenant)

    def _list_key(self, place: _Place) -> str:
        return trend_regions_key(place.window, place.bucket, place.partition, self._tenant)

    def _admits(
        self, place: _Place, changes: Sequence[VoteChange], grown: dict[_Place, None], counts: Counter[str]
    ) -> bool:
        """Whether the region has a table in that bucket. It gets one with its first vote while there is room; one that
        got none then never does, so what it left out is not taken back either."""
        bucket = place._replace(region="")
        regions = self._regions[bucket]
        if place.region in regions:
            return True
        added = sum(not change.is_withdrawn for change in changes)
        if added and len(regions) < MAX_REGIONS:
            regions.append(place.region)
            grown[bucket] = None
            return True
        counts[LEFT_OUT] += added
        return False

    def _load(self, transaction: Transaction, touched: Sequence[_Place], counts: Counter[str]) -> None:
        """All that is not in memory, in one reading."""
        if len(self._tables) > KEPT_TABLES:
            self._tables.clear()
        if len(self._of_regions) > KEPT_REGION_TABLES:
            self._of_regions.clear()
            self._regions.clear()
        missing = [place for place in touched if place not in self._held(place.region)]
        buckets = dict.fromkeys(place._replace(region="") for place in touched if place.region)
        unlisted = [place for place in buckets if place not in self._regions]
        if not missing and not unlisted:
            return
        stored = transaction.read([*map(self._key, missing), *map(self._list_key, unlisted)])
        for place, record in zip(missing, stored, strict=False):
            kept = KEPT_OF_REGION if place.region else KEPT_ITEMS
            table = TrendTable(place.window, place.bucket, kept=kept)
            if record is not None:
                try:
                    table = unpack_trend(record, kept=kept)
                except ContractError:
                    counts[DAMAGED_TREND] += 1
            self._held(place.region)[place] = table
        for place, record in zip(unlisted, stored[len(missing) :], strict=True):
            self._regions[place] = []
            if record is not None:
                try:
                    self._regions[place] = unpack_regions(record)
                except ContractError:
                    counts[DAMAGED_TREND] += 1
