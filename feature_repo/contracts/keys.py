"""Redis keys. Each builder has an inverse or says why it needs none; every key starts with its tenant.

Everything about one subject shares a hash tag, so on a cluster one slot holds it. Versions of a byte format are in the
key: a changed format is a new key.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from urllib.parse import quote, unquote

from feature_repo.contracts.errors import ContractError

DEFAULT_TENANT = "default"
_TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

_UNQUOTED = re.compile(r"[A-Za-z0-9_.~-]*")
"""Ids that a key holds as they are."""

EVENT_PARTITIONS = 4
"""How many streams the events of one tenant are spread over. Changing it re-homes subjects: drain first."""


def check_tenant(tenant: str) -> str:
    """`tenant` itself, or ContractError when it is no plain lower-case name."""
    if not _TENANT.fullmatch(tenant):
        raise ContractError(f"a tenant is a lower-case name such as 'default', got {tenant!r}")
    return tenant


def quoted(text: str) -> str:
    """Text as a part of a key: `quote`, without its cost for what needs none."""
    return text if _UNQUOTED.fullmatch(text) else quote(text, safe="")


@lru_cache(maxsize=64)
def _prefix(tenant: str) -> str:
    return f"nj:{check_tenant(tenant)}:"


# --- role `online`: publication ---------------------------------------------------------------------------------


def pointer_key(tenant: str = DEFAULT_TENANT) -> str:
    """String: the version now served. The truth about what is live."""
    return _prefix(tenant) + "pointer"


def previous_pointer_key(tenant: str = DEFAULT_TENANT) -> str:
    """String: the version served before the last flip; what a bare rollback returns to."""
    return _prefix(tenant) + "pointer:previous"


def versions_key(tenant: str = DEFAULT_TENANT) -> str:
    """Hash: version -> JSON manifest (`publication.Manifest`) of every version that is still warm."""
    return _prefix(tenant) + "versions"


def candidates_key(version: str, user_id: str, tenant: str = DEFAULT_TENANT) -> str:
    """String: one user's packed candidates (`packing`, row v1) in one published version."""
    return f"{candidates_prefix(version, tenant)}{{u:{quote(user_id, safe='')}}}"


def candidates_prefix(version: str, tenant: str = DEFAULT_TENANT) -> str:
    """What all candidate keys of one version start with (to count or drop a version)."""
    return f"{_prefix(tenant)}cand:v1:{version}:"


def parse_candidates_key(key: str, tenant: str = DEFAULT_TENANT) -> tuple[str, str]:
    """Inverse of `candidates_key`: (version, user_id)."""
    match = re.fullmatch(re.escape(_prefix(tenant)) + r"cand:v1:([^:{}]+):\{u:([^{}]*)\}", key)
    if match is None:
        raise ContractError(f"not a v1 candidates key of tenant {tenant!r}: {key!r}")
    return match[1], unquote(match[2])


def purchases_key(version: str, user_id: str, tenant: str = DEFAULT_TENANT) -> str:
    """String: what one user buys (`purchase_record`, v1), in one published version."""
    return f"{purchases_prefix(version, tenant)}{{u:{quote(user_id, safe='')}}}"


def purchases_prefix(version: str, tenant: str = DEFAULT_TENANT) -> str:
    """What all purchase keys of one version start with (to count or drop a version)."""
    return f"{_prefix(tenant)}buys:v1:{version}:"


def parse_purchases_key(key: str, tenant: str = DEFAULT_TENANT) -> tuple[str, str]:
    """Inverse of `purchases_key`: (version, user_id)."""
    match = re.fullmatch(re.escape(_prefix(tenant)) + r"buys:v1:([^:{}]+):\{u:([^{}]*)\}", key)
    if match is None:
        raise ContractError(f"not a v1 purchases key of tenant {tenant!r}: {key!r}")
    return match[1], unquote(match[2])


