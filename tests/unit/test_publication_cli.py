"""`nightjar versions`, `rollback`, `hash` against a real Redis; MLflow is a small HTTP server that records."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import typer
from typer.testing import CliRunner

from feature_repo.contracts import environment as names
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from feature_repo.contracts.packing import pack_candidates
from feature_repo.contracts.publication import Manifest, candidates_checksum
from feature_repo.contracts.run import ROLLBACK_FILE
from infra.cli import version_commands
from spark_jobs.io.bundle import bundle_folder
from spark_jobs.io.publication import Publication, candidates_digest
from spark_jobs.io.run_store import has_report, read_report
from spark_jobs.jobs import rollback_version
from tests.builders import write_rows

pytestmark = pytest.mark.redis

RECORD = pack_candidates("1970-01-01-00000000", [])


class Registry(HTTPServer):
    """The two calls that a rollback makes. `tagged` maps published version -> registry numbers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RegistryHandler)
        self.tagged: dict[str, list[int]] = {}
        self.aliases: list[dict[str, Any]] = []
        self.fails = False


class RegistryHandler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        assert url.path == "/api/2.0/mlflow/model-versions/search"
        wanted = parse_qs(url.query)["filter"][0]
        numbers = [n for version, found in self.server.tagged.items() if f"'{version}'" in wanted for n in found]
        self.answer({"model_versions": [{"version": str(n)} for n in numbers]} if numbers else {})

    def do_POST(self) -> None:
        assert self.path == "/api/2.0/mlflow/registered-models/alias"
        self.server.aliases.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer({})

    def answer(self, body: dict[str, Any]) -> None:
        self.send_response(500 if self.server.fails else 200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def shop(tmp_path: Path, redis_url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Environment:
    variables = {
        names.HOME: str(tmp_path / "home"),
        names.REDIS_ONLINE_URL: redis_url,
        names.MLFLOW_URI: f"http://127.0.0.1:{registry.server_port}",
    }
    for name in (names.TENANT, names.LAKEHOUSE, names.PUBLICATIONS, names.RUNS):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Environment.from_mapping(variables)


def run(*arguments: str) -> Any:
    app = typer.Typer()
    version_commands.register(app)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def publish(environment: Environment, day: int) -> str:
    """One user's empty list, verified and flipped, with a bundle folder."""
    manifest = Manifest(
        as_of=f"2024-03-{day:02d}", model="item_knn", recipe={}, user_count=1, item_count=4,
        candidates_checksum=candidates_checksum([candidates_digest("u1", RECORD)]),
        last_event_at="2024-03-07T22:00:00Z", files={"items.json": "ab"},
        volatile={"published_at": f"2024-03-{day:02d}T01:00:00Z", "run_key": f"night-{day}"},
    )  # fmt: skip
    publication = Publication(environment.redis_online_url)
    version = publication.announce(manifest)
    publication.put_records(version, [("u1", pack_candidates(version, []))])
    publication.mark_verified(version, at=datetime(2024, 3, 9, tzinfo=UTC))
    publication.flip(version)
    bundle_folder(environment.publications, version, tenant="default").mkdir(parents=True)
    return version


def test_versions_before_the_first_night(shop: Environment) -> None:
    assert run("versions", "--json") == []
    assert "Nothing is published yet" in run("versions")


def test_versions_say_what_is_served_and_what_comes_back(shop: Environment) -> None:
    first, second = publish(shop, 7), publish(shop, 8)
    listed = run("versions", "--json")
    assert [(v["version"], v["served"], v["previous"]) for v in listed] == [(second, True, False), (first, False, True)]
    assert listed[0] == {
        "version": second, "served": True, "previous": False, "as_of": "2024-03-08", "model": "item_knn",
        "user_count": 1, "item_count": 4, "last_event_at": "2024-03-07T22:00:00Z",
        "published_at": "2024-03-08T01:00:00Z", "verified_at": "2024-03-09T00:00:00Z", "run_key": "night-8",
        "candidates_checksum": candidates_checksum([candidates_digest("u1", RECORD)]),
    }  # fmt: skip
    shown = run("versions")
    assert shown.index("served") < shown.index("previous")


def test_rollback_moves_pointer_and_champion(shop: Environment, registry: Registry) -> None:
    first, second = publish(shop, 7), publish(shop, 8)
    registry.tagged = {first: [3, 12, 5], second: [13]}
    answer = run("rollback", "--json")
    assert (answer["served"], answer["previous"], answer["champion"], answer["disagreement"]) == (
        first, second, "12", None,
    )  # fmt: skip
    assert registry.aliases == [{"name": "nightjar", "alias": "champion", "version": "12"}]
    assert Publication(shop.redis_online_url).served_version() == first
    assert "champion is registered version 13" in run("rollback", second)
    assert Publication(shop.redis_online_url).served_version() == second


@pytest.mark.parametrize("trouble", ["untagged", "fails", "down"])
def test_the_pointer_moves_without_mlflow(
    shop: Environment, registry: Registry, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    first, second = publish(shop, 7), publish(shop, 8)
    registry.tagged = {} if trouble == "untagged" else {first: [1], second: [2]}
    registry.fails = trouble == "fails"
    if trouble == "down":
        monkeypatch.setenv(names.MLFLOW_URI, "http://127.0.0.1:1")
    answer = run("rollback", "--json")
    words = {"untagged": "no registered version", "fails": "answered 500", "down": "does not answer"}[trouble]
    assert words in answer["disagreement"]
    assert answer["champion"] is None
    assert Publication(shop.redis_online_url).served_version() == first
    assert "has not" in run("rollback")


def test_rollback_refuses_a_version_whose_bundle_is_gone(shop: Environment) -> None:
    first, second = publish(shop, 7), publish(shop, 8)
    bundle_folder(shop.publications, first, tenant="default").rmdir()
    for arguments in (["rollback"], ["rollback", first]):
        with pytest.raises(DataError, match=f"{first} has no bundle"):
            run(*arguments)
    assert Publication(shop.redis_online_url).served_version() == second


def rollback_task(environment: Environment, run_key: str, version: str = "") -> None:
    """The task of the DAG `rollback_recommendations`."""
    arguments = ["--run-key", run_key, "--version", version, "--reason", "too many lamps"]
    rollback_version.main(environment, rollback_version.arguments_parser().parse_args(arguments))


def test_a_rollback_task_that_runs_again_does_not_return(shop: Environment, registry: Registry) -> None:
    first, second = publish(shop, 7), publish(shop, 8)
    registry.tagged = {first: [3], second: [4]}
    publication = Publication(shop.redis_online_url)
    for _ in range(2):
        rollback_task(shop, "r1")
        assert (publication.served_version(), publication.previous_version()) == (first, second)
    report = read_report(shop, "r1", ROLLBACK_FILE)
    assert report == {"served": first, "previous": second, "reason": "too many lamps"}
    assert [alias["version"] for alias in registry.aliases] == ["3", "3"]
    rollback_task(shop, "r2")  # another run does return
    assert publication.served_version() == second


@pytest.mark.parametrize(
    ("version", "words"),
    [("", "nothing to roll back to"), ("2024-03-07-00000000", "there are 2024-03-08-"), ("served", "already served")],
)
def test_a_rollback_task_that_cannot_be_leaves_nothing_behind(shop: Environment, version: str, words: str) -> None:
    served = publish(shop, 8)
    with pytest.raises(DataError, match=words):
        rollback_task(shop, "r1", served if version == "served" else version)
    assert not has_report(shop, "r1", ROLLBACK_FILE)
    assert Publication(shop.redis_online_url).served_version() == served


def test_rollback_with_nothing_to_return_to(shop: Environment) -> None:
    publish(shop, 8)
    with pytest.raises(DataError, match="nothing to roll back to"):
        run("rollback")


def test_hash_is_of_the_tables_and_of_the_lists_in_redis(shop: Environment) -> None:
    first, second = publish(shop, 7), publish(shop, 8)
    before = run("hash", "--json")
    assert before["version"] == second
    assert before["hashes"]["lists"] == f"{candidates_checksum([candidates_digest('u1', RECORD)])} (1 users)"
    assert before["hashes"]["bundle items.json"] == "ab"
    assert {"silver.events", "gold.candidates", "gold.item_ids"} <= set(before["hashes"])
    assert run("hash", "--json") == before
    assert before["hash"] in run("hash")
    assert run("hash", "--as-of", "2024-03-07", "--json")["version"] == first
    assert run("hash", "--as-of", "2024-03-06", "--json")["version"] is None
    Publication(shop.redis_online_url).put_records(second, [("u2", pack_candidates(second, []))])
    after = run("hash", "--json")
    assert [name for name in before["hashes"] if before["hashes"][name] != after["hashes"][name]] == ["lists"]
    assert after["hash"] != before["hash"]
    day = datetime(2024, 3, 7, tzinfo=UTC).date()
    write_rows(shop, "gold.item_ids", [{"item_id": "i1", "item_number": 0, "first_as_of": day}])
    again = run("hash", "--json")
    assert [name for name in after["hashes"] if after["hashes"][name] != again["hashes"][name]] == ["gold.item_ids"]


def test_hash_sees_what_is_inside_a_list(shop: Environment) -> None:
    seen = []
    for numbers, reasons in (([1, 2], [None, 3]), ([2, 1], [None, 3]), ([1, 2], [3, None]), ([1, 2], [None, 3])):
        row = {"user_id": "u1", "item_numbers": numbers, "first_reasons": reasons, "scores": [0.5, 0.25]}
        write_rows(
            shop, "gold.candidates", [{**row, "as_of": datetime(2024, 3, 8, tzinfo=UTC).date()}], mode="overwrite"
        )
        seen.append(run("hash", "--as-of", "2024-03-08", "--json")["hashes"]["gold.candidates"])
    assert len(set(seen[:3])) == 3
    assert seen[3] == seen[0]


def test_redis_down_names_the_address(shop: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.REDIS_ONLINE_URL, "redis://127.0.0.1:1/0")
    for command in ("versions", "rollback"):
        with pytest.raises(DependencyError, match=r"127\.0\.0\.1:1/0 does not answer"):
            run(command)
