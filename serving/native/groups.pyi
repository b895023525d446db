from collections.abc import Sequence
from typing import Any

from serving.adapters.event_log import LogEntry
from serving.adapters.log_writes import WriteRequest

class Packed:
    payload: bytes
    reply_count: int
    def settle(self, replies: list[Any]) -> None: ...

class GroupWriter:
    def __init__(
        self,
        streams: Sequence[bytes],
        more: Sequence[bytes],
        marks: Sequence[bytes],
        multi: bytes,
        execute: bytes,
        set_head: bytes,
        set_tail: bytes,
    ) -> None: ...
    def pack(self, group: Sequence[WriteRequest], max_multi: int, max_entry: int) -> Packed | None: ...

def accepted(entries: Sequence[LogEntry], is_new: Sequence[bool], head: bytes, last: bytes) -> bytes | None: ...
