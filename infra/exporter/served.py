"""What is served now: the pointer, the versions that are warm, the features online."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from redis.exceptions import RedisError

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.keys import candidates_prefix, parse_candidates_key, pointer_key
from feature_repo.contracts.times import parse_as_of, parse_timestamp, start_of_day
from serving.adapters.feast_online import (
    USER_JOIN_KEY,
    USER_VIEW,
    entity_key,
    read_timestamp_micros,
    timestamp_field,
)
from spark_jobs.io.publication import Publication

SAMPLED_USERS = 50
"""Of how many served users the features are looked at: a materialization writes all of them or none."""


def publication_metrics(environment: Environment) -> Iterator[Metric]:
    """The served version and its age, as timestamps. Nothing but the count of versions before the first flip."""
    versions = Publication(environment.redis_online_url, environment.tenant).list_versions()
    warm = [version for version in versions if version.verified_at is not None]
    yield GaugeMetricFamily(
        "nightjar_publication_warm_versions", "Verified versions that a rollback can return to", value=len(warm)
    )
    served = next((version for version in versions if version.is_served), None)
    if served is None:
        return
    manifest = served.manifest
    info = GaugeMetricFamily(
        "nightjar_publication_info", "The served version (always 1; the labels tell)", labels=["version", "model"]
    )
    info.add_metric([served.version, manifest.model], 1)
    yield info
    moments = {
        "as_of": ("as_of of the served version, Unix time", start_of_day(parse_as_of(manifest.as_of)).timestamp()),
        "published": ("When the served version was published, Unix time", _unix(manifest.volatile.get("published_at"))),
        "last_event": ("Time of the last event the served version knows, Unix time", _unix(manifest.last_event_at)),
    }
    for name, (words, moment) in moments.items():
        if moment is not None:
            yield GaugeMetricFamily(f"nightjar_publication_{name}_timestamp_seconds", words, value=moment)
    yield GaugeMetricFamily("nightjar_publication_users", "Users with a list of their own", value=manifest.user_count)
    yield GaugeMetricFamily("nightjar_publication_items", "Items of the served version", value=manifest.item_count)


def feature_metrics(environment: Environment) -> Iterator[Metric]:
    """The newest event time among sampled users' features; none where no sampled user has features.

    Raises DependencyError when Redis does not answer, ContractError on bytes that Feast did not write.
    """
    try:
        with redis.Redis.from_url(environment.redis_online_url, socket_timeout=5, socket_connect_timeout=2) as client:
            pointer: Any = client.get(pointer_key(environment.tenant))
            if pointer is None:
                return
            pattern = candidates_prefix(pointer.decode(), environment.tenant) + "*"
            keys = islice(client.scan_iter(match=pattern, count=1000), SAMPLED_USERS)
            users = sorted({parse_candidates_key(key.decode(), environment.tenant)[1] for key in keys})
            pipe = client.pipeline(transaction=False)
            for user in users:
                pipe.hget(entity_key([USER_JOIN_KEY], [user]), timestamp_field(USER_VIEW))
            moments = [read_timestamp_micros(raw) for raw in pipe.execute() if raw is not None]
    except RedisError as error:
        raise DependencyError(f"Redis (role online) does not answer ({type(error).__name__})") from error
    if moments:
        family = GaugeMetricFamily(
            "nightjar_features_timestamp_seconds", "Event time of the features online, Unix time", labels=["view"]
        )
        family.add_metric([USER_VIEW], max(moments) / 1e6)
        yield family


def _unix(text: str | None) -> float | None:
    return None if text is None else parse_timestamp(text).timestamp()
