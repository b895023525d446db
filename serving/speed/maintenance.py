"""`python -m serving.speed.maintenance --run-key KEY`: have the archiver compact and vacuum its tables.

Asks the archiver that runs and waits for its answer, which is printed as JSON. Exit codes: 0 done; 2 a wrong argument;
1 no archiver answers (worth a retry).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import redis

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError, InputError, NightjarError
from feature_repo.contracts.keys import lease_key
from serving.speed.maintenance_requests import ask, read_answer
from serving.speed.table_upkeep import MAX_RETENTION_DAYS, check_retention

PATIENCE_SECONDS = 1200.0
ABSENCE_SECONDS = 20.0
"""So long nobody may hold the archiver's role before it counts as not running."""
REPEAT_SECONDS = 5.0
"""So long without an answer, and the request is left anew; done twice is done once."""
_POLL_SECONDS = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the name of the request")
    parser.add_argument("--dry-run", default="False", choices=["True", "False"])
    parser.add_argument("--retention-days", type=int, default=MAX_RETENTION_DAYS)
    arguments = parser.parse_args(argv)
    try:
        environment = Environment.from_mapping(os.environ)
        report = maintain_archive(
            environment,
            arguments.run_key,
            dry_run=arguments.dry_run == "True",
            retention_days=check_retention(arguments.retention_days),
        )
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    print(json.dumps(report, indent=1))
    return 0


def maintain_archive(
    environment: Environment,
    run_key: str,
    *,
    dry_run: bool,
    retention_days: int,
    absence_seconds: float = ABSENCE_SECONDS,
    repeat_seconds: float = REPEAT_SECONDS,
) -> dict[str, Any]:
    """Table -> what the archiver did to it. Raises DependencyError when none runs, when it fails or never answers."""
    log = redis.Redis.from_url(environment.redis_log_url, socket_timeout=10)
    try:
        ask(log, environment.tenant, run_key, dry_run=dry_run, retention_days=retention_days)
        began = last_seen = asked = time.monotonic()
        while (answer := read_answer(log, environment.tenant, run_key)) is None:
            now = time.monotonic()
            if log.exists(lease_key("archiver", environment.tenant)):
                last_seen = now
            if now - asked > repeat_seconds:  # an archiver that dies over a request takes it along
                ask(log, environment.tenant, run_key, dry_run=dry_run, retention_days=retention_days)
                asked = now
            if now - last_seen > absence_seconds:
                raise DependencyError("no archiver is running (`nightjar status`): its tables were left as they are")
            if now - began > PATIENCE_SECONDS:
                raise DependencyError(f"the archiver did not answer within {PATIENCE_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
    except redis.RedisError as error:
        raise DependencyError(f"Redis `log` does not answer ({type(error).__name__})") from error
    if "error" in answer:
        raise DependencyError(f"the archiver could not maintain its tables: {answer['error']}")
    return dict(answer["tables"])


if __name__ == "__main__":
    sys.exit(main())
