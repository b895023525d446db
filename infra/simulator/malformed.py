"""Lines that no importer may take: one kind after the other, so that every rule is broken equally often."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from feature_repo.contracts.events import Reason
from feature_repo.contracts.times import format_timestamp, start_of_day
from infra.simulator.catalogue import Catalogue
from infra.simulator.config import ShopConfig
from infra.simulator.people import People


def _text(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


KINDS: tuple[tuple[Reason, Callable[[dict[str, Any]], bytes]], ...] = (
    (Reason.UNKNOWN_EVENT_TYPE, lambda e: _text({**e, "event_type": "veiw_item"})),
    (Reason.MISSING_ITEM_ID, lambda e: _text({**e, "item_id": None})),
    (Reason.TIMESTAMP_IN_FUTURE, lambda e: _text({**e, "timestamp": "2999-01-01T00:00:00Z"})),
    (Reason.UNREADABLE, lambda e: _text(e)[:-9]),  # cut off in the middle
    (Reason.INVALID_PRICE, lambda e: _text({**e, "price": -1.0})),
    (Reason.MISSING_SUBJECT, lambda e: _text({**e, "user_id": None})),
    (Reason.INVALID_TIMESTAMP, lambda e: _text({**e, "timestamp": "yesterday"})),
    (Reason.INVALID_QUANTITY, lambda e: _text({**e, "quantity": 0})),
    (Reason.INVALID_EVENT_ID, lambda e: _text({**e, "event_id": "x" * 300})),
    (Reason.UNREADABLE, lambda e: _text(e).replace(b'"view_item"', b'"view_\xff\xfeitem"')),  # no UTF-8
    (Reason.TIMESTAMP_TOO_OLD, lambda e: _text({**e, "timestamp": 0})),
)
"""The reason a line must be quarantined with, and how to break a good event that way."""


def malformed_lines(
    config: ShopConfig, catalogue: Catalogue, people: People, rng: np.random.Generator
) -> tuple[list[bytes], Counter[str]]:
    """(lines, how many of them per reason). Their users are never people who refused storage: those are not kept."""
    count = round(config.malformed_share * config.event_count)
    may_store = np.flatnonzero(people.consent_store != 0)
    users = people.user_ids[may_store[rng.integers(0, len(may_store), count)]]
    items = catalogue.item_ids[rng.integers(0, len(catalogue.item_ids), count)]
    moments = rng.integers(0, config.days * 86_400, count)
    start: datetime = start_of_day(config.start_day)
    lines: list[bytes] = []
    reasons: Counter[str] = Counter()
    for number, (user_id, item_id, second) in enumerate(zip(users, items, moments, strict=True)):
        reason, broken = KINDS[number % len(KINDS)]
        event = {
            "event_id": f"bad-{number:06d}",
            "event_type": "view_item",
            "user_id": str(user_id),
            "item_id": str(item_id),
            "timestamp": format_timestamp(start + timedelta(seconds=int(second))),
        }
        lines.append(broken(event))
        reasons[str(reason)] += 1
    return lines, reasons
