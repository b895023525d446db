"""`nightjar doctor`: what is wrong here, and what helps."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.cli.output import ExitCode, emit, out

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the command to `nightjar`."""
    app.command("doctor")(doctor)


def doctor(
    as_json: AsJson = False,
    disk_gb: Annotated[float | None, typer.Option("--disk-gb", help="Free disk that must be there.")] = None,
    memory_gb: Annotated[float | None, typer.Option("--memory-gb", help="Memory that must be available.")] = None,
) -> None:
    """Look at tools, machine, stack and data; each trouble with its remedy. Changes nothing.

    Exit code 0 when nothing fails (warnings are allowed), 1 when something does.
    """
    from infra.doctor.checks import Limits, State
    from infra.doctor.examination import examine

    limits = Limits()
    if disk_gb is not None:
        limits = limits._replace(disk_fail_gb=disk_gb, disk_warn_gb=max(disk_gb, limits.disk_warn_gb))
    if memory_gb is not None:
        limits = limits._replace(memory_fail_gb=memory_gb, memory_warn_gb=max(memory_gb, limits.memory_warn_gb))
    checks = examine(limits=limits)
    worst = max((check.state for check in checks), key=list(State).index)

    def render() -> None:
        colours = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
        for check in checks:
            out.print(f"[{colours[check.state]}]{check.state.value:5}[/]{check.name:11}", end="")
            out.print(check.seen, markup=False)
            if check.state is not State.OK:
                out.print(f"                needed: {check.needed}", markup=False)
                out.print(f"                try:    {check.remedy}", markup=False)
        counts = {state: sum(check.state is state for check in checks) for state in State}
        out.print(f"{counts[State.OK]} well, {counts[State.WARN]} warnings, {counts[State.FAIL]} failures")

    emit({"state": worst.value, "checks": [check._asdict() for check in checks]}, as_json=as_json, render=render)
    if worst is State.FAIL:
        raise typer.Exit(ExitCode.FAILED)
