"""Whether a request may: its key, its scope, its share of the key's limit. In memory, in about two microseconds.

`KeyRing.check` is all that a route without a framework needs:

    grant = ring.check(value_of_the_authorization_header, SCOPES[READ])
    if grant.is_refusal: the answer is `refusal_response`, else it has `grant.header_lines()`

A limit is a token bucket, kept as the time at which it will be full again (GCRA, ITU-T I.371). Each worker has its own,
of 1 / workers of the key's rate and burst: nothing is shared, so nothing is waited for. The kernel spreads connections,
not requests: a client with a single connection gets one worker's share.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
from collections.abc import Callable, Iterable, Sequence

from starlette.responses import Response

from feature_repo.contracts.api_keys import PREFIX, SCOPES, ApiKey
from serving.api.errors import problem

ANY = sum(SCOPES.values())
"""What any key may do, whatever its scopes."""
_PREFIX = PREFIX.encode()
_ID = slice(len(_PREFIX), len(_PREFIX) + 12)
_NS = 1_000_000_000


class Grant:
    """One key as a worker knows it, and what `check` returns when it may. `key_id` is "" when no key is needed."""

    __slots__ = ("_head", "_room", "digest", "ends_micros", "full_at_ns", "key_id", "scopes", "step_ns", "window_ns")
    is_refusal = False

    def __init__(self, key_id: str, scopes: int, digest: bytes = b"") -> None:
        self.key_id = key_id
        self.scopes = scopes
        self.digest = digest
        self.ends_micros: int | None = None
        self.step_ns = 0.0
        """Nanoseconds that one request takes out of the bucket; 0 without a limit."""
        self.window_ns = 0.0
        self.full_at_ns = 0.0
        self._head = b""
        self._room = 0

    def limit(self, key: ApiKey, workers: int) -> None:
        """Take the limit of `key`, keeping what was used of it already."""
        if key.requests_per_second is None:
            self.step_ns, self._head = 0.0, b""
            return
        burst = max(1.0, (key.burst or 1) / workers)
        self.step_ns = _NS * workers / key.requests_per_second
        self.window_ns = burst * self.step_ns
        policy = f"{key.requests_per_second:g};w=1;burst={key.burst};workers={workers}"
        self._head = f"ratelimit-policy: {policy}\r\nratelimit-limit: {int(burst)}\r\n".encode()

    def take(self, now_ns: int) -> float:
        """Take one request out of the bucket: 0, or in how many nanoseconds there is room for it."""
        later = max(self.full_at_ns, now_ns) + self.step_ns
        late = later - now_ns - self.window_ns
        if late > 0:
            self._room = 0
            return late
        self.full_at_ns = later
        self._room = int(-late / self.step_ns)
        return 0.0

    def give_back(self) -> None:
        """Undo the last `take`: the request is looked at anew, and will be taken again."""
        self.full_at_ns -= self.step_ns

    def header_lines(self) -> bytes:
        """`RateLimit-*` of the answer, as lines; nothing for a key without a limit. Of this worker's share."""
        if not self._head:
            return b""
        seconds = math.ceil((self.window_ns - self._room * self.step_ns) / _NS)
        return self._head + b"ratelimit-remaining: %d\r\nratelimit-reset: %d\r\n" % (self._room, seconds)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same as pairs."""
        lines = self.header_lines().split(b"\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]


class Refusal:
    """Why not. `status` is 401, 403, 429, or 503 while no worker of this process has read the keys yet."""

    __slots__ = ("detail", "headers", "key_id", "slug", "status", "title")
    is_refusal = True

    def __init__(
        self, status: int, slug: str, title: str, detail: str, headers: Sequence[tuple[str, str]] = (), key_id: str = ""
    ) -> None:
        self.status, self.slug, self.title, self.detail = status, slug, title, detail
        self.headers, self.key_id = headers, key_id


OPEN = Grant("", ANY)
"""What everybody has where no keys are needed."""
_CHALLENGE = (("WWW-Authenticate", 'Bearer realm="nightjar", Basic realm="nightjar"'),)
_NO_KEY = Refusal(
    401, "no-key", "An API key is needed",
    "send it as Authorization: Bearer KEY, as X-API-Key, or as the user of Basic authorization", _CHALLENGE,
)  # fmt: skip
_UNKNOWN = Refusal(401, "unknown-key", "The API key is not known", "it is not a key of this tenant", _CHALLENGE)
_ENDED = Refusal(
    401, "ended-key", "The API key is no longer valid", "it was revoked, or rotated and its time is up", _CHALLENGE
)
_NOT_READ = Refusal(
    503, "keys-not-read", "The API keys were not read yet", "the event log, which keeps them, does not answer",
    (("Retry-After", "1"),),
)  # fmt: skip


class KeyRing:
    """The keys of one worker. `is_on`: whether any is needed; `wall_micros`, `timer`: UTC us and monotonic ns."""

    def __init__(self, *, is_on: bool, workers: int, wall_micros: Callable[[], int], timer: Callable[[], int]) -> None:
        self.is_on = is_on
        self._workers = workers
        self._wall_micros = wall_micros
        self._timer = timer
        self._grants: dict[bytes, Grant] = {}
        self._has_read = False

    def take(self, keys: Sequence[ApiKey]) -> None:
        """These are all keys from now on. What each used of its limit stays used."""
        grants: dict[bytes, Grant] = {}
        for key in keys:
            name = key.key_id.encode("ascii", "replace")
            scopes = sum(SCOPES[scope] for scope in key.scopes)
            grant = self._grants.get(name) or Grant(key.key_id, scopes)
            grant.scopes, grant.digest = scopes, bytes.fromhex(key.digest)
            grant.ends_micros = 0 if key.revoked_at is not None else key.expires_at
            grant.limit(key, self._workers)
            grants[name] = grant
        self._grants, self._has_read = grants, True

    def check(self, given: bytes | None, needs: int) -> Grant | Refusal:
        """Whether a request may that needs a scope (a bit of `SCOPES`, or several: one of them will do).

        `given`: the value of Authorization or X-API-Key as sent; None when there is neither. An allowed request is
        taken out of the key's limit; a refused one is not.
        """
        if not self.is_on:
            return OPEN
        if given is None:
            return _NO_KEY
        key = given[7:] if given[:7] == b"Bearer " else key_in(given)
        grant = self._grants.get(key[_ID])
        if grant is None or not hmac.compare_digest(hashlib.sha256(key).digest(), grant.digest):
            return _UNKNOWN if self._has_read else _NOT_READ
        if grant.ends_micros is not None and grant.ends_micros <= self._wall_micros():
            return _ENDED
        if not grant.scopes & needs:
            return _forbidden(grant, needs)
        if grant.step_ns and (late := grant.take(self._timer())):
            return _limited(grant, late)
        return grant


def given_in(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The value of Authorization, else of X-API-Key."""
    found = None
    for name, value in headers:
        if name == b"authorization":
            return value
        if name == b"x-api-key":
            found = value
    return found


