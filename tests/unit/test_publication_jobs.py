"""verify_publication and flip_version on a real Redis and real Delta tables, without Spark."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
import redis

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.keys import candidates_key
from feature_repo.contracts.packing import pack_candidates
from feature_repo.contracts.publication import BUNDLE_FILES, Manifest, candidates_checksum
from feature_repo.contracts.run import PUBLICATION_FILE, Run
from spark_jobs.io.bundle import bundle_folder, file_hashes, list_bundles, write_bundle
from spark_jobs.io.publication import Publication, candidates_digest
from spark_jobs.io.run_store import write_report
from spark_jobs.jobs import flip_version, verify_publication
from tests.builders import make_run, write_rows

pytestmark = pytest.mark.redis

FILES = dict.fromkeys(BUNDLE_FILES, b"{}")
USERS = ("u1", "u2", "u3")


@pytest.fixture
def shop(environment: Environment, redis_url: str) -> Environment:
    return environment._replace(redis_online_url=redis_url)


@pytest.fixture
def champions(monkeypatch: pytest.MonkeyPatch, ended_nights: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The champions that flip_version tells MLflow of."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(flip_version, "set_champion", lambda _, **what: told.append(what))
    return told


@pytest.fixture
def ended_nights(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(MLflow run, status) of the nights that flip_version closes."""
    ended: list[tuple[str, str]] = []
    monkeypatch.setattr(flip_version, "end_night", lambda _, run_id, status: ended.append((run_id, status)))
    return ended


def publish(environment: Environment, day: int) -> tuple[Run, str]:
    """What score_users leaves: rows in gold.candidates, records and manifest in Redis, a bundle, publication.json."""
    as_of = date(2024, 3, day)
    write_rows(environment, "gold.candidates", [{"user_id": user, "as_of": as_of} for user in USERS])
    digests = [candidates_digest(user, pack_candidates("1970-01-01-00000000", [])) for user in USERS]
    manifest = Manifest(
        as_of=as_of.isoformat(), model="als", recipe={}, user_count=3, item_count=1,
        candidates_checksum=candidates_checksum(digests), last_event_at=None, files=file_hashes(FILES),
        volatile={"published_at": f"2024-03-{day:02d}T01:00:00Z"},
    )  # fmt: skip
    publication = Publication(environment.redis_online_url)
    version = publication.announce(manifest)
    publication.put_records(version, [(user, pack_candidates(version, [])) for user in USERS])
    write_bundle(environment.publications, manifest, FILES, tenant="default")
    run = make_run(environment, as_of)
    report = {"version": version, "served_before": publication.served_version()}
    write_report(environment, run.run_key, PUBLICATION_FILE, report)
    return run, version


def test_a_whole_publication_is_verified_and_goes_live(
    shop: Environment, champions: list, ended_nights: list, capsys: pytest.CaptureFixture[str]
) -> None:
    run, version = publish(shop, 8)
    with pytest.raises(DataError, match="not verified"):
        flip_version.main(shop, run)
    verify_publication.main(shop, run)
    assert f"{version} is whole: 3 users, 0 rows" in capsys.readouterr().out
    flip_version.main(shop, run)
    assert Publication(shop.redis_online_url).served_version() == version
    assert champions == [{"published_version": version, "run_key": run.run_key}]
    assert ended_nights == [(run.mlflow_run_id, "FINISHED")]
    assert f"serving {version} (the first one)" in capsys.readouterr().out


def test_verifying_and_flipping_twice_is_once(
    shop: Environment, champions: list, capsys: pytest.CaptureFixture[str]
) -> None:
    """Redis holds byte for byte what one run leaves; only when it was verified may differ."""

    def stored() -> dict[bytes, object]:
        with redis.Redis.from_url(shop.redis_online_url) as client:
            plain = {key: client.get(key) for key in client.scan_iter() if client.type(key) == b"string"}
        listed = Publication(shop.redis_online_url).list_versions()
        return {**plain, b"versions": [(v.version, v.is_served, v.is_previous, bool(v.verified_at)) for v in listed]}

    for day in (7, 8):
        run, version = publish(shop, day)
        verify_publication.main(shop, run)
        flip_version.main(shop, run)
    once = stored()
    assert len(once) == 2 * len(USERS) + 3  # the records of two versions, two pointers, the versions
    verify_publication.main(shop, run)
    flip_version.main(shop, run)
    assert stored() == once
    assert Publication(shop.redis_online_url).served_version() == version
    assert champions[-1] == champions[-2]
    assert "changed recommendations" in capsys.readouterr().out.splitlines()


