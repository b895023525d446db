"""The registered model: every recipe that the gate let through (or refused at last), `challenger` and `champion`.

Registered model `nightjar` (`nightjar-<tenant>` for another tenant). Its versions carry the tags
    run_key, as_of, model, recipe (JSON), recipe_id, code_version   what it is, and of which night
    verdict               publish, baseline or refused: what the gate said
    published_version     set when that publication went live
    promoted_at, promoted_by, promoted_because   set by `nightjar promote`
and two of them an alias: `champion` is the recipe that the next night compares with, `challenger` the newest candidate,
or on a night that was refused the best of the refused ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, nearest
from feature_repo.contracts.keys import DEFAULT_TENANT
from spark_jobs.io.mlflow_connection import connect
from spark_jobs.models.recipes import recipe_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

REGISTERED_MODEL = "nightjar"
CHAMPION, CHALLENGER = "champion", "challenger"

_DESCRIPTION = (
    "Recipes that the nightly gate judged. `champion` is what the next night compares with, `challenger` the newest "
    "candidate. Tags say the night, the verdict and the published version; "
    "`nightjar promote VERSION` makes one champion."
)


@dataclass(frozen=True, slots=True)
class Champion:
    """The live recipe: `version` is its number in the registry, `published_version` the name it serves under."""

    version: str
    published_version: str | None
    recipe: Mapping[str, Any]

    @property
    def model(self) -> str:
        return str(self.recipe["model"])


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of the registered model. `run_id` is the model's run, whose files lie under `model/`."""

    version: str
    run_id: str
    tags: Mapping[str, str]
    is_champion: bool

    @property
    def published_version(self) -> str | None:
        return self.tags.get("published_version")

    @property
    def recipe(self) -> dict[str, Any]:
        """Raises ContractError when the version carries no recipe."""
        try:
            found = json.loads(self.tags["recipe"])
            if not isinstance(found["model"], str) or not isinstance(found["params"], dict):
                raise TypeError(found)
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"registered version {self.version} carries no recipe: {error!r}") from error
        return found


def registered_name(environment: Environment) -> str:
    """The registered model of a tenant."""
    return REGISTERED_MODEL if environment.tenant == DEFAULT_TENANT else f"{REGISTERED_MODEL}-{environment.tenant}"


def register_version(
    environment: Environment,
    *,
    run_id: str,
    run_key: str,
    as_of: str,
    recipe: Mapping[str, Any],
    verdict: str,
    description: str = "",
) -> str:
    """The registry version of tonight's candidate, made `challenger`; returns its number.

    On a retry the version that this `run_key` already has is used again, unless the gate now says another recipe.
    """
    with connect(environment) as client:
        name = registered_name(environment)
        _ensure_registered(client, name)
        text = json.dumps(recipe, sort_keys=True)
        tags = {
            "run_key": run_key, "as_of": as_of, "model": str(recipe["model"]), "verdict": verdict, "recipe": text,
            "recipe_id": recipe_id(recipe), "code_version": environment.code_version,
        }  # fmt: skip
        same = [v for v in _versions(client, name) if v.tags.get("run_key") == run_key and v.tags.get("recipe") == text]
        if same:
            number = str(same[0].version)
            for key, value in tags.items():
                client.set_model_version_tag(name, number, key, value)
            client.update_model_version(name, number, description)
        else:
            source = f"{client.get_run(run_id).info.artifact_uri}/model"
            made = client.create_model_version(name, source=source, run_id=run_id, tags=tags, description=description)
            number = str(made.version)
        client.set_registered_model_alias(name, CHALLENGER, number)
        return number


def set_champion(environment: Environment, *, published_version: str, run_key: str | None = None) -> str | None:
    """Move `champion` to the registry version behind a publication; returns its number, or None when there is none.

    With `run_key` (a flip) it is the newest version of that run, which is then tagged `published_version`; without (a
    rollback) it is the newest one that carries that tag. None is no error: the pointer in Redis is the truth, and
    `nightjar status` shows a disagreement.
    """
    with connect(environment) as client:
        name = registered_name(environment)
        tag, value = ("published_version", published_version) if run_key is None else ("run_key", run_key)
        found = [v for v in _versions(client, name) if v.tags.get(tag) == value]
        if not found:
            return None
        number = str(found[0].version)
        client.set_model_version_tag(name, number, "published_version", published_version)
        client.set_registered_model_alias(name, CHAMPION, number)
        return number


def champion(environment: Environment, *, before: str | None = None) -> Champion | None:
    """The live recipe, or None before the first publication.

    With `before` (a day), as a night of that as_of meets it: when the champion is of that night or a later one, the
    newest published version of an earlier night takes its place. So a night that runs again meets whom it met before,
    and a backfill nobody from its future.
    """
    with connect(environment) as client:
        name = registered_name(environment)
        number = _champion_number(client, name)
        if number is None:
            return None
        earlier = [v for v in _versions(client, name) if before is None or v.tags.get("as_of", "") < before]
        named = [v for v in earlier if str(v.version) == number]
        published = [v for v in earlier if "published_version" in v.tags]
        published.sort(key=lambda v: (v.tags["as_of"], int(v.version)), reverse=True)
        for found in (*named, *published):
            return Champion(str(found.version), found.tags.get("published_version"), json.loads(found.tags["recipe"]))
        return None


def find_version(environment: Environment, wanted: str) -> RegisteredVersion:
    """The version with this number, or the newest one published under this name.

    Raises DataError naming the nearest and those that there are.
    """
    with connect(environment) as client:
        name = registered_name(environment)
        listed = _versions(client, name)
        champion_number = _champion_number(client, name)
        for one in listed:
            if wanted in (str(one.version), one.tags.get("published_version")):
                number = str(one.version)
                return RegisteredVersion(number, str(one.run_id), dict(one.tags), number == champion_number)
    known = [str(v.version) for v in listed] + [p for v in listed if (p := v.tags.get("published_version"))]
    there = ", ".join(
        f"{v.version} ({v.tags.get('published_version') or v.tags.get('verdict', 'no verdict')})" for v in listed[:10]
    )
    raise DataError(
        f"no version {wanted!r} of {name}{nearest(wanted, known)}; there are {there or 'none yet'}", field="version"
    )


def tag_version(environment: Environment, number: str, tags: Mapping[str, str], *, is_champion: bool) -> None:
    """Tag a version, and make it `champion` when asked."""
    with connect(environment) as client:
        name = registered_name(environment)
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
        if is_champion:
            client.set_registered_model_alias(name, CHAMPION, number)


def delete(environment: Environment) -> None:
    """Take the registered model of a tenant away, with all its versions; one that does not exist is none to take."""
    from mlflow.exceptions import MlflowException

    with connect(environment) as client:
        try:
            client.delete_registered_model(registered_name(environment))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise


def _champion_number(client: MlflowClient, name: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, CHAMPION).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _ensure_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=_DESCRIPTION)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: MlflowClient, name: str) -> list[Any]:
    """Every version, newest first."""
    found = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return sorted(found, key=lambda v: int(v.version), reverse=True)
