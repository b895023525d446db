"""Promote a registered version: its recipe becomes the champion's, and what it published is served again while warm.

Reads    the registered model and the version's files in MLflow; the pointer, the versions and the bundle
Writes   the alias `champion` and the version's tags promoted_at, promoted_by, promoted_because; the pointer in Redis
         `online` when the version's publication is still there; a line in audit/<tenant>.jsonl under NIGHTJAR_HOME
Then     the next night's gate compares its candidates with that recipe.

VERSION is a number of the registered model, or the name of a publication (`2024-03-08-1a2b3c4d`). Nothing is promoted
whose files are missing or are not what the night evaluated. Twice is once: the second time changes nothing.

Exit     0 done or nothing to change; 2 no such version, or its files are not whole; 1 a store does not answer.
"""

from __future__ import annotations

import argparse
import getpass
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError
from feature_repo.contracts.times import format_timestamp, parse_timestamp
from feature_repo.contracts.whole_files import append_line
from spark_jobs.io import registry, tracking
from spark_jobs.io.bundle import bundle_folder, check_bundle
from spark_jobs.io.publication import Publication
from spark_jobs.io.rollback import roll_back
from spark_jobs.jobs.entry import run_command
from spark_jobs.models.artifacts import manifest_digest, verify_folder
from spark_jobs.models.factory import build_model
from spark_jobs.models.recipes import recipe_id


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion did, or with `dry_run` would do.

    version            number of the registered model; `model` is its recipe's
    published_version  what it was published as; None: never
    flips              serving moves to `published_version`; it was warm and not served
    changes            False: it was champion, and what can be served of it was
    served             the version that is served afterwards; None before the first publication
    words              all of that for a person
    """

    version: str
    model: str
    recipe_id: str
    verdict: str
    published_version: str | None
    flips: bool
    changes: bool
    served: str | None
    dry_run: bool
    words: str


def promote(
    environment: Environment,
    version: str,
    *,
    reason: str,
    actor: str,
    at: datetime,
    run_key: str = "",
    dry_run: bool = False,
) -> Promotion:
    """Make `version` the champion. `at` is aware UTC.

    Raises DataError naming the nearest version when it is unknown, when its files are not whole, or without a reason.
    """
    if not reason.strip():
        raise DataError("a promotion needs a reason: --reason TEXT", field="reason")
    found = registry.find_version(environment, version)
    _verify(environment, found)
    publication = Publication(environment.redis_online_url, environment.tenant)
    listed = {v.version: v for v in publication.list_versions()}
    served = next((v.version for v in listed.values() if v.is_served), None)
    published = found.published_version
    is_warm = published in listed and listed[published].verified_at is not None
    if published is not None and is_warm:
        folder = bundle_folder(environment.publications, published, tenant=environment.tenant)
        if faults := check_bundle(folder, listed[published].manifest):
            raise DataError(f"publication {published} is not whole: {'; '.join(faults)}", field="version")
    flips = published is not None and is_warm and served != published
    done = Promotion(
        version=found.version,
        model=str(found.recipe["model"]),
        recipe_id=recipe_id(found.recipe),
        verdict=found.tags.get("verdict", "unknown"),
        published_version=published,
        flips=flips,
        changes=flips or not found.is_champion,
        served=published if flips else served,
        dry_run=dry_run,
        words=_words(found, published, is_warm=is_warm, flips=flips, served=served, dry_run=dry_run),
    )
    if dry_run:
        return done
    if flips:
        roll_back(environment, publication, published)
    entry = {"action": "promote", "version": found.version, "published_version": published, "reason": reason,
             "actor": actor, "run_key": run_key}  # fmt: skip
    if done.changes or not _is_recorded(environment, entry):
        tags = {"promoted_at": format_timestamp(at), "promoted_by": actor, "promoted_because": reason}
        registry.tag_version(environment, found.version, tags, is_champion=True)
        _record(environment, {"at": format_timestamp(at), **entry, "outcome": asdict(done)})
    return done


def audit_path(environment: Environment) -> Path:
    """Where promotions are written down, one JSON object a line, oldest first."""
    return Path(environment.home) / "audit" / f"{environment.tenant}.jsonl"


def _verify(environment: Environment, found: registry.RegisteredVersion) -> None:
    """The version's recipe can be built, and its files are those that the night evaluated with that recipe."""
    try:
        recipe = found.recipe
        build_model(recipe["model"], recipe["params"])
        with tempfile.TemporaryDirectory(prefix="nightjar-promote-") as place:
            folder, expected = tracking.download_model(environment, found.run_id, Path(place))
            manifest = verify_folder(folder)
            if manifest["model"] != recipe["model"] or manifest["params"] != recipe["params"]:
                raise ContractError(f"its recipe tag is not the recipe of its files ({manifest['model']})")
            if expected is not None and manifest_digest(folder) != expected:
                raise ContractError("its manifest is not the one that the night evaluated")
    except ContractError as error:
        raise DataError(f"version {found.version} cannot be promoted: {error}", field="version") from error


def _words(
    found: registry.RegisteredVersion,
    published: str | None,
    *,
    is_warm: bool,
    flips: bool,
    served: str | None,
    dry_run: bool,
) -> str:
    tense = "would be" if dry_run else "is"
    if found.is_champion:
        recipe = f"Registered version {found.version} ({found.recipe['model']}) is the champion already."
    else:
        recipe = (
            f"Registered version {found.version} ({found.recipe['model']}) {tense} the champion: the next night "
            "compares with its recipe."
        )
    if flips:
        now = "would serve" if dry_run else "serves"
        return f"{recipe} Its publication is warm: Nightjar {now} {published}, no longer {served or 'nothing'}."
    if is_warm:
        return f"{recipe} Its publication {published} is what is served."
    why = "it was never published" if published is None else f"its publication {published} is not warm any more"
    return f"{recipe} Only the recipe: {why}, so {served or 'nothing'} stays served until a night publishes."


def _is_recorded(environment: Environment, entry: Mapping[str, object]) -> bool:
    """Whether the newest line of the audit says just this: a retry, or the same thing asked twice."""
    path = audit_path(environment)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    last = json.loads(lines[-1]) if lines else {}
    return all(last.get(key) == value for key, value in entry.items())


def _record(environment: Environment, line: Mapping[str, object]) -> None:
    append_line(audit_path(environment), json.dumps(line, ensure_ascii=False, sort_keys=True))


def main(environment: Environment, arguments: argparse.Namespace) -> Promotion:
    """The job: promote and say what happened."""
    at = parse_timestamp(arguments.at) if arguments.at else datetime.now(UTC).replace(microsecond=0)
    done = promote(
        environment, arguments.version, reason=arguments.reason, actor=arguments.actor or getpass.getuser(), at=at,
        run_key=arguments.run_key, dry_run=arguments.dry_run,
    )  # fmt: skip
    print(done.words, flush=True)
    if done.served is not None and done.served == done.published_version and not done.dry_run:
        print("changed recommendations", flush=True)  # a retry says so too: the try before may have died unheard
    return done


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run-key", required=True, help="what asks for it: goes into the audit line")
    parser.add_argument("--version", required=True, help="a registered number, or the name of a publication")
    parser.add_argument("--reason", required=True, help="why, for the audit")
    parser.add_argument("--actor", default="", help="who; default: the user of this process")
    parser.add_argument("--at", default="", help="when, RFC 3339; default: now")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, change nothing")
    return parser


if __name__ == "__main__":
    run_command(main, arguments_parser())
