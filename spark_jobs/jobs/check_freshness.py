"""Is the night's version served? Started by the deadline of `nightly_recommendations`, when its hour has passed.

Reads    the pointer in Redis `online`
Writes   nothing when a version of the night's as_of, or of a later one, is served; otherwise one alert: a line in the
         log, late-<as_of>.json in the alerts folder, a POST to NIGHTJAR_ALERT_WEBHOOK when that is set

One alert per as_of, however often it is asked. A Redis that does not answer is a reason to tell somebody, too.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.publication import parse_version
from feature_repo.contracts.times import format_timestamp, parse_timestamp
from spark_jobs.io.alerts import WEBHOOK, post_alert, raise_alert
from spark_jobs.io.publication import Publication
from spark_jobs.jobs.entry import run_command


def main(environment: Environment, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The alert that was raised now, or None."""
    as_of = parse_timestamp(arguments.data_interval_end).date()
    served, trouble = None, None
    try:
        served = Publication(environment.redis_online_url, environment.tenant).served_version()
    except DependencyError as error:
        trouble = str(error)
    if served is not None and parse_version(served)[0] >= as_of:
        print(f"fresh: {served} is served", flush=True)
        return None
    alert = {
        "alert": "night_is_late",
        "tenant": environment.tenant,
        "as_of": as_of.isoformat(),
        "due": format_timestamp(parse_timestamp(arguments.due)),
        "dag_run_id": arguments.dag_run_id,
        "state": arguments.state,
        "served": served,
        "trouble": trouble,
    }
    words = trouble or (f"{served} is served" if served else "nothing is served yet")
    if not raise_alert(environment, f"late-{as_of}", alert):
        print(f"the night of {as_of} is late; told before", flush=True)
        return None
    due = f"{alert['due']}: the night of {as_of} was to be served"
    print(f"ALERT night_is_late: by {due}, but {words}; {arguments.dag_run_id} is {arguments.state}", flush=True)
    url = os.environ.get(WEBHOOK)
    if url and (unheard := post_alert(url, alert)):
        print(f"the webhook did not take it: {unheard}", flush=True)
    return alert


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dag-run-id", required=True)
    parser.add_argument("--state", required=True, help="of the DAG run: running, failed ...")
    parser.add_argument("--data-interval-end", required=True, help="RFC 3339; its day is the night's as_of")
    parser.add_argument("--due", required=True, help="RFC 3339: when the night was to be served")
    return parser


if __name__ == "__main__":
    run_command(main, arguments_parser())