# --- role `online`: sessions -------------------------------------------------------------------------------------


def session_key(subject: str, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: the packed session record (`session_record`, v2) of one subject (`events.subject_key`)."""
    return f"{_prefix(tenant)}sess:v2:{{{subject[:2]}{quoted(subject[2:])}}}"


def session_key_v1(subject: str, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: the record that was kept before v2. It counts while there is none under `session_key`."""
    return session_key_before(session_key(subject, tenant))


def session_key_before(key: str) -> str:
    """The `session_key_v1` of the subject whose `session_key` this is. A tenant has no colon, so there is one place."""
    return key.replace(":sess:v2:", ":sess:v1:", 1)


def parse_session_key(key: str, tenant: str = DEFAULT_TENANT) -> str:
    """Inverse of `session_key`: the subject."""
    match = re.fullmatch(re.escape(_prefix(tenant)) + r"sess:v2:\{([ua]:)([^{}]*)\}", key)
    if match is None:
        raise ContractError(f"not a v2 session key of tenant {tenant!r}: {key!r}")
    return match[1] + unquote(match[2])


def edges_key(subject: str, tenant: str = DEFAULT_TENANT) -> str:
    """Hash: the identity edges of one subject (`identity`, edge v1): field is the subject at the other end.

    A device (`a:`) or a former name has fields `u:<user_id>`, a user has fields `a:<anonymous_id>`.
    """
    return f"{_prefix(tenant)}edges:v1:{{{subject[:2]}{quote(subject[2:], safe='')}}}"


def parse_edges_key(key: str, tenant: str = DEFAULT_TENANT) -> str:
    """Inverse of `edges_key`: the subject."""
    match = re.fullmatch(re.escape(_prefix(tenant)) + r"edges:v1:\{([ua]:)([^{}]*)\}", key)
    if match is None:
        raise ContractError(f"not a v1 edges key of tenant {tenant!r}: {key!r}")
    return match[1] + unquote(match[2])


def trend_key(window: int, bucket: int, partition: int, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: the packed trend table (`trend_record`, v1) of one bucket and partition. Never parsed back."""
    return f"{_prefix(tenant)}trend:v1:{window}:{bucket}:{partition}"


def region_trend_key(window: int, bucket: int, partition: int, region: str, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: the same of the votes that went to one region. Never parsed back."""
    return f"{_prefix(tenant)}regiontrend:v1:{window}:{bucket}:{partition}:{quoted(region)}"


def trend_regions_key(window: int, bucket: int, partition: int, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: which regions have such tables (`trend_record`, region list v1). Never parsed back."""
    return f"{_prefix(tenant)}trendregions:v1:{window}:{bucket}:{partition}"


def tracking_key(nonce: str, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: what a worker writes to see that Redis tells it of changes. Never parsed back."""
    return f"{_prefix(tenant)}tracking:{nonce}"


def members_key(role: str, tenant: str = DEFAULT_TENANT) -> str:
    """Sorted set with TTL: who shares a role such as `consumer`; score = when they were heard of last, ms by the
    store's clock. Never parsed back."""
    return f"{_prefix(tenant)}members:{role}"


def owner_key(partition: int, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: the fence of the process that now owns the partition. Never parsed back."""
    return f"{_prefix(tenant)}owner:{partition}"


def fence_key(partition: int, tenant: str = DEFAULT_TENANT) -> str:
    """String: `<epoch>:<member>` of the newest owner; whoever has another one may write nothing. Never parsed back."""
    return f"{_prefix(tenant)}fence:{partition}"


def delivering_key(partition: int, tenant: str = DEFAULT_TENANT) -> str:
    """String: there while an owner has not left in good order: empty, or what it delivers with care because an owner
    died before (`serving.speed.care`). Never parsed back."""
    return f"{_prefix(tenant)}delivering:{partition}"


def applied_key(partition: int, tenant: str = DEFAULT_TENANT) -> str:
    """String: the stream position up to which the consumer's effects of this partition are in the sessions."""
    return f"{_prefix(tenant)}applied:{partition}"


def speed_counters_key(tenant: str = DEFAULT_TENANT) -> str:
    """Hash: counter name -> number, what the stream consumer did since this store was created. Never parsed back."""
    return _prefix(tenant) + "speed:counters"


def feature_times_key(tenant: str = DEFAULT_TENANT) -> str:
    """Hash: feature view -> microseconds since 1970 of the as_of that was last brought online whole."""
    return _prefix(tenant) + "features:times"


# --- role `log`: streams -----------------------------------------------------------------------------------------


def partition_of(subject: str) -> int:
    """The stream partition of a subject: CRC-32 of its UTF-8, modulo EVENT_PARTITIONS."""
    return zlib.crc32(subject.encode("utf-8", "surrogatepass")) % EVENT_PARTITIONS


def stream_key(partition: int, tenant: str = DEFAULT_TENANT) -> str:
    """Stream: accepted events of one partition, one or several an entry (`stream_entry`)."""
    return f"{_prefix(tenant)}{{events:{partition}}}"


def more_events_key(stream: str) -> str:
    """String in the slot of an event stream: how many more events than entries it ever got. Never parsed back."""
    return f"{stream}:more"


def dedup_key(partition: int, event_id: str, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: the nonce of the first delivery of an event id, in the slot of its stream. Never parsed back."""
    return f"{stream_key(partition, tenant)}:dedup:{quoted(event_id)}"


def quarantine_stream_key(tenant: str = DEFAULT_TENANT) -> str:
    """Stream: events that the API rejected: fields `raw`, `reason`, `field`, `detail`."""
    return _prefix(tenant) + "{quarantine}"


def dead_letter_stream_key(tenant: str = DEFAULT_TENANT) -> str:
    """Stream: events that the consumer could not apply: fields `stream`, `position`, `number`, `event`, `error`."""
    return _prefix(tenant) + "{dead-letters}"


def change_stream_key(tenant: str = DEFAULT_TENANT) -> str:
    """Stream: changes of items and users; field `change` is a `changes.Change` as JSON."""
    return _prefix(tenant) + "{catalogue}"


def changed_records_key(kind: str, tenant: str = DEFAULT_TENANT) -> str:
    """Hash in the slot of the change stream: record id -> `changes.RecordState` as JSON, of all that was archived.

    `kind` is `items` or `users`. Never parsed back.
    """
    return f"{change_stream_key(tenant)}:{kind}"


def lease_key(name: str, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL: the token of the one process that now holds a role such as `archiver`. Never parsed back."""
    return f"{_prefix(tenant)}lease:{name}"


def maintenance_key(tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL in role `log`: what the archiver is asked to do to its tables, JSON. Never parsed back."""
    return f"{_prefix(tenant)}archiver:maintenance"


def maintenance_report_key(request_id: str, tenant: str = DEFAULT_TENANT) -> str:
    """String with TTL in role `log`: what the archiver answered to one request, JSON. Never parsed back."""
    return f"{maintenance_key(tenant)}:{quote(request_id, safe='')}"


def archived_key(stream: str) -> str:
    """String in role `log`: the position up to which a stream is safely in Delta. Never parsed back."""
    return f"{stream}:archived"


def api_keys_key(tenant: str = DEFAULT_TENANT) -> str:
    """Hash in role `log`: key id -> `api_keys.ApiKey` as JSON, also of those that were revoked. Never parsed back."""
    return _prefix(tenant) + "{api-keys}"


def api_keys_version_key(tenant: str = DEFAULT_TENANT) -> str:
    """String in role `log`, in the slot of `api_keys_key`: a count that every change of a key raises in the same MULTI,
    so that workers can look for changes cheaply. Never parsed back."""
    return api_keys_key(tenant) + ":version"
