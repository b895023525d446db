"""A shop with a published version gets its newest day in ten broken forms, through the real import and the real jobs.

    python -m pytest -m soak tests/spark/test_broken_inputs.py

Each is refused at the entrance or stops the night, with the words for it; what is served does not move.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import SparkSession

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.packing import PackedCandidate, pack_candidates
from feature_repo.contracts.publication import Manifest
from feature_repo.contracts.run import QUALITY_FILE, QUALITY_PAGE
from infra.importing.events import import_events
from infra.importing.shop import import_shop
from infra.simulator.shop import ShopConfig, simulate_shop
from spark_jobs.io.publication import Publication
from spark_jobs.io.run_store import folder_of, read_report, read_run
from spark_jobs.io.table_hash import hash_tables
from spark_jobs.jobs import pin_run, refine_events
from tests.builders import utc

pytestmark = [pytest.mark.soak, pytest.mark.spark]

NEWEST, AS_OF = date(2025, 6, 30), date(2025, 7, 1)
RECEIVED = utc("2025-07-01T00:30:00")


@dataclass(frozen=True)
class Case:
    """`bring` makes the file (or none) from the day's lines; `told` is in the import's error or quarantine, or empty;
    `stopped` is in the night's message."""

    bring: Callable[[pd.DataFrame, Path], None]
    told: str
    stopped: str


def csv(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[pd.DataFrame, Path], None]:
    return lambda lines, folder: change(lines).to_csv(folder / "2025-06-30.csv", index=False)


