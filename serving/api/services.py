"""What the routes need, put together by `serving.main`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from serving.adapters.change_feed import CatalogueTail
from serving.adapters.decision_log import DecisionLog
from serving.adapters.decision_reader import DecisionReader
from serving.adapters.event_log import EventLog
from serving.adapters.feature_store import FeatureStore
from serving.adapters.online import OnlineStore
from serving.adapters.purchases import PurchaseStore
from serving.api.access_log import AccessLog
from serving.api.key_ring import KeyRing
from serving.lists import Lists
from serving.pipeline.overlay import CatalogueOverlay
from serving.pipeline.placements import Placements
from serving.recommender import Recommender
from serving.replays import Replays
from serving.settings import ServingSettings


@dataclass(frozen=True, slots=True)
class Services:
    """`wall_micros` and `timer` are clocks (UTC microseconds, monotonic nanoseconds)."""

    recommender: Recommender
    store: OnlineStore
    log: EventLog
    settings: ServingSettings
    wall_micros: Callable[[], int]
    timer: Callable[[], int]
    new_id: Callable[[], str]
    overlay: CatalogueOverlay
    tail: CatalogueTail
    decisions: DecisionLog
    ring: KeyRing
    access_log: AccessLog
    lists: Lists
    purchases: PurchaseStore
    features: FeatureStore
    decided: DecisionReader
    replays: Replays
    placements: Placements = field(default_factory=Placements)
