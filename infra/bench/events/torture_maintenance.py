"""The night's maintenance while the ordeal goes on: its programs, run as its DAG runs them.

The table of the archive is maintained by its writer, the archiver: the program asks and waits. The imported tables are
maintained by the program itself, under the importer's lease. Killed, it is run again, as the DAG's retries do; it has
to be done with by the end of its cycle.
"""

from __future__ import annotations

import asyncio

from infra.bench.events.installation import JOB_SECONDS, Installation, TortureError

ARCHIVE, IMPORTS = "maintenance of the archive", "maintenance of imports"
MODULES = {ARCHIVE: "serving.speed.maintenance", IMPORTS: "infra.importing.maintenance"}
IMPORTS_EVERY = 2
"""The archive in every cycle, the imported tables in every second: an import comes in every third."""


class Maintenance:
    """What became of the runs of one ordeal."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self.runs = self.attempts = 0

    async def run(self, number: int) -> None:
        """What is due in this cycle, side by side. Raises TortureError when one never says that it is done."""
        due = [ARCHIVE, *([IMPORTS] if number % IMPORTS_EVERY == 0 else ())]
        await asyncio.gather(*(self._run(name, f"c{number}") for name in due))

    async def _run(self, name: str, run_key: str) -> None:
        deadline = asyncio.get_running_loop().time() + JOB_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            self.attempts += 1
            process = self._installation.start_job(name, ["-m", MODULES[name], "--run-key", run_key])
            while process.poll() is None and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.05)
            if process.returncode == 0:
                self.runs += 1
                return
            await asyncio.sleep(0.1)
        raise TortureError(f"no {name} was done within {JOB_SECONDS:.0f} s")