def half_a_file(lines: pd.DataFrame, folder: Path) -> None:
    whole = lines.to_json(orient="records", lines=True, date_format="iso").encode()
    (folder / "2025-06-30.jsonl").write_bytes(whole[: len(whole) // 2])


def doubled(lines: pd.DataFrame, folder: Path) -> None:
    lines.to_csv(folder / "2025-06-30.csv", index=False)
    lines.assign(event_id="again-" + lines["event_id"]).to_csv(folder / "2025-06-30-copy.csv", index=False)


def ten_times(lines: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([
        lines.assign(event_id=f"{n}-" + lines["event_id"], timestamp=lines["timestamp"] + pd.Timedelta(milliseconds=n))
        for n in range(10)
    ])  # fmt: skip


CASES = {
    "wrong types": Case(
        csv(lambda d: d.assign(price="cheap", quantity="two", timestamp="yesterday")), "invalid_timestamp",
        "no deliveries on 2025-06-30"),
    "swapped columns": Case(
        csv(lambda d: d.rename(columns={"user_id": "item_id", "item_id": "user_id"})), "",
        "deliveries have an item_id that the catalogue does not know"),
    "half a file": Case(half_a_file, "unreadable", "2025-06-30 ends at "),
    "another encoding": Case(
        lambda d, folder: d.to_csv(folder / "2025-06-30.csv", index=False, encoding="utf-16-le"),
        "looks like utf-16-le",
        "no deliveries on 2025-06-30"),
    "doubled day": Case(doubled, "", "events say what another one says, under an id of their own"),
    "missing day": Case(lambda _lines, _folder: None, "", "no deliveries on 2025-06-30"),
    "90 % nulls": Case(
        csv(lambda d: d.assign(price=d["price"].where(pd.Series(range(len(d)), d.index) % 10 == 0))), "",
        "price is null in "),
    "10x volume": Case(csv(ten_times), "", "2025-06-30 has 11,450 deliveries, usually about "),
    "future dates": Case(
        csv(lambda d: d.assign(timestamp=d["timestamp"] + pd.DateOffset(years=2))), "timestamp_in_future",
        "no deliveries on 2025-06-30"),
    "renamed column": Case(
        csv(lambda d: d.rename(columns={"event_type": "evnt_kind"})), "event_type", "no deliveries on 2025-06-30"),
}  # fmt: skip


@pytest.fixture(scope="module")
def day_and_home(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Path]:
    """The newest day's lines, and an installation after the night before it."""
    folder = tmp_path_factory.mktemp("shop")
    config = ShopConfig(user_count=600, item_count=200, event_count=40_000, days=40, end_day=AS_OF)
    simulate_shop(config, folder / "shop")
    newest = folder / "shop" / "events" / f"{NEWEST}.parquet"
    lines = pd.read_parquet(newest).sort_values("timestamp", kind="stable").astype({"quantity": "Int64"})
    newest.unlink()
    home = folder / "home"
    place = environment_at(home, "redis://127.0.0.1:1/0")
    import_shop(folder / "shop", place, received_at=utc("2025-06-30T00:30:00"))
    return lines[lines["timestamp"].dt.date == NEWEST], home


@pytest.fixture
def served(redis_url: str) -> Publication:
    """A store that serves a version."""
    publication = Publication(redis_url)
    payload = b"\0" + pack_candidates("2000-01-01-00000000", [PackedCandidate(1, 0.5, 2)])[12:]
    manifest = Manifest(
        as_of="2025-06-30", model="als", recipe={}, user_count=1, item_count=2,
        candidates_checksum=candidates_checksum_of("u1", payload), last_event_at=None, volatile={},
    )  # fmt: skip
    version = publication.announce(manifest)
    publication.put_records(version, [("u1", pack_candidates(version, [PackedCandidate(1, 0.5, 2)]))])
    publication.verify(version, ["u1"])
    publication.mark_verified(version, at=RECEIVED)
    publication.flip(version)
    return publication


def candidates_checksum_of(user_id: str, payload: bytes) -> str:
    from feature_repo.contracts.publication import candidates_checksum, record_digest

    return candidates_checksum([record_digest(user_id, payload)])


def environment_at(home: Path, redis_url: str) -> Environment:
    return Environment.from_mapping({
        "NIGHTJAR_HOME": str(home), "NIGHTJAR_REDIS_ONLINE_URL": redis_url, "NIGHTJAR_REDIS_LOG_URL": redis_url,
        "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db",
    })  # fmt: skip


def night(spark: SparkSession, place: Environment, as_of: date, **params: Any) -> None:
    """pin_run and refine_events as the DAG runs them."""
    import json

    key = f"night-{as_of}-{len(params)}"
    arguments = pin_run.arguments_parser().parse_args([
        f"--run-key={key}", f"--dag-run-id={key}", "--run-type=scheduled", f"--data-interval-end={as_of}T00:00:00Z",
        f"--params={json.dumps(params)}",
    ])  # fmt: skip
    pin_run.main(place, arguments)
    run = read_run(place, key)
    refine_events.refine_events(spark, place, run, tell=lambda q: refine_events.log_quality(place, run, q))


@pytest.mark.parametrize("name", CASES)
def test_a_broken_day_never_reaches_silver(
    name: str, spark: SparkSession, day_and_home: tuple[pd.DataFrame, Path], served: Publication, redis_url: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from mlflow import MlflowClient

    case, (lines, history) = CASES[name], day_and_home
    monkeypatch.chdir(tmp_path)  # MLflow keeps artifacts under the working directory
    shutil.copytree(history, tmp_path / "home")
    place = environment_at(tmp_path / "home", redis_url)
    if not (history / "lakehouse" / "default" / "silver").exists():
        night(spark, place, NEWEST)
        shutil.copytree(tmp_path / "home" / "lakehouse", history / "lakehouse", dirs_exist_ok=True)
    pointer, silver = served.served_version(), hash_tables(place)
    assert pointer is not None

    inbox = tmp_path / "inbox"
    inbox.mkdir()
    case.bring(lines, inbox)
    told = ""
    if any(inbox.iterdir()):
        try:
            report = import_events(inbox, place, received_at=RECEIVED)
            told = ", ".join(report.quarantined)
        except DataError as error:
            told = str(error)
    assert case.told in told

    with pytest.raises(DataError) as stopped:
        night(spark, place, AS_OF)

    assert case.stopped in str(stopped.value)
    assert "accept_quality=" in str(stopped.value)
    assert hash_tables(place) == silver
    assert served.served_version() == pointer
    run = read_run(place, f"night-{AS_OF}-0")
    assert read_report(place, run.run_key, QUALITY_FILE)["verdict"] == "stop"
    assert case.stopped in (folder_of(place, run.run_key) / QUALITY_PAGE).read_text()
    client = MlflowClient(tracking_uri=place.mlflow_uri)
    logged = client.get_run(run.mlflow_run_id)
    assert logged.info.status == "FAILED"
    assert case.stopped in logged.data.tags["nightjar.failed_because"]
    assert {file.path for file in client.list_artifacts(run.mlflow_run_id, "quality")} == {
        "quality/quality.html", "quality/quality.json",
    }  # fmt: skip


def test_the_whole_day_passes_and_a_stop_can_be_accepted(
    spark: SparkSession, day_and_home: tuple[pd.DataFrame, Path], redis_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    lines, history = day_and_home
    monkeypatch.chdir(tmp_path)
    for name, bring, params in (
        ("good", csv(lambda d: d), {}),
        ("accepted", csv(ten_times), {"accept_quality": "volume_high"}),
    ):
        shutil.copytree(history, tmp_path / name)
        place = environment_at(tmp_path / name, redis_url)
        night(spark, place, NEWEST)
        inbox = tmp_path / f"inbox-{name}"
        inbox.mkdir()
        bring(lines, inbox)
        import_events(inbox, place, received_at=RECEIVED)
        night(spark, place, AS_OF, **params)
        verdict = read_report(place, f"night-{AS_OF}-{len(params)}", QUALITY_FILE)
        accepted = [f["limit"] for f in verdict["findings"] if f["is_accepted"]]
        assert accepted == (["volume_high"] if params else []), verdict["findings"]
        assert verdict["judged_days"] == [str(AS_OF - timedelta(days=1))]
