"""The versions that a serving process holds in memory: the one it serves and those it may have to return to."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from feature_repo.contracts.errors import NightjarError
from feature_repo.contracts.publication import WARM_VERSIONS
from serving.adapters.pace import HURRIED, Pace
from serving.pipeline.catalogue import Catalogue


async def _as_it_is(_: Catalogue) -> None:
    """Nothing to prepare."""


RETRY_SECONDS = 2.0
"""A version that could not be loaded is not tried again sooner, so a broken bundle costs nothing per request."""


class VersionShelf:
    """Loads versions off the event loop, once each however many requests ask, and keeps the last `keep` of them."""

    def __init__(
        self,
        load: Callable[[str, Pace], Catalogue],
        *,
        keep: int = WARM_VERSIONS,
        timer: Callable[[], float] = time.monotonic,
        prepare: Callable[[Catalogue], Awaitable[None]] = _as_it_is,
        release: Callable[[Catalogue], None] = lambda _: None,
    ) -> None:
        """`prepare` gets each version before anybody is answered from it, `release` when it is not held any more."""
        self._load = load
        self._prepare = prepare
        self._release = release
        self._keep = keep
        self._timer = timer
        self._shelf: OrderedDict[str, Catalogue] = OrderedDict()
        self._loading: dict[str, tuple[asyncio.Task[Catalogue], Pace]] = {}
        self._expected: Catalogue | None = None
        self._failed: dict[str, tuple[float, NightjarError]] = {}
        self.current: Catalogue | None = None

    def versions(self) -> list[str]:
        """What is held, least recently used first."""
        return list(self._shelf)

    async def switch_to(self, version: str) -> Catalogue:
        """Make `version` the current one and return it. Raises what loading it raised, and then the current one stays.

        A caller that is cancelled does not stop the loading: the next one finds it done.
        """
        catalogue = self._held(version)
        if catalogue is None:
            catalogue = await self._loaded(version)
        if self._expected is catalogue:
            self._expected = None
        self._shelf[version] = catalogue
        self._shelf.move_to_end(version)
        while len(self._shelf) > self._keep:
            self._release(self._shelf.popitem(last=False)[1])
        self.current = catalogue
        return catalogue

    async def expect(self, version: str | None) -> None:
        """Load a version that may be served soon, at leisure, so that the switch to it waits for nothing. One such is
        kept beside the others; None: nothing is expected. Raises what loading it raised.

        When it is asked for meanwhile, it is loaded with all speed.
        """
        if self._expected is not None and self._expected.version != version:
            self._release(self._expected)
            self._expected = None
        if version is None or self._held(version) is not None:
            return
        catalogue = await self._loaded(version, pace=Pace())
        if self._held(version) is None:  # nobody has switched to it meanwhile
            self._expected = catalogue

    def hurry(self) -> None:
        """Whatever is loaded at leisure: with all speed now."""
        for _, pace in self._loading.values():
            pace.hurry()

    def _held(self, version: str) -> Catalogue | None:
        if self._expected is not None and self._expected.version == version:
            return self._expected
        return self._shelf.get(version)

    @asynccontextmanager
    async def borrowed(self, version: str) -> AsyncIterator[Catalogue]:
        """A version for as long as the block lasts, whatever is served; one that is not held is loaded for it alone.

        Raises what loading it raised.
        """
        held = self._held(version)
        if held is not None:
            yield held
            return
        catalogue = await self._loaded(version)
        try:
            yield catalogue
        finally:
            if self._held(version) is not catalogue:
                self._release(catalogue)

    async def _loaded(self, version: str, *, pace: Pace = HURRIED) -> Catalogue:
        if version in self._failed:
            tried_at, error = self._failed[version]
            if self._timer() - tried_at < RETRY_SECONDS:
                raise error
        if version not in self._loading:
            self._loading[version] = asyncio.create_task(self._load_whole(version, pace)), pace
        loading, its_pace = self._loading[version]
        if pace is HURRIED:
            its_pace.hurry()
        try:
            catalogue = await asyncio.shield(loading)
        except NightjarError as error:
            self._failed[version] = (self._timer(), error)
            raise
        finally:
            if version in self._loading and self._loading[version][0].done():
                del self._loading[version]
        self._failed.pop(version, None)
        gc.freeze()
        return catalogue

    async def _load_whole(self, version: str, pace: Pace) -> Catalogue:
        catalogue = await asyncio.to_thread(self._load, version, pace)
        await self._prepare(catalogue)
        return catalogue
