"""Metrics: what the registries hold, what a scrape of the processes gives, and that the page about them is true."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import (
    applied_key,
    archived_key,
    dead_letter_stream_key,
    speed_counters_key,
    stream_key,
)
from infra.exporter.__main__ import sources
from infra.exporter.night import run_metrics
from infra.exporter.served import feature_metrics, publication_metrics
from infra.exporter.snapshot import Snapshot
from infra.local.redis_server import RunningServer
from serving.speed.metrics import ArchiverMetrics, ConsumerMetrics, show_metrics, timed
from tests.conftest import ROOT
from tests.operations.exposed import REPORTS, SHOP, families, fill, registries, write_run

pytestmark = pytest.mark.redis

PAGE = ROOT / "infra" / "docs" / "metrics.md"
SUFFIX = {
    "counter": ("_total",),
    "histogram": ("_seconds", "_entries", "_rows"),
}
"""What names end with; a gauge says its unit or counts things."""
SUBJECTS = ("api", "consumer", "archiver", "exporter", "night", "publication", "features", "lakehouse")


@pytest.fixture
def home(tmp_path: Path, redis_url: str) -> Environment:
    return Environment.from_mapping(
        {names.HOME: str(tmp_path / "home"), names.REDIS_LOG_URL: redis_url, names.REDIS_ONLINE_URL: redis_url}
    )


def values(text: str) -> dict[str, float]:
    """`name{label="value",...}` (labels sorted) -> value, as Prometheus reads a scrape."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    return values(generate_latest(registry).decode())


