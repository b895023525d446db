"""The plain values that travel through the pipeline. Nobody changes one; those that each request makes are not frozen,
because a frozen dataclass takes three times as long to make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from feature_repo.contracts.packing import SessionEvent, SessionState, Source
from feature_repo.contracts.session_blend import HALF_LIFE_SECONDS, SESSION_WEIGHT, SESSION_WEIGHT_ALONE
from serving.pipeline.policy import SlatePolicy

Row = tuple[int, float, int, int, int]
"""One candidate as `packing.CANDIDATE_ROW` unpacks it: item number, score, source, two reasons (NO_REASON for none)."""

Origin = tuple[int, int, int]
"""What a row says of where it comes from: source and two reasons."""


@dataclass(slots=True)
class SlateRequest:
    """One question. `num_results` >= 1. `personalize` is what the request says about consent: None says nothing.

    recent_events  events that the request itself brings, oldest first; they belong to the asked session
    explain        look at every candidate of a rung, also at those that cannot get in, so that all counts are whole
    policy         what the slate must keep to beyond relevance; None: nothing but what every slate does
    region_of_user the region is that of the user (`Recommender` sets both), because the request names none
    """

    num_results: int
    user_id: str | None = None
    anonymous_id: str | None = None
    session_id: str | None = None
    category: str | None = None
    region: str | None = None
    recent_events: Sequence[SessionEvent] = ()
    exclude_item_ids: frozenset[str] = frozenset()
    personalize: bool | None = None
    explain: bool = False
    policy: SlatePolicy | None = None
    region_of_user: bool = False


@dataclass(slots=True)
class Person:
    """What the stores know of who asks. `candidates` (best first) is None when the night knew nobody of that name.

    unavailable      why records could not be read or used although they may exist, or None
    consent_unknown  a record that might say no to personalization could not be read
    """

    candidates: Sequence[Row] | None = None
    candidates_deny: bool = False
    session: SessionState = field(default_factory=SessionState)
    segment: str | None = None
    unavailable: str | None = None
    consent_unknown: bool = False


@dataclass(frozen=True, slots=True)
class Tuning:
    """The numbers of the session adjustment; see `serving.settings` for units, defaults and effects."""

    session_weight: float = SESSION_WEIGHT
    session_weight_alone: float = SESSION_WEIGHT_ALONE
    session_events: int = 20
    session_gap_seconds: float = 1800.0
    position_decay: float = 0.9
    half_life_seconds: float = HALF_LIFE_SECONDS


@dataclass(slots=True)
class Pool:
    """The eligible candidates by item number: their scores in (0, 1] before the session speaks, and where each comes
    from. A hot request holds hundreds of them: plain numbers in dicts, values only for those that are answered."""

    bases: dict[int, float] = field(default_factory=dict)
    origins: dict[int, Origin] = field(default_factory=dict)


class Ranking(NamedTuple):
    """What the ranker did in one answer. `reason`: why it did nothing; None: it did.

    ranker    8 hex digits of its file; None: the version has none
    micros    the instant that the person's features are stamped with (us since 1970 UTC)
    digest    16 hex digits that stand for the features that it read
    moved     item number -> (place in the answer without it, from 1; what the trees say)
    """

    ranker: str | None
    reason: str | None
    micros: int | None = None
    digest: str | None = None
    moved: Mapping[int, tuple[int, float]] = MappingProxyType({})


class SourceShare(NamedTuple):
    """One source of an item, and what it has of the item's relevance, in (0, 1], with four places."""

    name: str
    share: float


Shares = tuple[SourceShare, ...]
"""Of one item, with the largest first; they sum to 1."""


class Reason(NamedTuple):
    """Why an item is in the slate. `item_id` and `title` name the past item that spoke for it, if one did."""

    item_id: str | None
    title: str | None
    text: str


class SlateItem(NamedTuple):
    """One place of the slate; its rank is its position, from 1."""

    item_number: int
    item_id: str
    score: float
    base: float
    vote: float
    source: Source
    reasons: tuple[Reason, ...]


class RungReport(NamedTuple):
    """One rung of the ladder that was tried: how many candidates it offered, and how many of those that were looked
    at could be used (all are looked at when a session votes, when the answer is short, and with explain)."""

    rung: str
    offered: int
    eligible: int


@dataclass(slots=True)
class Slate:
    """The answer of the pipeline.

    fallback_level   the best rung that gave a candidate: personal, segment, category, region, popular, static;
                     `session` when only the session's neighbours did; `none` for an empty slate
    fallback_reason  why it is not `personal` (consent, no_user, unknown_user, no_eligible_candidates or what made the
                     candidates unavailable), else None
    filtered         filter -> number of distinct items it took out; empty unless the slate is short, kept to a policy,
                     or is to be explained
    personalized     False when consent forbids the use of user and session
    stage_micros     stage -> microseconds; empty without explain
    propensities     per place the probability with which the policy shows this item there; empty: nothing was left
                     to chance
    policy           what the policy did, for the trace; None without a policy
    ranking          what the request-time ranker did, or why it did nothing; None where nobody asked for it
    shares           per place what each source has of the item; empty without explain, and of lists that blend nothing
    """

    items: Sequence[SlateItem]
    fallback_level: str
    fallback_reason: str | None
    filtered: Mapping[str, int]
    rungs: Sequence[RungReport]
    session: Sequence[SessionEvent]
    session_weight: float
    personalized: bool
    stage_micros: Mapping[str, int]
    propensities: Sequence[float] = ()
    policy: Mapping[str, Any] | None = None
    ranking: Ranking | None = None
    shares: Sequence[Shares] = ()
