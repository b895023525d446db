"""`nightjar identity` against a real API, consumer and Redis, and a real table."""

from __future__ import annotations

import getpass
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import redis
import typer
import uvicorn
from typer.testing import CliRunner

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from infra.audit import audit_path
from infra.cli.identity_commands import register
from serving.main import create_app
from serving.settings import ServingSettings
from serving.speed.consumer import Consumer
from tests.builders import utc, write_rows


class Stack:
    """A server on a port of its own, a consumer that runs beside it, and the command line that finds both."""

    def __init__(self, environment: Environment, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.environment = environment._replace(redis_online_url=url, redis_log_url=url)
        app = create_app(self.environment, ServingSettings(online_timeout_ms=2000))
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on")
        self._server = uvicorn.Server(config)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._server.run), threading.Thread(target=self._consume, args=[url])]
        for thread in self._threads:
            thread.start()
        while not self._server.started:
            assert self._threads[0].is_alive()
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        for name, value in (
            (names.HOME, environment.home),
            (names.API_URL, self.url),
            (names.REDIS_ONLINE_URL, url),
            (names.REDIS_LOG_URL, url),
        ):
            monkeypatch.setenv(name, value)
        self._app = typer.Typer()
        register(self._app)

    def _consume(self, url: str) -> None:
        with redis.Redis.from_url(url) as client:
            consumer = Consumer(client, client, tenant="default", batch=100, session_ttl_seconds=1000)
            consumer.resume()
            while not self._stopping.is_set():
                consumer.consume(block_ms=20)

    def log_in(self, user: str, device: str) -> None:
        moment = datetime.now(UTC).isoformat()
        event = {"event_type": "identify", "user_id": user, "anonymous_id": device, "timestamp": moment}
        httpx.post(f"{self.url}/v1/events", json=event).raise_for_status()

    def say(self, *arguments: str) -> Any:
        done = CliRunner().invoke(self._app, ["identity", *arguments, "--json"], catch_exceptions=False)
        return json.loads(done.stdout)

    def print(self, *arguments: str) -> str:
        return CliRunner().invoke(self._app, ["identity", *arguments], catch_exceptions=False).stdout

    def stop(self) -> None:
        self._stopping.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def stack(environment: Environment, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    running = Stack(environment, redis_url, monkeypatch)
    yield running
    running.stop()


def test_an_edge_is_shown_and_taken_back(stack: Stack) -> None:
    stack.log_in("ann", "phone")
    stack.log_in("ann", "tablet")
    deadline = time.monotonic() + 10
    edges: list[dict[str, Any]] = []
    while len(edges) < 2 and time.monotonic() < deadline:
        try:
            edges = stack.say("show", "ann")["edges"]
        except DataError:
            time.sleep(0.02)
    assert [(e["anonymous_id"], e["is_live"], e["view"]) for e in edges] == [
        ("phone", True, "online"),
        ("tablet", True, "online"),
    ]
    assert stack.say("show", "phone")["owner_now"] == "ann"

    done = stack.say("unmerge", "phone", "ann", "--reason", "lent to a friend")
    assert done["changed"]
    assert done["forgotten_ms"] < 10_000  # a busy machine is no failure
    assert stack.print("show", "tablet").splitlines()[-1] == "Device tablet is now ann's."
    assert stack.print("show", "phone").splitlines()[-1] == "Device phone is nobody's now."
    assert stack.print("unmerge", "phone", "ann", "--reason", "again") == (
        "phone is not ann's already; nothing is changed.\n"
    )
    shown = stack.say("show", "phone")
    assert (shown["owner_now"], shown["edges"][0]["is_live"]) == (None, False)
    assert stack.say("show", "tablet")["owner_now"] == "ann"
    again = stack.say("unmerge", "phone", "ann", "--reason", "once more")
    assert not again["changed"]
    (line,) = audit_path(stack.environment).read_text().splitlines()
    written = json.loads(line)
    assert (written["action"], written["actor"], written["reason"], written["anonymous_id"], written["user_id"]) == (
        "unmerge", getpass.getuser(), "lent to a friend", "phone", "ann",
    )  # fmt: skip
    assert written["event_id"] == done["event_id"]


def test_the_tables_know_what_the_store_forgot(stack: Stack) -> None:
    day = utc("2024-03-01")
    seen = {"user_id": "ann", "subject_key": "u:ann", "is_alias": False, "first_seen_at": day, "event_date": day.date()}
    rows = [
        {**seen, "anonymous_id": "old phone", "last_seen_at": utc("2024-03-02")},
        {
            **seen,
            "anonymous_id": "new phone",
            "last_seen_at": utc("2024-03-03T08:00:00"),
            "undone_at": utc("2024-03-04"),
        },
    ]
    write_rows(stack.environment, "silver.identity_edges", rows)
    listed = stack.say("list")
    assert listed["edge_count"] == 2
    assert [(e["anonymous_id"], e["is_live"], e["undone_at"]) for e in listed["edges"]] == [
        ("new phone", False, "2024-03-04T00:00:00Z"),
        ("old phone", True, None),
    ]
    assert [e["anonymous_id"] for e in stack.say("list", "--undone")["edges"]] == ["new phone"]
    assert len(stack.say("list", "--limit", "1")["edges"]) == 1
    lines = [" ".join(line.split()) for line in stack.print("list", "--limit", "1").splitlines()]
    assert lines[1:] == [
        "new phone ann 2024-03-01 00:00 2024-03-03 08:00 undone 2024-03-04 00:00 tables",
        "1 of 2 edges; --limit shows more.",
    ]
    with pytest.raises(DataError, match="never seen with 'anne', but with ann; did you mean 'ann'"):
        stack.say("unmerge", "old phone", "anne", "--reason", "x")
    with pytest.raises(DataError, match="no edge is known of the device 'nothing'"):
        stack.say("unmerge", "nothing", "ann", "--reason", "x")
    with pytest.raises(DataError, match="--reason says why"):
        stack.say("unmerge", "old phone", "ann", "--reason", " ")
    with pytest.raises(DataError, match="nothing is known of 'nobody'"):
        stack.say("show", "nobody")
    assert stack.say("unmerge", "old phone", "ann", "--reason", "sold")["changed"]
    assert not audit_path(stack.environment).read_text().count("anne")