@contextmanager
def taken_port() -> Iterator[int]:
    """A port on which nobody else can listen meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def free_port() -> int:
    with taken_port() as port:
        return port


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_page_names_every_metric_as_it_is(home: Environment) -> None:
    fill(home)
    real = [(f.service, f.name, f.kind, ", ".join(f.labels), f.words) for f in families(home)]
    assert len(real) > 40
    documented, service = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            service = line.removeprefix("## ")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`nightjar_"):
            documented.append((service, cells[0].strip("`"), cells[1], cells[2], cells[3]))
    assert sorted(documented) == sorted(real)


def test_names_say_service_and_unit(home: Environment) -> None:
    fill(home)
    found = families(home)
    assert [name for name, count in Counter(f.name for f in found).items() if count > 1] == []
    for family in found:
        assert family.name.split("_")[1] in SUBJECTS, family
        assert family.name.endswith(SUFFIX.get(family.kind, ("",))), family
        assert not {"user_id", "item_id", "event_id", "session_id", "run_key"} & set(family.labels), family


# --- consumer and archiver --------------------------------------------------------------------------------------


def test_lag_is_the_age_of_the_oldest_entry_that_is_not_done(home: Environment, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        now_ms = client.time()[0] * 1000
        for age_ms in (90_000, 30_000):
            client.xadd(stream_key(2), {"event": b"{}"}, id=f"{now_ms - age_ms}-0")
        client.xadd(stream_key(3), {"event": b"{}"}, id=f"{now_ms - 70_000}-0")
        client.set(applied_key(2), f"{now_ms - 90_000}-0")  # the first is applied, not archived
        client.set(applied_key(3), f"{now_ms - 70_000}-0")
        client.set(archived_key(stream_key(3)), f"{now_ms - 70_000}-0")
        client.hset(speed_counters_key(), mapping={"applied": 5, "duplicate": 2})
        client.xadd(dead_letter_stream_key(), {"error": "x"})
    found = registries(home)
    consumer, archiver = scrape(found["consumer"]), scrape(found["archiver"])
    lags = [consumer[f'nightjar_consumer_lag_seconds{{partition="{p}"}}'] for p in range(4)]
    assert lags[:2] == [0, 0]
    assert 30 <= lags[2] < 40
    assert lags[3] == 0
    assert 90 <= archiver['nightjar_archiver_lag_seconds{stream="events-2"}'] < 100
    assert archiver['nightjar_archiver_lag_seconds{stream="events-3"}'] == 0
    assert archiver['nightjar_archiver_stream_entries{stream="events-2"}'] == 2
    outcomes = {o: consumer[f'nightjar_consumer_entries_total{{outcome="{o}"}}'] for o in
                ("applied", "duplicate", "dead_lettered")}  # fmt: skip
    assert outcomes == {"applied": 5, "duplicate": 2, "dead_lettered": 0}
    assert consumer["nightjar_consumer_dead_letters_kept"] == 1
    assert (consumer["nightjar_consumer_stores_up"], archiver["nightjar_archiver_stores_up"]) == (1, 1)


def test_a_store_that_is_gone_is_said_and_hides_nothing_else(tmp_path: Path) -> None:
    gone = Environment.from_mapping({names.HOME: str(tmp_path), names.REDIS_LOG_URL: "redis://127.0.0.1:1/0"})
    found = scrape(registries(gone)["consumer"])
    assert found["nightjar_consumer_stores_up"] == 0
    assert found["nightjar_consumer_role_held"] == 0
    assert not [name for name in found if name.startswith("nightjar_consumer_lag")]


def test_a_taken_port_is_an_error_that_names_it() -> None:
    with taken_port() as port:
        with pytest.raises(DependencyError, match=f"127.0.0.1:{port}.*--metrics-port"):
            show_metrics(CollectorRegistry(), "127.0.0.1", port)
        show_metrics(CollectorRegistry(), "127.0.0.1", 0)  # no port wanted


def test_what_failed_is_not_timed() -> None:
    metrics = ConsumerMetrics()
    with pytest.raises(ValueError, match="x"), timed(metrics.apply_seconds.observe):
        raise ValueError("x")
    with timed(metrics.apply_seconds.observe):
        time.sleep(0.01)
    found = scrape(metrics.registry)
    assert found["nightjar_consumer_apply_seconds_count"] == 1
    assert 0.01 <= found["nightjar_consumer_apply_seconds_sum"] < 1


def test_two_processes_in_one_test_share_no_numbers() -> None:
    first, second = ArchiverMetrics(), ArchiverMetrics()
    first.rows.labels("bronze.events").inc(3)
    assert 'nightjar_archiver_rows_total{table="bronze.events"}' not in scrape(second.registry)


# --- the exporter -----------------------------------------------------------------------------------------------


def test_the_exporter_tells_of_the_run_that_was_pinned_last(home: Environment) -> None:
    fill(home)
    found = scrape(registries(home)["exporter"])
    assert found['nightjar_night_run_info{as_of="2024-03-08",publishes="true"}'] == 1
    assert found["nightjar_night_run_as_of_timestamp_seconds"] == 1709856000  # 2024-03-08T00:00:00Z
    assert found['nightjar_night_report_timestamp_seconds{report="run"}'] == 2000
    assert 'nightjar_night_report_timestamp_seconds{report="publication"}' not in found
    rows = {n.split('"')[1]: v for n, v in found.items() if n.startswith("nightjar_night_rows{")}
    assert rows == {"read": 110, "kept": 80, "duplicates": 7, "quarantined": 20, "withheld": 2, "outside": 1}
    assert found['nightjar_night_quarantined_rows{reason="missing_user"}'] == 15
    verdicts = {n.split('"')[1]: v for n, v in found.items() if n.startswith("nightjar_night_gate_verdict")}
    assert verdicts == {"publish": 1, "baseline": 0, "refused": 0}
    assert found['nightjar_night_winner_info{model="als"}'] == 1
    assert [found[f'nightjar_night_data_verdict{{verdict="{v}"}}'] for v in ("pass", "warn", "stop")] == [0, 1, 0]
    assert [found[f'nightjar_night_data_findings{{level="{v}"}}'] for v in ("warn", "stop")] == [2, 0]
    quality = {n: v for n, v in found.items() if n.startswith("nightjar_night_model_quality")}
    assert quality == {
        'nightjar_night_model_quality_ratio{metric="ndcg_at_20",model="als"}': 0.25,
        'nightjar_night_model_quality_ratio{metric="recall_at_20",model="als"}': 0.5,
    }
    assert found["nightjar_night_data_age_seconds"] == 43_200
    # Airflow's part
    assert found['nightjar_night_run_state{state="running"}'] == 1
    assert found['nightjar_night_run_state{state="failed"}'] == 0
    assert found['nightjar_night_task_seconds{task="refine_events"}'] == 30
    assert 'nightjar_night_task_seconds{task="build_features"}' not in found
    assert found['nightjar_night_task_tries{task="refine_events"}'] == 2


def test_the_exporter_tells_what_is_served(home: Environment) -> None:
    fill(home)
    found = scrape(registries(home)["exporter"])
    assert found["nightjar_publication_as_of_timestamp_seconds"] == 1709856000
    assert found["nightjar_publication_published_timestamp_seconds"] == 1709866800  # 03:00
    assert found["nightjar_publication_last_event_timestamp_seconds"] == 1709848800  # 22:00 the day before
    assert found["nightjar_publication_warm_versions"] == 1
    assert found["nightjar_publication_items"] == 2
    assert found[f'nightjar_publication_info{{model="als",version="{SHOP.version}"}}'] == 1
    assert found['nightjar_features_timestamp_seconds{view="user_features"}'] == 1_000_000
    assert found['nightjar_lakehouse_table_rows{table="bronze.items"}'] == 2
    assert found['nightjar_lakehouse_table_version{table="bronze.items"}'] == 0
    assert abs(found['nightjar_lakehouse_table_commit_timestamp_seconds{table="bronze.items"}'] - time.time()) < 60
    assert 'nightjar_lakehouse_table_rows{table="bronze.users"}' not in found
    assert found["nightjar_exporter_refresh_timestamp_seconds"] == 5000


def test_an_installation_without_a_night_shows_what_it_has(home: Environment) -> None:
    assert list(run_metrics(home)) == []
    assert list(feature_metrics(home)) == []
    assert [m.name for m in publication_metrics(home)] == ["nightjar_publication_warm_versions"]


def test_a_source_that_fails_shows_nothing_old_and_the_others_go_on() -> None:
    broken = False

    def first() -> Iterator[Metric]:
        if broken:
            raise DependencyError("gone")
        yield GaugeMetricFamily("nightjar_night_first", "f", value=1)

    snapshot = Snapshot({"first": first, "second": lambda: [GaugeMetricFamily("nightjar_night_second", "s", value=2)]})
    registry = CollectorRegistry()
    registry.register(snapshot)
    assert "nightjar_exporter_refresh_timestamp_seconds" not in scrape(registry)
    snapshot.refresh()
    assert scrape(registry)["nightjar_night_first"] == 1
    broken = True
    snapshot.refresh()
    found = scrape(registry)
    assert "nightjar_night_first" not in found
    assert found["nightjar_night_second"] == 2
    assert found['nightjar_exporter_source_up{source="first"}'] == 0
    assert found['nightjar_exporter_source_up{source="second"}'] == 1


def test_a_report_that_is_no_json_is_a_source_that_is_down(home: Environment) -> None:
    folder = write_run(home.runs, "r", "2024-03-08", REPORTS, at=1.0)
    (folder / "gate.json").write_text("{half")
    registry = CollectorRegistry()
    snapshot = Snapshot({"runs": lambda: run_metrics(home)})
    snapshot.refresh()
    registry.register(snapshot)
    assert scrape(registry)['nightjar_exporter_source_up{source="runs"}'] == 0


def test_airflow_is_asked_only_with_a_login(home: Environment, tmp_path: Path) -> None:
    base = {names.HOME: home.home}
    assert "airflow" not in sources(base)
    assert "airflow" not in sources({**base, names.AIRFLOW_URL: "http://127.0.0.1:1"})
    assert not (Path(home.home) / "airflow").exists()
    assert "airflow" in sources(
        {**base, names.AIRFLOW_URL: "http://127.0.0.1:1", "NIGHTJAR_AIRFLOW_PASSWORD": "secret"}
    )


# --- the processes ----------------------------------------------------------------------------------------------


def test_every_stream_process_and_the_exporter_can_be_scraped(home: Environment, tmp_path: Path) -> None:
    fill(home)
    variables = {
        "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), names.HOME: home.home,
        "NIGHTJAR_SERVING_ARCHIVE_SECONDS": "0.2",
    }  # fmt: skip
    with RunningServer("log", tmp_path / "log") as log:
        variables |= {names.REDIS_LOG_URL: log.url, names.REDIS_ONLINE_URL: home.redis_online_url}
        with redis.Redis.from_url(log.url) as client:
            event = {"event_id": "e1", "event_type": "view_item", "user_id": "u1", "item_id": "i1",
                     "timestamp": "2024-03-08T12:00:00Z"}  # fmt: skip
            client.xadd(stream_key(1), {"event": json.dumps(event), "nonce": "n"})
            client.xadd(stream_key(1), {"event": "no json", "nonce": "n"})
        commands = {
            "consumer": ["serving.speed.consumer", "--metrics-port"],
            "archiver": ["serving.speed.archiver", "--metrics-port"],
            "exporter": ["infra.exporter", "--port"],
        }
        ports = {name: free_port() for name in commands}
        processes = [
            subprocess.Popen([sys.executable, "-m", *commands[name], str(ports[name])], env=variables, cwd=tmp_path)
            for name in commands
        ]
        try:
            consumer = wait_for_sample(ports["consumer"], "nightjar_consumer_batch_entries_count", 1)
            archiver = wait_for_sample(ports["archiver"], 'nightjar_archiver_rows_total{table="bronze.events"}', 1)
            exporter = wait_for_sample(ports["exporter"], "nightjar_exporter_refresh_timestamp_seconds", 1)
        finally:
            for process in processes:
                process.terminate()
            codes = [process.wait(10) for process in processes]
    assert codes == [0, 0, 0]
    assert consumer["nightjar_consumer_batch_entries_sum"] == 2
    assert consumer['nightjar_consumer_entries_total{outcome="applied"}'] == 1
    assert consumer['nightjar_consumer_entries_total{outcome="dead_lettered"}'] == 1
    assert (consumer["nightjar_consumer_role_held"], consumer["nightjar_consumer_takeovers_total"]) == (1, 1)
    assert consumer["nightjar_consumer_apply_seconds_count"] == 1
    assert consumer["process_resident_memory_bytes"] > 0
    assert archiver['nightjar_archiver_fsync_seconds_count{table="bronze.events"}'] == 1
    assert (
        archiver['nightjar_archiver_commit_seconds_sum{table="bronze.events"}']
        >= archiver['nightjar_archiver_fsync_seconds_sum{table="bronze.events"}']
    )
    assert exporter['nightjar_lakehouse_table_rows{table="bronze.items"}'] == 2
    assert [n for n in exporter if n.startswith("nightjar_exporter_source_up") and exporter[n] != 1] == []


def wait_for_sample(port: int, sample: str, at_least: float) -> dict[str, float]:
    deadline = time.monotonic() + 60
    found: dict[str, float] = {}
    while time.monotonic() < deadline:
        try:
            found = values(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5, trust_env=False).text)
        except httpx.HTTPError:
            found = {}
        if found.get(sample, 0) >= at_least:
            return found
        time.sleep(0.1)
    pytest.fail(f"{sample} never showed; there were {sorted(found)}")
