"""Answers while the ordeal goes on: what was decided is in the workers' files or in `silver.decisions`, and there once.

A decision is promised to nobody before it is on disk, 100 ms after its answer: what a crash takes of the answers under
its load is no loss. So each cycle ends with some questions whose decisions are on disk before the next harm, and from
then on they, and whatever else was found, must never go.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import httpx

from feature_repo.contracts.decisions import FILE_HEADER, LOG_SUFFIX, read_decision, read_frames
from infra.bench.events.installation import Installation
from infra.bench.events.ledger import Findings

QUESTIONS = 10
PAUSE_SECONDS = 0.02
"""Between two questions under load."""
_ON_DISK_SECONDS = 0.3
_PATIENCE_SECONDS = 10.0


class Decisions:
    """The answers of one ordeal."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self.promised: set[str] = set()
        self._kept: set[str] = set()

    async def keep_asking(self) -> None:
        """Ask until cancelled, whatever comes back: decisions of which some will be cut off."""
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as http:
            while True:
                await self._ask(http)
                await asyncio.sleep(PAUSE_SECONDS)

    async def promise(self) -> None:
        """Some answers more, and time for their decisions to reach the disk."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        answered: set[str] = set()
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as http:
            while len(answered) < QUESTIONS and time.monotonic() < deadline:
                found = await self._ask(http)
                answered |= {found} if found else set()
        await asyncio.sleep(_ON_DISK_SECONDS)
        self.promised |= answered

    def in_files(self) -> set[str]:
        """The ids of the decisions that are still in files. To be read before the table: files move there."""
        found = set()
        for path in Path(self._installation.environment.decisions).glob(f"*{LOG_SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes()[len(FILE_HEADER) :]
                found |= {str(read_decision(payload)["id"]) for _, payload in read_frames(data, 0).payloads}
        return found

    def judge(self, found: Findings, in_files: set[str], in_table: Iterable[str]) -> None:
        """Add to the findings what is wrong. An id may be in a file and in the table, never in the table twice."""
        times = Counter(in_table)
        there = times.keys() | in_files
        found.lost |= {f"decision {name}" for name in (self.promised | self._kept) - there}
        found.twice |= {f"decision {name}" for name, count in times.items() if count > 1}
        self._kept |= there

    async def _ask(self, http: httpx.AsyncClient) -> str | None:
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
            answer = await http.post(
                f"{self._installation.url}/v1/recommendations", json={"user_id": "u1", "placement": "home"}
            )
            if answer.status_code == 200:
                return str(answer.json()["recommendation_id"])
        return None
