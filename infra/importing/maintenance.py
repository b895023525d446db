"""`python -m infra.importing.maintenance`: compact and vacuum the tables that the importer writes, under its lease.

Prints what was done as JSON. Exit codes: 0 done; 2 a wrong argument; 1 anything else (worth a retry).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import InputError, NightjarError
from feature_repo.contracts.tables import TABLES
from infra.importing.lease import writer_lease
from infra.importing.tables import keep_up_on_disk
from serving.speed.table_upkeep import MAX_RETENTION_DAYS

WAIT_SECONDS = 600.0
"""How long a running import may keep this waiting."""


def maintain_imports(environment: Environment, *, dry_run: bool, retention_days: int) -> dict[str, Any]:
    """Table -> what was done, see `keep_up`; tables that were never written are left out.

    Raises DependencyError when an import holds the lease for ten minutes, or a table cannot be written.
    """
    report = {}
    with writer_lease(environment, wait_seconds=WAIT_SECONDS):
        for name in sorted(name for name, spec in TABLES.items() if spec.writer == "importer"):
            done = keep_up_on_disk(environment, name, dry_run=dry_run, retention_days=retention_days)
            if done is not None:
                report[name] = done
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the run that asks, for the log")
    parser.add_argument("--dry-run", default="False", choices=["True", "False"])
    parser.add_argument("--retention-days", type=int, default=MAX_RETENTION_DAYS)
    arguments = parser.parse_args(argv)
    try:
        report = maintain_imports(
            Environment.from_mapping(os.environ),
            dry_run=arguments.dry_run == "True",
            retention_days=arguments.retention_days,
        )
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
