"""The FastAPI application: stores, recommender and routes put together. Only the entry points read the environment."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError, NightjarError
from serving.adapters.bundle import load_catalogue, newest_bundle
from serving.adapters.change_feed import CatalogueTail, ChangeFeed, MemoryChangeFeed, RedisChangeFeed
from serving.adapters.circuit import GuardedStore
from serving.adapters.decision_log import DecisionLog, FileDecisionLog
from serving.adapters.event_log import EventLog
from serving.adapters.key_store import KeyStore, KeyTail, RedisKeyStore
from serving.adapters.list_stores import open_list_stores
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import OnlineStore, RedisOnlineStore
from serving.adapters.placements_file import load_placements
from serving.adapters.redis_event_log import RedisEventLog
from serving.adapters.shelf import VersionShelf
from serving.api.access import AccessGuard, describe_access
from serving.api.access_log import AccessLog
from serving.api.catalogue_routes import build_catalogue_router
from serving.api.cors import allow_origins
from serving.api.decision_routes import build_decision_router
from serving.api.decisions import session_digest, tuning_digest
from serving.api.docs_page import DOCS_HTML
from serving.api.errors import answer_domain_error, answer_http_error
from serving.api.event_routes import build_event_router
from serving.api.hot_routes import HotRoutes
from serving.api.key_ring import KeyRing
from serving.api.list_routes import build_list_router
from serving.api.list_schemas import LIST_MODELS
from serving.api.middleware import RequestEnvelope
from serving.api.page_routes import build_page_router
from serving.api.profile_routes import build_profile_router
from serving.api.routes import build_router
from serving.api.schemas import Problem
from serving.api.services import Services
from serving.api.snippet import build_snippet_router
from serving.first_shelf import FirstShelf
from serving.ids import new_id
from serving.lists import Lists
from serving.native import parts
from serving.pipeline.arrivals import MAX_ARRIVALS
from serving.pipeline.overlay import CatalogueOverlay
from serving.recommender import Recommender
from serving.replays import Replays
from serving.settings import ServingSettings

START_TRIES = 10
DESCRIPTION = (
    "Real-time personalization. Ask for a slate with POST /v1/recommendations, send what people do to POST /v1/events: "
    "the next slate knows. Errors are problem+json (RFC 9457) with a request id."
)


def wall_micros() -> int:
    """UTC now, in microseconds since 1970."""
    return time.time_ns() // 1000


def create_app(
    environment: Environment,
    settings: ServingSettings,
    *,
    store: OnlineStore | None = None,
    log: EventLog | None = None,
    feed: ChangeFeed | None = None,
    decisions: DecisionLog | None = None,
    keys: KeyStore | None = None,
    wall_micros: Callable[[], int] = wall_micros,
    timer: Callable[[], int] = time.perf_counter_ns,
    new_id: Callable[[], str] = new_id,
) -> FastAPI:
    """The application on real stores, or on those that are passed in; clocks and the id generator likewise."""
    tenant = environment.tenant
    store = store or GuardedStore(
        RedisOnlineStore(
            environment.redis_online_url,
            tenant=tenant,
            timeout_seconds=settings.online_timeout_ms / 1000,
        )
    )
    log = log or RedisEventLog(
        environment.redis_log_url,
        tenant=tenant,
        timeout_seconds=settings.log_timeout_ms / 1000,
        max_queued_events=settings.log_queue_events,
        max_queued_bytes=settings.log_queue_bytes,
    )
    if feed is None and isinstance(log, MemoryEventLog):
        feed = MemoryChangeFeed(log)
    feed = feed or RedisChangeFeed(
        environment.redis_log_url, tenant=tenant, timeout_seconds=settings.log_timeout_ms / 1000
    )
    decisions = decisions or FileDecisionLog(
        environment.decisions,
        wall_micros=wall_micros,
        flush_seconds=settings.decision_flush_ms / 1000,
        max_queued_bytes=settings.decision_queue_bytes,
        max_file_bytes=settings.decision_file_bytes,
        max_file_seconds=settings.decision_file_seconds,
    )
    keys = keys or RedisKeyStore(
        environment.redis_log_url, tenant=tenant, timeout_seconds=settings.log_timeout_ms / 1000
    )
    ring = KeyRing(is_on=settings.api_keys == "on", workers=settings.worker_count, wall_micros=wall_micros, timer=timer)
    key_tail = KeyTail(keys, ring.take)
    access_log = AccessLog(
        sample_every=settings.access_log_every,
        slow_ms=settings.access_log_slow_ms,
        max_per_second=settings.access_log_per_second,
        timer=timer,
    )
    overlay = CatalogueOverlay(room=MAX_ARRIVALS)
    tail = CatalogueTail(feed, overlay, wall_micros=wall_micros)
    shelf = VersionShelf(
        partial(load_catalogue, environment.publications, tenant=tenant),
        prepare=overlay.attach,
        release=overlay.detach,
    )
    beside = open_list_stores(environment, settings, store, decisions, wall_micros=wall_micros, timer=timer)
    first = FirstShelf(overlay, beside.board, wall_micros=wall_micros)
    recommender = Recommender(
        store, shelf, settings, wall_micros=wall_micros, timer=timer, overlay=overlay, first=first,
        features=beside.ranker_features,
    )  # fmt: skip
    lists = Lists(recommender, beside.board, beside.purchases, settings.tuning(), wall_micros=wall_micros, timer=timer)
    replays = Replays(
        recommender,
        lists,
        shelf,
        settings.tuning(),
        tuning_digest=tuning_digest,
        session_digest=session_digest,
        timer=timer,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with contextlib.suppress(DependencyError):
            await tail.start()  # known before the first answer
        followers = [asyncio.create_task(tail.follow())]
        if ring.is_on:
            with contextlib.suppress(DependencyError):
                await key_tail.step()
            followers.append(asyncio.create_task(key_tail.follow()))
        await _settle(recommender)
        stopping = asyncio.Event()
        decisions.start()
        watched_every = settings.pointer_poll_ms / 1000
        watchers = [
            asyncio.create_task(_watch_pointer(recommender, watched_every, stopping)),
            asyncio.create_task(_expect_versions(shelf, environment, watched_every, stopping)),
        ]
        # Everything loaded so far lives as long as the process: out of the collector's sight.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 50, 1000)
        gc.enable()  # `serving.worker` starts without it
        yield
        stopping.set()
        await asyncio.gather(*watchers)
        for follower in followers:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower
        await store.close()
        await beside.close()
        await log.close()
        await asyncio.to_thread(decisions.close)

    app = FastAPI(
        title="Nightjar", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    placements = load_placements(settings.placements)
    services = Services(
        recommender,
        store,
        log,
        settings,
        wall_micros,
        timer,
        new_id,
        overlay,
        tail,
        decisions,
        ring,
        access_log,
        lists,
        beside.purchases,
        beside.features,
        beside.decided,
        replays,
        placements,
    )
    app.state.services = services
    app.include_router(build_event_router(services))
    app.include_router(build_catalogue_router(services))
    app.include_router(build_router(services))
    app.include_router(build_list_router(services))
    app.include_router(build_page_router(services))
    app.include_router(build_profile_router(services))
    app.include_router(build_decision_router(services))
    app.include_router(build_snippet_router())
    app.add_exception_handler(NightjarError, answer_domain_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    if ring.is_on:
        app.add_middleware(AccessGuard, ring=ring, routes=app.routes)
    app.add_middleware(RequestEnvelope, new_id=new_id, timer=timer, access_log=access_log)
    allow_origins(app, settings.allowed_origins())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(DOCS_HTML)

    app.openapi = partial(_openapi, app)  # type: ignore[method-assign]
    return app


def with_hot_routes(app: FastAPI) -> HotRoutes:
    """The application behind the routes that need no framework. It answers the same, and more slowly, without them."""
    return HotRoutes(app, app.state.services)


def app_from_environment() -> HotRoutes:
    """What a worker process serves."""
    parts.load_all()
    return with_hot_routes(create_app(Environment.from_mapping(os.environ), ServingSettings.from_mapping(os.environ)))


async def _settle(recommender: Recommender) -> None:
    """Load the published version before the first answer, if there is one. A store that is only slow to take the first
    connection is asked again."""
    for _ in range(START_TRIES):
        with contextlib.suppress(DependencyError):
            await recommender.settle()
            return
        await asyncio.sleep(0.02)


async def _watch_pointer(recommender: Recommender, seconds: float, stopping: asyncio.Event) -> None:
    """Load a new version soon after its flip, so that the first request after it need not wait.

    It is asked to stop, not cancelled: a client library that is busy with a timeout of its own can lose a cancellation,
    and the process would never end.
    """
    while not stopping.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await stopping.wait()
                return
        with contextlib.suppress(DependencyError):
            await recommender.settle()


async def _expect_versions(
    shelf: VersionShelf, environment: Environment, seconds: float, stopping: asyncio.Event
) -> None:
    """Load a new version while the night still writes its lists, so that nobody waits when it is flipped to."""
    broken: str | None = None
    while not stopping.is_set():
        newest = await asyncio.to_thread(newest_bundle, environment.publications, tenant=environment.tenant)
        stops = asyncio.create_task(stopping.wait())
        if newest != broken:
            expecting = asyncio.create_task(shelf.expect(newest))
            await asyncio.wait({expecting, stops}, return_when=asyncio.FIRST_COMPLETED)
            shelf.hurry()  # we stop, or nothing is under way
            try:
                await expecting
            except NightjarError:
                broken = newest  # whoever needs it will say so
        await asyncio.wait({stops}, timeout=seconds)
        stops.cancel()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document plus the models of bodies that our routes read by themselves."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        models: tuple[type[BaseModel], ...] = (*LIST_MODELS, Problem)
        for model in models:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        if app.state.services.ring.is_on:
            describe_access(document)
        app.openapi_schema = document
    return app.openapi_schema
