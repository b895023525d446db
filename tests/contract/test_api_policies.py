"""Placements, filters and policies over HTTP: what a request may say, what is answered, what is logged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_repo.contracts.decisions import read_decision
from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from serving.api import schemas
from serving.api.answering import SlateAnswers
from serving.api.pages import PRESETS as PAGES
from serving.lists import KINDS
from serving.main import create_app
from serving.pipeline.placements import PRESETS, Placements
from serving.pipeline.policy import SlatePolicy
from serving.settings import ServingSettings
from tests.http_world import Installation, ids, shop
from tests.serving_builders import Shop


@pytest.fixture
async def api(environment: Environment) -> AsyncIterator[Installation]:
    installation = Installation(environment)
    installation.publish(shop())
    yield installation
    await installation.client.aclose()


async def refused(api: Installation, **question: Any) -> dict[str, Any]:
    response = await api.client.post("/v1/recommendations", json=question)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    schemas.Problem.model_validate(response.json())
    return dict(response.json())


async def test_a_filtered_slate_and_its_counts(api: Installation) -> None:
    answer = await api.ask(user_id="u1", num_results=3, filter='category == "Toys" and not item_id in ["i40", "i42"]')
    assert ids(answer) == ["i41", "i43", "i44"]
    none = await api.ask(user_id="u1", filter="price > 2.5")
    assert (none["items"], none["fallback_level"]) == ([], "none")
    assert none["filtered"] == {"filter": 60}
    schemas.RecommendationResponse.model_validate(none)


async def test_a_filter_that_cannot_be_read(api: Installation) -> None:
    problem = await refused(api, filter="price < 3 and prise > 1")
    assert (problem["field"], problem["position"]) == ("filter", 14)
    assert problem["errors"] == [
        {"field": "filter", "seen": "prise > 1", "expected": "no field 'prise'; did you mean 'price'?"}
    ]
    assert "did you mean 'price'?" in problem["detail"]
    assert api.decisions.payloads == []
    assert (await refused(api, filter=5))["errors"][0]["field"] == "filter"


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"diversity": 1.5}, "less than or equal to 1"),
        ({"exploration": 0.3}, "less than or equal to 0.2"),
        ({"min_relevance": -1}, "greater than or equal to 0"),
        ({"item_ids": []}, "at least 1"),
        ({"item_ids": [f"i{n}" for n in range(501)]}, "at most 500"),
        ({"include": ["tite"]}, "did you mean 'title'?"),
        ({"include": ["attributes."]}, "attributes.<name>"),
        ({"dry_run": "yes"}, "boolean"),
        ({"filters": "true"}, "did you mean 'filter'?"),
    ],
)
async def test_fields_that_are_wrong(api: Installation, question: dict[str, Any], words: str) -> None:
    assert words in (await refused(api, **question))["detail"]


async def test_placements(api: Installation) -> None:
    home = await api.ask(user_id="u1", placement="home", explain=True)
    assert len(home["items"]) == 24
    assert home["trace"]["policy"]["placement"] == "home"
    assert 0 < home["trace"]["policy"]["diversity"]["relevance_kept"] < 1
    unknown = await api.ask(user_id="u1", placement="hoem", explain=True)
    plain = await api.ask(user_id="u1", explain=True)
    assert (len(unknown["items"]), unknown["placement"]) == (10, "hoem")
    assert unknown["trace"]["policy"] == {"placement": "default", "unknown_placement": True}
    assert ids(unknown) == ids(plain)
    assert "policy" not in plain["trace"]
    search = await api.ask(user_id="u1", placement="search", num_results=2)
    assert [item["reasons"] for item in search["items"]] == [[], []]


async def test_a_misspelt_placement_is_told_of(api: Installation) -> None:
    words = "no placement 'hoem'; did you mean 'home'? The rules of 'default' hold"
    answer = await api.ask(user_id="u1", placement="hoem")
    schemas.RecommendationResponse.model_validate(answer)
    assert answer["warnings"] == [words]
    assert [
        len((await api.ask(placement="hoem", **more))["warnings"]) for more in ({"dry_run": True}, {"num_results": 1})
    ]
    for name in ("home", "a banner of ours", "recommendations"):
        assert "warnings" not in await api.ask(user_id="u1", placement=name), name
    get = await api.client.get("/v1/recommendations", params={"user_id": "u1", "placement": "hoem"})
    assert get.json()["warnings"] == [words]
    places = [{"placement": "hoem"}, {"placement": "home"}, {}, {"kind": "new", "placement": "hoem"}]
    page = await api.client.post("/v1/pages/home", json={"user_id": "u1", "placements": places})
    assert [place.get("warnings") for place in page.json()["placements"]] == [[words], None, None, [words]]
    batch = await api.client.post("/v1/recommendations/batch", json={"requests": [{"placement": "hoem"}]})
    assert batch.json()["results"][0]["answer"]["warnings"] == [words]
    named = Placements({**PRESETS, "recommended": replace(PRESETS["home"], name="recommended")})
    answers = SlateAnswers(replace(api.app.state.services, placements=named))
    assert b"'recommended'" in answers.warning_of("recommendation")
    assert answers.warning_of("recommendations") == b""  # what a page calls a place that has no name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("similar", {"item_id": "i41"}), ("bought-together", {"item_id": "i41"}), ("buy-again", {}), ("trending", {}),
        ("new", {}), ("continue", {}), ("rank", {"item_ids": ["i41", "i42"]}),
    ],
)  # fmt: skip
async def test_a_misspelt_placement_of_a_list_is_told_of(api: Installation, path: str, body: dict[str, object]) -> None:
    words = "no placement 'emial'; did you mean 'email'? The rules of 'default' hold"
    asked = {"user_id": "u1", "num_results": 2, **body}
    for placement, expected in (("emial", [words]), ("email", None), ("our banner", None), (None, None)):
        said = {} if placement is None else {"placement": placement}
        found = await api.client.post(f"/v1/{path}", json={**asked, **said})
        assert found.status_code == 200, found.text
        assert found.json().get("warnings") == expected
        got = await api.client.get(f"/v1/{path}", params={**asked, **said})
        assert got.json().get("warnings") == expected


def test_what_lists_and_places_of_pages_are_called_is_no_mistake(api: Installation) -> None:
    answers = SlateAnswers(api.app.state.services)
    own = {place.placement or place.kind for places in PAGES.values() for place in places} | KINDS
    assert [name for name in sorted(own) if answers.warning_of(name)] == []
    assert answers.warning_of("emial.newest") == b""  # like none
    assert b"'email'" in answers.warning_of("e-mail")


async def test_a_placements_file(environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "placements.toml"
    path.write_text("[placements.toys]\nnum_results = 2\nfilter = 'category == \"Toys\"'")
    app = create_app(environment, ServingSettings(placements=str(path)))
    assert app.state.services.placements.by_name["toys"].num_results == 2
    path.write_text("[placements.toys]\nnum_result = 2")
    with pytest.raises(DataError, match="did you mean 'num_results'"):
        create_app(environment, ServingSettings(placements=str(path)))


async def test_a_decision_of_a_policy_can_be_asked_again(api: Installation) -> None:
    question = {
        "user_id": "u1", "placement": "home", "exploration": 0.2, "num_results": 5, "filter": "price < 3",
        "item_ids": [f"i{n}" for n in range(10, 40)],
    }  # fmt: skip
    answer = await api.ask(**question)
    said = read_decision(api.decisions.payloads[0])
    assert said["items"] == ids(answer)
    assert len(said["propensities"]) == 5
    assert set(said["propensities"]) <= {0.8, 0.2 / 25}
    inputs = said["inputs"]
    assert inputs["item_ids"] == question["item_ids"]
    again = SlatePolicy.from_inputs(inputs["policy"], item_ids=inputs["item_ids"], seed=said["id"])
    assert (again.placement, again.rules.exploration, again.filter) == ("home", 0.2, "price < 3")
    nobody = await api.ask(**question, consent={"store": False})
    said = read_decision(api.decisions.payloads[1])
    assert (said["items"], said["subject"], "item_ids" in said["inputs"]) == (ids(nobody), None, False)


async def test_a_dry_run_is_not_logged(api: Installation) -> None:
    assert len((await api.ask(user_id="u1", dry_run=True))["items"]) == 10
    assert api.decisions.payloads == []


async def test_included_attributes(api: Installation) -> None:
    facts = {
        "title": "Mug", "category": "Home", "price": 4.5, "brand": "Acme", "tags": ["gift"], "currency": "EUR",
        "created_at": "2024-03-01T00:00:00Z", "url": "https://shop.example/m", "attributes": '{"colour": "blue"}',
        "available_quantity": 3,
    }  # fmt: skip
    api.publish(Shop({"m": facts, "n": {}, **{f"i{n:02d}": {} for n in range(60)}}, static=[("m", 2.0), ("n", 1.0)]))
    names = ["brand", "tags", "title", "created_at", "url", "availability", "available_quantity", "attributes.colour"]
    answer = await api.ask(item_ids=["m", "n"], include=names)
    assert [item["attributes"] for item in answer["items"]] == [
        {
            "brand": "Acme", "tags": ["gift"], "title": "Mug", "created_at": "2024-03-01T00:00:00Z",
            "url": "https://shop.example/m", "availability": "IN_STOCK", "available_quantity": 3,
            "attributes.colour": "blue",
        },
        {
            "brand": None, "tags": [], "title": None, "created_at": None, "url": None, "availability": "IN_STOCK",
            "available_quantity": None, "attributes.colour": None,
        },
    ]  # fmt: skip
    assert [list(item["attributes"]) for item in answer["items"]] == [names, names]


async def test_the_get_form_says_the_same(api: Installation) -> None:
    response = await api.client.get(
        "/v1/recommendations?user_id=u1&num_results=4&filter=not%20item_id%20%3D%3D%20%22i10%22&diversity=0.2"
        "&min_relevance=0.1&exploration=0&item_ids=i10&item_ids=i11&item_ids=i30&include=price&dry_run=true"
    )
    assert response.status_code == 200, response.text
    posted = await api.ask(
        user_id="u1", num_results=4, filter='not item_id == "i10"', diversity=0.2, min_relevance=0.1, exploration=0,
        item_ids=["i10", "i11", "i30"], include=["price"], dry_run=True,
    )  # fmt: skip
    assert (response.json()["items"], ids(posted)) == (posted["items"], ["i11", "i30"])
    assert api.decisions.payloads == []
    wrong = await api.client.get("/v1/recommendations?diversity=much")
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "diversity")
