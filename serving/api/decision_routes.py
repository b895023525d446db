"""A decision as it was logged, and the same slate again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from feature_repo.contracts.times import format_timestamp, from_micros
from serving.api.errors import UnknownDecisionError
from serving.api.openapi import JSON, problems
from serving.api.profile_schemas import DecisionResponse
from serving.api.rendering import SOURCE_NAMES
from serving.api.services import Services
from serving.replays import CONSENT_WITHDRAWN, Replay, differences

_ID = {"name": "recommendation_id", "in": "path", "required": True, "schema": {"type": "string"}}


def build_decision_router(services: Services) -> APIRouter:
    """This route, bound to its services."""
    router = APIRouter()

    @router.get(
        "/v1/decisions/{recommendation_id}",
        tags=["decisions"],
        summary="What was answered, and the same slate again from its logged inputs",
        response_model=None,
        responses={200: {"model": DecisionResponse}, **problems(404, 503)},
        openapi_extra={"parameters": [_ID]},
    )
    async def get_decision(request: Request) -> Response:
        """The decision from the log, milliseconds to days after its answer, and a replay: the version that answered,
        the logged inputs and what the person had done by then give the slate again. Where an input cannot be had any
        more there is no slate, and `why_not` says why; where both differ, `differences` has each place. Stock and
        hidden flags of that instant are not logged."""
        recommendation_id = request.path_params["recommendation_id"]
        found = await asyncio.to_thread(services.decided.find, recommendation_id)
        if found is None:
            raise UnknownDecisionError(
                f"no decision {recommendation_id[:80]!r} is kept: it was never made, was lost with its worker, "
                "or is older than what is kept",
                field="recommendation_id",
            )
        replay = await services.replays.replay(found)
        document = {
            "decision": _decision(found, hides_subject=CONSENT_WITHDRAWN in replay.why_not),
            "replay": _replay(found, replay, services.wall_micros()),
        }
        return Response(orjson.dumps(document), media_type=JSON)

    return router


def _decision(found: Mapping[str, Any], *, hides_subject: bool) -> dict[str, Any]:
    return {
        "recommendation_id": found["id"],
        "decided_at": format_timestamp(from_micros(found["at"])),
        "kind": found["kind"],
        "placement": found["placement"],
        "subject": None if hides_subject else found["subject"],
        "model_version": found["version"],
        "fallback_level": found["level"],
        "fallback_reason": found["reason"],
        "degraded_reasons": list(found["degraded"]),
        "item_ids": list(found["items"]),
        "scores": [round(score, 6) for score in found["scores"]],
        "sources": [SOURCE_NAMES.get(number, str(number)) for number in found["sources"]],
        "rule_ids": [list(ids) for ids in found["rules"]],
        "propensities": list(found["propensities"]),
        "inputs": {} if hides_subject else found["inputs"],
    }


def _replay(found: Mapping[str, Any], replay: Replay, now_micros: int) -> dict[str, Any]:
    if replay.slate is None or replay.catalogue is None:
        return {"is_possible": False, "why_not": list(replay.why_not), "is_same": None, "item_ids": [], "scores": [],
                "differences": []}  # fmt: skip
    unlike = differences(found, replay.slate, replay.catalogue, now_micros=now_micros)
    return {
        "is_possible": True,
        "why_not": [],
        "is_same": not unlike,
        "item_ids": [item.item_id for item in replay.slate.items],
        "scores": [round(item.score, 6) for item in replay.slate.items],
        "differences": unlike,
    }
