"""Whatever is sent to the routes of items and users: a status for each record, never a 500, and nothing half kept."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from feature_repo.contracts.catalogue import ITEM_FIELDS, USER_FIELDS
from feature_repo.contracts.changes import Change
from feature_repo.contracts.environment import Environment
from serving.speed.archive_rows import change_rows
from tests.front_door import FrontDoor

NAMES = st.sampled_from([*ITEM_FIELDS, *USER_FIELDS, "items", "users", "store", "colour", "\ud800"])
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec=None), max_size=6),
    st.sampled_from(["i1", "u1", "IN_STOCK", "A > B", "GBP", "\ud800", "2024-03-08T12:59:00Z", "9999-12-31T23:59:59Z"]),
)
DOCUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(NAMES, st.text(st.characters(codec=None), max_size=3)), inner, max_size=6),
    ),
    max_leaves=15,
)
RECORDS = st.fixed_dictionaries(
    {"item_id": st.sampled_from(["i1", "i2"]), "user_id": st.sampled_from(["u1", "u2"])},
    optional={
        "title": st.one_of(st.text(max_size=3), LEAVES),
        "price": st.one_of(st.integers(0, 9), LEAVES),
        "is_hidden": st.booleans(),
        "updated_at": st.sampled_from(["2024-03-08T12:59:00Z", "2024-03-08T12:58:00Z", None]),
        "attributes": st.one_of(st.none(), st.dictionaries(st.text(st.characters(codec=None), max_size=2), LEAVES)),
        "consent": st.dictionaries(st.sampled_from(["store", "personalize"]), st.one_of(st.none(), st.booleans())),
        "\ud800": LEAVES,
    },
)


@pytest.fixture
def door(environment: Environment) -> FrontDoor:
    return FrontDoor(environment)


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    document=st.one_of(DOCUMENTS, RECORDS, st.lists(st.one_of(RECORDS, DOCUMENTS), max_size=4)),
    method=st.sampled_from(["PUT", "PATCH", "DELETE"]),
    path=st.sampled_from(["/v1/items", "/v1/users", "/v1/items/i1", "/v1/users/u1", "/v1/items/%00", "/v1/users/%FF"]),
    kind=st.sampled_from(["application/json", "application/x-ndjson"]),
)
@example(document={"item_id": "i1", "\ud800": 1}, method="PUT", path="/v1/items/i1", kind="")
@example(document={"item_id": "\ud800"}, method="PUT", path="/v1/items/i1", kind="")
@example(document={"attributes": {"updated_at": "x"}}, method="PATCH", path="/v1/items/i1", kind="")
@example(document={"attributes": {"available_time": "x"}}, method="PATCH", path="/v1/items/i1", kind="")
@example(document={"title": "\ud800"}, method="PATCH", path="/v1/items/i1", kind="")
@example(document={"\ud800": 1}, method="PATCH", path="/v1/items/i1", kind="")
@example(document={"consent": {"\ud800": 1}}, method="PATCH", path="/v1/users/u1", kind="")
@example(document={"consent": 5}, method="PATCH", path="/v1/items/i1", kind="")
def test_no_document_is_a_500(door: FrontDoor, document: Any, method: str, path: str, kind: str) -> None:
    before = len(door.log.changes)

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door.app), base_url="http://api") as client:
            content = json.dumps(document).encode()
            return await client.request(method, path, content=content, headers={"content-type": kind})

    response = asyncio.run(once())
    written = door.log.changes[before:]
    if response.is_success:
        results = response.json()["results"]
        assert [r["index"] for r in results] == list(range(len(results)))
        kept = [r for r in results if r["status"] != "rejected"]
        assert {r["status"] for r in results} <= {"accepted", "stale", "rejected"}
        assert len(written) == len(kept)
    else:
        assert response.status_code in (400, 422)
        assert response.headers["content-type"] == "application/problem+json"
        assert written == []
    for position, raw in written:
        change = Change.from_json(raw)
        ((name, rows),) = change_rows(position, {b"change": raw}, source="s").items()
        assert (name, len(rows)) == (f"bronze.{change.kind.removesuffix('s')}_changes", 1)
        rows[0]["fields"].encode("utf-8")  # Delta takes it


def test_late_names_that_are_no_text_do_not_break_the_answer(door: FrontDoor) -> None:
    """A name with half a character, of which something newer is known."""

    async def twice() -> list[dict[str, Any]]:
        results = []
        async with door.app.router.lifespan_context(door.app), door.client as client:
            for moment in ("2024-03-08T12:59:00Z", "2024-03-08T12:58:00Z"):
                record = {"item_id": "i1", "\ud800": 1, "updated_at": moment, moment: 1}
                response = await client.patch("/v1/items", content=json.dumps([record]).encode())
                assert response.status_code == 202, response.text
                results += response.json()["results"]
        return results

    first, second = asyncio.run(twice())
    assert "stale_fields" not in first
    assert second["stale_fields"] == ["?"]
