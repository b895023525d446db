"""What a batch of Kafka is, is on disk before a table takes it: the table refuses a second batch of its number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.bench.events.power import Disk, compiler
from spark_jobs.jobs import stream_kafka as job

FILES = {
    "metadata": "{}", ".metadata.crc": "m", "sources/0/0": "starts", "sources/0/.0.crc": "s", "offsets/0": "first",
    "offsets/.0.crc": "a", "offsets/1": "second", "offsets/.1.crc": "b", "commits/0": "done",
}  # fmt: skip


def files(home: Path) -> dict[str, str]:
    return {
        path.relative_to(home).as_posix(): path.read_text()
        for path in home.rglob("*")
        if path.is_file() and path.read_text()
    }


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_a_power_cut_leaves_what_was_said_of_the_batch(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    disk = Disk(home, tmp_path / "workshop")
    disk.settled()
    for number in (0, 1):
        for name, text in FILES.items():
            if name.startswith("offsets") and str(1 - number) in name:
                continue
            path = home / "lakehouse" / "default" / ".kafka" / "clicks" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        words = "import sys; from spark_jobs.jobs import stream_kafka as job; "
        words += "job.sync_checkpoint(sys.argv[1], int(sys.argv[2]))"
        place = "file:" + str(home / "lakehouse" / "default" / ".kafka" / "clicks")
        variables = {**os.environ, **disk.variables()}
        command = [sys.executable, "-c", words, place, str(number)]
        subprocess.run(command, cwd=Path(__file__).parents[2], env=variables, check=True)
    disk.cut()
    kept = {name: text for name, text in FILES.items() if not name.startswith("commits")}
    assert files(home / "lakehouse" / "default" / ".kafka" / "clicks") == kept


def test_it_is_on_disk_before_the_tables_take_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    counts = {"rows": 1, "accepted": 1, "quarantined": 1, "not_stored": 0}
    monkeypatch.setattr(job, "sync_checkpoint", lambda *said: done.append(said))
    checked = SimpleNamespace(persist=lambda: checked, unpersist=lambda: None)
    monkeypatch.setattr(job, "check_messages", lambda *_, **__: checked)
    monkeypatch.setattr(job, "count_messages", lambda _: counts)
    monkeypatch.setattr(job, "rows_for", lambda *_: None)
    monkeypatch.setattr(job, "append_once", lambda _, __, name, **___: done.append(name))
    monkeypatch.setattr(job.Batches, "_users_refusing", lambda _: frozenset())
    batches = job.Batches(None, None, checkpoint="/place", maintain_every=0)  # type: ignore[arg-type]
    context = SimpleNamespace(getLocalProperty=lambda _: "q")
    batches.write(SimpleNamespace(sparkSession=SimpleNamespace(sparkContext=context)), 7)  # type: ignore[arg-type]
    assert done == [("/place", 7), "bronze.events_kafka", "bronze.quarantine_kafka"]


def test_a_checkpoint_on_a_store_is_durable_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(job, "sync", synced.append)
    job.sync_checkpoint("s3a://bucket/checkpoint", 3)
    assert synced == []
