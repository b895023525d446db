"""The two clients. They differ in how they wait and send; what they say and how they try again is the same."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from infra.client.errors import ClientError, UnavailableError
from infra.client.events import with_id
from infra.client.retries import Answer, Failure, Outcome, Request, RetryPolicy, Wait, exchange
from infra.client.values import EventResult, Page, Slate, read_page, read_results, read_slate

MAX_EVENTS = 1000
"""The API's default limit of one request; more events become several requests."""
READ_POLICY = RetryPolicy(attempts=2, deadline_seconds=2.0, first_wait_seconds=0.05)
"""For slates: a page waits for them."""
EVENT_POLICY = RetryPolicy()
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}

Event = Mapping[str, Any]


def event_requests(events: Iterable[Event], max_events: int) -> Iterator[Request]:
    """Requests of at most `max_events`. Every event has its id before the first request is made."""
    ready = [with_id(event) for event in events]
    for start in range(0, len(ready), max_events):
        sent_at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        batch = [{"sent_at": sent_at, **event} for event in ready[start : start + max_events]]
        yield Request("/v1/events", _json({"events": batch}))


class NightjarClient:
    """A connection pool to one API. Threads may share it. Use it with `with`, or call `close`."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float = 5.0,
        read_policy: RetryPolicy = READ_POLICY,
        event_policy: RetryPolicy = EVENT_POLICY,
        max_events: int = MAX_EVENTS,
        api_key: str | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        """
        base_url         such as https://api.shop.example
        timeout_seconds  of each step of an attempt (connect, write, read), as httpx counts
        read_policy      how to try again for slates
        event_policy     the same for `send`
        max_events       in one request; more become several
        api_key          sent with every request, where the API needs one
        http             a client of your own (proxies, certificates, timeouts), which stays yours to close
        """
        self._read_policy, self._event_policy, self._max_events = read_policy, event_policy, max_events
        self._base = base_url.rstrip("/")
        self._headers = _HEADERS if api_key is None else {**_HEADERS, "Authorization": f"Bearer {api_key}"}
        self._http = http or httpx.Client(timeout=timeout_seconds)
        self._is_mine = http is None

    def recommend(self, user_id: str | None = None, **question: Any) -> Slate:
        """A slate. `question`: anonymous_id, session_id, placement, num_results, filter, context, recent_events and all
        else that POST /v1/recommendations takes; None is left out."""
        request = _question("/v1/recommendations", user_id=user_id, **question)
        return _read(read_slate, self._run(request, self._read_policy))

    def similar(self, item_id: str, **question: Any) -> Slate:
        """Items like one item. `question`: num_results, exclude_item_ids, placement, explain."""
        request = _question("/v1/similar", item_id=item_id, **question)
        return _read(read_slate, self._run(request, self._read_policy))

    def rank(self, item_ids: Iterable[str], user_id: str | None = None, **question: Any) -> Slate:
        """Up to 500 given items in this person's order, unknown ones last. `question`: as `recommend`."""
        request = _question("/v1/rank", item_ids=list(item_ids), user_id=user_id, **question)
        return _read(read_slate, self._run(request, self._read_policy))

    def page(self, page: str, user_id: str | None = None, **question: Any) -> Page:
        """Several placements in one call, no item twice. `question`: placements, item_id, and as `recommend`."""
        request = _question(f"/v1/pages/{quote(page, safe='')}", user_id=user_id, **question)
        return _read(read_page, self._run(request, self._read_policy))

    def send(self, events: Iterable[Event], *, policy: RetryPolicy | None = None) -> list[EventResult]:
        """Send events now; what became of each, in order. They are on the API's disk when this returns.

        An event without `event_id` gets one here, once; give it one (`make_event`) to be able to send it again
        yourself. When a request fails for good, the error's `results` tell of those before it.
        """
        results: list[EventResult] = []
        for request in event_requests(events, self._max_events):
            try:
                results += _read(read_results, self._run(request, policy or self._event_policy))
            except ClientError as error:
                error.results = results
                raise
        return results

    def close(self) -> None:
        """Close the connections."""
        if self._is_mine:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, request: Request, policy: RetryPolicy) -> Any:
        steps = exchange(request, policy)
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                outcome = None
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                else:
                    outcome = self._attempt(step)
        except StopIteration as done:
            return done.value

    def _attempt(self, request: Request) -> Answer | Failure:
        try:
            response = self._http.post(self._base + request.path, content=request.content, headers=self._headers)
        except httpx.RequestError as error:
            return _failure(error, self._base)
        return _answer(response)


