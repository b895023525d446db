from collections.abc import Callable
from typing import Any

from serving.adapters.circuit import Breaker, GuardedStore
from serving.adapters.online import OnlineRecords, ReadCommands, RedisOnlineStore
from serving.adapters.tagged_reads import TaggedReads
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.values import SlateRequest

class Meetings:
    def __init__(
        self,
        recommender: Any,
        shelf: Any,
        overlay: Any,
        identities: Any,
        guard: GuardedStore,
        breaker: Breaker,
        store: RedisOnlineStore,
        commands: ReadCommands,
        writer: Any,
        reads: TaggedReads,
    ) -> None: ...
    def submit(
        self,
        request: SlateRequest,
        build: Callable[[Any], Any],
        answered: Callable[[Any], None],
        at_once: Callable[[Catalogue, OnlineRecords], Any] | None,
    ) -> bool: ...
