"""`nightjar recipes apply`, `show`, `reset`: which recipes the nights train, other than their defaults."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.times import format_timestamp
from feature_repo.contracts.whole_files import write_whole
from infra.cli.output import emit, out

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `nightjar`."""
    group = typer.Typer(help="Which recipes the nights train.", no_args_is_help=True)
    group.command("apply")(apply)
    group.command("show")(show)
    group.command("reset")(reset)
    app.add_typer(group, name="recipes")


def apply(
    file: Annotated[Path, typer.Argument(help="A *.shipped.json of `bench quality`, or a file of recipes.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and say what it holds; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Let the nights from now on train the recipes of FILE; the gate still decides what is published."""
    from spark_jobs.models.recipe_choice import describe_choice, read_choice_file

    environment = _environment()
    choice = read_choice_file(file)
    path = Path(environment.recipes)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = json.dumps(choice.to_json(), indent=1, sort_keys=True) + "\n"
    is_changed = text != before
    if is_changed and not dry_run:
        write_whole(path, text.encode("utf-8"))
        _write_audit(environment, {"action": "apply_recipes", "file": str(file), "choice": choice.to_json()})
    answer = {"file": str(path), "changed": is_changed, "dry_run": dry_run, **choice.to_json()}

    def render() -> None:
        for line in describe_choice(choice):
            out.print(line, markup=False)
        if choice.origin.get("repeats") == "allowed":
            out.print("It was chosen with repeats allowed: run nights with exclude_seen=none to get its lists.")
        done = "would be written to" if dry_run else "written to" if is_changed else "as before in"
        out.print(f"{done} {path}; the next night trains them.", markup=False)

    emit(answer, as_json=as_json, render=render)


def show(as_json: AsJson = False) -> None:
    """Show the recipes that were applied."""
    from spark_jobs.models.recipe_choice import describe_choice, read_choice_file

    path = Path(_environment().recipes)
    choice = read_choice_file(path) if path.is_file() else None
    answer: dict[str, Any] = {"file": str(path), **(choice.to_json() if choice is not None else {"recipes": None})}

    def render() -> None:
        lines = describe_choice(choice) if choice is not None else ["none were applied: nights train their defaults"]
        for line in lines:
            out.print(line, markup=False)

    emit(answer, as_json=as_json, render=render)


def reset(as_json: AsJson = False) -> None:
    """Let the nights train their defaults again."""
    environment = _environment()
    path = Path(environment.recipes)
    is_changed = path.is_file()
    path.unlink(missing_ok=True)
    if is_changed:
        _write_audit(environment, {"action": "reset_recipes"})
    words = "the next night trains the defaults" if is_changed else "none were applied"
    emit({"file": str(path), "changed": is_changed}, as_json=as_json, render=lambda: out.print(words))


def _environment() -> Environment:
    from infra.local.variables import stack_environment

    return stack_environment(os.environ)


def _write_audit(environment: Environment, entry: Mapping[str, Any]) -> None:
    path = Path(environment.home) / "audit" / f"{environment.tenant}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"at": format_timestamp(datetime.now(UTC)), "actor": getpass.getuser(), **entry}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
