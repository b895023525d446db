"""The client's end of one HTTP connection in an open loop: one question at a time, answers found by their length."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import cast


class AnswerConnection(asyncio.Protocol):
    """Subclasses say what becomes of an answer. Only answers with a content-length are understood."""

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.opened()

    def write(self, request: bytes) -> None:
        """Send one request; the next one may go when its answer has come."""
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        if not end:
            return
        at = head.lower().index(b"content-length:") + 15
        size = int(head[at:].split(b"\r\n", 1)[0])
        if len(body) < size:
            return
        self._rest = body[size:]
        self.answered(int(head[9:12]), body[:size])

    @abstractmethod
    def opened(self) -> None:
        """The connection can be used."""

    @abstractmethod
    def answered(self, status: int, body: bytes) -> None:
        """The answer to the question that was sent last."""
