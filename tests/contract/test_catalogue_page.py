"""The page on items and users over HTTP: its curl lines, run as written against a real server."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from feature_repo.contracts.changes import MAX_ATTRIBUTES
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.times import MAX_FUTURE_SKEW
from serving.pipeline.overlay import MAX_USERS_LATELY
from tests.front_door import FrontDoor

DOCS = Path(__file__).parents[2] / "infra"
PAGE = (DOCS / "docs" / "catalogue-api.md").read_text(encoding="utf-8")
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
    results = []
    for block in BLOCKS[1:]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"API={address}\n{block}"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        answers = re.findall(r'\{"results":\[.*?\]\}', done.stdout)
        assert len(answers) == block.count("curl")
        for answer in answers:
            results += json.loads(answer)["results"]
    assert len(BLOCKS) == 4
    # in 2024-03 nobody had said anything yet: what is said for then is late, but for the stock after a later PATCH
    assert Counter(result["status"] for result in results) == {"accepted": 12, "stale": 2, "rejected": 1}
    assert [r["reason"] for r in results if r["status"] == "rejected"] == ["invalid_price"]


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"at most {MAX_ATTRIBUTES} in one change" in PAGE
    assert f"up to {MAX_FUTURE_SKEW.total_seconds() / 3600:.0f} hours ahead" in PAGE
    (record,) = DOCS.glob("adr/*-changes-compacted-in-the-log.md")
    assert f"the last {MAX_USERS_LATELY:,} are known" in record.read_text(encoding="utf-8")
    assert f"../adr/{record.name}" in PAGE
