"""The page on sending events: its curl lines, run as written against a real server, and its table of limits."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import EVENT_TYPE_ALIASES, MAX_ID_BYTES, MAX_ITEMS_PER_EVENT, MAX_NESTING
from serving.api.event_routes import MAX_QUERY_BYTES
from serving.api.ingest import MAX_BODY_NESTING
from serving.settings import ServingSettings
from tests.front_door import FrontDoor

PAGE = (Path(__file__).parents[2] / "infra" / "docs" / "events.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def address(environment: Environment) -> Iterator[str]:
    """A real server on a free port, with a log in memory."""
    app = FrontDoor(environment).app
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on PATH")
def test_every_line_works_as_written(address: str) -> None:
    assert BLOCKS[0].startswith("API=http://127.0.0.1:8000")
    results, pixels = [], 0
    for block in BLOCKS[1:]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"API={address}\n{block}"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        if "pixel" in block:
            assert "x-nightjar-status: accepted" in done.stdout.lower()
            pixels += 1
        for answer in re.findall(r'\{(?:"success":true,)?"results":\[.*?\]\}', done.stdout):
            results += json.loads(answer)["results"]
    statuses = [result["status"] for result in results]
    assert (len(BLOCKS), pixels) == (7, 1)
    assert statuses.count("accepted") == len(statuses) - 1 == 12
    assert [r["reason"] for r in results if r["status"] == "quarantined"] == ["unreadable"]


def test_the_limits_are_those_of_the_code() -> None:
    settings = ServingSettings()
    rows = {
        name: row[1]
        for row in (
            line.strip("| ").split(" | ") for line in PAGE.partition("## Limits")[2].splitlines() if " | " in line
        )
        for name in re.findall(r"`([a-z_]+)`", row[0]) or [row[0]]
    }
    mebibyte = 1_048_576
    assert rows["max_body_bytes"] == f"{settings.max_body_bytes // mebibyte} MiB"
    assert rows["max_inflated_bytes"] == f"{settings.max_inflated_bytes // mebibyte} MiB"
    assert rows["max_written_bytes"] == f"{settings.max_written_bytes // mebibyte} MiB"
    assert rows["max_inflate_ratio"] == f"{settings.max_inflate_ratio}"
    assert rows["max_events"] == f"{settings.max_events:,}"
    assert rows["max_query_bytes"] == f"{MAX_QUERY_BYTES:,}"
    assert rows["max_body_nesting"] == f"{MAX_BODY_NESTING}"
    assert rows["nesting (fixed)"] == f"{MAX_NESTING}"
    assert rows["ids (fixed)"].startswith(f"{MAX_ID_BYTES} bytes")
    assert rows["items"] == f"{MAX_ITEMS_PER_EVENT}"
    queue = f"{settings.log_queue_events:,} and {settings.log_queue_bytes // mebibyte} MiB"
    assert rows["log_queue_events"] == rows["log_queue_bytes"] == queue
    assert rows["log_timeout_ms"] == f"{settings.log_timeout_ms:,.0f} ms"


def test_the_names_of_segment_are_all_listed() -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `event` of a track")]
    spaced = [name for name in EVENT_TYPE_ALIASES if " " in name]
    assert len(spaced) == 15
    assert [name for name in spaced if name not in row] == []
