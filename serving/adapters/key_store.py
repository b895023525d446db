"""The API keys of Redis `log` as a serving process reads them, and the task that keeps its key ring up to date.

A count beside the records rises with every change, in the same MULTI. Each worker asks for it a few times a second and
reads the records when it has moved: a revoked key is refused everywhere within `PAUSE_SECONDS` and one round trip, a
worker that was away for however long misses nothing, and no command blocks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from feature_repo.contracts.api_keys import ApiKey
from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.keys import api_keys_key, api_keys_version_key
from serving.adapters.redis_pipe import PipeCaller

logger = logging.getLogger("nightjar.serving")

PAUSE_SECONDS = 0.2
"""Between two looks at the count."""


class Keys(NamedTuple):
    """All keys at one version of them."""

    version: bytes | None
    records: list[bytes]


class KeyStore(Protocol):
    """Raises DependencyError when the log does not answer."""

    async def version(self) -> bytes | None:
        """The count of changes; None before the first key."""

    async def read(self) -> Keys:
        """Count and records as of one instant."""

    async def close(self) -> None:
        """Give the connection back."""


class RedisKeyStore:
    """Redis role `log`, on a connection of its own."""

    def __init__(self, url: str, *, tenant: str, timeout_seconds: float) -> None:
        self._caller = PipeCaller(url, timeout_seconds=timeout_seconds, what="the API keys")
        self._records_key = api_keys_key(tenant)
        self._version_key = api_keys_version_key(tenant)

    async def version(self) -> bytes | None:
        (found,) = await self._caller.ask(("GET", self._version_key))
        return None if found is None else bytes(found)

    async def read(self) -> Keys:
        get = ("GET", self._version_key)
        *_, found = await self._caller.ask(("MULTI",), get, ("HVALS", self._records_key), ("EXEC",))
        version, records = found
        return Keys(version, list(records))

    async def close(self) -> None:
        await self._caller.close()


class MemoryKeyStore:
    """The twin: a dict. `is_down` makes every call raise."""

    def __init__(self) -> None:
        self.keys: dict[str, ApiKey] = {}
        self.changes = 0
        self.is_down = False

    def put(self, *keys: ApiKey) -> None:
        """Keep these records, as one change."""
        self.keys.update({key.key_id: key for key in keys})
        self.changes += 1

    async def version(self) -> bytes | None:
        self._check()
        return b"%d" % self.changes if self.changes else None

    async def read(self) -> Keys:
        return Keys(await self.version(), [key.to_json() for key in self.keys.values()])

    async def close(self) -> None:
        """Nothing to give back."""

    def _check(self) -> None:
        if self.is_down:
            raise DependencyError("the API keys cannot be read: the store is set to be down")


class KeyTail:
    """Gives a key ring what the store has: one task for as long as the process serves.

    While the log does not answer the ring stays as it is: requests go on under the keys that were known.
    """

    def __init__(self, store: KeyStore, take: Callable[[Sequence[ApiKey]], None]) -> None:
        self._store = store
        self._take = take
        self._version: bytes | None = None
        self._has_read = False
        self._is_following = True

    async def step(self) -> bool:
        """Look once; whether there was something new. Raises DependencyError."""
        if self._has_read and await self._store.version() == self._version:
            return False
        found = await self._store.read()
        keys = []
        for record in found.records:
            try:
                keys.append(ApiKey.from_json(record))
            except ContractError as error:
                logger.error("%s; it opens nothing", error)
        self._take(keys)
        self._version, self._has_read = found.version, True
        return True

    async def follow(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                try:
                    await self.step()
                    self._is_following = True
                except DependencyError as error:
                    if self._is_following:
                        logger.warning("%s; keys stay as they are", error)
                    self._is_following = False
                except Exception:  # a tail that ends for good would leave revoked keys open without a word
                    logger.exception("the API keys cannot be followed")
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            await self._store.close()
