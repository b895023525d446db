"""What a simulated shop looks like: its size, its time, its faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

from feature_repo.contracts.errors import DataError

LARGEST_EVENT_COUNT = 20_000_000
BOT_BURST = 300


@dataclass(frozen=True, slots=True)
class ShopConfig:
    """Parameters of one shop. Equal parameters give equal files, byte for byte.

    event_count      target of written event lines, malformed ones included; what came out is in shop.json
    days             days of history, the last one ends at `end_day`
    end_day          first day (UTC) after the history: the natural `as_of`
    bot_share        share of event lines that crawlers cause, in bursts of BOT_BURST views within seven minutes
    duplicate_share  share of event lines that are delivered a second time, with the same event_id
    late_share       share of event lines delivered 2 to 36 hours after they happened
    malformed_share  share of event lines that break a rule (they lie in `events/malformed.jsonl`)
    anonymous_share  share of sessions without a user_id
    """

    seed: int = 7
    user_count: int = 2_000
    item_count: int = 800
    event_count: int = 120_000
    days: int = 60
    end_day: date = date(2025, 7, 1)
    bot_share: float = 0.02
    duplicate_share: float = 0.01
    late_share: float = 0.01
    malformed_share: float = 0.003
    anonymous_share: float = 0.15

    def __post_init__(self) -> None:
        """Raises DataError naming the parameter, the value seen and what is allowed."""
        bounds = {
            "seed": (0, 2**32 - 1),
            "user_count": (10, 5_000_000),
            "item_count": (20, 500_000),
            "event_count": (100, LARGEST_EVENT_COUNT),
            "days": (2, 1_000),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(f"{name} must lie in {low} ... {high}, got {value}", field=name)
        for name in ("bot_share", "duplicate_share", "late_share", "malformed_share", "anonymous_share"):
            value = getattr(self, name)
            if not 0 <= value <= 0.5:
                raise DataError(f"{name} must lie in 0 ... 0.5, got {value}", field=name)

    @property
    def start_day(self) -> date:
        """The first day of the history."""
        return self.end_day - timedelta(days=self.days)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, for shop.json. Inverse: `from_mapping`."""
        return {**asdict(self), "end_day": self.end_day.isoformat()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ShopConfig:
        """Inverse of `to_mapping`."""
        return cls(**{**values, "end_day": date.fromisoformat(values["end_day"])})


def burst_count(config: ShopConfig) -> int:
    """How many bursts of crawling a shop sees."""
    return round(config.bot_share * config.event_count / BOT_BURST)
