"""`nightjar tune`: search for better recipes on a validation window."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from feature_repo.contracts.times import parse_as_of
from infra.cli.output import emit, out

if TYPE_CHECKING:
    from spark_jobs.jobs.tune_models import Found


def register(app: typer.Typer) -> None:
    """Add the command to `nightjar`."""
    app.command("tune")(tune)


def tune(
    minutes: Annotated[float, typer.Option("--minutes", help="Budget; run it again to go on.")] = 15.0,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="A family; may be repeated. Default: those of the night.")
    ] = None,
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="Day (UTC). Default: the day after the last interaction.")
    ] = None,
    trials: Annotated[int | None, typer.Option("--trials", help="At most so many trials of a family.")] = None,
    test_days: Annotated[int, typer.Option("--test-days", help="Of the night; validation has as many.")] = 7,
    exclude_seen: Annotated[
        str, typer.Option("--exclude-seen", help="interacted, purchased or none, as the night's parameter.")
    ] = "interacted",
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 7,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Where the recipes go. Default: beside the trials.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Let the nights from now on train what was found.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Search for better recipes; validation decides, the test window of the gate is never looked at.

    A search that is stopped, or run again with the same data, goes on where it was. Trials are runs in MLflow,
    experiment `tuning`. The gate still decides what is published.
    """
    from feature_repo.contracts.errors import DataError
    from infra.local.variables import stack_environment
    from spark_jobs.evaluation.split import seen_policy
    from spark_jobs.jobs.tune_models import Search, tune_models

    if trials is not None and trials < 1:
        raise DataError(f"trials is at least 1, got {trials}", field="trials")
    search = Search(
        models=tuple(model or ()),
        as_of=parse_as_of(as_of) if as_of else None,
        minutes=minutes,
        most_trials=trials,
        test_days=test_days,
        exclude_seen=seen_policy({"exclude_seen": exclude_seen}),
        seed=seed,
    )
    began = time.monotonic()

    def say(words: str) -> None:
        if not as_json:
            out.print(words, markup=False)

    environment = stack_environment(os.environ)
    found = tune_models(environment, search, spent=lambda: time.monotonic() - began, say=say)
    path = out_file or found.folder / "recipes.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found.choice.to_json(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    emit(_answer(found, path), as_json=as_json, render=lambda: _show(found, path, applied=apply))
    if apply:
        from infra.cli.recipe_commands import apply as apply_recipes

        apply_recipes(path, as_json=as_json)


def _answer(found: Found, path: Path) -> dict[str, Any]:
    return {"file": str(path), "mlflow_run_id": found.mlflow_run_id, **found.choice.to_json()}


def _show(found: Found, path: Path, *, applied: bool) -> None:
    from rich.table import Column, Table

    from spark_jobs.models.recipes import flat_recipe

    table = Table(
        "model", Column("trials", justify="right"), Column("default", justify="right"),
        Column("best", justify="right"), "what differs", box=None,
    )  # fmt: skip
    for name, (first, best) in found.families.items():
        before, after = flat_recipe(first.recipe), flat_recipe(best.recipe)
        differs = ", ".join(f"{key} {after[key]}" for key in after if after[key] != before.get(key))
        first_quality = "-" if first.quality is None else f"{first.quality:.4f}"
        table.add_row(name, str(len(found.trials[name])), first_quality, f"{best.quality:.4f}", differs or "nothing")
    out.print("Validation NDCG@20")
    out.print(table)
    out.print(f"Recipes: {path}", soft_wrap=True)
    if not applied:
        out.print("`nightjar recipes apply FILE` lets the nights train them.")
