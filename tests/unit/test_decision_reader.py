"""A decision is found wherever it lies: in the file of a worker that still writes, or in the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from serving.adapters.decision_log import FileDecisionLog
from serving.adapters.decision_reader import LoggedDecisions
from serving.adapters.json_bytes import encode_json
from serving.speed.decision_archive import DecisionArchiver
from tests.unit.test_decision_log import NOW, decision

MILLISECONDS = f"{NOW // 1000:012x}"
FIRST, SECOND, OTHER = (f"{MILLISECONDS}{n:020x}" for n in (1, 2, 3))


def payload(name: str, **changed: Any) -> bytes:
    return encode_json(decision(name, **changed))


def log_of(environment: Environment) -> FileDecisionLog:
    return FileDecisionLog(
        environment.decisions,
        wall_micros=lambda: NOW,
        flush_seconds=3600,
        max_queued_bytes=1 << 20,
        max_file_bytes=1 << 20,
        max_file_seconds=3600,
    )


def test_found_in_the_growing_file_then_in_the_table(environment: Environment) -> None:
    log = log_of(environment)
    reader = LoggedDecisions(environment.decisions, lakehouse=environment.lakehouse, tenant=environment.tenant)
    assert reader.find(FIRST) is None  # nothing there at all
    # The first names the second where an id could stand: the frame whose own id it is counts.
    log.append(payload(FIRST, inputs={"num_results": 2, "exclude_item_ids": [SECOND]}))
    log.append(payload(SECOND, scores=[0.75, 1 / 3], items=["i9", "ü"], rules=[["r1"], []]))
    log.flush()
    found = reader.find(SECOND)
    assert found is not None
    assert (found["id"], found["items"]) == (SECOND, ["i9", "ü"])
    first = reader.find(FIRST)
    assert first is not None
    assert first["inputs"]["exclude_item_ids"] == [SECOND]
    assert reader.find(OTHER) is None

    log.close()
    log._shut()
    archiver = DecisionArchiver(
        environment.decisions, lakehouse=environment.lakehouse, tenant=environment.tenant, may_write=lambda: True
    )
    archiver.resume()
    while archiver.archive():
        pass
    assert list(Path(environment.decisions).glob("*.log")) == []
    found = reader.find(SECOND)
    assert found is not None
    archived = dict(found)
    logged = read_decision(payload(SECOND, scores=[0.75, 1 / 3], items=["i9", "ü"], rules=[["r1"], []]))
    assert archived.pop("scores") != logged.pop("scores")  # 32 bits of a third
    del logged["v"]
    assert json.loads(json.dumps(archived)) == logged
    assert reader.find(OTHER) is None
    assert reader.find("not of ours") is None
