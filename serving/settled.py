"""What a request is answered from: a version, one person's records, and the names of what may be wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from feature_repo.contracts.errors import DependencyError
from serving.adapters.online import OnlineRecords
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.persons import Edges, Identity

STORE_DOWN = "online_store_unavailable"
VERSION_NOT_LOADED = "published_version_not_loaded"
MIXED_VERSION = "candidates_of_another_version"
DAMAGED_CANDIDATES = "candidates_damaged"
DAMAGED_SESSION = "session_damaged"
DAMAGED_FEATURE = "feature_damaged"
STALE_FEATURE = "feature_stale"
DAMAGED_EDGE = "edge_damaged"


class NoVersionError(DependencyError):
    """Nothing can be recommended yet: no version was ever published, or none can be read, and no item is known."""


class EmptyShopError(NoVersionError):
    """No version was ever published, and no item put: nothing is wrong, and there is nothing to show."""


class Settled(NamedTuple):
    """A version to serve, with records read for that version. `records` is None when the store is down."""

    catalogue: Catalogue
    records: OnlineRecords | None
    reads: int
    degraded: list[str]
    read: PersonRecords | None = None


class PersonRecords(NamedTuple):
    """One person's records, with who that is (None: the request names nobody) and the edges that say so."""

    records: OnlineRecords
    identity: Identity | None = None
    edges: Mapping[str, Edges] = MappingProxyType({})
    reads: int = 1
