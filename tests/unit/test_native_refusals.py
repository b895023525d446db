"""What native code takes for a whole request is what its twin takes for one; whatever the bytes are."""

from __future__ import annotations

import random
import socket

import pytest

from serving.api.front_protocol import whole_post_by_twin
from serving.native import described, parts

pytestmark = pytest.mark.skipif(parts.refusals is None, reason=f"serving answers from {described()}")

LINES = [
    "POST /v1/recommendations HTTP/1.1", "POST /v1/recommendations HTTP/1.1", "POST /v1/batch?x=%20 HTTP/1.1",
    "POST / HTTP/1.1", "POST v1 HTTP/1.1", "POST  / HTTP/1.1", "POST /a b HTTP/1.1", "POST /a\nb HTTP/1.1",
    "POST / HTTP/1.0", "POST / HTTP/1.1 ", "PUT / HTTP/1.1", "GET / HTTP/1.1", "POST /", "", "POST / HTTP/1.1\n",
    "POST /\r HTTP/1.1",
]  # fmt: skip
HEADERS = [
    "Host: h", "authorization: Bearer k", "Connection: keep-alive", "connection: close", "CONNECTION: keep-alivex",
    "connection:keep-alive", "Connection", "Transfer-Encoding: chunked", "transfer-encodings: x", "expect : 1",
    "Expect: 100-continue", "expected: x", "Upgrade: h2c", "upgrade", "X-Request-Id: mine", "x-request-id-2: mine",
    "x-request-id", "content-length-2: 5", "Content-Length : 2", "content-length: x", "content-length:",
    "content-length: 1234567890", "content-length: -2", "content-length:  2", "content-length: 2 ", "", " folded",
    "a: content-length: 2", "\ncontent-length: 2",
]  # fmt: skip


def made(random_: random.Random) -> bytes:
    """A request, now and then a whole one."""
    body = random_.choice([b"", b"{}", b"{}", b"{}\r\n\r\n", b"x" * 300])
    length = random_.choice(["Content-Length: %d", "content-length:%d", "CONTENT-LENGTH: %d"]) % len(body)
    headers = random_.choices(HEADERS[:3], k=2) + random_.sample(HEADERS, random_.choice([0, 0, 0, 1, 2]))
    headers += [length] * random_.choice([1, 1, 1, 1, 0, 2])
    random_.shuffle(headers)
    data = "\r\n".join([random_.choice(LINES), *headers, "", ""]).encode() + body
    cut = random_.choice([0, 0, 0, 1, random_.randrange(len(data))])
    return random_.choice([data, data, data[: len(data) - cut], data + b"P"])


def test_it_takes_what_its_twin_takes() -> None:
    random_ = random.Random(7)
    taken: list[bytes] = []
    for _ in range(20_000):
        data = made(random_)
        expected = whole_post_by_twin(data)
        assert parts.refusals.whole_post(data) == expected, data
        taken += [] if expected is None else [expected]
    assert set(taken) == {b"/v1/recommendations", b"/v1/batch?x=%20", b"/"}
    assert len(taken) > 1000


@pytest.mark.parametrize(
    ("data", "url"),
    [
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}", b"/v1/rank"),
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 0\r\nConnection: keep-alive\r\n\r\n", b"/v1/rank"),
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\n\r\n{", None),  # more is to come
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}P", None),  # the next one has begun
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}", None),
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\nContent-Length : 5\r\n\r\n{}", None),
        (b"POST /v1/rank HTTP/1.1\r\nhost: h\r\n\r\n", None),
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\nx-request-id: r\r\n\r\n{}", None),
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}", None),
        (b"POST /v1/rank HTTP/1.1\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n{}", None),
        (b"POST /v1/rank HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n{}", None),
        (b"POST /v1/rank HTTP/1.1\r\n\r\n", None),
        (b"", None),
    ],
)
def test_a_whole_one_has_one_length_and_nothing_unusual(data: bytes, url: bytes | None) -> None:
    assert (parts.refusals.whole_post(data), whole_post_by_twin(data)) == (url, url)


def test_what_a_socket_does_not_take_is_said() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        assert parts.refusals.send(ours.fileno(), b"abc") == 3
        sent = 3
        while taken := parts.refusals.send(ours.fileno(), b"x" * 100_000):
            sent += taken
        received = b""
        while len(received) < sent:
            received += theirs.recv(sent)
        assert received == b"abc" + b"x" * (sent - 3)
        theirs.close()
        assert parts.refusals.send(ours.fileno(), b"a") == 0
