"""`nightjar promote`: the recipe, and serving while the publication is warm; on a real MLflow store and Redis."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import pack_candidates
from feature_repo.contracts.publication import BUNDLE_FILES, Manifest, candidates_checksum
from spark_jobs.io import registry, tracking
from spark_jobs.io.bundle import bundle_folder, file_hashes, write_bundle
from spark_jobs.io.publication import Publication, candidates_digest
from spark_jobs.jobs import promote_version as job
from spark_jobs.jobs.promote_version import Promotion, arguments_parser, audit_path, main, promote
from spark_jobs.models.artifacts import manifest_digest, save_arrays
from spark_jobs.models.recipes import default_recipe

pytestmark = pytest.mark.redis

AT = datetime(2024, 3, 10, 9, tzinfo=UTC)
RECORD = pack_candidates("1970-01-01-00000000", [])


@pytest.fixture
def shop(
    environment: Environment,
    mlflow_store: str,
    redis_url: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Environment:
    monkeypatch.chdir(tmp_path)
    tenant = request.node.name.replace("test_", "")[:40].lower()
    return environment._replace(mlflow_uri=mlflow_store, redis_online_url=redis_url, tenant=tenant)


def publish(environment: Environment, day: int) -> str:
    """One user's empty list, verified, bundled and flipped."""
    files = {name: f"{name} {day}".encode() for name in BUNDLE_FILES}
    manifest = Manifest(
        as_of=f"2024-03-{day:02d}", model="als", recipe={}, user_count=1, item_count=4,
        candidates_checksum=candidates_checksum([candidates_digest("u1", RECORD)]),
        last_event_at="2024-03-07T22:00:00Z", files=file_hashes(files),
        volatile={"published_at": f"2024-03-{day:02d}T01:00:00Z", "run_key": f"night-{day}"},
    )  # fmt: skip
    publication = Publication(environment.redis_online_url, environment.tenant)
    version = publication.announce(manifest)
    write_bundle(environment.publications, manifest, files, tenant=environment.tenant)
    publication.put_records(version, [("u1", pack_candidates(version, []))])
    publication.mark_verified(version, at=AT)
    publication.flip(version)
    return version


def register(environment: Environment, day: int, half_life: float, *, published: str | None) -> str:
    """A night's popularity recipe with its files, registered, and when published the champion; returns its number."""
    import numpy as np

    recipe = {**default_recipe("popularity"), "half_life_days": half_life}
    key, as_of = f"night-{day}", f"2024-03-{day:02d}"
    parent = tracking.start_night(environment, run_key=key, as_of=as_of, tags={})
    folder = Path(environment.home) / key
    scores = {"item_scores": np.arange(3, dtype=np.float32)}
    save_arrays(folder, model="popularity", params=recipe["params"], arrays=scores)
    run_id = tracking.log_model_run(
        environment, tracking.Night(key, parent, as_of), model="popularity", recipe=recipe, metrics={},
        tags={"manifest_sha256": manifest_digest(folder)}, artifacts=folder,
    )  # fmt: skip
    number = registry.register_version(
        environment,
        run_id=run_id,
        run_key=key,
        as_of=as_of,
        recipe=recipe,
        verdict="publish" if published else "refused",
    )
    if published:
        registry.set_champion(environment, published_version=published, run_key=key)
    return number


def ask(environment: Environment, version: str, **other: object) -> Promotion:
    return promote(environment, version, **{"reason": "better for newcomers", "actor": "ada", "at": AT, **other})


def served(environment: Environment) -> str | None:
    return Publication(environment.redis_online_url, environment.tenant).served_version()


def audit(environment: Environment) -> list[dict[str, object]]:
    path = audit_path(environment)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_warm_version_is_served_again_and_is_the_champion(shop: Environment) -> None:
    first = publish(shop, 7)
    register(shop, 7, 7.0, published=first)
    second = publish(shop, 8)
    register(shop, 8, 8.0, published=second)

    planned = ask(shop, first, dry_run=True)
    assert (planned.flips, planned.changes, planned.served) == (True, True, first)
    assert f"would serve {first}, no longer {second}" in planned.words
    assert (served(shop), registry.champion(shop).version, audit(shop)) == (second, "2", [])

    done = ask(shop, first)
    assert (done.version, done.flips, done.served, served(shop)) == ("1", True, first, first)
    assert registry.champion(shop).recipe["half_life_days"] == 7.0
    tags = registry.find_version(shop, "1").tags
    assert {k: v for k, v in tags.items() if k.startswith("promoted")} == {
        "promoted_at": "2024-03-10T09:00:00Z", "promoted_by": "ada", "promoted_because": "better for newcomers",
    }  # fmt: skip
    (line,) = audit(shop)
    assert (line["action"], line["version"], line["actor"], line["reason"]) == (
        "promote", "1", "ada", "better for newcomers",
    )  # fmt: skip
    assert Publication(shop.redis_online_url, shop.tenant).previous_version() == second, "a rollback undoes it"

    again = ask(shop, "1", at=datetime(2024, 3, 11, tzinfo=UTC))
    assert (again.changes, again.served) == (False, first)
    assert len(audit(shop)) == 1
    assert registry.find_version(shop, "1").tags["promoted_at"] == "2024-03-10T09:00:00Z"


