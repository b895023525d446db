"""Refused events on real Redis and Delta: quarantined, archived, mended, sent again through the API, counted once."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from deltalake import DeltaTable
from typer.testing import CliRunner

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.keys import quarantine_stream_key, session_key, speed_counters_key, stream_key
from feature_repo.contracts.packing import FLAG_BOT, unpack_session
from feature_repo.contracts.tables import table_path
from infra.cli.main import build_app
from infra.cli.output import ExitCode
from serving.adapters.online import MemoryOnlineStore
from serving.api.hot_protocol import HotProtocol
from serving.main import create_app, with_hot_routes
from serving.settings import ServingSettings
from serving.speed.archiver import Archiver
from serving.speed.consumer import Consumer
from spark_jobs.io.light_delta import read_table

pytestmark = pytest.mark.redis


class Path:
    """The event path in one process: an API on a port, a consumer and an archiver that work when told."""

    def __init__(self, home: str, redis_url: str, address: str) -> None:
        self.variables = {
            names.HOME: home, names.REDIS_LOG_URL: redis_url, names.REDIS_ONLINE_URL: redis_url, names.API_URL: address,
        }  # fmt: skip
        self.environment = Environment.from_mapping(self.variables)
        self.client = redis.Redis.from_url(redis_url)
        self.consumer = Consumer(self.client, self.client, tenant="default", batch=1000, session_ttl_seconds=1000)
        self.archiver = Archiver(
            self.client, self.client, lakehouse=self.environment.lakehouse, tenant="default", max_entries=10_000,
            may_write=lambda: True,
        )  # fmt: skip
        self.archiver.resume()

    def post(self, *events: Any) -> list[str]:
        answer = httpx.post(
            f"{self.variables[names.API_URL]}/v1/events", json={"events": list(events)}, trust_env=False
        )
        assert answer.status_code == 202
        return [result["status"] for result in answer.json()["results"]]

    def work(self) -> None:
        self.consumer.resume()
        while self.consumer.consume(block_ms=None):
            pass
        self.archiver.archive()

    def run(self, *command: str) -> tuple[int, Any]:
        """(exit code, JSON on stdout) of a `nightjar` command."""
        done = CliRunner().invoke(build_app(), [*command, "--json"], env=self.variables)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, json.loads(done.stdout)

    def archived(self, name: str) -> list[dict[str, Any]]:
        return read_table(self.environment, name).to_pylist()


@pytest.fixture
def path(environment: Environment, redis_url: str) -> Iterator[Path]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        made = Path(environment.home, redis_url, address)
        app = create_app(made.environment, ServingSettings(), store=MemoryOnlineStore(tenant="default"))
        config = uvicorn.Config(with_hot_routes(app), http=HotProtocol, log_level="error")  # as a worker serves it
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield made
        server.should_exit = True
        thread.join(20)
        made.client.close()


def event(event_id: str | None, **fields: Any) -> dict[str, Any]:
    base = {"event_type": "view_item", "user_id": "u1", "item_id": "i1", "timestamp": "2024-03-08T12:00:00Z"}
    given = {**base, **fields} if event_id is None else {"event_id": event_id, **base, **fields}
    return {name: value for name, value in given.items() if value is not None}


def test_from_quarantine_to_accepted_once(path: Path) -> None:
    sent = [event("e1"), event("e1"), event("e2", event_type="seen"), event(None, event_type="seen", item_id="i7"), {}]
    assert path.post(*sent) == ["accepted", "duplicate"] + ["quarantined"] * 3
    path.work()
    code, listed = path.run("quarantine", "list")
    assert code == 0
    assert listed["counts"]["unknown_event_type"] == {"open": 2, "replayed": 0, "still_bad": 0}
    assert len(listed["events"]) == 3

    repair = ("quarantine", "replay", "--map", "event_type:seen=view_item")
    code, planned = path.run(*repair, "--dry-run")
    assert (code, planned["outcomes"]) == (ExitCode.FAILED, {"still_bad": 1, "accepted": 2})
    assert path.archived("bronze.quarantine_replays") == []

    code, first = path.run(*repair)
    assert (code, first["outcomes"]) == (ExitCode.FAILED, {"still_bad": 1, "accepted": 2})
    path.work()
    assert sorted(a["outcome"] for a in path.archived("bronze.quarantine_replays")) == ["accepted"] * 2 + ["still_bad"]
    # as if the process had died before it could remember: the same again, by whoever comes next
    DeltaTable(table_path(path.environment.lakehouse, "bronze.quarantine_replays")).delete()
    code, again = path.run(*repair)
    assert (code, again["outcomes"]) == (ExitCode.FAILED, {"still_bad": 1, "duplicate": 2})
    path.work()
    code, nothing = path.run(*repair, "--reason", "unknown_event_type")
    assert (code, nothing["selected"], nothing["replayed_before"]) == (0, 0, 2)

    record = path.client.get(session_key("u:u1"))
    assert {e.item_id for e in unpack_session(record).events} == {"i1", "i7"}
    counters = {k.decode(): int(v) for k, v in path.client.hgetall(speed_counters_key()).items()}
    assert counters == {"applied": 3, "duplicate": 3}
    ids = [row["event_id"] for row in path.archived("bronze.events")]
    assert (len(ids), len(set(ids))) == (6, 3)  # deliveries; silver has each once
    assert len(path.archived("bronze.quarantine")) == 3  # nothing is deleted

    code, shown = path.run("quarantine", "show", listed["events"][-1]["id"])
    assert (code, shown["form"], shown["event"]["event_type"]) == (0, "native", "seen")
    assert shown["last_attempt"]["outcome"] in ("accepted", "duplicate")


def test_the_balance_holds_and_a_loss_is_seen(path: Path) -> None:
    code, empty = path.run("events", "balance")
    assert (code, empty["holds"]) == (0, True)
    path.post(*(event(f"e{n}", user_id=f"u{n}") for n in range(20)), event("e1", user_id="u1"), {}, {"event_type": "x"})
    code, waiting = path.run("events", "balance")
    left = {identity["name"]: identity["left"] for identity in waiting["identities"]}
    assert (code, left) == (
        0, {"received": 23, "accepted": 21, "accepted and duplicate": 21, "quarantined": 2},
    )  # fmt: skip
    path.work()
    path.post(event("order", event_type="purchase", items=[{"item_id": "a"}, {"item_id": "b"}]))
    path.client.xadd("nj:default:{events:0}", {"event": b"torn", "nonce": b"n"})
    assert sum(path.client.xlen(stream_key(partition)) for partition in range(4)) < 23  # several share an entry
    path.work()
    path.post(event("last"))
    code, found = path.run("events", "balance")
    parts = {identity["name"]: identity["parts"] for identity in found["identities"]}
    assert code == 0
    assert parts["received"] == {"accepted": 23, "duplicate": 1, "quarantined": 2}
    assert parts["accepted"] == {"applied": 21, "dead-lettered": 1, "waiting for the consumer": 1}
    assert parts["accepted and duplicate"] == {"archived": 23, "waiting for the archiver": 1}
    assert parts["quarantined"] == {"archived": 2, "waiting for the archiver": 0}
    # a consumer that skips entries, and one that counts twice
    path.client.hincrby(speed_counters_key(), "applied", -1)
    code, lost = path.run("events", "balance")
    broken = [identity["name"] for identity in lost["identities"] if identity["holds"] is False]
    assert (code, broken) == (ExitCode.FAILED, ["received", "accepted"])
    path.client.hincrby(speed_counters_key(), "applied", 1)
    # refused, and forgotten before it was archived
    path.client.xadd(quarantine_stream_key(), {"raw": b"x"})
    path.client.xtrim(quarantine_stream_key(), maxlen=0)
    done = CliRunner().invoke(build_app(), ["events", "balance"], env=path.variables)
    assert done.exit_code == ExitCode.FAILED
    assert "no quarantined 3, but 2 archived + 0 waiting for the archiver: +1" in done.stdout


def test_it_holds_for_all_that_travels_the_path(path: Path) -> None:
    """Short and long way, a bot, a login and its undo, a shop's changes, a person who refuses, an entry of nobody's."""
    both = {"user_id": "ann", "anonymous_id": "phone", "item_id": None}
    path.post(*(event(f"b{n}", user_id="bot", item_id=f"i{n}") for n in range(25)))
    path.post(event("in", event_type="identify", **both))
    path.post(event("order", event_type="purchase", items=[{"item_id": "a"}]))
    path.post(event("un", event_type="unmerge", **both), event("b1", user_id="bot"), {})
    lines = b"\n".join(json.dumps(event(f"l{n}")).encode() for n in range(3))
    packed = {"content-type": "application/x-ndjson", "content-encoding": "gzip"}
    api = path.variables[names.API_URL]
    assert httpx.post(f"{api}/v1/events", content=gzip.compress(lines), headers=packed).status_code == 202
    assert httpx.patch(f"{api}/v1/users/no", json={"consent": {"store": False}}).status_code == 202
    assert httpx.put(f"{api}/v1/items/i1", json={"price": 2.5}).status_code == 202
    assert path.post(event("refused", user_id="no"), event("kept", user_id="yes")) == ["accepted"] * 2
    path.client.xadd("nj:default:{events:1}", {"event": b"7", "nonce": b"n"})
    path.work()
    code, found = path.run("events", "balance")
    parts = {identity["name"]: identity["parts"] for identity in found["identities"]}
    assert (code, found["holds"]) == (0, True)
    assert parts["received"] == {"accepted": 33, "duplicate": 1, "quarantined": 1}
    assert parts["accepted"] == {"applied": 32, "dead-lettered": 1, "waiting for the consumer": 0}
    assert found["outcomes"]["bot"] == 5
    assert "refused" not in {row["event_id"] for row in path.archived("bronze.events")}
    assert [row["user_id"] for row in path.archived("bronze.user_changes")] == ["no"]
    assert [row["item_id"] for row in path.archived("bronze.item_changes")] == ["i1"]


def test_a_bot_is_durable_flagged_and_counted(path: Path) -> None:
    burst = [event(f"b{n}", user_id="bot", timestamp="2024-03-08T12:00:00Z", item_id=f"i{n}") for n in range(50)]
    assert path.post(*burst, event("p1", user_id="person")) == ["accepted"] * 51
    path.work()
    assert len(path.archived("bronze.events")) == 51
    records = {who: unpack_session(path.client.get(session_key(f"u:{who}"))) for who in ("bot", "person")}
    assert {who: record.flags & FLAG_BOT for who, record in records.items()} == {"bot": FLAG_BOT, "person": 0}
    assert int(path.client.hget(speed_counters_key(), "bot")) == 30
