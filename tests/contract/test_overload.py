"""Five times as many requests as a worker has places, wave after wave: counts and structure, no times."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from feature_repo.contracts.environment import Environment
from serving.api.front_protocol import BATCHES, EVENTS, PEOPLE, Admission, FrontProtocol, _Refused
from serving.api.hot_protocol import HotCycle
from tests.contract.test_admission import PUT_ITEM, Busy, refusals, status
from tests.contract.test_hot_protocol import one, read_answer, request

PLACES = 8
WAVE = 5 * PLACES
HOLD = request(b"{}", {"content-type": "application/json"}, line=b"POST /v1/hold HTTP/1.1")
QUICK = request(b"{}", {"content-type": "application/json"}, line=b"POST /v1/quick HTTP/1.1")


class Crowd:
    """A worker with eight places, and as many connections as a wave has requests."""

    def __init__(self, busy: Busy) -> None:
        self.busy = busy
        self.running = self.most_running = 0

        @busy.door.app.post("/v1/hold")
        async def hold() -> str:
            self.running += 1
            self.most_running = max(self.running, self.most_running)
            await busy.free.wait()
            self.running -= 1
            return "done"

        @busy.door.app.post("/v1/quick")
        async def quick() -> str:
            return "done"

    async def open(self) -> Crowd:
        self.connections = [await self.busy.connect() for _ in range(WAVE)]
        return self

    def begin(self, sent: list[bytes]) -> list[asyncio.Task[bytes]]:
        """One request on each connection, all written before the server looks."""
        for (_, writer), data in zip(self.connections, sent, strict=False):
            writer.write(data)
        return [asyncio.create_task(read_answer(reader)) for reader, _ in self.connections[: len(sent)]]

    async def ask(self, sent: list[bytes]) -> list[int]:
        answers = await asyncio.gather(*self.begin(sent))
        for answer in answers:
            if status(answer) == 503:
                assert_refused(answer)
        return [status(answer) for answer in answers]


def assert_refused(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in head
    found = orjson.loads(body)
    assert found["type"] == "urn:nightjar:problem:overloaded"
    assert f"x-request-id: {found['request_id']}".encode() in head
    assert len(found["request_id"]) == 32


@pytest.fixture
async def crowd(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Crowd]:
    monkeypatch.setattr(FrontProtocol, "admission", Admission(PLACES))
    async with asyncio.timeout(120), Busy(environment) as busy:
        yield await Crowd(busy).open()


def kept() -> int:
    """Requests that this process still holds."""
    gc.collect()
    return sum(isinstance(held, _Refused | HotCycle | RequestResponseCycle) for held in gc.get_objects())


async def test_each_wave_is_answered_as_far_as_there_are_places(crowd: Crowd) -> None:
    answered = []
    before = refusals(PEOPLE)
    for _ in range(6):
        crowd.busy.free.clear()
        under_way = crowd.begin([HOLD] * WAVE)
        while crowd.running < PLACES or sum(task.done() for task in under_way) < WAVE - PLACES:
            await asyncio.sleep(0.005)
        for task in under_way:
            if task.done():
                assert_refused(task.result())
        crowd.busy.free.set()
        found = [status(answer) for answer in await asyncio.gather(*under_way)]
        answered.append((found.count(200), found.count(503)))
    assert answered == [(PLACES, WAVE - PLACES)] * 6
    assert (crowd.most_running, crowd.running) == (PLACES, 0)
    assert refusals(PEOPLE) - before == 6 * (WAVE - PLACES)


async def test_people_are_answered_before_events_and_events_before_batches(crowd: Crowd) -> None:
    found = {}
    before = {kind: refusals(kind) for kind in (BATCHES, EVENTS, PEOPLE)}
    refused = dict.fromkeys(before, 0)
    for held in (2, 4, 6, 8):
        holding = crowd.begin([HOLD] * 2)
        crowd.connections = crowd.connections[2:]
        while crowd.running < held:
            await asyncio.sleep(0.005)
        accepted = {}
        for kind, sent in ((BATCHES, PUT_ITEM), (EVENTS, b""), (PEOPLE, QUICK)):
            got = await crowd.ask([sent or one(f"e{held}-{number}") for number in range(20)])
            assert set(got) <= {200, 202, 503}
            accepted[kind] = len(got) - got.count(503)
            refused[kind] += got.count(503)
        found[held] = [kind for kind, count in accepted.items() if count]
        assert not any(task.done() for task in holding)
    assert found == {2: [BATCHES, EVENTS, PEOPLE], 4: [EVENTS, PEOPLE], 6: [PEOPLE], 8: []}
    assert {kind: refusals(kind) - count for kind, count in before.items()} == refused


async def test_nothing_is_kept_of_what_was_refused_or_answered(crowd: Crowd) -> None:
    mixed = [QUICK, PUT_ITEM, HOLD]
    await crowd.ask([QUICK, PUT_ITEM, one("first")] * (WAVE // 3))
    for number in range(5):
        crowd.busy.free.clear()
        sent = [mixed[at % 3] if at % 4 else one(f"e{number}-{at}") for at in range(WAVE)]
        under_way = crowd.begin(sent)
        while crowd.running < sum(not task.done() for task in under_way):
            await asyncio.sleep(0.005)
        crowd.busy.free.set()
        assert {status(answer) for answer in await asyncio.gather(*under_way)} == {200, 202, 503}
        await asyncio.sleep(0.05)
        protocols: list[Any] = list(crowd.busy.server.server_state.connections)
        assert len(protocols) == WAVE
        assert [p for p in protocols if p.cycle or p.pipeline or p._overtaken or p.headers] == []
        assert sum(p.transport.get_write_buffer_size() for p in protocols) == 0
        assert (len(crowd.busy.server.server_state.tasks), FrontProtocol.admission.hot, kept()) == (0, 0, 0)
