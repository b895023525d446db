"""A TCP proxy in front of Redis that does harm on command.

`python -m infra.bench.serving.fault_proxy PORT REDIS_PORT EMPTY_REDIS_PORT` listens on 127.0.0.1 and reads one word a
line from stdin (a name of `FAULTS`, or `none`); it answers each with the same word once that holds. It ends with its
stdin.

    dead      nobody listens, and every connection is cut
    hung      connections are taken, and nothing comes back; what waited comes, late, when the harm ends
    slow      every reply is 200 ms late
    resets    connections are reset in the middle of their replies, again and again
    garbage   replies are bytes that are no protocol, or a protocol's answer to something else
    half      half of a reply comes, then nothing, or the end of the connection
    oom       every command is refused: -OOM command not allowed
    empty     a Redis that has forgotten everything
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
from collections.abc import Sequence
from typing import cast

import hiredis

from infra.bench.priority import come_first

FAULTS = ("dead", "hung", "slow", "resets", "garbage", "half", "oom", "empty")
SLOW_SECONDS = 0.2
_OOM = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
_GARBAGE = (
    b"\x00\xff\x13garbage\r\n",
    b"*3\r\n:1\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"+OK\r\n" * 3,
    b"$5\r\nnope",
)


class FaultProxy:
    """One listener. `seed` decides which harm each reply gets."""

    def __init__(self, port: int, *, redis_port: int, empty_port: int, seed: int = 7) -> None:
        self._port, self._redis_port, self._empty_port = port, redis_port, empty_port
        self.random = random.Random(seed)  # noqa: S311
        self.fault = "none"
        self.connections: set[_Client] = set()
        self._server: asyncio.Server | None = None

    @property
    def target(self) -> int:
        """The port of the Redis that is asked now."""
        return self._empty_port if self.fault == "empty" else self._redis_port

    async def change(self, fault: str) -> None:
        """From now on do this harm: one of FAULTS, or `none`."""
        before, self.fault = self.fault, fault
        if fault == "dead":
            await self.stop()
        elif self._server is None:
            await self.start()
        for connection in list(self.connections):
            if "empty" in (before, fault) or before in ("garbage", "half", "oom") or fault == "dead":
                connection.cut()
            elif before == "hung":
                connection.release()

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", self._port, reuse_address=True)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._server = None


class _Upstream(asyncio.Protocol):
    """Our connection to Redis."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.on_reply(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._client.cut()


class _Client(asyncio.Protocol):
    """A connection of the API."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._upstream: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._held: list[bytes] = []
        self._commands = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._proxy.connections.add(self)
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            made, _ = await loop.create_connection(lambda: _Upstream(self), "127.0.0.1", self._proxy.target)
        except OSError:
            self.cut()
            return
        self._upstream = made
        if self._transport.is_closing():
            self._upstream.abort()
            return
        for data in self._waiting:
            self._upstream.write(data)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self._proxy.fault == "oom":
            self._commands.feed(data)
            while self._commands.gets() is not False:
                self._write(_OOM)
        elif self._upstream is None:
            self._waiting.append(data)
        else:
            self._upstream.write(data)

    def on_reply(self, data: bytes) -> None:
        fault, chance = self._proxy.fault, self._proxy.random
        if fault == "hung":
            self._held.append(data)
        elif fault == "slow":
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._write, data)
        elif fault == "resets" and chance.random() < 0.2:
            self._write(data[: chance.randrange(len(data))])
            self.cut()
        elif fault == "garbage":
            self._write(chance.choice(_GARBAGE) if chance.random() < 0.8 else data[::-1])
        elif fault == "half":
            self._write(data[: len(data) // 2])
            if chance.random() < 0.5:
                self._transport.close()
        elif fault != "oom":
            self._write(data)

    def release(self) -> None:
        """What was held comes now."""
        for data in self._held:
            self._write(data)
        self._held.clear()

    def cut(self) -> None:
        """Reset it."""
        self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self._proxy.connections.discard(self)
        if self._upstream is not None:
            self._upstream.abort()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def _obey(ports: Sequence[int]) -> None:
    proxy = FaultProxy(ports[0], redis_port=ports[1], empty_port=ports[2])
    await proxy.start()
    print("none", flush=True)
    words = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    while line := await words.readline():
        await proxy.change(line.decode().strip())
        print(line.decode().strip(), flush=True)


if __name__ == "__main__":
    import uvloop

    come_first()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1000)  # as the API: our pauses would be taken for those of Redis
    uvloop.run(_obey([int(word) for word in sys.argv[1:]]))
