"""`nightjar run ...`: trigger a DAG through Airflow, watch it, say what went wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_repo.contracts.errors import DataError, GateRefusedError
from infra.cli.output import RunFailedError, emit, err, out

if TYPE_CHECKING:
    from infra.local.night import Night

GATE_TASK = "judge_models"

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Watch the run to its end.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(help="Start a DAG run through Airflow.", no_args_is_help=True)
    group.command("nightly")(nightly)
    group.command("sync")(sync)
    group.command("maintenance")(maintenance)
    group.command("rederive")(rederive)
    group.command("backfill")(backfill)
    app.add_typer(group, name="run")


def nightly(
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="Day (UTC), YYYY-MM-DD. Default: the day after the last event.")
    ] = None,
    publish: Annotated[str, typer.Option("--publish", help="auto, never or always.")] = "auto",
    param: Annotated[
        list[str] | None, typer.Option("--param", help="A parameter of the run, NAME=VALUE; may be repeated.")
    ] = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Run the night: from events to published recommendations. Exit code 4: the gate refused; 5: the run failed."""
    from infra.local.night import run_nightly

    night = run_nightly(
        as_of, publish=publish, params=parse_params(param or []), wait=wait, on_progress=None if as_json else show_task
    )

    show_run(night, wait=wait, as_json=as_json)


def sync(wait: Wait = True, as_json: AsJson = False) -> None:
    """Take in what has arrived in the inbox. Exit code 5: the run failed."""
    run("sync_catalogue", {}, wait=wait, as_json=as_json)


def maintenance(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    retention_days: Annotated[
        int, typer.Option("--retention-days", min=7, max=30, help="Delete what no version of so many days needs.")
    ] = 30,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Compact, cluster and vacuum the tables. Exit code 5: the run failed."""
    run("maintain_tables", {"dry_run": dry_run, "retention_days": retention_days}, wait=wait, as_json=as_json)


def rederive(
    first: Annotated[str, typer.Option("--from", help="The first as_of day (UTC), YYYY-MM-DD.")],
    end: Annotated[str, typer.Option("--to", help="The as_of day (UTC) to end before.")],
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Compute the features of past days anew; publishes nothing. Exit code 5: the run failed."""
    from feature_repo.contracts.times import parse_as_of

    days = {"from": parse_as_of(first).isoformat(), "to": parse_as_of(end).isoformat()}
    if days["from"] >= days["to"]:
        raise DataError(f"--from {first} --to {end} holds no day: `to` is not computed itself", field="to")
    run("rederive_features", days, wait=wait, as_json=as_json)


def backfill(
    first: Annotated[str, typer.Option("--from", help="The first as_of day (UTC), YYYY-MM-DD.")],
    last: Annotated[str, typer.Option("--to", help="The last as_of day (UTC), itself included.")],
    as_json: AsJson = False,
) -> None:
    """Run the nights of past days, oldest first, as Airflow's own backfill; publishes nothing. Exit code 5: one failed.

    Watches to the end; what Airflow has been told goes on when this command is stopped.
    """
    from infra.local.night import backfill_nights

    nights = backfill_nights(first, last, on_night=None if as_json else show_night)

    def render() -> None:
        done = sum(night["state"] == "success" for night in nights)
        out.print(f"[bold]{done} of {len(nights)}[/] nights done, as_of {first} to {last}")

    emit(nights, as_json=as_json, render=render)
    for night in nights:
        raise_if_failed(night)


def show_night(night: Night) -> None:
    """One line on stderr for a night that has ended."""
    colour = "green" if night["state"] == "success" else "red"
    err.print(f"  [{colour}]{night['dag_run_id']}[/] {night['state']} after {night['seconds'] or 0:.0f} s")


def run(dag_id: str, conf: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    """Trigger a DAG and show how it went. Raises RunFailedError with the task's words when it failed."""
    from infra.local.night import run_dag

    show_run(run_dag(dag_id, conf, wait=wait, on_progress=None if as_json else show_task), wait=wait, as_json=as_json)


def show_run(night: Night, *, wait: bool, as_json: bool) -> None:
    """How a run ended, or that it was started. Raises as `raise_if_failed` does."""

    def render() -> None:
        if wait and night["state"] == "success":
            out.print(f"[bold green]done[/] {night['dag_run_id']} in {night['seconds']:.0f} s")
        elif not wait:
            out.print(f"{night['dag_run_id']} is {night['state']}; Airflow shows how it goes")

    emit(night, as_json=as_json, render=render)
    raise_if_failed(night)


def raise_if_failed(night: Night) -> None:
    """Raises GateRefusedError when the gate refused, RunFailedError when something failed; with the task's words."""
    if night["state"] != "failed":
        return
    words = "\n".join(night["errors"]) or "its log holds no error line: see the task in Airflow"
    if night["failed_task"] == GATE_TASK and any("GateRefusedError" in line for line in night["errors"]):
        raise GateRefusedError(words.removeprefix("error GateRefusedError: "))
    where = night["failed_task"] or "before any task"
    raise RunFailedError(f"{night['dag_run_id']} failed in {where}:\n{words}")


def show_task(task_id: str, state: str, seconds: float | None, tries: int) -> None:
    """One line on stderr for each change that a person wants to see."""
    again = f" (try {tries})" if tries > 1 else ""
    if state == "running":
        err.print(f"  [dim]{task_id}{again} ...[/]")
    elif state == "success":
        err.print(f"  [green]{task_id}[/]{again} {seconds or 0:.1f} s")
    elif state in ("failed", "up_for_retry"):
        err.print(f"  [red]{task_id}[/]{again} {state.replace('_', ' ')} after {seconds or 0:.1f} s")


def parse_params(texts: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as a mapping; a value that reads as JSON is that value, anything else is text.

    Raises DataError on a text without `=` or a name given twice.
    """
    params: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise DataError(f"--param takes NAME=VALUE, got {text!r}", field="param")
        if name in params:
            raise DataError(f"--param {name} is given twice", field=name)
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    return params
