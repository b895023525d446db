from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from feature_repo.contracts.session_record import SessionState
from serving.speed.entries import Entry, LoggedEvent
from serving.speed.stores import Write
from serving.speed.trends import Stand, VoteChange

def read_entries(
    partition: int, entries: Iterable[Entry], read_one: Callable[[int, str, int, bytes, bytes], LoggedEvent]
) -> list[LoggedEvent]: ...
def by_session_key(live: Iterable[LoggedEvent], tenant: str) -> dict[str, list[LoggedEvent]]: ...

class BotGuard:
    def __init__(self, *, max_subjects: int = ...) -> None: ...
    def judge(
        self, state: SessionState, event: Mapping[str, Any], subject: str, *, micros: int, position: int
    ) -> bool: ...

def fold_subject(
    states: OrderedDict[str, tuple[bytes, SessionState]],
    most_states: int,
    guard: BotGuard,
    stand_of: Callable[[SessionState], Stand],
    fold_event: Callable[[SessionState, Mapping[str, Any]], None],
    pack_session: Callable[[SessionState], bytes],
    key: str,
    record: bytes | None,
    logged: Sequence[LoggedEvent],
) -> tuple[Stand | None, SessionState, bytes, int] | int: ...
def stand_of(state: SessionState) -> Stand: ...
def vote_changes(before: Stand, after: Stand, *, newest: int = ...) -> list[VoteChange]: ...
def packed_sets(writes: list[Write]) -> bytes: ...
def packed_marks(events: Sequence[tuple[int, str]], places: Sequence[int], begin: str) -> bytes: ...
