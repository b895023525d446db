"""The shop of `bench serving-limits`: like that of `bench serving`, of any size, and published as a night publishes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import Source
from feature_repo.contracts.publication import Manifest
from infra.bench.serving.shop import BenchShop, Candidate, Click
from spark_jobs.io.publication import Publication
from spark_jobs.transforms.candidates import CANDIDATES_SCHEMA, pack_batch

BATCH_PEOPLE = 2_000
AS_OF = "2024-03-08"
_NEAR = 400
_PATTERNS = 997
"""Sets of offsets from a person's taste; with the place of the taste they make every list another one."""
_KINDS = ("view_item", "view_item", "view_item", "select_item", "add_to_cart")


class LargeShop(BenchShop):
    """As `BenchShop`, with lists that arrays can make: half of a list lies within 400 items of the person's taste."""

    def __init__(self, mix: dict[str, Any], *, people: int | None = None, items: int | None = None) -> None:
        """Raises DataError when there are too few items for a list."""
        super().__init__(mix, people=people, items=items)
        if self.items < 2 * self.candidates:
            raise DataError(f"a shop of {self.items} items, expected at least {2 * self.candidates}", field="items")
        drawn, half, span = np.random.default_rng(11), self.candidates // 2, min(_NEAR, self.items // 2)
        far = self.candidates - half
        self._patterns = np.empty((_PATTERNS, self.candidates), np.int64)
        for at in range(_PATTERNS):
            near = drawn.choice(span, half, replace=False)
            self._patterns[at] = drawn.permutation(np.r_[near, span + drawn.choice(self.items - span, far, False)])
        self._steps = [(1 + drawn.choice(299, self.neighbours, replace=False)).tolist() for _ in range(_PATTERNS)]

    def candidates_of(self, person: int) -> list[Candidate]:
        """Best first."""
        numbers = self._lists(np.array([person]))[0].tolist()
        reason = (person * 37 + 3) % self.items
        return [Candidate(number, score, reason) for number, score in zip(numbers, self._scores, strict=True)]

    def neighbours_of(self, number: int) -> list[tuple[int, float]]:
        """(number, similarity), best first."""
        steps = self._steps[number % _PATTERNS]
        return [((number + step) % self.items, value) for step, value in zip(steps, self._similarities, strict=True)]

    def session_of(self, person: int) -> list[Click]:
        """Oldest first, 40 seconds apart, around the person's taste."""
        home = person * 37
        return [
            Click(_KINDS[at % 5], (home + (person * 7 + at * 61) % 300) % self.items, 40 * (self.session_events - at))
            for at in range(self.session_events)
        ]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Everybody's list, as gold.candidates has them."""
        for start in range(0, self.people, BATCH_PEOPLE):
            people = np.arange(start, min(self.people, start + BATCH_PEOPLE))
            offsets = np.arange(len(people) + 1, dtype=np.int32) * self.candidates
            rows = len(people) * self.candidates

            def lists(values: Any, offsets: NDArray[np.int32] = offsets) -> pa.Array:
                return pa.ListArray.from_arrays(offsets, pa.array(values))

            reasons = np.repeat((people * 37 + 3) % self.items, self.candidates).astype(np.int32)
            columns = {
                "user_id": pa.array([f"u{person}" for person in people]),
                "item_numbers": lists(self._lists(people).reshape(-1).astype(np.int32)),
                "scores": lists(np.tile(np.array(self._scores, np.float32), len(people))),
                "sources": lists(np.full(rows, int(Source.ALS), np.int32)),
                "first_reasons": lists(reasons),
                "second_reasons": lists(pa.nulls(rows, pa.int32())),
                "allows_personalize": pa.array([True] * len(people)),
                "as_of": pa.array([date.fromisoformat(AS_OF)] * len(people), pa.date32()),
            }
            # what tells the next night how a list was made is no part of a publication
            missing = {field.name: pa.nulls(len(people), field.type) for field in CANDIDATES_SCHEMA}
            yield pa.RecordBatch.from_pydict({**missing, **columns}, schema=CANDIDATES_SCHEMA)

    def publish_version(self, environment: Environment) -> str:
        """Its bundle and its lists; the version."""
        return self.put_version(environment, self.write_bundle(environment, as_of=AS_OF))

    def put_version(
        self, environment: Environment, manifest: Manifest, batches: Iterable[pa.RecordBatch] | None = None
    ) -> str:
        """Announce, put, mark and flip as a night does, without reading everything back; the version. `batches`: those
        of `batches()`, where they are at hand."""
        publication = Publication(environment.redis_online_url, environment.tenant)
        version = publication.announce(manifest)
        for batch in batches if batches is not None else self.batches():
            publication.put_records(version, pack_batch(version, batch))
        publication.mark_verified(version, at=datetime.now(UTC))
        publication.flip(version)
        return version

    def _lists(self, people: NDArray[np.int64]) -> NDArray[np.int64]:
        patterns = self._patterns[(people // self.items + people) % _PATTERNS]
        return np.asarray((people[:, None] * 37 + patterns) % self.items)
