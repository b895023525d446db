"""`python -m serving.speed.consumer`: keeps session records and trends up to date with the event streams.

Any number of these processes share the partitions evenly (`ownership`); what one does with its own is in `applier`.
Latency from the 202 to the record: milliseconds, because reads block on the streams.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from functools import partial

import redis
from redis.exceptions import RedisError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import NightjarError
from serving.settings import ServingSettings
from serving.speed.applier import Applier
from serving.speed.giving_way import LowPriority, Rests
from serving.speed.metrics import ConsumerMetrics, StreamPositions, metrics_port, show_metrics
from serving.speed.ownership import Ownership
from serving.speed.roles import RETRY_SECONDS
from serving.speed.stores import RedisEventStreams, RedisStateStore

logger = logging.getLogger("nightjar.speed")

BLOCK_MS = 1000
SHORT_BLOCK_MS = 50
"""Longest wait for entries while partitions of our share are still somebody else's."""


class Consumer(Applier):
    """An applier on the two Redis roles. `resume` makes it the owner of everything; else `ownership.tend` its share."""

    def __init__(
        self,
        log: redis.Redis,
        online: redis.Redis,
        *,
        tenant: str,
        batch: int,
        session_ttl_seconds: int,
        lease_seconds: float = 5.0,
        metrics: ConsumerMetrics | None = None,
    ) -> None:
        store = RedisStateStore(online, tenant=tenant)
        super().__init__(
            RedisEventStreams(log, tenant=tenant),
            store,
            Ownership(store, term_seconds=lease_seconds),
            tenant=tenant,
            batch=batch,
            session_ttl_seconds=session_ttl_seconds,
            metrics=metrics,
        )


def run_consumer(
    consumer: Applier, metrics: ConsumerMetrics, backlog: LowPriority, rests: Rests, *, block_ms: int
) -> int:
    """Take a share of the partitions and work on it until SIGTERM or SIGINT, then give it back; the exit code.

    A store that does not answer, or a step that fails, is logged and tried again. While more waits than a batch takes,
    `backlog` applies it, with `rests` in between.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    ownership = consumer.ownership
    owned: list[int] | None = None
    while not stopping.is_set():
        try:
            ownership.tend()
            if sorted(ownership.claims) != owned:
                if ownership.claims and not owned:
                    metrics.takeovers.inc()
                owned = sorted(ownership.claims)
                _say_what_is_owned(owned)
            metrics.role_held.set(bool(owned))
            metrics.partitions_owned.set(len(owned))
            if not owned:
                stopping.wait(SHORT_BLOCK_MS / 1000)
                continue
            longest_ms = min(block_ms, SHORT_BLOCK_MS) if ownership.is_short else block_ms
            if consumer.is_behind:
                rests.begin()
                backlog.call(partial(consumer.consume, block_ms=longest_ms))
                stopping.wait(rests.due(consumer.reached_micros))
            else:
                rests.over()
                consumer.consume(block_ms=longest_ms)
            metrics.step_done()
        except (RedisError, OSError, NightjarError) as error:
            metrics.failures.inc()
            logger.warning("consumer: %s: %s; trying again", type(error).__name__, error)
            stopping.wait(RETRY_SECONDS)
    backlog.close()
    try:
        ownership.leave()
    except (RedisError, OSError):
        logger.warning("consumer: the partitions could not be given back; they are free after a term")
    return 0


def _say_what_is_owned(owned: list[int]) -> None:
    if owned:
        logger.warning("consumer: running, owns partitions %s", ", ".join(map(str, owned)))
    else:
        logger.warning("consumer: other processes own every partition; waiting")


def main() -> int:
    """Entry point; the exit code."""
    host, port = metrics_port()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        environment = Environment.from_mapping(os.environ)
        settings = ServingSettings.from_mapping(os.environ)
        metrics = ConsumerMetrics()
        metrics.registry.register(StreamPositions.from_environment("consumer", environment))
        show_metrics(metrics.registry, host, port)
    except NightjarError as error:
        print(f"error {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    consumer = Consumer(
        redis.Redis.from_url(environment.redis_log_url, socket_timeout=BLOCK_MS / 1000 + 5),
        redis.Redis.from_url(environment.redis_online_url, socket_timeout=5),
        tenant=environment.tenant,
        batch=settings.consumer_batch,
        session_ttl_seconds=settings.session_ttl_seconds,
        lease_seconds=settings.lease_seconds,
        metrics=metrics,
    )
    block_ms = int(min(BLOCK_MS, settings.lease_seconds * 1000 / 3))
    # A batch makes tens of thousands of objects that all die with it: looking for cycles among them finds none.
    gc.collect()
    gc.freeze()
    gc.set_threshold(500_000, 50, 1000)
    backlog = LowPriority(settings.backlog_niceness, longest_seconds=settings.lease_seconds / 4)
    rests = Rests(settings.backlog_rest_seconds)
    return run_consumer(consumer, metrics, backlog, rests, block_ms=max(1, block_ms))


if __name__ == "__main__":
    sys.exit(main())
