"""Broken HTTP by the million: requests made of the valid ones in our OpenAPI document, then damaged on one level or
several (values, JSON, body, coding, headers, framing, request line). A seed gives the same requests again.

Ids come from a small stock, so that what a server may rightly keep of them stays small.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MAX_PIPELINED = 4
MAX_BODY_BYTES = 3_000_000
_STOCK = 200

_NASTY_TEXTS = (
    "", " ", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "\u202e", "\ufeff", "é" * 300, "x" * 257, "x" * 5000,
    "💥" * 70, "null", "NaN", "-0", "%00", "../../etc", "{{7*7}}", "a\r\nb", "2024-03-01T09:30:00Z",
    "0000-00-00T00:00:00Z", "9999-12-31T23:59:60Z", "2024-02-30T00:00:00Z", "2024-03-01T09:30:00+99:99",
    "+292278994-08-17T07:12:55Z", "Infinity", "1e400", "٣", "Ⅷ", "12345678901234567890123", "view_item", "__proto__",
    "u1", "i7", "a9", "s42", " u1 ", "I7",
)  # fmt: skip
_NASTY_NUMBERS = (
    0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**308, -0.0, 1e-320, 1.5, 1e308,
    253402300800, 1709285400, 1709285400000, 1709285400000000, True, False,
)  # fmt: skip
_RAW_NUMBERS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"1" * 400,
    b"0." + b"1" * 400,
    b"1e-999",
    b"01",
    b"+1",
)
_KEYS = (
    "event_id", "event_type", "user_id", "anonymous_id", "session_id", "item_id", "timestamp", "sent_at", "items",
    "events", "context", "properties", "consent", "quantity", "price", "value", "currency", "data", "batch", "type",
    "userId", "recommendation_id", "attributes", "updated_at", "num_results", "category", "users", "params", "traits",
    "", "\x00",
)  # fmt: skip
_CONTENT_TYPES = (
    b"application/json", b"application/json; charset=utf-8", b"application/json;charset=utf-16",
    b"application/x-ndjson", b"application/cloudevents+json", b"application/cloudevents-batch+json",
    b"application/cloudevents+avro", b"text/plain", b"multipart/form-data; boundary=x",
    b"application/x-www-form-urlencoded", b"", b";", b"\xff\xfe", b"application/jsonl", b"APPLICATION/JSON",
    b"application/json;" + b"a" * 3000,
)  # fmt: skip
_CODINGS = (b"gzip", b"x-gzip", b"GZIP", b"identity", b"deflate", b"br", b"gzip, gzip", b"", b"\xe9", b"gzip;q=1")
_ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7", "cp1252")
_METHODS = (
    b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"PROPFIND", b"LOCK",
    b"BREW", b"get", b"P\x00ST", b"", b"X" * 300, b"PRI", b"SUBSCRIBE", b"M-SEARCH",
)  # fmt: skip
_LENGTHS = (
    b"-1", b"0", b"+5", b" 7 ", b"0x10", b"1e3", b"99999999999999999999999999", b"2097153", b"9223372036854775808",
    b"", b"5,5", b"5\r\nContent-Length: 6", b"\xd9\xa3", b"1_0",
)  # fmt: skip
_VERSIONS = (
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"HTTP/9.9",
    b"http/1.1",
    b"HTTP/1.1 x",
    b"",
    b"HTTP/1",
)
_PATHS = (
    b"/", b"//", b"*", b"/../v1/events", b"/v1/events/", b"/v1//events", b"/v1/items/%2F", b"/v1/items/%00",
    b"/v1/items/%zz", b"/v1/items/%ff%fe", b"/v1/items/%F0%9F%92%A5", b"/v1/items/" + b"a" * 2000,
    b"/v1/items/a/b/../c", b"/v1/users/%20", b"/v1/users/%ED%A0%80", b"http://127.0.0.1/v1/events",
    b"http://[::1/v1/events", b"127.0.0.1:80", b"/v1/events?%", b"/?\x00", b"/\xff\xfe", b"/v1/events#x", b"/docs",
    b"/openapi.json", b"/metrics", b"/health/ready", b"/health/live", b"/v1/pixel.gif", b"/v1/recommendations",
    b"/v1/items/i7", b"/v1/users/u1", b"/v1/items/", b"/v1/users/", b"/" + b"a/" * 3000,
)  # fmt: skip
_QUERY_NAMES = (
    b"event_type", b"user_id", b"anonymous_id", b"session_id", b"item_id", b"timestamp", b"sent_at", b"value",
    b"quantity", b"price", b"consent_store", b"num_results", b"category", b"region", b"session_items",
    b"exclude_item_ids", b"personalize", b"explain", b"placement", b"updated_at", b"context", b"recent_events",
    b"%00", b"", b"a[b]", b"__class__",
)  # fmt: skip
_QUERY_VALUES = (
    b"", b"1", b"-1", b"u1", b"i7", b"view_item", b"true", b"maybe", b"%00", b"%ff", b"%ED%A0%80", b"1e999", b"NaN",
    b"9" * 400, b"+", b"2024-03-01T09:30:00Z", b"a" * 300, b"%", b"%u0041", b"\xe9", b"[]", b"{}",
    b"%F0%9F%92%A5" * 30, b"%D9%A3", b"%E2%85%A7",
)  # fmt: skip
_HEADERS = (
    b"X-Request-Id: \xff", b"X-Request-Id: " + b"a" * 65, b"X-Request-Id: a\x00b", b"X-Request-Id: ok-1",
    b"Authorization: Basic", b"Authorization: Basic !!!!", b"Authorization: Basic /////w==", b"Authorization: \xe9",
    b"ce-specversion: 1.0", b"ce-specversion: 1.0\r\nce-id: 1\r\nce-source: /a\r\nce-type: view_item",
    b"ce-time: 0\r\nce-specversion: 1.0",
    b"ce-id: %ED%A0%80\r\nce-specversion: 1.0\r\nce-source: %\r\nce-type: x.view_item", b"ce-: 1",
    b"Expect: 100-continue", b"Expect: 200-ok", b"Connection: close",
    b"Connection: keep-alive, Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13",
    b"Connection: Upgrade\r\nUpgrade: websocket", b"Host: ", b"Host: \xff", b"Host: a\r\nHost: b",
    b"A" * 9000 + b": b", b"A: " + b"b" * 9000, b"Folded: a\r\n b", b"No colon", b": no name", b"A : b", b"A\x00: b",
    b"A: \x00", b"A: b\nC: d", b"A: \x7f", b"Content-Type: application/json", b"Cookie: " + b"a=b; " * 500,
    b"Range: bytes=0-1", b"Accept: */*;q=x", b"Origin: null", b"X-Forwarded-For: " + b"1.1.1.1, " * 100,
    b"Accept-Encoding: gzip;q=\xff", b"TE: trailers", b"Trailer: X",
)  # fmt: skip


class RawRequest(NamedTuple):
    """Bytes for a connection of their own part. `answers`: how many must come back; None when nobody can say."""

    data: bytes
    requests: int
    answers: int | None


class Seed(NamedTuple):
    """A valid request of the document."""

    method: bytes
    path: bytes
    content_type: bytes
    body: Any
    """JSON, or the text of lines."""


_PATH_PARTS = {"item_id": "i7", "user_id": "u1", "page": "home", "recommendation_id": f"{0x18E1E3C2F80:012x}{7:020x}"}


def seeds_of(document: Mapping[str, Any]) -> list[Seed]:
    """The examples of every operation of an OpenAPI document; an operation without a body is a seed too."""
    seeds = []
    for path, operations in document["paths"].items():
        address = path.format_map(_PATH_PARTS).encode()
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if not content:
                seeds.append(Seed(method.upper().encode(), address, b"", None))
            for media_type, media in content.items():
                values = [one["value"] for one in media.get("examples", {}).values()]
                reference = media["schema"].get("$ref", "").rpartition("/")[2]
                if reference:
                    values += document["components"]["schemas"][reference].get("examples", [])
                seeds += [Seed(method.upper().encode(), address, media_type.encode(), value) for value in values]
    return seeds


class RawRequests:
    """An endless stream of them."""

    def __init__(self, seeds: Sequence[Seed], seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311
        self._seeds = seeds
        self._bomb = gzip.compress(bytes(12_000_000), 9, mtime=0)
        deep = 30_000
        self._bodies = (
            b"", b" ", b"null", b"[]", b"{}", b'""', b"0", b"[" * deep, b"[" * deep + b"]" * deep, b'{"a":' * deep,
            b"\xef\xbb\xbf{}", b'{"events":' + b"[" * 150 + b"]" * 150 + b"}", b"\x00" * 100, b"\xff" * 100,
            b'{"a":"\\ud800"}', b"[1,", b"}", b"tru", b'{"a":1,"a":2}', b"[" + b"0," * 1001 + b"0]",
            b'[{"event_id":"' + b"x" * 70_000 + b'"}]', b"\n" * 5000, b'"\\u0000"',
        )  # fmt: skip

    def next(self) -> RawRequest:
        """One, or a few pipelined ones."""
        chance = self._rng.random()
        if chance < 0.08:
            return self._pipelined()
        if chance < 0.20:
            return self._broken_framing()
        return RawRequest(self._framed(), 1, 1)

    def _pipelined(self) -> RawRequest:
        count = self._rng.randint(2, MAX_PIPELINED)
        return RawRequest(b"".join(self._framed() for _ in range(count)), count, count)

    def _framed(self) -> bytes:
        """A request whose end a server can find, and after which the connection goes on."""
        method, path, content_type, body = self._rng.choice(self._seeds)
        data = self._body(body)
        headers = []
        chance = self._rng.random()
        if chance < 0.08:
            content_type = self._rng.choice(_CONTENT_TYPES)
        if chance > 0.9:
            data, coding = self._coded(data)
            headers.append(b"Content-Encoding: " + coding)
        if self._rng.random() < 0.08:
            path = self._path(path)
        if self._rng.random() < 0.05:
            path = path.partition(b"?")[0] + b"?" + self._query()
        if self._rng.random() < 0.05:
            method = self._rng.choice((b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
        if method == b"GET" and self._rng.random() < 0.8:
            path = path.partition(b"?")[0] + b"?" + self._query()
            data = b""
        if content_type:
            headers.append(b"Content-Type: " + content_type)
        if self._rng.random() < 0.05:
            return self._joined(method, path, [*headers, b"Transfer-Encoding: chunked"], self._chunked(data))
        return self._joined(method, path, [*headers, b"Content-Length: %d" % len(data)], data)

    def _broken_framing(self) -> RawRequest:
        """Nobody can say how many answers come, or whether the connection goes on."""
        return RawRequest(self._rng.choice(_BREAKERS)(self), 1, None)

    def _odd_method(self) -> bytes:
        seed = self._rng.choice(self._seeds)
        data = self._body(seed.body)
        return self._joined(self._rng.choice(_METHODS), seed.path, [b"Content-Length: %d" % len(data)], data)

    def _odd_path(self) -> bytes:
        method = self._rng.choice((b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"))
        return self._joined(method, self._path(self._rng.choice(_PATHS)), [b"Content-Length: 2"], b"{}")

    def _odd_version(self) -> bytes:
        request = self._framed()
        return request.replace(b"HTTP/1.1", self._rng.choice(_VERSIONS), 1)

    def _odd_header(self) -> bytes:
        seed = self._rng.choice(self._seeds)
        data = self._body(seed.body)
        headers = [b"Content-Type: " + seed.content_type, b"Content-Length: %d" % len(data)]
        headers += self._rng.sample(_HEADERS, self._rng.randint(1, 3))
        self._rng.shuffle(headers)
        return self._joined(seed.method, seed.path, headers, data)

    def _many_headers(self) -> bytes:
        return self._joined(b"GET", b"/health/live", [b"H%d: v" % n for n in range(self._rng.choice((100, 1000)))], b"")

    def _wrong_length(self) -> bytes:
        seed = self._rng.choice(self._seeds)
        data = self._body(seed.body)
        lengths = (*_LENGTHS, b"%d" % (len(data) + 1), b"%d" % (len(data) + 5000), b"%d" % max(0, len(data) - 1))
        headers = [b"Content-Type: " + seed.content_type, b"Content-Length: " + self._rng.choice(lengths)]
        return self._joined(seed.method, seed.path, headers, data)

    def _both_lengths(self) -> bytes:
        data = self._body(self._rng.choice(self._seeds).body)
        headers = [b"Content-Length: %d" % len(data), b"Transfer-Encoding: chunked", b"Content-Type: application/json"]
        return self._joined(b"POST", b"/v1/events", headers, self._rng.choice((data, self._chunked(data))))

    def _broken_chunks(self) -> bytes:
        data = self._chunked(self._body(self._rng.choice(self._seeds).body))
        broken = self._rng.choice(
            (data[:-5], data.replace(b"\r\n", b"\n"), b"-" + data, b"zz\r\n" + data, b"ffffffffffffffffff\r\n" + data,
             data[:-2] + b"Trailer: \xff\r\n\r\n", b"5;ext=" + b"a" * 500 + b"\r\nabcde\r\n0\r\n\r\n")
        )  # fmt: skip
        codings = (b"chunked", b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked", b"\x0bchunked")
        headers = [b"Transfer-Encoding: " + self._rng.choice(codings), b"Content-Type: application/json"]
        return self._joined(b"POST", b"/v1/events", headers, broken)

    def _cut_off(self) -> bytes:
        request = self._framed()
        return request[: self._rng.randrange(1, len(request))]

    def _flipped(self) -> bytes:
        return self._damaged(self._framed(), self._rng.randint(1, 6))

    def _no_http(self) -> bytes:
        return self._rng.choice(
            (self._rng.randbytes(self._rng.randint(1, 200)), b"\r\n" * 50,
             b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
             b"*1\r\n$4\r\nPING\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n",
             b"\x00" * 500),
        )  # fmt: skip

    def _joined(self, method: bytes, path: bytes, headers: Sequence[bytes], data: bytes) -> bytes:
        lines = b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), b"Host: 127.0.0.1", *headers])
        return lines + b"\r\n\r\n" + data

    def _chunked(self, data: bytes) -> bytes:
        parts = []
        while data:
            size = self._rng.randint(1, max(1, len(data)))
            parts.append(b"%x\r\n%b\r\n" % (size, data[:size]))
            data = data[size:]
        return b"".join(parts) + b"0\r\n\r\n"

    def _path(self, path: bytes) -> bytes:
        chance = self._rng.random()
        if chance < 0.5:
            return self._rng.choice(_PATHS).replace(b"\x00", b"%00").replace(b"\xff\xfe", b"%FF%FE")
        if chance < 0.8:
            return b"/v1/%b/%b" % (self._rng.choice((b"items", b"users")), self._rng.choice(_QUERY_VALUES) or b"%20")
        return path + self._rng.choice((b"/", b"//", b"%00", b"?", b"?a", b"%2e%2e/", b";a=b", b"."))

    def _query(self) -> bytes:
        names = self._rng.choices(_QUERY_NAMES, k=self._rng.randint(1, 6))
        found = b"&".join(name + b"=" + self._rng.choice(_QUERY_VALUES) for name in names)
        return found + b"&x=" + b"y" * 9000 if self._rng.random() < 0.01 else found

    def _coded(self, data: bytes) -> tuple[bytes, bytes]:
        coding = self._rng.choice(_CODINGS)
        chance = self._rng.random()
        if chance < 0.02:
            return self._bomb, b"gzip"
        packed = gzip.compress(data, 1, mtime=0)
        if chance < 0.3:
            return packed, b"gzip"
        if chance < 0.45:
            return packed[: self._rng.randrange(len(packed))], b"gzip"
        if chance < 0.6:
            return self._damaged(packed, 2), b"gzip"
        if chance < 0.7:
            return packed + self._rng.choice((packed, b"rest", b"\x00" * 50)), b"gzip"
        if chance < 0.8:
            return zlib.compress(data), coding
        return self._rng.choice((data, packed, gzip.compress(packed, mtime=0))), coding

    def _body(self, body: Any) -> bytes:
        """The body of a seed, mostly damaged; a little more than a server takes, at most."""
        return self._any_body(body)[:MAX_BODY_BYTES]

    def _any_body(self, body: Any) -> bytes:
        chance = self._rng.random()
        if body is None:
            return b""
        if chance < 0.06:
            return self._rng.choice(self._bodies)
        if isinstance(body, str):
            return self._damaged(body.encode(), self._rng.randint(0, 4))
        document = json.loads(json.dumps(body))
        for _ in range(self._rng.choice((0, 1, 1, 2, 3, 6))):
            document = self._mutated(document)
        text = json.dumps(document, ensure_ascii=self._rng.random() < 0.5)
        data = text.encode("utf-8", "surrogatepass")
        if chance < 0.75:
            return data
        if chance < 0.82:
            return text.encode(self._rng.choice(_ENCODINGS), "replace")
        if chance < 0.88 and (at := [n for n, byte in enumerate(data) if chr(byte).isdigit()]):
            place = self._rng.choice(at)
            return data[:place] + self._rng.choice(_RAW_NUMBERS) + data[place + 1 :]
        return self._damaged(data, self._rng.randint(1, 4))

    def _mutated(self, value: Any) -> Any:
        """The value with one place of it changed."""
        if isinstance(value, dict) and value and self._rng.random() < 0.9:
            key = self._rng.choice(list(value))
            chance = self._rng.random()
            if chance < 0.55:
                value[key] = self._mutated(value[key])
            elif chance < 0.7:
                del value[key]
            elif chance < 0.85:
                value[self._rng.choice(_KEYS)] = self._value()
            else:
                value[self._rng.choice(_KEYS)] = value.pop(key)
            return value
        if isinstance(value, list) and value and self._rng.random() < 0.8:
            at = self._rng.randrange(len(value))
            if self._rng.random() < 0.8:
                value[at] = self._mutated(value[at])
            else:
                value += [value[at]] * self._rng.choice((1, 3, 60))
            return value
        return self._value()

    def _value(self) -> Any:
        chance = self._rng.random()
        if chance < 0.15:
            return self._rng.choice("uia") + str(self._rng.randrange(_STOCK))
        if chance < 0.5:
            return self._rng.choice(_NASTY_TEXTS)
        if chance < 0.75:
            return self._rng.choice(_NASTY_NUMBERS)
        if chance < 0.83:
            return None
        if chance < 0.9:
            return [self._value() for _ in range(self._rng.randint(0, 3))]
        if chance < 0.97:
            return {self._rng.choice(_KEYS): self._value() for _ in range(self._rng.randint(0, 3))}
        nested: Any = self._rng.choice(_NASTY_TEXTS)
        for _ in range(self._rng.choice((12, 40, 250, 600))):
            nested = [nested] if self._rng.random() < 0.5 else {"a": nested}
        return nested

    def _damaged(self, data: bytes, times: int) -> bytes:
        """Some bytes of it changed, taken out, put in or repeated."""
        damaged = bytearray(data)
        for _ in range(times):
            if not damaged:
                break
            at = self._rng.randrange(len(damaged))
            chance = self._rng.random()
            if chance < 0.4:
                damaged[at] = self._rng.randrange(256)
            elif chance < 0.6:
                del damaged[at : at + self._rng.randint(1, 8)]
            elif chance < 0.8:
                damaged[at:at] = self._rng.randbytes(self._rng.randint(1, 4))
            else:
                damaged[at:at] = damaged[at : at + self._rng.randint(1, 40)]
        return bytes(damaged)


_BREAKERS: Sequence[Callable[[RawRequests], bytes]] = (
    RawRequests._odd_method, RawRequests._odd_path, RawRequests._odd_version, RawRequests._odd_header,
    RawRequests._odd_header, RawRequests._many_headers, RawRequests._wrong_length, RawRequests._both_lengths,
    RawRequests._broken_chunks, RawRequests._cut_off, RawRequests._flipped, RawRequests._flipped,
    RawRequests._no_http,
)  # fmt: skip
