"""What the parts of `bench serving-limits` share: stores, servers with production defaults, requests, their cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import redis

from feature_repo.contracts.environment import Environment
from infra.bench.events.ingest import Cores
from infra.bench.sender import Sender, Sending, Sent, http_request, write_requests
from infra.bench.serving.limits.shop import LargeShop
from infra.bench.serving.mix import MixName, read_mix
from infra.bench.serving.throughput import Served, bench_stores, make_key, make_requests, our_command
from infra.local.redis_server import RunningServer

Say = Callable[[str], None]

ROOM = "12gb"
"""For a Redis with a million lists."""


class Cost(NamedTuple):
    """One measurement. Processor times are microseconds per answer, of the server and of its Redis."""

    sent: Sent
    cpu_us: float
    redis_cpu_us: float


class Shop(NamedTuple):
    """A published shop: its Redis, the variables of programs that serve it, the version, a key that may read."""

    shop: LargeShop
    online: RunningServer
    variables: dict[str, str]
    version: str
    key: str

    @property
    def environment(self) -> Environment:
        return Environment.from_mapping(self.variables)


class Setting:
    """One run of the bench, in `home`, which exists."""

    def __init__(
        self, home: Path, variables: Mapping[str, str], *, connections: int, seconds: float, seed: int, say: Say
    ) -> None:
        """`seconds`: of each measurement."""
        self.home, self.variables, self.say = home, variables, say
        self.connections, self.seconds, self.seed = connections, seconds, seed
        self.mix: dict[str, Any] = read_mix(MixName.PLAIN)
        self.sender = Sender(home)
        self.cores = Cores.of_this_machine()

    def publish(self, stack: ExitStack, name: str, *, people: int | None = None, items: int | None = None) -> Shop:
        """A shop of this size in a Redis of its own, with sessions for everybody."""
        shop, home = LargeShop(self.mix, people=people, items=items), self.home / name
        home.mkdir()
        online, _, variables = bench_stores(stack, home, self.variables)
        key = make_key(variables)
        self.say(f"{name}: publishing {shop.people:,} people, {shop.items:,} items")
        environment = Environment.from_mapping(variables)
        with redis.Redis.from_url(online.url) as client:
            client.config_set("maxmemory", ROOM)
            client.config_set("save", "")
            version = shop.publish_version(environment)
            shop.put_sessions(client, now_micros=time.time_ns() // 1000)
        return Shop(shop, online, variables, version, key)

    def serve(self, stack: ExitStack, shop: Shop, *, workers: int = 1, is_pinned: bool = True) -> Served:
        """A server of a published shop; pinned, it has a core to itself and its Redis the others."""
        served = Served(
            "nightjar", shop.online, our_command(workers), shop.variables, self.cores if is_pinned else None,
            self.home / "serving.log", workers=workers, key=shop.key,
        )  # fmt: skip
        stack.callback(served.stop)
        return served

    def write_mix(self, shop: Shop, name: str, count: int) -> Path:
        """The file of `count` requests of `bench serving`'s mix."""
        bodies = make_requests(self.mix, shop.shop, None, count, self.seed)
        return self.write(shop, name, "/v1/recommendations", bodies)

    def write(self, shop: Shop, name: str, path: str, bodies: Sequence[Mapping[str, Any]]) -> Path:
        """A file of requests for the generator."""
        requests = (http_request(path, body, key=shop.key) for body in bodies)
        return write_requests(self.home / f"{name}.requests", requests)

    def measure(self, served: Served, requests: Path, *, rate: float = 0.0, seconds: float | None = None) -> Cost:
        """Send `rate` requests a second (0: a closed loop) and see what they cost."""
        server, store = served.cpu_seconds(), served.redis_cpu_seconds()
        sent = self.start(served, requests, rate=rate, seconds=seconds or self.seconds).wait()
        server, store = served.cpu_seconds() - server, served.redis_cpu_seconds() - store
        answers = max(1, sent.ok_due.count)
        return Cost(sent, server / answers * 1e6, store / answers * 1e6)

    def start(self, served: Served, requests: Path, *, rate: float, seconds: float) -> Sending:
        """Begin to send."""
        return self.sender.start(
            served.port, requests, rate=rate, seconds=seconds, connections=self.connections, cores=served.other_cores
        )
