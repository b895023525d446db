"""What the commands of `nightjar bench` and `nightjar torture` share: their options, folders and reports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from feature_repo.contracts.environment import Environment
from infra.cli.output import err, out

JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the report to this file.")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]


def show_disk(report: Mapping[str, Any]) -> None:
    """The disk that a figure of durability stands on, and why the figure is void if it is."""
    out.print(f"fsync here: {report['fsync_median_ms']:g} ms in the median, on {report['filesystem']}")
    if report["void"]:
        out.print(f"[bold red]void[/]: {report['void']}")


def own_home(name: str) -> Path:
    """A folder beside the installation's own state: what lies in it is the bench's and is made anew each time."""
    return Path(Environment.from_mapping(os.environ).home) / name


def same_hashes(found: Mapping[str, Any]) -> str:
    """Whether two runs left the same, in words."""
    if found["identical"]:
        return f"all {found['compared']} hashes are equal"
    return f"[bold red]{len(found['differing'])} of {found['compared']} hashes differ:[/] {found['differing']}"


def say(text: str) -> None:
    """Progress, beside the output."""
    err.print(text, markup=False)


def show_report(report: Mapping[str, Any], path: Path | None) -> None:
    """Write the report to `path` if there is one, and print its figures."""
    from rich import box
    from rich.table import Table

    from infra.bench.report import write_report

    if path is not None:
        write_report(report, path)
    table = Table(title=f"{report['name']} ({report['code_version']})", box=box.SIMPLE_HEAD, title_justify="left")
    for column in ("figure", "unit", "min", "median", "max", "baseline", "ratio"):
        table.add_column(column, justify="left" if column in ("figure", "unit") else "right")
    for name, found in report["figures"].items():
        numbers = (found[key] for key in ("min", "median", "max", "baseline", "ratio"))
        table.add_row(name, found["unit"], *("" if n is None else f"{n:g}" for n in numbers))
    out.print(table)
    machine = report["machine"]
    out.print(f"on {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}")
