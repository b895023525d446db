"""Who works on which partition: an equal share for every process that lives, one owner for each partition.

A process says every third of a term that it lives. It owns a partition for a term at a time, under a fence
(`<epoch>:<member>`) that grows with every new owner; whoever writes shows its fence in the same transaction, so an
owner that was stopped and wakes up late writes nothing (infra/adr/0011). More partitions than its share it gives back,
fewer it fills up with those that nobody owns. The caller is single-threaded and calls `tend` between two batches: what
is given back is drained by then, and its next owner begins at the applied position.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from feature_repo.contracts.keys import EVENT_PARTITIONS
from serving.speed.stores import StateStore


def fair_share(member: str, members: Sequence[str], partitions: int = EVENT_PARTITIONS) -> int:
    """How many partitions `member` should own, so that shares differ by one at most and add up to all partitions."""
    everybody = sorted({*members, member})
    each, left_over = divmod(partitions, len(everybody))
    return each + (everybody.index(member) < left_over)


class Ownership:
    """The partitions of one process. `claims` and `left_behind` are for the consumer to read.

    claims       partition -> fence
    left_behind  partition just gained -> what its last owner left behind (`StateStore.claim`); the reader clears it
    """

    def __init__(
        self,
        store: StateStore,
        *,
        term_seconds: float,
        member: str | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._term_ms = int(term_seconds * 1000)
        self._timer = timer
        self.member = member or secrets.token_hex(6)
        self.claims: dict[int, str] = {}
        self.left_behind: dict[int, str | None] = {}
        self._tended_at: float | None = None
        self._share = 0

    @property
    def is_short(self) -> bool:
        """Whether fewer partitions are owned than the share."""
        return len(self.claims) < self._share

    def tend(self) -> None:
        """Say that we live, keep what is ours, give back what is too much, take what is free.

        Asks the store once in a third of a term, and each time while partitions are missing. Whoever was away for a
        term (asleep, stopped) owns nothing until the store has said so again.
        """
        now = self._timer()
        if self._tended_at is not None and not self.is_short and (now - self._tended_at) * 3000 < self._term_ms:
            return
        members = self._store.beat(self.member, term_ms=self._term_ms)
        kept = self._store.renew(self.claims, term_ms=self._term_ms)
        for partition in set(self.claims) - kept:
            self.lose(partition)
        self._share = fair_share(self.member, members)
        while len(self.claims) > self._share:
            partition = max(self.claims)
            self._store.release(partition, self.claims[partition])
            self.lose(partition)
        for partition in range(EVENT_PARTITIONS):
            if not self.is_short:
                break
            if partition not in self.claims:
                self._claim(partition, force=False)
        self._tended_at = now

    def seize_all(self) -> None:
        """Own every partition, whoever had it, and under a new fence: for a program that knows that it works alone."""
        for partition in range(EVENT_PARTITIONS):
            self._claim(partition, force=True)

    def lose(self, partition: int) -> None:
        """The partition is somebody else's."""
        self.claims.pop(partition, None)
        self.left_behind.pop(partition, None)

    def leave(self) -> None:
        """Give everything back in good order."""
        for partition, fence in list(self.claims.items()):
            self._store.release(partition, fence)
            self.lose(partition)
        self._store.leave(self.member)
        self._tended_at = None

    def _claim(self, partition: int, *, force: bool) -> None:
        found = self._store.claim(partition, self.member, term_ms=self._term_ms, force=force)
        if found is not None:
            self.claims[partition], self.left_behind[partition] = found
