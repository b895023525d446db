"""Searches in MLflow: a run a search in the experiment `tuning`, nested in it a run per family and, in that, per trial.

A search that goes on finds its runs by the key of the search; what was logged is not logged again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from feature_repo.contracts.environment import Environment
from spark_jobs.io.mlflow_connection import connect, ensure_experiment, find_run, find_runs, log_values, set_tags
from spark_jobs.models.recipes import flat_recipe, recipe_id

EXPERIMENT = "tuning"
SEARCH, FAMILY, TRIAL = "search", "family", "trial"
_DESCRIPTION = (
    "Searches for better recipes (`nightjar tune`), measured on a validation window only. A search has a run per "
    "family, a family one per trial; `pruned` says that a trial went no further than a quarter of the people."
)
_PARENT, _KIND, _KEY, _NUMBER = "mlflow.parentRunId", "kind", "search_key", "trial"


class TuningRuns:
    """The runs of one search. Raises DependencyError when MLflow does not answer."""

    def __init__(self, environment: Environment, *, key: str, as_of: str, tags: Mapping[str, str]) -> None:
        self._environment, self._key = environment, key
        with connect(environment) as client:
            self._experiment = ensure_experiment(client, environment, EXPERIMENT, _DESCRIPTION)
            own = {_KEY: key, _KIND: SEARCH}
            found = find_run(client, self._experiment, own)
            if found is None:
                all_tags = {**tags, **own, "as_of": as_of, "tenant": environment.tenant}
                found = client.create_run(self._experiment, tags=all_tags, run_name=f"tuning {as_of}")
            else:
                client.update_run(found.info.run_id, status="RUNNING")
            self.run_id = str(found.info.run_id)

    def log_family(self, family: str) -> tuple[str, set[int]]:
        """(the family's run, the numbers of its trials that are logged already)."""
        with connect(self._environment) as client:
            own = {_KEY: self._key, _KIND: FAMILY, "model": family}
            found = find_run(client, self._experiment, own)
            if found is None:
                found = client.create_run(self._experiment, tags={**own, _PARENT: self.run_id}, run_name=family)
            logged = find_runs(client, self._experiment, {_KEY: self._key, _KIND: TRIAL, "model": family})
            return str(found.info.run_id), {int(run.data.tags[_NUMBER]) for run in logged}

    def log_trial(
        self,
        family_run_id: str,
        family: str,
        *,
        number: int,
        recipe: Mapping[str, Any],
        metrics: Mapping[str, float],
        pruned: bool,
    ) -> None:
        """The nested run of one trial: its recipe as params, its validation metrics."""
        own = {
            _KEY: self._key, _KIND: TRIAL, "model": family, _PARENT: family_run_id, _NUMBER: str(number),
            "pruned": str(pruned).lower(), "recipe_id": recipe_id(recipe),
        }  # fmt: skip
        name = f"trial {number}" + (" (pruned)" if pruned else "")
        with connect(self._environment) as client:
            run_id = str(client.create_run(self._experiment, tags=own, run_name=name).info.run_id)
            log_values(client, run_id, params=flat_recipe(recipe), metrics=metrics)
            client.set_terminated(run_id, "FINISHED")

    def end(
        self,
        families: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, float], Sequence[float]]],
        *,
        files: Mapping[str, str],
    ) -> None:
        """Close the search. families: name -> (its run, the best recipe, its metrics, the best quality so far by
        trial); `files` (path -> text) go to the search's own run."""
        with connect(self._environment) as client:
            for run_id, recipe, metrics, curve in families.values():
                # Tags, not params: a search that goes on may find a better one, and params of a run cannot change.
                words = json.dumps(recipe, sort_keys=True)
                set_tags(client, run_id, {"recipe_id": recipe_id(recipe), "recipe": words})
                log_values(client, run_id, metrics=metrics, steps={"best_so_far": curve})
                client.set_terminated(run_id, "FINISHED")
            for path, text in files.items():
                client.log_text(self.run_id, text, path)
            best = {f"ndcg_at_20.{name}": metrics["ndcg_at_20"] for name, (_, _, metrics, _) in families.items()}
            log_values(client, self.run_id, metrics=best)
            client.set_terminated(self.run_id, "FINISHED")
