"""What a finished run made, as hashes: what `nightjar repro` compares with a run made again from the same pins."""

from __future__ import annotations

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.run import PUBLICATION_FILE, Run
from feature_repo.contracts.tables import TABLES
from spark_jobs.io.run_store import has_report, read_report
from spark_jobs.io.table_hash import hash_table

MADE_BY_ONE_RUN = tuple(name for name in sorted(TABLES) if TABLES[name].partition_by == ("as_of",))
"""Tables with a partition for every as_of: no other run adds to it."""


def run_hashes(environment: Environment, run: Run) -> dict[str, str]:
    """Name -> hash of the run's partition of every such table, of the published lists and of the files of the bundle.

    Lists and bundle as publication.json of the run says them; a run that wrote none has none. Equal hashes mean what
    `table_hash` means by identical.
    """
    hashes = {name: hash_table(environment, name, run.as_of_day) for name in MADE_BY_ONE_RUN}
    if has_report(environment, run.run_key, PUBLICATION_FILE):
        made = read_report(environment, run.run_key, PUBLICATION_FILE)
        if "candidates_checksum" in made:
            hashes["lists"] = f"{made['candidates_checksum']} ({made['user_count']} users)"
            hashes |= {f"bundle {name}": digest for name, digest in sorted(made["files"].items())}
    return hashes
