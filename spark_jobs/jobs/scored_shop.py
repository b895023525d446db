"""What score_users has in its hands between reading and publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contracts.purchase_record import Purchase
from spark_jobs.io.item_vectors import Starts
from spark_jobs.models.training_data import TrainingData
from spark_jobs.transforms.candidates import Scoring
from spark_jobs.transforms.touched import Decision, Untouched


@dataclass(frozen=True, slots=True)
class Shop:
    """What the job has read and fitted: all that lists, neighbours and the bundle are made of.

    known         the interactions with their sessions; `data` has those that count
    numbers       item_id and item_number that this run knows; `every_number`: all that there are
    eligible      by item number: may it be published at all
    kept          whose list of the night before still holds; `scoring` is without them
    learned       item vectors by recipe, as they were fitted from `starts`
    """

    recipe: Mapping[str, Any]
    policy: str
    decision: Decision
    known: pa.Table
    data: TrainingData
    every_number: pa.Table
    numbers: pa.Table
    users: pa.Table
    items: pa.Table
    eligible: NDArray[np.bool_]
    denied: list[str]
    scoring: Scoring
    kept: Untouched
    learned: Mapping[str, Any]
    starts: Starts

    @property
    def warm(self) -> list[str]:
        return sorted(self.learned.keys() & self.starts.vectors.keys())

    def ranked(self) -> str:
        return (
            f"ranked {int(self.eligible.sum()):,} eligible of {len(self.eligible):,} items for "
            f"{len(self.scoring.rows):,} users, kept {len(self.kept.keys):,} lists"
        )


@dataclass(frozen=True, slots=True)
class Beside:
    """What stands beside the lists of a version, ready to be published; without `files` nothing is.

    report   what publication.json says of it besides
    rescored what it says of what was made anew
    """

    files: Mapping[str, bytes] | None
    purchases: Sequence[tuple[str, list[Purchase]]]
    recipe: Mapping[str, Any]
    item_count: int
    last_event_at: str
    report: Mapping[str, Any]
    rescored: Mapping[str, Any]
