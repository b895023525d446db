"""Pin the night: decide its as_of, the Delta versions it reads, the days it derives and whether it may publish.

Reads   the logs of the bronze tables, the state of silver, the pointer in Redis `online`, the applied recipes
Writes  run.json in the run folder; the parent run in MLflow, where nights that a killed process left open are closed
A retry keeps the run.json that is there: what a run reads never changes under it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.publication import parse_version
from feature_repo.contracts.run import FAILED_FILE, PINNED_TABLES, Run
from feature_repo.contracts.times import EARLIEST_EVENT, parse_as_of, parse_timestamp
from spark_jobs.io.commits import take_back_torn
from spark_jobs.io.light_delta import days_by_row_count, version
from spark_jobs.io.publication import Publication
from spark_jobs.io.refine_state import EVENT_TABLES, days_to_derive, read_state
from spark_jobs.io.run_store import has_run, read_run, write_report, write_run
from spark_jobs.io.tracking import close_abandoned_nights, start_night
from spark_jobs.jobs.entry import run_command

RUN_TYPES = ("manual", "scheduled", "backfill")
PUBLISH_MODES = ("auto", "never", "always")
AUTO = "auto"
DEFAULT_RECIPES = "default"

_ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asked for. `today` (UTC) is None when the caller does not know it: then no as_of is in the future.

    interval_end  end of the DAG run's data interval, RFC 3339, or empty for a manual run
    """

    run_key: str
    dag_run_id: str
    run_type: str
    as_of: str
    interval_end: str
    publish: str
    params: Mapping[str, Any]
    today: date | None = None


def main(environment: Environment, arguments: argparse.Namespace) -> Run:
    """Pin the run, or keep the one that is pinned."""
    if has_run(environment, arguments.run_key):
        run = read_run(environment, arguments.run_key)
        print(f"{run.run_key} is pinned already: as_of {run.as_of}", flush=True)
        return run
    run = pin_run(environment, parse_request(arguments))
    days = "every day" if run.derive_days is None else f"{len(run.derive_days)} days"
    print(f"{run.run_key}: as_of {run.as_of}, derives {days}, reads {dict(run.pins)}; {run.why}", flush=True)
    return run


def pin_run(environment: Environment, request: Request) -> Run:
    """Decide everything, open the parent run in MLflow, write run.json last."""
    take_back_torn(environment)  # what the night before left, or its maintenance, is read from here on
    pins = {name: version(environment, name) for name in PINNED_TABLES}
    days = _event_days(environment, pins)
    as_of = choose_as_of(request, days)
    publishes, why = decide_publication(environment, request, as_of)
    tags = {
        "nightjar.dag_run_id": request.dag_run_id,
        "nightjar.run_type": request.run_type,
        "nightjar.code_version": environment.code_version,
        "nightjar.publishes": str(publishes).lower(),
        **{f"nightjar.delta.{name}": str(pinned) for name, pinned in pins.items()},
    }
    derive_days = days_to_derive(environment, read_state(environment), as_of=as_of, pins=pins)
    mlflow_run_id = start_night(environment, run_key=request.run_key, as_of=as_of.isoformat(), tags=tags)
    _close_abandoned(environment, request.run_key)
    run = Run(
        run_key=request.run_key,
        tenant=environment.tenant,
        as_of=as_of.isoformat(),
        pins=pins,
        derive_days=derive_days,
        publishes=publishes,
        why=why,
        mlflow_run_id=mlflow_run_id,
        code_version=environment.code_version,
        params=with_recipes(environment, request.params),
        last_day_is_over=request.today is None or as_of <= request.today,
        event_count=sum(count for day, count in days.items() if day < as_of),
    )
    write_run(environment, run)
    return run


def with_recipes(environment: Environment, params: Mapping[str, Any]) -> dict[str, Any]:
    """The params, with the applied recipes themselves in place of the name of their file, so that a retry trains the
    same. `recipes` names a file, or is `default`: none; without it the installation's file is taken, where it is."""
    if isinstance(params.get("recipes"), Mapping):
        return dict(params)
    wanted = str(params.get("recipes") or "")
    path = Path(wanted or environment.recipes)
    others = {name: value for name, value in params.items() if name != "recipes"}
    if wanted == DEFAULT_RECIPES or (not wanted and not path.is_file()):
        return others
    from spark_jobs.models.recipe_choice import read_choice_file  # all models: not where nobody chose any

    return {**others, "recipes": read_choice_file(path).to_json()}


