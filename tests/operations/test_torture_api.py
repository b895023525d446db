"""The ordeal of the API: what it sends, what it counts, and a small one on the real programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from feature_repo.contracts.environment import Environment
from infra.bench.events import raw_sender
from infra.bench.events.api_torture import torture_api
from infra.bench.events.raw_requests import RawRequest, RawRequests, Seed, seeds_of
from infra.bench.events.raw_sender import Tally, send_raw
from serving.main import create_app
from serving.settings import ServingSettings


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Seed]:
    variables: Mapping[str, str] = {"NIGHTJAR_HOME": str(tmp_path_factory.mktemp("home"))}
    return seeds_of(create_app(Environment.from_mapping(variables), ServingSettings()).openapi())


class TestRawRequests:
    def test_every_route_with_a_body_is_a_seed(self, seeds: list[Seed]) -> None:
        found = {(seed.method, seed.path) for seed in seeds}
        assert len(found) == 45
        assert {
            (b"POST", b"/v1/events"),
            (b"POST", b"/v1/similar"),
            (b"PATCH", b"/v1/users/u1"),
            (b"GET", b"/v1/pages/home"),
        } <= found
        assert all(seed.body is not None for seed in seeds if seed.path == b"/v1/recommendations" and seed.content_type)

    def test_a_seed_gives_the_same_requests_again_and_another_one_others(self, seeds: list[Seed]) -> None:
        first, again, other = (
            [made.next() for _ in range(300)] for made in (RawRequests(seeds, number) for number in (1, 1, 2))
        )
        assert first == again != other

    def test_all_kinds_of_damage_come(self, seeds: list[Seed]) -> None:
        made = RawRequests(seeds, 3)
        requests = [made.next() for _ in range(8000)]
        assert {request.answers for request in requests} == {None, 1, 2, 3, 4}
        data = b"\n".join(request.data for request in requests)
        for part in (
            b"\\ud800",
            b"\\u0000",
            b"\x1f\x8b\x08",
            b"chunked",
            b"1e999",
            b"[[[[[[[[[[[[[",
            b"Content-Length: -1",
            b"BREW ",
        ):
            assert part in data, part


async def _sent_to(answer: bytes | None, *requests: RawRequest) -> Tally:
    """The tally of these requests, sent to a server that always says this; None: it hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            if answer is None:
                break
            writer.write(answer)
        writer.close()

    class These:
        def __init__(self) -> None:
            self._left = list(requests)

        def next(self) -> RawRequest:
            return self._left.pop(0)

    tally = Tally()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        await send_raw(server.sockets[0].getsockname()[1], These(), len(requests), tally)  # type: ignore[arg-type]
    return tally


class TestTally:
    @pytest.fixture(autouse=True)
    def one_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(raw_sender, "CONNECTIONS", 1)

    async def test_a_500_is_a_fault_and_an_overload_is_none(self) -> None:
        one = RawRequest(b"GET / HTTP/1.1\r\n\r\n", 1, 1)
        said = {
            b"500 Oops": b"{}",
            b"503 No": b'{"type":"urn:nightjar:problem:dependency-down"}',
            b"503 Busy": b'{"type":"urn:nightjar:problem:overloaded"}',
            b"404 No": b"{}",
        }
        found = []
        for status, body in said.items():
            tally = await _sent_to(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body), one, one)
            found.append((dict(tally.statuses), tally.fault_count, tally.overloaded))
        assert found == [({500: 2}, 2, 0), ({503: 2}, 2, 0), ({503: 2}, 0, 2), ({404: 2}, 0, 0)]

    async def test_of_broken_framing_a_500_counts_too(self) -> None:
        answer = b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}"
        assert (await _sent_to(answer, RawRequest(b"\x00", 1, None))).fault_count == 1

    async def test_who_hangs_up_or_talks_nonsense_is_seen(self) -> None:
        one = RawRequest(b"GET / HTTP/1.1\r\n\r\n", 1, 1)
        assert (await _sent_to(None, one)).dropped == 1
        assert (await _sent_to(b"HTTP/1.1 NaN\r\n\r\n", one)).unreadable == 1

    async def test_silence_is_a_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(raw_sender, "ANSWER_SECONDS", 0.1)
        tally = await _sent_to(b"", RawRequest(b"GET / HTTP/1.1\r\n\r\n", 1, 1))
        assert (tally.unanswered, tally.fault_count) == (1, 1)


@pytest.mark.redis
def test_a_small_ordeal_is_survived(tmp_path: Path) -> None:
    report = torture_api(tmp_path / "home", os.environ, cases=150, requests=2_500, seed=11, say=lambda _: None)
    assert report["kept_faults"] == []
    assert report["clean"], report
    assert report["cases"] == sum(report["cases_sent"].values()) == 150
    assert len(report["cases_sent"]) == 45  # every call of the OpenAPI document
    assert report["raw_requests"] >= 2_500
    assert {200, 202, 400, 404, 405, 413, 415, 422} <= set(report["raw_statuses"])
    assert not (tmp_path / "home").exists()
