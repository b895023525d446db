"""`nightjar up`, `down`, `status`, `logs`: the embedded stack."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import typer

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError, nearest
from feature_repo.contracts.feature_table import FEATURE_VIEWS, FeatureView
from feature_repo.contracts.keys import feature_times_key
from feature_repo.contracts.publication import parse_version
from feature_repo.contracts.times import format_timestamp, from_micros, start_of_day, to_micros
from infra.cli.output import ExitCode, NotRunningError, emit, err, out, step

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    app.command("up")(start)
    app.command("down")(stop)
    app.command("status")(show_status)
    app.command("logs")(show_log)


def start(as_json: AsJson = False) -> None:
    """Start what is not running, and wait until all is well. Safe to repeat."""
    from infra.local.stack import up

    with step("starting the stack", quiet=as_json):
        book = up(on_progress=None if as_json else show_service)
    described = addresses(book)

    def render() -> None:
        print_addresses(described)

    emit({"home": book[names.HOME], "addresses": described}, as_json=as_json, render=render)


def stop() -> None:
    """Stop every service of this stack. Its data stays."""
    from infra.local.stack import down

    with step("stopping the stack"):
        stopped = down()
    out.print(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was running.")


def show_status(as_json: AsJson = False) -> None:
    """Each service, what is served, the last run. Exit code 6 when a service is not running."""
    from infra.local.stack import status
    from infra.local.variables import read_book, stack_environment

    environment = stack_environment(os.environ)
    services = status()
    serving = served_version(environment)
    features = online_features(environment, serving["served_version"])
    run = last_run() if any(s.name == "airflow-api" and s.state == "running" for s in services) else None
    book = read_book(environment.home)
    answer = {
        "home": environment.home,
        "services": [service._asdict() for service in services],
        **serving,
        "features": features,
        "last_run": run,
        "addresses": addresses(book) if book else {},
    }

    def render() -> None:
        from rich.table import Table

        table = Table("service", "state", "pid", "memory", "up", "address", box=None)
        for service in services:
            colour = "green" if service.state in ("running", "external") else "red"
            table.add_row(
                service.name,
                f"[{colour}]{service.state}[/]",
                str(service.pid or ""),
                "" if service.memory_megabytes is None else f"{service.memory_megabytes} MB",
                "" if service.uptime_seconds is None else duration(service.uptime_seconds),
                service.url or "",
            )
        out.print(table)
        out.print(f"serving   {serving['served_version'] or 'nothing yet'}")
        if serving["disagreement"]:
            out.print("[yellow]but[/]       ", end="")
            out.print(serving["disagreement"], markup=False)
        for view in features:
            if view["is_stale"]:
                out.print("[yellow]stale[/]     ", end="")
                out.print(f"{view['view']}: {view['problem']}", markup=False)
        if run:
            out.print(f"last run  {run['dag_run_id']} {run['state']}", markup=False)
            for line in run["errors"]:
                out.print(f"          {line}", markup=False)

    emit(answer, as_json=as_json, render=render)
    if not all(service.state in ("running", "external") for service in services):
        raise typer.Exit(ExitCode.NOT_RUNNING)


def show_log(
    service: Annotated[str, typer.Argument(help="A service, as `nightjar status` names it.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
) -> None:
    """Print the end of a service's log."""
    from infra.local.services import AIRFLOW_DATABASE, NAMES
    from infra.local.stack import log_file

    known = (*NAMES, AIRFLOW_DATABASE)
    if service not in known:
        raise DataError(f"no service {service!r}{nearest(service, known)}; they are: {', '.join(known)}")
    path = log_file(service)
    if not path.exists():
        raise NotRunningError(f"{service} was never started here: there is no {path}")
    at = print_tail(path, lines)
    while follow:
        time.sleep(0.3)
        if path.stat().st_size < at:  # rotated
            at = 0
        with path.open("rb") as file:
            file.seek(at)
            added = file.read()
        at += len(added)
        out.file.write(added.decode(errors="replace"))
        out.file.flush()


def print_tail(path: Path, lines: int) -> int:
    """Print the last lines; returns the byte after them."""
    with path.open("rb") as file:
        for line in deque(file, maxlen=lines):
            out.file.write(line.decode(errors="replace"))
        return file.tell()


def show_service(name: str, state: str, seconds: float) -> None:
    """One line on stderr for each service that has come up, or has not."""
    if state in ("running", "external"):
        err.print(f"  [green]{name:13}[/] {state} after {seconds:.1f} s")
    elif state == "already running":
        err.print(f"  [dim]{name:13} {state}[/]")
    elif state == "failed":
        err.print(f"  [red]{name:13}[/] failed after {seconds:.1f} s")


