"""From a real Kafka broker into Delta, exactly once, whatever is killed.

    python -m pytest -m soak tests/spark/test_stream_kafka.py

The job runs as a person starts it, in processes of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.tables import table_path
from spark_jobs.io import light_delta
from tests.builders import write_rows
from tests.kafka_broker import Broker, Sent, running_broker

pytestmark = [pytest.mark.soak, pytest.mark.spark]

TOPIC, PARTITIONS = "clicks", 3
START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
BATCH = 60
WAIT_SECONDS = 240.0


@pytest.fixture(scope="module")
def broker(jars_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("kafka"), jars_folder) as found:
        yield found


def event(number: int, **more: Any) -> dict[str, Any]:
    moment = START + timedelta(seconds=number)
    return {"event_id": f"e{number}", "event_type": "view_item", "user_id": f"u{number % 17}", "item_id": "i1",
            "timestamp": moment.isoformat(), **more}  # fmt: skip


def lopsided_messages() -> tuple[list[Sent], Counter[str], list[bytes]]:
    """(messages in order, event_id -> deliveries that bronze must hold, bytes that quarantine must hold).

    Partition 0 gets most, partition 2 hardly anything.
    """
    sent: list[Sent] = []
    kept: Counter[str] = Counter()
    refused: list[bytes] = []
    for number in range(400):
        partition = 2 if number % 50 == 7 else number % 3 % 2
        stamp = int((START + timedelta(seconds=number)).timestamp() * 1000)
        one = event(number)
        if number % 10 == 3:  # late by ten days: into another day
            one["timestamp"] = (START - timedelta(days=10) + timedelta(seconds=number)).isoformat()
        if number % 20 == 4:  # two lines of a basket
            one = {**event(number), "event_type": "purchase", "items": [{"item_id": "i1"}, {"item_id": "i2"}]}
        if number % 40 == 9:
            one["consent"] = {"store": False}
        sent.append(Sent(json.dumps(one).encode(), partition, stamp))
        lines = [f"e{number}:0", f"e{number}:1"] if "items" in one else [f"e{number}"]
        kept.update([] if one.get("consent") or one["user_id"] == "u16" else lines)
        if number % 15 == 2:  # said again, on another partition
            sent.append(Sent(json.dumps(one).encode(), (partition + 1) % 3, stamp))
            kept.update([] if one.get("consent") or one["user_id"] == "u16" else lines)
        if number % 25 == 6:
            bad = [b"\xff\xfenot json", b'{"event_type": "view_itm", "user_id": "u1"}', None][number // 25 % 3]
            sent.append(Sent(bad, partition, stamp))
            refused.append(bad or b"")
    return sent, kept, refused


class Job:
    """`nightjar kafka stream` in a process group of its own."""

    def __init__(self, variables: dict[str, str], broker: Broker, log: Path, *options: str) -> None:
        self.log = log
        command = [
            sys.executable, "-m", "infra.cli.main", "kafka", "stream", "--bootstrap-servers", broker.address,
            "--topic", TOPIC, "--max-offsets-per-trigger", str(BATCH), "--maintain-every", "4", *options,
        ]  # fmt: skip
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> int:
        try:
            return self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(self.said()) from None

    def wait_until(self, is_so: Any) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_so():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said().splitlines() if line.startswith('{"accepted"')]


@pytest.fixture
def place(tmp_path: Path, jars_folder: Path) -> tuple[Environment, dict[str, str]]:
    """An installation in which user u16 does not allow storing, and the environment of its processes."""
    variables = {**os.environ, names.HOME: str(tmp_path / "home"), names.JARS: str(jars_folder),
                 "PYTHONPATH": str(Path(__file__).parents[2])}  # fmt: skip
    for name in ("SPARK_CONF_DIR", "PYSPARK_SUBMIT_ARGS", names.LAKEHOUSE):
        variables.pop(name, None)
    environment = Environment.from_mapping(variables)
    write_rows(environment, "bronze.users", [{"user_id": "u16", "consent_store": False}, {"user_id": "u1"}])
    return environment, variables


def commits(environment: Environment, name: str) -> int:
    folder = Path(table_path(environment.lakehouse, name)) / "_delta_log"
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def checkpointed(environment: Environment, kind: str) -> list[int]:
    """Batches that the checkpoint has planned (offsets) or ended (commits)."""
    folder = Path(environment.lakehouse, "default", ".kafka", TOPIC, kind)
    return sorted(int(path.name) for path in folder.glob("[0-9]*")) if folder.is_dir() else []


def test_every_message_is_kept_once_whatever_is_killed(
    broker: Broker, place: tuple[Environment, dict[str, str]], tmp_path: Path
) -> None:
    environment, variables = place
    broker.create_topic(TOPIC, PARTITIONS)
    sent, kept, refused = lopsided_messages()
    assert (len(sent), sum(kept.values()), len(refused)) == (443, 413, 16)
    half = len(sent) // 2
    places = broker.send(TOPIC, sent[:half])
    broker.send(TOPIC, [Sent(json.dumps(event(9999)).encode(), 0, int(START.timestamp() * 1000))] * 5, aborted=True)
    places += broker.send(TOPIC, sent[half:])
    assert len({*places}) == len(sent)

    # between the commit of a batch's events and all that follows it
    job = Job(variables, broker, tmp_path / "1.log", "--trigger", "0.1")
    job.wait_until(lambda: commits(environment, "bronze.events_kafka") >= 2)  # the first creates the table
    with pytest.raises(AssertionError, match="its tables have one writer"):
        Job(variables, broker, tmp_path / "second.log", "--trigger", "0.1").wait_until(lambda: False)
    job.kill()
    # as soon as another batch is planned
    planned = len(checkpointed(environment, "offsets"))
    job = Job(variables, broker, tmp_path / "2.log", "--trigger", "0.1")
    job.wait_until(lambda: len(checkpointed(environment, "offsets")) > planned)
    job.kill()
    # right after a commit of the quarantine, before the checkpoint knows of it
    before = commits(environment, "bronze.quarantine_kafka")
    job = Job(variables, broker, tmp_path / "3.log", "--trigger", "0.1")
    job.wait_until(lambda: commits(environment, "bronze.quarantine_kafka") > before)
    job.kill()
    # a polite stop ends with the batch that is under way
    job = Job(variables, broker, tmp_path / "4.log", "--trigger", "0.1")
    job.wait_until(job.lines)
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 0, job.said()
    # and the rest
    job = Job(variables, broker, tmp_path / "5.log", "--trigger", "available-now")
    assert job.wait() == 0, job.said()

    rows = light_delta.read_table(environment, "bronze.events_kafka").to_pylist()
    assert Counter(row["event_id"] for row in rows) == kept
    bad = light_delta.read_table(environment, "bronze.quarantine_kafka").to_pylist()
    assert sorted(row["raw"] for row in bad) == sorted(refused)
    assert Counter(row["reason"] for row in bad) == {"unreadable": 11, "unknown_event_type": 5}
    values = {
        (f"kafka:{TOPIC}/{partition}", offset): each.value
        for each, (partition, offset) in zip(sent, places, strict=True)
    }
    for row in bad:
        assert (values.pop((row["source"], row["source_position"])) or b"") == row["raw"]
    for row in rows:
        assert row["event_id"].partition(":")[0].encode() in (values[row["source"], row["source_position"]] or b"")
    assert len({row["event_date"] for row in rows}) >= 2  # the late ones have a day of their own
    left = values.keys() - {(row["source"], row["source_position"]) for row in rows}
    assert len(left) == 33  # 10 say so themselves, 23 are of u16, one of them is both, and one was said twice
    assert all(b'"store"' in (values[each] or b"") or b'"u16"' in (values[each] or b"") for each in left)
    assert checkpointed(environment, "offsets") == checkpointed(environment, "commits")
    last = job.lines()[-1]
    assert set(last["lag"].values()) == {0}
    assert last["read"] == last["accepted"] + last["quarantined"] + last["not_stored"]


def test_compaction_keeps_rows_and_the_number_of_files_small(
    broker: Broker, place: tuple[Environment, dict[str, str]], tmp_path: Path
) -> None:
    """The same topic read anew by another installation, nothing killed: the lines tell of every message."""
    environment, variables = place
    sent, kept, refused = lopsided_messages()
    job = Job(variables, broker, tmp_path / "all.log", "--trigger", "available-now")
    assert job.wait() == 0, job.said()
    lines = job.lines()
    assert len(lines) == 8  # 443 messages and the marks of a transaction, 60 offsets at a time
    assert sum(line["read"] for line in lines) == len(sent)
    assert sum(line["rows"] for line in lines) == sum(kept.values())
    assert sum(line["quarantined"] for line in lines) == len(refused)
    ends = [sum(line["offsets"].values()) for line in lines]
    assert [sum(line["lag"].values()) for line in lines] == [ends[-1] - end for end in ends]
    found = light_delta.open_table(environment, "bronze.events_kafka")
    assert found is not None
    assert Counter(found.to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist()) == kept
    assert any(commit["operation"] == "OPTIMIZE" for commit in found.history())
