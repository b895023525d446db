"""What a connection holds while it waits: uvicorn's own parts, made when they are needed.

A server has thousands of connections and few requests. Of each, uvicorn's flow control and its queue of pipelined
requests take two kilobytes, and hardly any client reads slowly or sends its next request before it has its answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class LeanFlow(FlowControl):
    """Its event exists once a client reads slowly."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = False
        self.write_paused = False

    def pause_writing(self) -> None:
        if not self.write_paused:
            self._is_writable_event = asyncio.Event()
            self.write_paused = True


class LeanQueue(list[Any]):
    """As much of a deque as uvicorn uses; it is short."""

    __slots__ = ()

    def appendleft(self, waiting: Any) -> None:
        self.insert(0, waiting)
