"""The rules of a placement in every list and on pages, over HTTP; and that what somebody dismissed is nowhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.session_record import ItemMark
from serving.replays import differences
from tests.http_world import ITEMS, NOW, SECOND, Installation, ids, problem_of
from tests.serving_builders import Shop

LISTS: dict[str, dict[str, Any]] = {
    "/v1/recommendations": {}, "/v1/similar": {"item_id": "i00"}, "/v1/bought-together": {"item_id": "i00"},
    "/v1/trending": {}, "/v1/new": {}, "/v1/rank": {"item_ids": ITEMS[1:]},
}  # fmt: skip


def shop(adult: set[str]) -> Shop:
    """Twenty products of three variants; everything is like i00, bought with it, popular and new."""
    numbered = list(enumerate(ITEMS))
    return Shop(
        {
            item: {
                "title": f"Item {item}", "category": "A", "group_id": f"g{n // 3}",
                "tags": ["adult"] if item in adult else [], "created_at": "2024-03-01T00:00:00Z",
            }
            for n, item in numbered
        },
        neighbours={"i00": [(item, 1 / n) for n, item in numbered[1:]]},
        together={"i00": [(item, 1 / n) for n, item in numbered[1:]]},
        popular=[(item, 60.0 - n) for n, item in numbered],
        static=[("i01", 1.0)],
    )  # fmt: skip


@pytest.fixture
async def installed(environment: Environment, tmp_path: Path) -> AsyncIterator[Callable[..., Installation]]:
    made: list[Installation] = []

    def install(placements: str = "", adult: set[str] = set(ITEMS)) -> Installation:  # noqa: B006
        path = tmp_path / "placements.toml"
        path.write_text(placements)
        api = Installation(environment, placements=str(path))
        api.publish(shop(adult))
        made.append(api)
        return api

    yield install
    for api in made:
        await api.client.aclose()


async def answer_of(api: Installation, path: str, **question: Any) -> dict[str, Any]:
    response = await api.client.post(path, json=question)
    assert response.status_code == 200, response.text
    return dict(response.json())


PLACES = [{"kind": kind, "num_results": 6} for kind in ("similar", "bought_together", "trending", "new")]


class TestAFilter:
    async def test_of_the_default_placement_holds_in_every_list(self, installed: Callable[..., Installation]) -> None:
        api = installed("[placements.default]\nfilter = 'not tag == \"adult\"'", adult=set(ITEMS) - {"i07", "i30"})
        for path, question in LISTS.items():
            answer = await answer_of(api, path, num_results=10, user_id="u1", **question)
            assert set(ids(answer)) == {"i07", "i30"}, path
            counted = answer["filtered"]["placement_filter"]
            assert counted >= 50, path
        page = await answer_of(api, "/v1/pages/product", item_id="i00", placements=PLACES)
        shown = [set(ids(place)) for place in page["placements"]]
        assert shown == [{"i07", "i30"}, set(), set(), set()]
        assert all(place["filtered"] for place in page["placements"])

    async def test_of_a_placement_holds_where_it_is_named(self, installed: Callable[..., Installation]) -> None:
        api = installed("[placements.clean]\nfilter = 'not tag == \"adult\"'")
        for path, question in LISTS.items():
            assert len(ids(await answer_of(api, path, num_results=5, **question))) == 5
            answer = await answer_of(api, path, num_results=5, placement="clean", **question)
            assert answer["items"] == [], path
            query = {name: value for name, value in question.items() if name != "item_ids"}
            if path != "/v1/rank":
                got = (await api.client.get(path, params={"placement": "clean", **query})).json()
                assert (got["items"], got["filtered"]) == ([], answer["filtered"])
        places = [{**PLACES[0], "placement": "clean"}, PLACES[0]]
        page = await answer_of(api, "/v1/pages/mine", item_id="i00", placements=places)
        assert [len(ids(place)) for place in page["placements"]] == [0, 6]

    async def test_of_the_request(self, installed: Callable[..., Installation]) -> None:
        api = installed(adult={"i02"})
        for path, question in LISTS.items():
            answer = await answer_of(api, path, filter='tag == "adult"', **question)
            assert ids(answer) == ["i02"], path
            wrong = await api.client.post(path, json={**question, "filter": "prise < 3"})
            assert problem_of(wrong, 422)["field"] == "filter"
        page = await answer_of(api, "/v1/pages/home", filter='tag == "adult"')
        assert [ids(place) for place in page["placements"]] == [[], ["i02"], [], []]

    async def test_the_items_of_a_slate_are_those_the_placement_says(
        self, installed: Callable[..., Installation]
    ) -> None:
        api = installed("[placements.trending]\nnum_results = 3\n[placements.rank]\nnum_results = 3")
        assert len(ids(await answer_of(api, "/v1/trending"))) == 3
        assert len(ids(await answer_of(api, "/v1/trending", num_results=4))) == 4
        assert len(ids(await answer_of(api, "/v1/new"))) == 10
        assert len(ids(await answer_of(api, "/v1/rank", item_ids=ITEMS))) == 60


async def test_a_page_shows_one_variant_of_a_product(installed: Callable[..., Installation]) -> None:
    rules = "\n".join(f"[placements.{name}]\none_per_group = true" for name in ("similar", "new"))
    api = installed(rules, adult=set())
    question = {"item_id": "i00", "exclude_item_ids": ["i00", "i59"], "placements": PLACES}
    page = await answer_of(api, "/v1/pages/product", **question)
    similar, together, trending, new = [ids(place) for place in page["placements"]]
    assert similar == ["i03", "i06", "i09", "i12", "i15", "i18"]  # i01 and i02 are variants of the page's own item
    assert together == ["i01", "i02", "i04", "i05", "i07", "i08"]  # a place without the rule shows what it likes
    groups = {int(item[1:]) // 3 for item in [*similar, *together, *trending, "i00"]}
    assert not groups & {int(item[1:]) // 3 for item in new}
    assert len({int(item[1:]) // 3 for item in new}) == len(new) == 6


class TestWhatSomebodyDismissed:
    async def test_is_in_no_list(self, installed: Callable[..., Installation]) -> None:
        api = installed(adult=set())
        api.remember(dismissed=[ItemMark(NOW - SECOND, "i01")])
        for path, question in LISTS.items():
            assert "i01" in ids(await answer_of(api, path, num_results=59, **question)), path
            shown = ids(await answer_of(api, path, num_results=59, user_id="u1", **question))
            if path == "/v1/rank":
                assert shown[-1] == "i01"
            else:
                assert "i01" not in shown, path
        page = await answer_of(api, "/v1/pages/product", item_id="i00", user_id="u1", placements=PLACES)
        assert all("i01" not in ids(place) for place in page["placements"])

    async def test_stays_without_consent_and_of_a_device_leaves(self, installed: Callable[..., Installation]) -> None:
        api = installed(adult=set())
        api.remember(subject="a:phone", dismissed=[ItemMark(NOW - SECOND, "i01")])
        for path in ("/v1/similar", "/v1/bought-together"):
            refused = {"item_id": "i00", "anonymous_id": "phone", "consent": {"personalize": False}}
            assert ids(await answer_of(api, path, **refused))[0] == "i01"
            got = await api.client.get(path, params={"item_id": "i00", "anonymous_id": "phone"})
            assert ids(got.json())[0] == "i02"

    async def test_is_in_the_decision_and_comes_out_again(self, installed: Callable[..., Installation]) -> None:
        rules = [
            f"[placements.{name}]\nfrequency_cap = 1\none_per_group = true" for name in ("similar", "bought_together")
        ]
        api = installed("\n".join(rules), adult=set())
        shown = {(NOW // 86_400_000_000, "i03"): 1}
        api.remember(dismissed=[ItemMark(NOW - SECOND, "i01")], shown=shown, seen={"i03": NOW})
        for path in ("/v1/similar", "/v1/bought-together", "/v1/rank"):
            question = {**LISTS[path]}
            if path == "/v1/bought-together":
                question = {"item_ids": [question["item_id"]]}
            answer = await answer_of(api, path, user_id="u1", **question)
            decision = read_decision(api.decisions.payloads[-1])
            assert decision["subject"] == "u:u1"
            assert decision["inputs"]["personalized"] is True
            assert ("policy" in decision["inputs"]) == (path != "/v1/rank")
            replay = await api.app.state.services.replays.replay(decision)
            assert replay.slate is not None, replay.why_not
            assert replay.catalogue is not None
            assert [item.item_id for item in replay.slate.items] == ids(answer)
            assert differences(decision, replay.slate, replay.catalogue, now_micros=NOW) == []

    async def test_similar_names_nobody_when_nothing_of_them_counted(
        self, installed: Callable[..., Installation]
    ) -> None:
        api = installed(adult=set())
        await answer_of(api, "/v1/similar", item_id="i00", user_id="u1", consent={"store": False})
        inputs = read_decision(api.decisions.payloads[-1])["inputs"]
        assert (inputs["personalized"], inputs["store"]) == (False, False)


@pytest.mark.parametrize("path", ["/v1/trending", "/v1/rank", "/v1/pages/home", "/v1/recommendations"])
async def test_a_field_that_has_another_place_is_named_there(
    installed: Callable[..., Installation], path: str
) -> None:  # fmt: skip
    api = installed()

    async def asked(**question: Any) -> httpx.Response:
        more = {"item_ids": ["i01"]} if path == "/v1/rank" else {}
        return await api.client.post(path, json={**more, **question})

    said = problem_of(await asked(category="A"), 422)["errors"]
    assert [one["field"] for one in said] == ["category"]
    assert said[0]["expected"].startswith("no such field here: it is context.category; known are user_id, ")
    said = problem_of(await asked(personalize=False), 422)["errors"]
    assert said[0]["expected"].startswith("no such field here: it is consent.personalize;")
    assert (await asked(context={"category": "A"})).status_code == 200
