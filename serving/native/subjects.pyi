from collections.abc import Mapping
from datetime import datetime
from typing import Any

from feature_repo.contracts.session_record import SessionState

def micros_of(moment: datetime) -> int: ...
def check_common_event(event: object, *, latest: datetime) -> dict[str, Any] | None: ...
def fold_event(state: SessionState, event: Mapping[str, Any]) -> None: ...
def pack_session(state: SessionState) -> bytes: ...

class BotCounters:
    browsing: int
    second_peak: int
    minute_peak: int
    hour_peak: int
    gaps: int
    quick_gaps: int
    steps: int
    steady_steps: int
    is_crawler: bool
    items: set[int]

    def add(self, event_type: str, micros: int, item_id: str | None, *, context: Any = None) -> None: ...
