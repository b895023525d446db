"""The alert of a night that is late: raised once, with what is served; on a real Redis and a real webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from feature_repo.contracts.keys import pointer_key
from spark_jobs.io.alerts import WEBHOOK, alerts_folder
from spark_jobs.jobs import check_freshness

pytestmark = pytest.mark.redis

DUE = datetime(2024, 3, 9, 6, tzinfo=UTC)


class Webhook(HTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), WebhookHandler)
        self.posted: list[Any] = []


class WebhookHandler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    server = Webhook()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{server.server_port}/hook")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def shop(environment: Environment, redis_url: str) -> Environment:
    return environment._replace(redis_online_url=redis_url)


def serve(environment: Environment, version: str) -> None:
    with redis.Redis.from_url(environment.redis_online_url) as client:
        client.set(pointer_key(environment.tenant), version)


def check(environment: Environment) -> dict[str, Any] | None:
    """What the deadline of the night before 2024-03-09 finds."""
    arguments = ["--dag-run-id=scheduled__1", "--state=failed", f"--due={DUE.isoformat()}"]
    arguments.append("--data-interval-end=2024-03-09T00:00:00Z")
    return check_freshness.main(environment, check_freshness.arguments_parser().parse_args(arguments))


def files(environment: Environment) -> list[Path]:
    return sorted(alerts_folder(environment).glob("*"))


@pytest.mark.parametrize("served", [None, "2024-03-08-0a1b2c3d"])
def test_a_late_night_is_told_once(
    shop: Environment, webhook: Webhook, served: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if served:
        serve(shop, served)
    expected = {
        "alert": "night_is_late", "tenant": "default", "as_of": "2024-03-09", "due": "2024-03-09T06:00:00Z",
        "dag_run_id": "scheduled__1", "state": "failed", "served": served, "trouble": None,
    }  # fmt: skip
    assert check(shop) == expected
    assert check(shop) is None
    (path,) = files(shop)
    assert path.name == "late-2024-03-09.json"
    assert json.loads(path.read_text()) == expected
    assert webhook.posted == [expected]
    assert capsys.readouterr().out.count("ALERT night_is_late") == 1


@pytest.mark.parametrize("served", ["2024-03-09-0a1b2c3d", "2024-03-10-0a1b2c3d"])
def test_a_night_that_was_made_good_is_no_alarm(shop: Environment, webhook: Webhook, served: str) -> None:
    serve(shop, served)
    assert check(shop) is None
    assert files(shop) == []
    assert webhook.posted == []


def test_redis_that_does_not_answer_is_an_alarm(environment: Environment) -> None:
    alert = check(environment)
    assert alert is not None
    assert "127.0.0.1:1" in alert["trouble"]


def test_a_webhook_that_is_gone_leaves_the_file(
    shop: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:1/hook")
    assert check(shop) is not None
    assert "the webhook did not take it" in capsys.readouterr().out
    assert len(files(shop)) == 1


def test_a_webhook_is_an_http_address(shop: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEBHOOK, "file:///etc/passwd")
    with pytest.raises(DataError, match="http or https"):
        check(shop)
