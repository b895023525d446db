"""The generated reference page is current, and says what a person needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from serving.api import answer_examples, list_schemas, profile_schemas, schemas
from serving.api.reference_page import COMMAND, openapi_document, render_page

PAGE = Path(__file__).parents[2] / "infra" / "docs" / "api-reference.md"


def test_the_page_is_current_and_every_call_and_model_is_in_it() -> None:
    document = openapi_document()
    page = render_page(document)
    assert PAGE.read_text(encoding="utf-8") == page, COMMAND
    calls = [f"### {method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert len(calls) > 40
    assert [call for call in calls if call not in page] == []
    linked = {part.partition(")")[0] for part in page.split("](#")[1:]}
    assert linked <= {line[4:].lower() for line in page.splitlines() if line.startswith("### ")}


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (schemas.RecommendationResponse, answer_examples.SLATE),
        (schemas.ItemOut, answer_examples.EXPLAINED_ITEM),
        (list_schemas.TrendingResponse, answer_examples.TRENDING),
        (list_schemas.BoughtTogetherResponse, answer_examples.BOUGHT_TOGETHER),
        (list_schemas.RankResponse, answer_examples.RANK),
        (list_schemas.PageResponse, answer_examples.PAGE),
        (list_schemas.BatchResponse, answer_examples.BATCH),
        (profile_schemas.ProfileResponse, answer_examples.PROFILE),
        (profile_schemas.DecisionResponse, answer_examples.DECISION),
    ],
)
def test_examples_of_answers_are_answers(model: type[BaseModel], example: dict[str, Any]) -> None:
    model.model_validate(example)
    assert model.model_json_schema()["examples"] == [example]


def test_every_question_has_an_example() -> None:
    document = openapi_document()
    asked = 0
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            continue
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        assert content.get("examples") or document["components"]["schemas"][name]["examples"], path
        asked += 1
    assert asked >= 15
