"""POST /v1/events without the framework, for the requests that nearly all are.

It stands before the FastAPI application and answers what it understands at a glance: plain JSON whose events are all of
a common shape (`contracts.common_events`). Everything else (other content types, gzip, CloudEvents, any event that may
break a rule, any user who ever refused something, any body that may break a limit, a full queue) goes on to the
application untouched. Both give the same answer, byte for byte, and leave the same events in the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from feature_repo.contracts import common_events
from feature_repo.contracts.api_keys import SCOPES, WRITE
from feature_repo.contracts.errors import NightjarError
from feature_repo.contracts.times import EARLIEST_EVENT, MAX_FUTURE_SKEW, from_micros, to_micros
from serving.adapters.event_log import LogEntry, OverloadedError
from serving.api.access import GRANT
from serving.api.errors import answer_domain_error
from serving.api.known_heads import KnownHeads
from serving.api.middleware import GIVEN_ID
from serving.api.services import Services
from serving.api.tally import EventTally
from serving.api.visits import Visit, Visits
from serving.ids import numbered
from serving.native import parts

check_common_event = common_events.check_common_event
if parts.subjects is not None:
    check_common_event = parts.subjects.check_common_event  # it also knows some with `items`

PATH = "/v1/events"
_JSON_TYPES = frozenset(
    {b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-8"}
)  # fmt: skip
_STATUS_WORDS = (b',"status":"duplicate"}', b',"status":"accepted"}')
_JSON_HEADER = (b"content-type", b"application/json")


class HotEvents:
    """Pure ASGI. `app` answers what is not answered here."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self.log = services.log
        self._settings = services.settings
        self._wall_micros = services.wall_micros
        self._ever_refused = services.overlay.ever_refused
        self._refusing = services.overlay.refusing
        self._reader = None
        if parts.intake is not None:
            self._reader = parts.intake.EventReader(self._settings.max_events, self._settings.max_written_bytes)
        self.new_id = numbered(services.new_id)
        self._new_nonce = numbered(services.new_id)
        self.tally = EventTally(PATH, services.timer)
        self.timer = services.timer
        self.visits = Visits(services.ring, services.access_log)
        self.heads = KnownHeads()
        self._latest, self._latest_second = EARLIEST_EVENT, -1
        self._latest_micros = to_micros(self._latest)
        self._defaults: Sequence[tuple[bytes, bytes]] = ()
        self._default_lines = self._accepted_head = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        started = self.timer()
        is_json, given_id = read_headers(scope["headers"])
        visit = None
        if is_json and self.log.has_room and GRANT not in scope:
            visit = self.visits.begin(scope["headers"], SCOPES[WRITE])
        if visit is None:
            await self._app(scope, receive, send)
            return
        scope[GRANT] = visit.grant
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            messages = [message]
            body = message.get("body", b"")
        else:
            messages, body = await self._collect(message, receive)
        entries = self.entries(body) if body is not None else None
        if entries is None:
            await self._app(scope, _again(messages, receive), send)
            return
        request_id = given_id or self.new_id()
        try:
            is_new = await self.log.append(entries, on_durable=lambda new: self.tally.count(started, new))
        except OverloadedError:  # somebody else took the room; the refusal is the application's
            await self._app(scope, _again(messages, receive), send)
            return
        except NightjarError as error:
            failure = await self.failure(error, started, request_id, visit)
            await failure(scope, receive, send)
            return
        answer = answer_of(entries, is_new)
        length = (b"content-length", b"%d" % len(answer))
        headers = [length, _JSON_HEADER, *visit.last_headers(request_id)]
        self.visits.end(visit, "POST", PATH, 202, started, request_id)
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _collect(self, message: Message, receive: Receive) -> tuple[list[Message], bytes | None]:
        """All messages of a request and its body; the body is None when it is too large, or never came."""
        messages, size = [message], 0
        while message["type"] == "http.request":
            size += len(message.get("body", b""))
            if size > self._settings.max_body_bytes:
                return messages, None
            if not message.get("more_body", False):
                return messages, b"".join(m.get("body", b"") for m in messages)
            message = await receive()
            messages.append(message)
        return messages, None

    def entries(self, body: bytes) -> Sequence[LogEntry] | None:
        """What the log is to keep; None when the application has to look at this body."""
        if len(body) > self._settings.max_body_bytes:
            return None
        second = self._wall_micros() // 1_000_000
        if second != self._latest_second:  # of a later instant within this second the whole table judges
            self._latest = from_micros(second * 1_000_000) + MAX_FUTURE_SKEW
            self._latest_micros = to_micros(self._latest)
            self._latest_second = second
        if self._reader is not None:
            ever_refused = self._ever_refused if self._refusing else None
            found: Sequence[LogEntry] | None = self._reader.read(
                body, self._latest_micros, self._new_nonce(), ever_refused
            )
            if found is not None:
                return found
        return self.entries_by_twin(body)

    def entries_by_twin(self, body: bytes) -> list[LogEntry] | None:
        """`entries` in Python; it knows more forms than native code."""
        try:
            document: Any = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        if type(document) is dict:
            if "events" not in document:
                events: Any = (document,)
            elif len(document) == 1:
                events = document["events"]
            else:
                return None
        else:
            events = document
        if type(events) is not tuple and type(events) is not list:
            return None
        if not 1 <= len(events) <= self._settings.max_events:
            return None
        return self._checked(events)

    def _checked(self, events: Sequence[Any]) -> list[LogEntry] | None:
        latest = self._latest
        nonce = self._new_nonce()
        entries = []
        written_bytes = 0
        for index, event in enumerate(events):
            if type(event) is not dict or "items" in event:
                return None
            good = check_common_event(event, latest=latest)
            if good is None:
                return None
            data = orjson.dumps(good, option=orjson.OPT_UTC_Z)
            written_bytes += len(data)
            user_id = good.get("user_id")
            if self._ever_refused(user_id):
                return None
            subject = "u:" + user_id if user_id is not None else "a:" + good["anonymous_id"]
            entries.append(LogEntry(subject, good["event_id"], f"{nonce}.{index}", data, True))  # it has no `items`
        return entries if written_bytes <= self._settings.max_written_bytes else None

    def lines_of(self, defaults: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The server's own headers as they are sent. It makes a new list of them once in a while."""
        if defaults is not self._defaults:
            self._default_lines = b"".join([b"%b: %b\r\n" % header for header in defaults])
            self._accepted_head = STATUS_LINE[202] + self._default_lines
            self._defaults = defaults
        return self._default_lines

    def accepted_head(self, defaults: Sequence[tuple[bytes, bytes]]) -> bytes:
        """What every 202 begins with: its first line and the server's own headers."""
        if defaults is not self._defaults:
            self.lines_of(defaults)
        return self._accepted_head

    async def failure(self, error: NightjarError, started: int, request_id: str, visit: Visit) -> Response:
        """The answer to a request that the log did not take; counted."""
        answer = await answer_domain_error(Request({"type": "http", "state": {"request_id": request_id}}), error)
        answer.raw_headers += visit.last_headers(request_id)
        self.tally.count_failure(started, answer.status_code)
        self.visits.end(visit, "POST", PATH, answer.status_code, started, request_id)
        return answer


def read_headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bool, str | None]:
    """(whether the body is plain JSON, the client's own request id)."""
    is_json, given = False, None
    for name, value in headers:
        if name == b"content-type":
            if value not in _JSON_TYPES:
                return False, None
            is_json = True
        elif name == b"content-encoding" or name[:3] == b"ce-" or name == b"origin":
            return False, None
        elif name == b"x-request-id" and given is None and GIVEN_ID.fullmatch(value):
            given = value.decode("ascii")
    return is_json, given


def answer_of(entries: Sequence[LogEntry], is_new: Sequence[bool]) -> bytes:
    """The body of a 202. As orjson writes {"results": [{"index", "event_id", "status"}, ...]}."""
    if len(entries) == 1:
        event_id = orjson.dumps(entries[0].event_id)
        return b'{"results":[{"index":0,"event_id":%b%b]}' % (event_id, _STATUS_WORDS[is_new[0]])
    results = [
        b'{"index":%d,"event_id":%b%b' % (index, orjson.dumps(entry.event_id), _STATUS_WORDS[is_new[index]])
        for index, entry in enumerate(entries)
    ]
    return b'{"results":[%b]}' % b",".join(results)


def _again(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that gives these messages before those that are still to come."""
    waiting = iter(messages)

    async def receive_again() -> Message:
        message = next(waiting, None)
        return message if message is not None else await receive()

    return receive_again