def test_every_difference_is_listed_and_takes_the_mark_away(shop: Environment) -> None:
    run, version = publish(shop, 8)
    verify_publication.main(shop, run)
    with redis.Redis.from_url(shop.redis_online_url) as client:
        client.delete(candidates_key(version, "u2"))
    (bundle_folder(shop.publications, version, tenant="default") / "popular.json").write_bytes(b"[]")
    write_rows(shop, "gold.candidates", [{"user_id": "u4", "as_of": run.as_of_day}])
    with pytest.raises(ContractError) as caught:
        verify_publication.main(shop, run)
    message = str(caught.value)
    for part in (
        "no record: 2 users ('u2', 'u4')",
        "records: found 2, the manifest says 3",
        "gold.candidates: 4 users, the manifest says 3",
        "popular.json: SHA-256",
        "Clear score_users",
    ):
        assert part in message
    with pytest.raises(DataError, match="not verified"):
        flip_version.main(shop, run)


def test_rows_of_other_days_do_not_count(shop: Environment, champions: list) -> None:
    publish(shop, 7)
    run, version = publish(shop, 8)
    verify_publication.main(shop, run)
    flip_version.main(shop, run)  # refuses what is not verified
    assert Publication(shop.redis_online_url).served_version() == version


def test_the_flip_stands_when_mlflow_is_down(shop: Environment) -> None:
    """The environment's MLflow address is one that nothing listens on."""
    run, version = publish(shop, 8)
    verify_publication.main(shop, run)
    with pytest.raises(DependencyError, match=f"{version} is served, but MLflow was not told"):
        flip_version.main(shop, run)
    assert Publication(shop.redis_online_url).served_version() == version


def test_old_bundles_leave_with_their_versions(shop: Environment, champions: list) -> None:
    versions = []
    for day in (4, 5, 6, 7):
        run, version = publish(shop, day)
        verify_publication.main(shop, run)
        flip_version.main(shop, run)
        versions.append(version)
    assert list_bundles(shop.publications, tenant="default") == versions[1:]
    abandoned = bundle_folder(shop.publications, "2024-03-07-00000000", tenant="default")
    coming = bundle_folder(shop.publications, "2024-03-09-00000000", tenant="default")
    for folder in (abandoned, coming):
        folder.mkdir()
    flip_version.main(shop, run)
    assert (abandoned.exists(), coming.exists()) == (False, True)


def test_an_older_day_does_not_replace_a_newer_one_that_went_live_meanwhile(
    shop: Environment, champions: list, capsys: pytest.CaptureFixture[str]
) -> None:
    newer, newer_version = publish(shop, 9)
    older, older_version = publish(shop, 8)
    for run in (newer, older):
        verify_publication.main(shop, run)
    flip_version.main(shop, newer)
    flip_version.main(shop, older)
    assert f"not flipped to {older_version}: {newer_version} went live meanwhile" in capsys.readouterr().out
    assert Publication(shop.redis_online_url).served_version() == newer_version
    assert len(champions) == 1


def test_an_older_day_goes_live_when_it_was_made_to_replace_a_newer_one(shop: Environment, champions: list) -> None:
    """`publish` = `always`: pin_run let it through although a later day was served, and still is."""
    newer, newer_version = publish(shop, 9)
    verify_publication.main(shop, newer)
    flip_version.main(shop, newer)
    older, older_version = publish(shop, 8)
    verify_publication.main(shop, older)
    flip_version.main(shop, older)
    publication = Publication(shop.redis_online_url)
    assert (publication.served_version(), publication.previous_version()) == (older_version, newer_version)


def test_a_run_that_publishes_nothing_says_why_and_ends_its_night(
    environment: Environment, ended_nights: list, capsys: pytest.CaptureFixture[str]
) -> None:
    """Redis is not needed: the environment's address is one that nothing listens on."""
    run = make_run(environment, "2024-03-08", publishes=False, why="2024-03-09 is served")
    verify_publication.main(environment, run)
    flip_version.main(environment, run)
    assert capsys.readouterr().out.splitlines() == [
        "nothing to verify: 2024-03-09 is served",
        "nothing to flip: 2024-03-09 is served",
        "changed night_tables",
    ]
    assert ended_nights == [(run.mlflow_run_id, "FINISHED")]
