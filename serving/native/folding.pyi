from collections.abc import Callable, Mapping, Sequence

from serving.native.batches import BotGuard
from serving.speed.entries import LoggedEvent
from serving.speed.stores import Write
from serving.speed.trends import VoteChange

class Folded:
    applied: int
    of_bots: int

def fold_records(
    by_key: Mapping[str, Sequence[LoggedEvent]],
    records: Mapping[str, tuple[bytes | None, str | None]],
    guard: BotGuard,
    seconds: int,
    writes: list[Write],
    votes: dict[int, list[VoteChange]],
    odd: Callable[[str, Sequence[LoggedEvent]], None],
) -> Folded: ...