def key_in(given: bytes) -> bytes:
    """The key in a header's value: as it is, behind `Bearer`, or as the user of Basic authorization; b"" for none."""
    scheme, _, rest = given.strip().partition(b" ")
    if not rest:
        return scheme
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        user, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
    except binascii.Error:
        return b""
    return user or password


def refusal_response(refusal: Refusal, request_id: str) -> Response:
    """The answer, without X-Request-Id."""
    response = problem(refusal.status, refusal.slug, refusal.title, refusal.detail, request_id)
    for name, value in refusal.headers:
        response.headers[name] = value
    return response


def _forbidden(grant: Grant, needs: int) -> Refusal:
    has = ", ".join(scope for scope, bit in SCOPES.items() if grant.scopes & bit)
    wanted = " or ".join(scope for scope, bit in SCOPES.items() if needs & bit)
    detail = f"this needs the scope {wanted}; the key {grant.key_id} has {has}"
    return Refusal(403, "scope-missing", "The API key has not this scope", detail, key_id=grant.key_id)


def _limited(grant: Grant, late_ns: float) -> Refusal:
    seconds = max(1, math.ceil(late_ns / _NS))
    headers = [("Retry-After", str(seconds))]
    headers += [(name.decode(), value.decode()) for name, value in grant.headers()]
    detail = f"the key {grant.key_id} has used up this worker's share of its limit; try again in {seconds} s"
    return Refusal(429, "too-many-requests", "Too many requests for this API key", detail, headers, grant.key_id)
