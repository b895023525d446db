"""How a request meets the records of who asks: native code and its twin, on one store, with replies in disorder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serving.adapters.circuit import GuardedStore
from serving.adapters.online import OnlineRecords
from serving.native import parts
from serving.pipeline.overlay import CatalogueOverlay
from serving.pipeline.values import SlateRequest
from serving.recommender import Recommender
from serving.settings import ServingSettings
from tests.contract.test_tagged_reads import VERSION, Harm, fake

pytestmark = pytest.mark.skipif(parts.meetings is None, reason="no native code")

ASKERS = {
    "a user": SlateRequest(1, user_id="u1"),
    "a user's id that is quoted": SlateRequest(1, user_id="ü ser/1"),
    "a device": SlateRequest(1, anonymous_id="a1"),
    "a user on a device": SlateRequest(1, user_id="u1", anonymous_id="a1"),
    "nobody": SlateRequest(1),
    "one who says no": SlateRequest(1, user_id="u1", personalize=False),
}
HARMS: dict[str, Harm] = {
    "nothing": lambda _, replies: replies,
    "another version": lambda _, replies: [b"$1\r\nx\r\n", *replies[1:]],
    "no version": lambda _, replies: [b"$-1\r\n", *replies[1:]],
    "a version that is no text": lambda _, replies: [b"*0\r\n", *replies[1:]],
    "a command that is refused": lambda _, replies: [replies[0], b"-ERR no\r\n", *replies[2:]],
    "no session": lambda _, replies: [
        reply.replace(b"*3\r\n", b"*3\r\n$-1\r\n", 1).rpartition(b"$")[0] if reply.startswith(b"*3") else reply
        for reply in replies
    ],
    "edges": lambda _, replies: [b"*2\r\n$3\r\na:b\r\n$1\r\nx\r\n" if r == b"*0\r\n" else r for r in replies],
}


class BugError(Exception):
    """Raised by what makes an answer at once."""


def _records_of(_: Any, records: OnlineRecords) -> Any:
    return records


def _nothing_of(_: Any, __: OnlineRecords) -> Any:
    return None


def _bug(_: Any, __: OnlineRecords) -> Any:
    raise BugError


async def _answers(harm: Harm, at_once: Callable[[Any, OnlineRecords], Any] | None, is_native: bool) -> list[Any]:
    """What comes of each of `ASKERS` in one turn of the loop; then whether turns expect nobody any more."""
    async with fake(lambda given, replies: replies if given < 3 else harm(given, replies)) as (_, store):
        shelf = SimpleNamespace(current=SimpleNamespace(version=VERSION))
        guard = GuardedStore(store)
        recommender = Recommender(guard, cast(Any, shelf), ServingSettings(), wall_micros=lambda: 0, timer=lambda: 0)
        await guard.read(version=None, user_id=None, anonymous_id=None)
        found: dict[str, Any] = {}
        here = recommender.submit_meeting if is_native else recommender.submit_step_by_step
        for name, request in ASKERS.items():
            assert here(request, lambda asker: ("step by step", asker.request), _keep(found, name), at_once)
        assert recommender.turns.expected == len(ASKERS)
        async with asyncio.timeout(20):
            while len(found) < len(ASKERS):
                await asyncio.sleep(0.001)
        return [*(found[name] for name in ASKERS), recommender.turns.expected]


def _keep(found: dict[str, Any], name: str) -> Callable[[Any], None]:
    def answered(made: Any) -> None:
        assert name not in found
        found[name] = made

    return answered


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
@pytest.mark.parametrize(
    "at_once", [_records_of, _nothing_of, _bug, None], ids=["records", "nothing", "a bug", "never"]
)
async def test_native_code_does_what_its_twin_does(harm: Harm, at_once: Any) -> None:
    assert await _answers(harm, at_once, True) == await _answers(harm, at_once, False)


async def test_records_are_those_of_the_one_who_asks() -> None:
    user, quoted, device, both, nobody, refusing, expected = await _answers(HARMS["nothing"], _records_of, True)
    assert [one.session.split(b":")[-1][:3] for one in (user, device, both)] == [b"u1}", b"a1}", b"u1}"]
    assert (quoted.session is not None, nobody.session, expected) == (True, None, 0)
    assert (device.candidates, user.candidates.startswith(b"of ")) == (None, True)
    assert refusing == ("step by step", ASKERS["one who says no"]) or refusing is None


async def test_common_questions_do_not_go_the_twins_way(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[SlateRequest] = []
    there = Recommender.submit_step_by_step

    def submit_step_by_step(self: Recommender, request: SlateRequest, *rest: Any) -> bool:
        came.append(request)
        return there(self, request, *rest)

    monkeypatch.setattr(Recommender, "submit_step_by_step", submit_step_by_step)
    await _answers(HARMS["nothing"], _records_of, True)
    assert came == [ASKERS[name] for name in ("a user's id that is quoted", "one who says no")]


async def test_a_user_whom_the_shop_gave_a_region_goes_the_twins_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CatalogueOverlay, "region_of", lambda _, user_id: "north" if user_id == "u1" else None)
    asked = SlateRequest(1, user_id="u1")
    monkeypatch.setitem(ASKERS, "a user", asked)
    await _answers(HARMS["nothing"], _records_of, True)
    assert (asked.region, asked.region_of_user) == ("north", True)
