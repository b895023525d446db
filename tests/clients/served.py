"""A served API as clients meet it: the real process on real Redis, pages on another origin, a proxy that misbehaves."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import redis

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.keys import EVENT_PARTITIONS, candidates_key, dedup_key, pointer_key, stream_key
from feature_repo.contracts.packing import PackedCandidate, Source, pack_candidates
from feature_repo.contracts.stream_entry import split_entry
from infra.local.redis_server import RunningServer
from tests.serving_builders import Shop
from tests.waiting import wait_for

EVENTS = "/v1/events"
ITEMS = [f"i{number}" for number in range(12)]
SHOP = Shop(
    {item: {"title": item.upper(), "category": "A", "price": 1.0} for item in ITEMS},
    neighbours={item: [(other, 0.5) for other in ITEMS if other != item] for item in ITEMS},
    popular=[(item, 12.0 - n) for n, item in enumerate(ITEMS)],
)


class Arrived(NamedTuple):
    """One request for events as it came to the proxy."""

    at: float
    headers: dict[str, str]
    events: list[dict[str, Any]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A browser that hangs up is no news."""


def _listening(handler: type[BaseHTTPRequestHandler]) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


class ChaosProxy:
    """Passes requests on to the API; those for events meet what `plan` says next, then what `always` says.

    pass         as if there were no proxy
    refuse       the connection ends before the API has seen anything
    lose answer  the API has taken the events, the connection ends before it can say so
    hang         the request waits until the test is over, and the API never sees it
    (503, {"Retry-After": "1"})  that answer, and the API sees nothing
    """

    def __init__(self, port: int) -> None:
        self._api_port = port
        self.plan: deque[Any] = deque()
        self.always: Any = "pass"
        self.arrived: list[Arrived] = []
        self.statuses: list[int] = []
        self._newest = time.monotonic()
        self._under_way: set[BaseHTTPRequestHandler] = set()
        self._over = threading.Event()
        self._server = _listening(self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def forget(self) -> None:
        """What came so far, and what was planned."""
        self._over.set()
        self._over = threading.Event()
        self.plan.clear()
        self.always = "pass"
        self.arrived.clear()
        self.statuses.clear()

    def wait_until_idle(self) -> None:
        """Until no request is under way and none came for a fifth of a second: a page that closes says good-bye."""
        self._newest = time.monotonic()
        wait_for(lambda: not self._under_way and time.monotonic() - self._newest > 0.2, "nobody asks any more")

    def stop(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy._under_way.add(self)
                try:
                    self._pass_on()
                finally:
                    proxy._newest = time.monotonic()
                    proxy._under_way.discard(self)

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                step = "pass"
                if self.path == EVENTS and self.command == "POST":
                    step = proxy.plan.popleft() if proxy.plan else proxy.always
                    document = json.loads(body)
                    events = document.get("events", [document])
                    proxy.arrived.append(Arrived(time.monotonic(), dict(self.headers.items()), events))
                self.close_connection = True
                if step == "hang":
                    proxy._over.wait(60)
                if step in ("hang", "refuse"):
                    return
                if isinstance(step, tuple):
                    self._answer(step[0], {**step[1], "Access-Control-Allow-Origin": "*",
                                           "Access-Control-Expose-Headers": "Retry-After"}, b"{}")  # fmt: skip
                    return
                api = http.client.HTTPConnection("127.0.0.1", proxy._api_port, timeout=30)
                try:
                    api.request(self.command, self.path, body, dict(self.headers.items()))
                    answer = api.getresponse()
                    content = answer.read()
                finally:
                    api.close()
                if self.path == EVENTS:
                    proxy.statuses.append(answer.status)
                if step != "lose answer":
                    self._answer(answer.status, dict(answer.getheaders()), content)

            do_POST = do_OPTIONS = do_GET  # noqa: N815

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Tests say what they have to say."""

        return Handler


class Pages:
    """A shop's own web server, on an origin of its own: path -> HTML."""

    def __init__(self) -> None:
        self.html: dict[str, str] = {}
        pages = self.html

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = pages.get(self.path.partition("?")[0], "").encode()
                self.send_response_only(200 if content else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """As above."""

        self._server = _listening(Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class ServedApi:
    """`python -m serving` with one worker on two Redis servers; it allows the origin of `pages`."""

    def __init__(self, folder: Path) -> None:
        self.pages = Pages()
        self.log = RunningServer("log", folder / "log")
        self.online = RunningServer("online", folder / "online")
        with RunningServer("online", folder / "unused") as unused:
            self.port = unused.port  # free again when the API starts
        self.url = f"http://127.0.0.1:{self.port}"
        self._redis = redis.Redis.from_url(self.log.url)
        variables = {
            **os.environ,
            names.HOME: str(folder / "home"),
            names.REDIS_LOG_URL: self.log.url,
            names.REDIS_ONLINE_URL: self.online.url,
            "NIGHTJAR_SERVING_CORS_ORIGINS": f"https://shop.example:443, {self.pages.url}",
            "NIGHTJAR_SERVING_LOG_TIMEOUT_MS": "5000",
            "NIGHTJAR_SERVING_ONLINE_TIMEOUT_MS": "5000",
        }
        version = SHOP.write(Environment.from_mapping(variables).publications)
        rows = [PackedCandidate(SHOP.numbers[item], 1.0 - n / 10, Source.ALS) for n, item in enumerate(ITEMS[:6])]
        with redis.Redis.from_url(self.online.url) as client:
            client.set(candidates_key(version, "u1"), pack_candidates(version, rows))
            client.set(pointer_key(), version)
        self._output = (folder / "api.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving", "--port", str(self.port)],
            env=variables, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
        )  # fmt: skip
        self.proxy = ChaosProxy(self.port)
        self._ends: dict[str, str] = {}
        self._http = httpx.Client(timeout=5)
        try:
            wait_for(self._is_ready, "the API is ready")
        except BaseException:
            self.stop()
            raise

    def _is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return self._http.get(self.url + "/health/ready").status_code == 200
        return False

    def begin(self) -> None:
        """A test begins: what is in the streams is not its own, nor what pages of an earlier one may still send."""
        self.proxy.always = "refuse"
        self.proxy.stop()
        self.proxy = ChaosProxy(self.port)
        self.pages.html.clear()
        for partition in range(EVENT_PARTITIONS):
            stream = stream_key(partition)
            for entry_id, _ in self._redis.xrevrange(stream, count=1):
                self._ends[stream] = entry_id.decode()

    def events(self) -> list[dict[str, Any]]:
        """The events of this test that count, each as often as it counts, by the time at which they happened.

        An event counts when its nonce is its mark's: the consumer's rule.
        """
        found = []
        for partition in range(EVENT_PARTITIONS):
            stream = stream_key(partition)
            start = f"({self._ends[stream]}" if stream in self._ends else "-"
            for raw, nonce in (one for _, fields in self._redis.xrange(stream, start) for one in split_entry(fields)):
                event = json.loads(raw)
                assert subject_key(event.get("user_id"), event.get("anonymous_id"))
                if self._redis.get(dedup_key(partition, event["event_id"])) == nonce:
                    found.append(event)
        return sorted(found, key=lambda event: (event["timestamp"], event["event_id"]))

    def types(self) -> list[str]:
        return [event["event_type"] for event in self.events()]

    def stop(self) -> None:
        self.proxy.stop()
        self.pages.stop()
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._http.close()
        self._redis.close()
        for server in (self.log, self.online):
            server.stop()
