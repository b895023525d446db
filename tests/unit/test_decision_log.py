"""Decisions: framing, and the way of the frames of a worker's file into Delta, each once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from feature_repo.contracts.decisions import (
    FILE_HEADER,
    FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    decision_row,
    frame,
    read_decision,
    read_frames,
)
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DependencyError
from serving.adapters.decision_log import FileDecisionLog
from serving.adapters.json_bytes import decode_json, sorted_json
from serving.speed.decision_archive import DecisionArchiver
from spark_jobs.io.light_delta import open_table, read_table
from tests.builders import utc
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "decisions_v1.log"
NOW = 1_709_902_800_000_000
"""2024-03-08T13:00:00Z"""


def decision(name: str, **changed: Any) -> dict[str, Any]:
    return {
        "v": 1, "id": name, "at": NOW, "kind": "recommendations", "placement": "home", "subject": "u:u1",
        "session": None, "version": "2024-03-08-0a1b2c3d", "level": "personal", "reason": None, "degraded": [],
        "items": ["i9", "i1"], "numbers": [9, 1], "scores": [0.75, 0.5], "sources": [3, 4], "rules": [],
        "propensities": [1.0, 1.0], "experiments": [], "inputs": {"num_results": 2}, **changed,
    }  # fmt: skip


def payload(name: str, **changed: Any) -> bytes:
    return json.dumps(decision(name, **changed)).encode()


class Worker(FileDecisionLog):
    """The log of one worker, flushed by hand."""

    def __init__(self, environment: Environment, **changed: Any) -> None:
        options: dict[str, Any] = {
            "flush_seconds": 3600.0, "max_queued_bytes": 1 << 20, "max_file_bytes": 1 << 20, "max_file_seconds": 3600.0,
        }  # fmt: skip
        super().__init__(environment.decisions, wall_micros=lambda: NOW, **{**options, **changed})
        self.environment = environment

    def say(self, *names: str, **changed: Any) -> None:
        for name in names:
            self.append(payload(name, **changed))
        self.flush()


def files(environment: Environment) -> list[Path]:
    return sorted(Path(environment.decisions).glob("*"))


def names_in(path: Path) -> list[str]:
    data = path.read_bytes()
    assert data.startswith(FILE_HEADER)
    found = read_frames(data[len(FILE_HEADER) :], len(FILE_HEADER))
    return [json.loads(one)["id"] for _, one in found.payloads]


def archiver(environment: Environment, **changed: Any) -> DecisionArchiver:
    options = {"lakehouse": environment.lakehouse, "tenant": environment.tenant, "may_write": lambda: True, **changed}
    made = DecisionArchiver(environment.decisions, **options)
    made.resume()
    return made


def archived(environment: Environment) -> list[str]:
    return sorted(read_table(environment, "silver.decisions")["recommendation_id"].to_pylist())


# --- the format ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [{}, {"parse": decode_json, "write": sorted_json}], ids=["contract", "archiver"])
def test_the_golden_file_is_read_for_ever(fast: dict[str, Any]) -> None:
    data = GOLDEN.read_bytes()
    assert data[:8] == b"NJDEC01\n"
    found = read_frames(data[8:], 8)
    assert (len(found.payloads), found.end, found.damaged) == (2, len(data), 0)
    parse, write = fast.get("parse", json.loads), fast.get("write")
    first, second = (read_decision(one, parse=parse) for _, one in found.payloads)
    how = {} if write is None else {"write": write}
    assert decision_row(first, source="w-1.log", source_position=found.payloads[0][0], **how) == {
        "recommendation_id": "018e1e3c2f80c0ffee", "decided_at": utc("2024-03-08T13:00:00.000250"),
        "kind": "recommendations", "placement": "home", "subject_key": "u:Zoë", "session_hash": "00000000000000ff",
        "model_version": "2024-03-08-0a1b2c3d", "fallback_level": "segment", "fallback_reason": "unknown_user",
        "degraded_reasons": ["feature_stale"], "item_ids": ["i9", "i1", "i4"], "item_numbers": [9, 1, 4],
        "scores": [0.75, 0.5, 0.5], "sources": ["als", "session", "session"], "rule_ids": [["pin-1"], [], []],
        "propensities": [1.0, 0.25, 0.75], "experiment_ids": ["e1", "e2"], "arms": ["b", "control"],
        "inputs": '{"num_results":3,"region":"DE"}', "source": "w-1.log", "source_position": found.payloads[0][0],
        "decision_date": utc("2024-03-08").date(),
    }  # fmt: skip
    assert (second["kind"], second["subject"], second["items"]) == ("similar", None, [])
    assert frame(found.payloads[1][1]) == data[found.payloads[0][0] :]  # written as ever


def test_a_decision_of_a_later_version_keeps_its_numbers() -> None:
    """Sources that have no name here, inputs in any order and beyond what orjson can say."""
    said = {"z": 1, "a": {"ü": 2**70, "b": [1.5, None]}}
    row = decision_row({**decision("d1"), "sources": [250] * len(decision("d1")["items"]), "inputs": said},
        source="w", source_position=1, write=sorted_json)  # fmt: skip
    assert set(row["sources"]) == {"250"}
    assert row["inputs"] == '{"a":{"b":[1.5,null],"\\u00fc":1180591620717411303424},"z":1}'


@pytest.mark.parametrize("cut", range(1, FRAME_BYTES + 6))
def test_a_torn_tail_is_no_frame(cut: int) -> None:
    whole, torn = frame(b"{first}"), frame(b"{torn}")
    found = read_frames(whole + torn[:-cut], 100)
    assert found == ([(100 + len(whole), b"{first}")], 100 + len(whole), 0)


def test_behind_damage_reading_goes_on() -> None:
    one, two, three = frame(b"one"), bytearray(frame(b"two")), frame(b"three")
    two[-1] ^= 1
    found = read_frames(one + bytes(two) + b"NJd1" + three, 0)
    assert [p for _, p in found.payloads] == [b"one", b"three"]
    assert found.damaged == len(two) + 4
    assert found.end == len(one) + len(two) + 4 + len(three)
    assert zlib.crc32(b"three") == int.from_bytes(three[8:12], "little")
    with pytest.raises(ContractError, match="at most 1048576 bytes, got 1048577"):
        frame(b"x" * (MAX_PAYLOAD_BYTES + 1))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"v": 2}, "format '2', expected 1"),
        ({"propensities": [1.0]}, "differ in length"),
        ({"rules": [["r1"]]}, "differ in length"),
    ],
)
def test_what_is_no_decision_is_refused(damage: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        read_decision(payload("d1", **damage))
    with pytest.raises(ContractError, match="JSON"):
        read_decision(b"{")
    with pytest.raises(ContractError, match="needs placement"):
        read_decision(json.dumps({k: v for k, v in decision("d1").items() if k != "placement"}).encode())


# --- the archive ------------------------------------------------------------------------------------------------


def test_growing_files_are_read_and_only_closed_ones_deleted(environment: Environment) -> None:
    worker = Worker(environment)
    worker.say("d1", "d2")
    reader = archiver(environment)
    reader.archive()
    reader.archive()
    assert archived(environment) == ["d1", "d2"]
    assert len(files(environment)) == 1
    worker.say("d3")
    worker._shut()
    reader.archive()
    assert archived(environment) == ["d1", "d2", "d3"]
    assert files(environment) == []


def test_a_crash_between_commit_and_deletion_doubles_nothing(environment: Environment, tmp_path: Path) -> None:
    worker = Worker(environment)
    worker.say("d1", "d2")
    worker._shut()
    (path,) = files(environment)
    shutil.copy2(path, tmp_path / "kept")
    archiver(environment).archive()
    shutil.copy2(tmp_path / "kept", path)  # the deletion never reached the disk
    other = Worker(environment)
    other.say("d3")
    archiver(environment).archive()
    assert archived(environment) == ["d1", "d2", "d3"]
    assert not path.exists()


def test_no_file_goes_before_its_commit(environment: Environment) -> None:
    worker = Worker(environment)
    worker.say("d1")
    worker._shut()
    with pytest.raises(DependencyError, match="role was lost"):
        archiver(environment, may_write=lambda: False).archive()
    assert len(files(environment)) == 1
    assert archived(environment) == []


def test_a_worker_that_was_killed_leaves_a_tail_that_is_left_out(environment: Environment) -> None:
    program = (
        "import os, signal, sys\n"
        "from tests.unit.test_decision_log import Worker, payload\n"
        "from feature_repo.contracts.environment import Environment\n"
        "worker = Worker(Environment.from_mapping({'NIGHTJAR_HOME': sys.argv[1]}))\n"
        "worker.say('d1', 'd2')\n"
        "os.write(worker._frames.file, b'NJd1half')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, environment.home], cwd=ROOT, timeout=120)
    assert done.returncode == -9
    begun = Path(environment.decisions, "1.ab-1.new")
    begun.write_bytes(FILE_HEADER[:3])
    reader = archiver(environment)
    reader.archive()
    assert archived(environment) == ["d1", "d2"]
    assert reader._metrics.damaged_decision_bytes._value.get() == 8
    assert files(environment) == []


def test_a_round_takes_so_much_and_says_that_more_waits(environment: Environment) -> None:
    size = FRAME_BYTES + len(payload("d1"))
    worker, other = Worker(environment), Worker(environment)
    worker.say("d1", "d2", "d3")
    other.say("e1", "e2", "e3")
    reader = archiver(environment, max_round_bytes=2 * size + 10)
    rounds = []
    while reader.archive():
        rounds.append(len(archived(environment)))
    assert len(rounds) >= 2
    assert archived(environment) == ["d1", "d2", "d3", "e1", "e2", "e3"]


def test_what_is_whole_but_no_decision_does_not_hold_up_the_others(environment: Environment) -> None:
    worker = Worker(environment)
    worker.say("d1", v=9)
    worker.say("d2")
    reader = archiver(environment)
    reader.archive()
    reader.archive()
    assert archived(environment) == ["d2"]
    assert reader._metrics.damaged_decision_bytes._value.get() == len(payload("d1", v=9))


def test_an_id_says_which_files_can_hold_it(environment: Environment) -> None:
    worker, reader = Worker(environment), archiver(environment)
    for second in range(3):
        worker.say(*(f"{NOW // 1_000_000 + second:012x}{n:020x}" for n in range(4)))
        reader.archive()
    table = open_table(environment, "silver.decisions")
    assert table is not None
    wanted = f"{NOW // 1_000_000 + 1:012x}{2:020x}"
    fragments = list(table.to_pyarrow_dataset().get_fragments(filter=pc.field("recommendation_id") == wanted))
    assert len(table.file_uris()) == 3
    assert len(fragments) == 1
    kept = reader.maintain(dry_run=True, retention_days=30)
    assert kept["silver.decisions"]["files_before"] == 3
