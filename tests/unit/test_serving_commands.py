"""`nightjar recommend` and `similar` against a small HTTP server that remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from feature_repo.contracts import environment as names
from feature_repo.contracts.errors import DependencyError, NightjarError, RequestError
from infra.cli.output import NotRunningError
from infra.cli.serving_commands import register

ANSWER = {
    "recommendation_id": "r1",
    "placement": "default",
    "items": [
        {
            "item_id": "i[1]",
            "score": 0.75,
            "rank": 1,
            "source": "session",
            "reasons": [{"item_id": "i9", "title": "Cup", "text": "because you viewed Cup"}],
            "attributes": {"title": "Tea Pot", "category": None, "price": 2.5},
        }
    ],
    "model_version": "2024-03-08-00000001",
    "took_ms": 1.25,
    "fallback_level": "popular",
    "fallback_reason": "consent",
    "degraded": True,
    "degraded_reasons": ["online_store_unavailable"],
    "freshness": {},
    "experiments": [],
    "filtered": {"bought": 2},
    "trace": {
        "rungs": [{"rung": "popular", "offered": 3, "eligible": 1}],
        "session": [{"event_type": "view_item", "item_id": "i9", "age_seconds": 0.0}],
        "session_weight": 1.5,
        "stages_ms": {"score": 0.5},
    },
}


class Server(HTTPServer):
    """Gives `status` and `body`; keeps the questions."""

    status = 200
    body: Any = ANSWER

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.asked.append((self.path, json.loads(self.rfile.read(length))))
        body = json.dumps(self.server.body).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv(names.HOME, str(tmp_path))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv(names.API_URL, f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()
        thread.join()


def run(*arguments: str) -> Result:
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def failure(*arguments: str) -> NightjarError:
    result = run(*arguments)
    assert isinstance(result.exception, NightjarError), result.output
    return result.exception


def test_recommend_sends_the_session_as_viewed_items(server: Server) -> None:
    result = run(
        "recommend", "--user", "u1", "--session", "i8", "--session", "i9", "--session-id", "s1", "--n", "3", "--json"
    )
    assert json.loads(result.stdout) == ANSWER
    question = {"user_id": "u1", "session_id": "s1", "session_items": ["i8", "i9"], "num_results": 3, "explain": False}
    assert server.asked == [("/v1/recommendations", question)]


def test_recommend_names_placement_and_filter(server: Server) -> None:
    run("recommend", "--placement", "home", "--filter", "price < 50")
    question = {"session_items": [], "num_results": 10, "placement": "home", "filter": "price < 50", "explain": False}
    assert server.asked == [("/v1/recommendations", question)]


def test_nobody_in_particular_is_nobody(server: Server) -> None:
    run("recommend", "--explain")
    assert server.asked[0][1] == {"session_items": [], "num_results": 10, "explain": True}


def test_the_table_shows_titles_reasons_and_how_it_came_about(server: Server) -> None:
    shown = run("recommend", "--user", "u1").stdout
    for words in (
        "slate of u1", "i[1]", "Tea Pot", "0.750", "because you viewed Cup", "rung popular", "because consent",
        "degraded: online_store_unavailable", "left out: 2 bought", "rung popular: 1 of 3 candidates",
        "session (weight 1.50): view_item i9", "score 0.50 ms",
    ):  # fmt: skip
        assert words in shown, words


def test_similar(server: Server) -> None:
    result = run("similar", "i7", "--n", "2", "--json")
    assert json.loads(result.stdout) == ANSWER
    assert server.asked == [("/v1/similar", {"item_id": "i7", "num_results": 2, "explain": False})]


@pytest.mark.parametrize(
    ("status", "kind"), [(503, DependencyError), (404, RequestError), (422, RequestError), (500, DependencyError)]
)
def test_the_apis_own_words_become_the_error(server: Server, status: int, kind: type[NightjarError]) -> None:
    server.status, server.body = status, {"detail": "no version published yet, run the night", "request_id": "r7"}
    error = failure("recommend", "--user", "u1")
    assert type(error) is kind
    assert "no version published yet, run the night" in str(error)
    assert ("request r7" in str(error)) is (status == 500)


def test_something_else_on_that_port_is_an_error_too(server: Server) -> None:
    server.status, server.body = 502, ["not a problem"]
    assert "HTTP 502" in str(failure("similar", "i7"))


def test_nobody_listening_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(names.HOME, str(tmp_path))
    monkeypatch.setenv(names.API_URL, "http://127.0.0.1:1")
    error = failure("recommend")
    assert isinstance(error, NotRunningError)
    assert "nightjar up" in str(error)
    monkeypatch.delenv(names.API_URL)
    unknown = failure("recommend")
    assert isinstance(unknown, NotRunningError)
    assert "nightjar up" in str(unknown)
    assert names.API_URL in str(unknown)


def test_the_address_book_of_the_stack_is_read(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(names.API_URL)
    (tmp_path / "run").mkdir()
    book = {names.API_URL: f"http://127.0.0.1:{server.server_port}"}
    (tmp_path / "run" / "environment.json").write_text(json.dumps(book))
    assert json.loads(run("similar", "i7", "--json").stdout) == ANSWER
