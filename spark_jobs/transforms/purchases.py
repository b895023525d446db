"""What each user buys, as facts for a shelf of things to buy again (`contracts.purchase_record`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from feature_repo.contracts.events import EventType
from feature_repo.contracts.purchase_record import MAX_PURCHASES, MAX_VISITS, Purchase
from feature_repo.contracts.times import to_micros
from spark_jobs.models.repurchase import Repurchase
from spark_jobs.models.sequences import build_sequences

MICROS = 1_000_000


def purchases_of_users(
    interactions: pa.Table,
    params: Mapping[str, Any],
    eligible: NDArray[np.bool_],
    *,
    denied: Collection[str],
    cut_off: datetime,
) -> Iterator[tuple[str, list[Purchase]]]:
    """(user_id, what they bought before `cut_off`) of every identified user with such a purchase, sorted by user.

    Rows are sorted by worth, largest first, ties by number; at most MAX_PURCHASES. Left out: ineligible items, and
    users in `denied`.

    interactions  `matrix.COLUMNS`
    params        of the model `repurchase`
    """
    subjects, sequences = build_sequences(
        interactions, item_count=len(eligible), weights={EventType.PURCHASE.value: 1.0},
        cut_off_micros=to_micros(cut_off), collapse=False,
    )  # fmt: skip
    model = Repurchase(params)
    model.fit(sequences)
    history = model.history(sequences)
    order = np.lexsort((history.items, -history.worth, history.rows))
    order = order[eligible[history.items[order]]]
    starts = np.searchsorted(history.rows[order], np.arange(len(subjects) + 1))
    refusing = set(denied)
    for row, subject in enumerate(subjects.tolist()):
        chosen = order[starts[row] : starts[row + 1]][:MAX_PURCHASES]
        if not subject.startswith("u:") or subject[2:] in refusing or len(chosen) == 0:
            continue
        yield (
            subject[2:],
            [
                Purchase(
                    int(history.items[at]),
                    min(int(history.counts[at]), MAX_VISITS),
                    int(history.last[at]) // MICROS,
                    float(history.expected_days[at]),
                    float(history.worth[at]),
                )
                for at in chosen
            ],
        )
