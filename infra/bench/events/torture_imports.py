"""Imports while the ordeal goes on: whatever an import said is in the table once, and nothing else is.

An import is the command that a person would type. Killed, it is typed again, as a person would; what it imported before
is replaced, never added to. Its exit code 0 is the acknowledgement.

Every file has events of each of `DAYS` days, and the ordeal begins with a table whose days have none to seven files
already: so after each import some day has as many as maintenance makes one of.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.bench.events.installation import JOB_SECONDS, Installation, TortureError
from infra.bench.events.ledger import Findings
from infra.importing.events import import_events
from serving.speed.table_upkeep import SMALL_FILES

EVENTS_PER_FILE = 200
DAYS = 12
TABLE = "bronze.events_import"


class Imports:
    """The files of one ordeal, and what became of them."""

    def __init__(self, installation: Installation, folder: Path) -> None:
        self._installation, self._folder = installation, folder
        self._folder.mkdir(parents=True)
        self._sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self.attempts = 0

    def begin(self) -> None:
        """The table before the ordeal, while nothing else runs."""
        for earlier in range(1, SMALL_FILES):
            days = [day for day in range(DAYS) if day % SMALL_FILES >= earlier]
            import_events(self._write(-earlier, days), self._installation.environment)
            self.acknowledged |= _ids(-earlier)

    async def run(self, number: int) -> None:
        """Import a file of its own until the importer says that it is done. Raises TortureError when it never does."""
        path = self._write(number)
        deadline = asyncio.get_running_loop().time() + JOB_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            self.attempts += 1
            words = ["-m", "infra.cli.main", "import", "events", str(path), "--wait", "5"]
            process = self._installation.start_job("importer", words)
            while process.poll() is None:
                await asyncio.sleep(0.05)
            if process.returncode == 0:
                self.acknowledged |= _ids(number)
                return
            await asyncio.sleep(0.1)
        raise TortureError(f"no import of {path} within {JOB_SECONDS:.0f} s")

    def judge(self, found: Findings, rows: Iterable[str]) -> None:
        """Add to the findings what is wrong with `rows`, the event ids of the table."""
        times = Counter(rows)
        found.lost |= self.acknowledged - times.keys()
        found.twice |= {event_id for event_id, count in times.items() if count > 1}
        found.strangers |= times.keys() - self._sent

    def _write(self, number: int, days: Sequence[int] = range(DAYS)) -> Path:
        began = datetime(2023, 1, 1, tzinfo=UTC)
        events = [
            {
                "event_id": event_id,
                "event_type": "view_item",
                "user_id": f"h{at % 17}",
                "item_id": f"i{at % 40}",
                "timestamp": (began + timedelta(days=days[at % len(days)], seconds=97 * at))
                .isoformat()
                .replace("+00:00", "Z"),
            }
            for at, event_id in enumerate(sorted(_ids(number)))
        ]
        self._sent |= _ids(number)
        path = self._folder / f"history-{number:05d}.jsonl"
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
        return path


def _ids(number: int) -> set[str]:
    return {f"import-{number:05d}-{at:03d}" for at in range(EVENTS_PER_FILE)}