class AsyncNightjarClient:
    """The same for asyncio; one event loop uses it. Use it with `async with`, or call `aclose`."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float = 5.0,
        read_policy: RetryPolicy = READ_POLICY,
        event_policy: RetryPolicy = EVENT_POLICY,
        max_events: int = MAX_EVENTS,
        api_key: str | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """As `NightjarClient`."""
        self._read_policy, self._event_policy, self._max_events = read_policy, event_policy, max_events
        self._base = base_url.rstrip("/")
        self._headers = _HEADERS if api_key is None else {**_HEADERS, "Authorization": f"Bearer {api_key}"}
        self._http = http or httpx.AsyncClient(timeout=timeout_seconds)
        self._is_mine = http is None

    async def recommend(self, user_id: str | None = None, **question: Any) -> Slate:
        """As `NightjarClient.recommend`."""
        request = _question("/v1/recommendations", user_id=user_id, **question)
        return _read(read_slate, await self._run(request, self._read_policy))

    async def similar(self, item_id: str, **question: Any) -> Slate:
        """As `NightjarClient.similar`."""
        request = _question("/v1/similar", item_id=item_id, **question)
        return _read(read_slate, await self._run(request, self._read_policy))

    async def rank(self, item_ids: Iterable[str], user_id: str | None = None, **question: Any) -> Slate:
        """As `NightjarClient.rank`."""
        request = _question("/v1/rank", item_ids=list(item_ids), user_id=user_id, **question)
        return _read(read_slate, await self._run(request, self._read_policy))

    async def page(self, page: str, user_id: str | None = None, **question: Any) -> Page:
        """As `NightjarClient.page`."""
        request = _question(f"/v1/pages/{quote(page, safe='')}", user_id=user_id, **question)
        return _read(read_page, await self._run(request, self._read_policy))

    async def send(self, events: Iterable[Event], *, policy: RetryPolicy | None = None) -> list[EventResult]:
        """As `NightjarClient.send`."""
        results: list[EventResult] = []
        for request in event_requests(events, self._max_events):
            try:
                results += _read(read_results, await self._run(request, policy or self._event_policy))
            except ClientError as error:
                error.results = results
                raise
        return results

    async def aclose(self) -> None:
        """Close the connections."""
        if self._is_mine:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, request: Request, policy: RetryPolicy) -> Any:
        steps = exchange(request, policy)
        outcome: Outcome = None
        try:
            while True:
                step = steps.send(outcome)
                outcome = None
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                else:
                    outcome = await self._attempt(step)
        except StopIteration as done:
            return done.value

    async def _attempt(self, request: Request) -> Answer | Failure:
        try:
            response = await self._http.post(self._base + request.path, content=request.content, headers=self._headers)
        except httpx.RequestError as error:
            return _failure(error, self._base)
        return _answer(response)


def _question(path: str, **fields: Any) -> Request:
    return Request(path, _json({name: value for name, value in fields.items() if value is not None}))


def _json(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _answer(response: httpx.Response) -> Answer:
    try:
        document = response.json()
    except ValueError:
        document = None
    return Answer(response.status_code, document, response.headers.get("retry-after"))


def _failure(error: httpx.RequestError, base: str) -> Failure:
    return Failure(f"{type(error).__name__} at {base}{f': {error}' if str(error) else ''}")


def _read(reader: Any, document: Any) -> Any:
    """Raises UnavailableError for JSON that is not the API's: something else answers at this address."""
    try:
        return reader(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise UnavailableError(1, f"the answer is not one of Nightjar's: {str(document)[:200]}") from error