def addresses(book: Mapping[str, str]) -> dict[str, Any]:
    """Where a person goes with a browser, and with which login."""
    from infra.local.airflow_home import USER, AirflowHome

    airflow: dict[str, Any] = {"url": book[names.AIRFLOW_URL]}
    folder = AirflowHome(Path(book[names.HOME]))
    if folder.database.exists():
        airflow |= {"user": USER, "password": folder.password()}
    return {
        "api": {"url": book[names.API_URL], "docs": f"{book[names.API_URL]}/docs"},
        "airflow": airflow,
        "mlflow": {"url": book[names.MLFLOW_URI]},
        "redis_log": {"url": book[names.REDIS_LOG_URL]},
        "redis_online": {"url": book[names.REDIS_ONLINE_URL]},
    }


def print_addresses(described: Mapping[str, Any]) -> None:
    """The addresses as a person reads them."""
    airflow = described["airflow"]
    login = f"   login {airflow['user']} / {airflow['password']}" if "user" in airflow else ""
    out.print(f"API      {described['api']['docs']}", markup=False)
    out.print(f"Airflow  {airflow['url']}{login}", markup=False)
    out.print(f"MLflow   {described['mlflow']['url']}", markup=False)


def served_version(environment: Environment) -> dict[str, str | None]:
    """The version that the pointer names, the one that MLflow's champion was published as, and how they disagree."""
    from spark_jobs.io.publication import Publication

    try:
        served = Publication(environment.redis_online_url, environment.tenant).served_version()
    except DependencyError as error:
        return {"served_version": None, "champion_version": None, "disagreement": str(error)}
    champion, problem = None, None
    try:
        champion = champion_version(environment)
        if served != champion:
            problem = f"MLflow's champion was published as {champion or 'nothing'}; the pointer is the truth"
    except DependencyError as error:
        problem = str(error)
    return {"served_version": served, "champion_version": champion, "disagreement": problem}


class OnlineFeatures(TypedDict):
    """One feature view as it is online. `as_of` is RFC 3339, None when it was never brought online."""

    view: str
    as_of: str | None
    days_behind: float | None
    is_stale: bool
    problem: str | None


REMEDY = "clear the task materialize_features of the night in Airflow, or run a night: nightjar run nightly"


def online_features(environment: Environment, served: str | None) -> list[OnlineFeatures]:
    """Each feature view against the version that is served; stale when it lags behind by more than the view's
    `fresh_for`, or was never brought online. Nothing when no version is served or Redis does not answer."""
    import redis

    if served is None:
        return []
    as_of = to_micros(start_of_day(parse_version(served)[0]))
    try:
        with redis.Redis.from_url(environment.redis_online_url, socket_timeout=5) as client:
            found = client.hgetall(feature_times_key(environment.tenant))
    except redis.RedisError:
        return []
    return [describe_view(view, found.get(view.name.encode()), as_of) for view in FEATURE_VIEWS.values()]


def describe_view(view: FeatureView, stored: bytes | None, served_micros: int) -> OnlineFeatures:
    """What `online_features` says of one view."""
    if stored is None:
        never = f"it was never brought online; {REMEDY}"
        return OnlineFeatures(view=view.name, as_of=None, days_behind=None, is_stale=True, problem=never)
    moment = from_micros(int(stored))
    behind = from_micros(served_micros) - moment
    problem: str | None = None
    if behind > view.fresh_for:
        problem = (
            f"its values are of {moment.date()}, {behind.days} days behind the served version ({view.fresh_for.days} "
            f"are allowed); {REMEDY}"
        )
    return OnlineFeatures(
        view=view.name,
        as_of=format_timestamp(moment),
        days_behind=behind.total_seconds() / 86_400,
        is_stale=problem is not None,
        problem=problem,
    )


def champion_version(environment: Environment) -> str | None:
    """The published version of MLflow's champion, over REST: importing mlflow takes longer than all else here."""
    import httpx

    from spark_jobs.io.registry import CHAMPION, registered_name

    try:
        answer = httpx.get(
            f"{environment.mlflow_uri}/api/2.0/mlflow/registered-models/alias",
            params={"name": registered_name(environment), "alias": CHAMPION},
            timeout=5,
        )
    except httpx.HTTPError as error:
        raise DependencyError(f"MLflow at {environment.mlflow_uri} does not answer ({type(error).__name__})") from error
    if answer.status_code != 200:  # no registered model yet, or no such alias
        return None
    tags = answer.json()["model_version"].get("tags", [])
    return next((tag["value"] for tag in tags if tag["key"] == "published_version"), None)


def last_run() -> dict[str, Any] | None:
    """The last DAG run as JSON, or None when there was none or Airflow does not know the DAG yet."""
    from infra.local.night import last_night

    try:
        night = last_night()
    except DependencyError:
        return None
    return None if night is None else dict(night)


def duration(seconds: int) -> str:
    """`95` -> `1 min 35 s`."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
