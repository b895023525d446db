"""Workers that are replaced while requests go on: none fails, new settings hold, wrong ones change nothing."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from feature_repo.contracts.api_keys import READ, WRITE
from feature_repo.contracts.errors import DataError
from infra.api_keys import ApiKeys
from serving.__main__ import read_settings
from tests.contract.test_api_processes import Stack
from tests.waiting import wait_for


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    yield stack
    stack.stop()


class Load:
    """Threads that ask and tell, on a connection that stays or on a new one each time, at once again or after a pause:
    who pauses finds out with the next request whether the connection is still there."""

    THREADS = ((True, 0.0), (True, 0.05), (True, 0.1), (False, 0.0), (False, 0.003))

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self._headers = {"Content-Type": "application/json", "X-API-Key": key}
        self.answers: Counter[int] = Counter()
        self.failures: list[str] = []
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number, stays, pause))
            for number, (stays, pause) in enumerate(self.THREADS)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int, stays: bool, pause: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        asked = 0
        while not self._is_over.is_set():
            asked += 1
            path, body = "/v1/recommendations", {"user_id": "u1"}
            if asked % 3 == 0:
                path = "/v1/events"
                body = {"event_id": f"{number}-{asked}", "event_type": "view_item", "user_id": "u2", "item_id": "i1",
                        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
            try:
                connection.request("POST", path, json.dumps(body), self._headers)
                answer = connection.getresponse()
                answer.read()
                self.answers[answer.status] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{stays} {path} {type(error).__name__}: {error}")
                connection.close()
            if not stays:
                connection.close()
            time.sleep(pause)
        connection.close()


@pytest.mark.redis
def test_a_rolling_restart_loses_no_request_and_takes_new_settings(stack: Stack) -> None:
    settings = stack.folder / "settings"
    settings.write_text("# of this shop\nNIGHTJAR_SERVING_MAX_EVENTS=3\nNIGHTJAR_SERVING_API_KEYS=on\n")
    stack.publish()
    log = redis.Redis.from_url(stack.log.url)
    keys = ApiKeys(log, tenant="default", random=os.urandom)
    key, record = keys.create("load", [READ, WRITE], by="me", at_micros=1)
    stack.client.headers["X-API-Key"] = key
    api = stack.start("api", "serving", "--port", str(stack.port), "--workers", "2", "--settings", str(settings))
    wait_for(lambda: stack.listeners() == 2, "both workers listen")
    wait_for(stack.is_ready, "the API is ready")

    def too_many() -> set[int]:
        return {stack.client.post("/v1/events", content=b"[7, 7, 7]").status_code for _ in range(4)}

    assert too_many() == {202}
    before = stack.workers()
    settings.write_text("NIGHTJAR_SERVING_MAX_EVENTS=2\nNIGHTJAR_SERVING_API_KEYS=on\n")
    with Load(stack.port, key) as load:
        wait_for(lambda: load.answers.total() > 50, "the load runs")
        api.send_signal(signal.SIGHUP)
        wait_for(lambda: len(stack.workers()) == 2 and not set(stack.workers()) & set(before), "both are replaced")
        asked = load.answers.total()
        wait_for(lambda: load.answers.total() > asked + 50, "the load runs on")
    assert load.failures == []
    assert set(load.answers) == {200, 202}
    assert too_many() == {413}
    assert stack.output("api").count("takes over from") == 2

    # Settings that cannot be change nothing.
    workers = stack.workers()
    settings.write_text("NIGHTJAR_SERVING_MAX_EVENTZ=2\n")
    api.send_signal(signal.SIGHUP)
    wait_for(lambda: "nothing is replaced" in stack.output("api"), "it says so")
    assert "did you mean 'NIGHTJAR_SERVING_MAX_EVENTS'" in stack.output("api")
    assert stack.workers() == workers

    # A revoked key is refused by every worker: 0.2 s, on a machine that has nothing else to do.
    keys.revoke(record.key_id, at_micros=2)
    began = time.monotonic()
    wait_for(lambda: {ask_anew(stack.port, key) for _ in range(12)} == {401}, "both workers know")
    assert time.monotonic() - began < 3.0
    log.close()
    assert all(json.loads(line)["level"] for line in stack.output("api").splitlines() if line.startswith("{"))
    api.terminate()
    assert api.wait(10) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def ask_anew(port: int, key: str) -> int:
    """The status of a question over a new connection: any worker may answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/v1/recommendations", b"{}", {"Authorization": f"Bearer {key}"})
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_settings_file_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("\n# a word\n NIGHTJAR_SERVING_SESSION_WEIGHT = 2.0\nNIGHTJAR_SERVING_WRITE_KEYS=a=b,c\n")
    assert read_settings(path) == {"NIGHTJAR_SERVING_SESSION_WEIGHT": "2.0", "NIGHTJAR_SERVING_WRITE_KEYS": "a=b,c"}
    for text in ("NIGHTJAR_HOME=/x", "NIGHTJAR_SERVING_SESSION_WEIGHT"):
        path.write_text(f"\n{text}\n")
        with pytest.raises(DataError, match=f"line 2: expected NIGHTJAR_SERVING_NAME=value, got '{text}'"):
            read_settings(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_settings(tmp_path / "none")