def _close_abandoned(environment: Environment, run_key: str) -> None:
    """Close what killed nights left open; should one of them go on after all, its next job finds its mark."""
    for other in close_abandoned_nights(environment, run_key=run_key):
        if has_run(environment, other):
            write_report(
                environment, other, FAILED_FILE, {"job": "unknown", "error": f"closed when {run_key} was pinned"}
            )
        print(f"closed the MLflow run of {other}: it ended without a word", flush=True)


def choose_as_of(request: Request, event_days: Mapping[date, int]) -> date:
    """The day (UTC) whose first instant ends what the run may see.

    A day that was given is taken; otherwise a manual run takes the day after the last event (tomorrow at the latest),
    the others the day of the end of their data interval. `event_days` are the days that have events.

    Raises DataError when that day lies beyond tomorrow or no event lies before it.
    """
    latest = request.today + _ONE_DAY if request.today else None
    if not event_days:
        raise DataError(
            "there are no events yet; `nightjar simulate` makes some, `nightjar import events PATH` brings yours",
            field="as_of",
        )
    if request.as_of != AUTO:
        as_of = parse_as_of(request.as_of)
    elif request.run_type == "manual":
        last = max(event_days) + _ONE_DAY
        as_of = min(last, latest) if latest else last
    else:
        as_of = parse_timestamp(request.interval_end).date()
    if latest and as_of > latest:
        raise DataError(
            f"as_of {as_of} lies in the future: today is {request.today} (UTC), so {latest} is the latest possible",
            field="as_of",
        )
    first = min(event_days)
    if first >= as_of:
        raise DataError(
            f"no event lies before as_of {as_of}: the first is of {first}, the last of {max(event_days)}; "
            f"give a day from {first + _ONE_DAY} on, or bring older events with `nightjar import events PATH`",
            field="as_of",
        )
    return as_of


def decide_publication(environment: Environment, request: Request, as_of: date) -> tuple[bool, str]:
    """(whether the run publishes, why in words). Raises DependencyError when the pointer must be known and is not."""
    if request.publish == "never":
        return False, "publishes nothing, as asked"
    if request.publish == "always":
        return True, "publishes, as asked"
    if request.run_type == "backfill":
        return False, "a backfill rebuilds its tables and publishes nothing"
    served = Publication(environment.redis_online_url, environment.tenant).served_version()
    if served is not None and parse_version(served)[0] > as_of:
        return False, f"as_of {as_of} is older than what is served ({served}), so nothing is published"
    return True, "publishes: " + (f"not older than what is served ({served})" if served else "nothing is served yet")


def parse_request(arguments: argparse.Namespace) -> Request:
    """The command line as a request. Raises DataError on parameters that are no JSON object."""
    try:
        params = json.loads(arguments.params or "{}")
    except ValueError as error:
        raise DataError(f"--params is a JSON object, got {arguments.params!r}: {error}", field="params") from error
    if not isinstance(params, dict):
        raise DataError(f"--params is a JSON object, got {arguments.params!r}", field="params")
    if arguments.run_type != "manual" and arguments.as_of == AUTO and not arguments.data_interval_end:
        raise DataError(f"a {arguments.run_type} run needs --data-interval-end or --as-of", field="data_interval_end")
    return Request(
        run_key=arguments.run_key,
        dag_run_id=arguments.dag_run_id,
        run_type=arguments.run_type,
        as_of=arguments.as_of,
        interval_end=arguments.data_interval_end,
        publish=arguments.publish,
        params=params,
        today=parse_as_of(arguments.today) if arguments.today else None,
    )


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="the folder of the run")
    parser.add_argument("--dag-run-id", required=True)
    parser.add_argument("--run-type", choices=RUN_TYPES, default="manual")
    parser.add_argument("--as-of", default=AUTO, help="a day (UTC), or auto")
    parser.add_argument("--data-interval-end", default="", help="RFC 3339; empty for a manual run")
    parser.add_argument("--publish", choices=PUBLISH_MODES, default="auto")
    parser.add_argument("--params", default="{}", help="the run's parameters as a JSON object")
    parser.add_argument("--today", default="", help="the current day (UTC); a later as_of than tomorrow is refused")
    return parser


def _event_days(environment: Environment, pins: Mapping[str, int]) -> dict[date, int]:
    """Days that have events in any source. Rows without a day, or from before any shop, count for nothing."""
    days: dict[date, int] = {}
    for name in EVENT_TABLES:
        for day, count in days_by_row_count(environment, name, pins[name]).items():
            if day >= EARLIEST_EVENT.date():
                days[day] = days.get(day, 0) + count
    return days


if __name__ == "__main__":
    run_command(main, arguments_parser())
