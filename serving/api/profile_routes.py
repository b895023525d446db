"""What we believe of a person."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from serving.api.errors import validated
from serving.api.list_schemas import AskingRequest
from serving.api.openapi import JSON, problems
from serving.api.profile_schemas import ProfileResponse
from serving.api.services import Services
from serving.pipeline.values import SlateRequest
from serving.profiles import profile_of

_USER = {"name": "user_id", "in": "path", "required": True, "schema": {"type": "string"}}


def build_profile_router(services: Services) -> APIRouter:
    """This route, bound to its services."""
    router = APIRouter()
    tuning = services.settings.tuning()

    @router.get(
        "/v1/users/{user_id:path}/profile",
        tags=["users"],
        name="get_profile",
        summary="What we believe of a person, and why",
        response_model=None,
        responses={200: {"model": ProfileResponse}, **problems(422, 503)},
        openapi_extra={"parameters": [_USER]},
    )
    async def get_profile(request: Request) -> Response:
        """Segment, top categories, session, cart, purchases and the head of the night's list, each with why; the
        consent and who decided it; the version and the ages. Without consent to personalization there are no beliefs:
        nothing is used, so nothing is told (`withheld`). A name that nobody has is not an error (`known`)."""
        wanted = validated(AskingRequest, {"user_id": request.path_params["user_id"]})
        assert wanted.user_id is not None
        asker = await services.recommender.meet(SlateRequest(1, user_id=wanted.user_id))
        profile = await profile_of(
            wanted.user_id,
            asker,
            services.purchases,
            services.features,
            tuning,
            now_micros=services.wall_micros(),
            changes_micros=services.overlay.heard_micros,
        )
        return Response(orjson.dumps(profile), media_type=JSON)

    return router