def test_a_version_never_published_changes_the_recipe_only(shop: Environment) -> None:
    live = publish(shop, 7)
    register(shop, 7, 7.0, published=live)
    refused = register(shop, 8, 8.0, published=None)
    done = ask(shop, refused)
    assert (done.flips, done.changes, done.verdict, served(shop)) == (False, True, "refused", live)
    assert f"Only the recipe: it was never published, so {live} stays served" in done.words
    assert registry.champion(shop).recipe["half_life_days"] == 8.0
    gone = register(shop, 9, 9.0, published="2024-03-09-aaaaaaaa")
    assert "2024-03-09-aaaaaaaa is not warm any more" in ask(shop, gone).words


def test_what_is_unknown_or_not_whole_is_refused(shop: Environment) -> None:
    live = publish(shop, 7)
    register(shop, 7, 7.0, published=live)
    number = register(shop, 8, 8.0, published=None)
    with pytest.raises(
        DataError, match=rf"no version '{live[:-1]}'.*did you mean '{live}'.*there are 2 \(refused\), 1"
    ):
        ask(shop, live[:-1])
    with pytest.raises(DataError, match="needs a reason"):
        ask(shop, number, reason="  ")

    from mlflow import MlflowClient

    run = MlflowClient(shop.mlflow_uri, shop.mlflow_uri).get_run(registry.find_version(shop, number).run_id)
    folder = Path(run.info.artifact_uri.removeprefix("file://")) / "model"
    array = folder / "item_scores.npy"
    whole = array.read_bytes()
    array.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(DataError, match=r"version 2 cannot be promoted: .*has SHA-256"):
        ask(shop, number)
    array.unlink()
    with pytest.raises(DataError, match=r"names 'item_scores\.npy', which is not there"):
        ask(shop, number)
    array.write_bytes(whole)
    registry.tag_version(shop, number, {"recipe": json.dumps(default_recipe("als"))}, is_champion=False)
    with pytest.raises(DataError, match="recipe tag is not the recipe of its files"):
        ask(shop, number)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no files of run"):
        ask(shop, number)
    (bundle_folder(shop.publications, live, tenant=shop.tenant) / BUNDLE_FILES[0]).unlink()
    with pytest.raises(DataError, match=r"publication .* is not whole: .*missing"):
        ask(shop, live)
    assert (registry.champion(shop).version, audit(shop)) == ("1", [])


@pytest.mark.parametrize(("module", "dies_in", "champion"), [(registry, "tag_version", "2"), (job, "_record", "1")])
def test_a_try_that_died_before_the_audit_is_finished_by_the_next(
    shop: Environment,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: object,
    dies_in: str,
    champion: str,
) -> None:
    shop = shop._replace(tenant=f"dies-in-{dies_in}")
    first = publish(shop, 7)
    register(shop, 7, 7.0, published=first)
    register(shop, 8, 8.0, published=publish(shop, 8))
    arguments = arguments_parser().parse_args(
        [
            "--run-key",
            "manual__1",
            "--version",
            first,
            "--reason",
            "why",
            "--actor",
            "ada",
            "--at",
            "2024-03-10T09:00:00Z",
        ]
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, dies_in, lambda *_, **__: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            main(shop, arguments)
    assert (served(shop), registry.champion(shop).version, audit(shop)) == (first, champion, [])
    for _ in range(2):
        main(shop, arguments)
    assert registry.champion(shop).version == "1"
    assert [(line["run_key"], line["at"]) for line in audit(shop)] == [("manual__1", "2024-03-10T09:00:00Z")]
    assert capsys.readouterr().out.count("changed recommendations\n") == 2
