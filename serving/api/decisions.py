"""What an answer logs about itself (`contracts.decisions`, payload v1): the hot half, plain lists without models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from feature_repo.contracts.decisions import DECISION_FORMAT, DETERMINISTIC
from feature_repo.contracts.events import subject_key
from feature_repo.contracts.packing import SessionEvent, session_hash
from serving.adapters.json_bytes import encode_json
from serving.native import parts
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.list_inputs import ABOUT_PERSON
from serving.pipeline.values import SlateItem, SlateRequest, Tuning
from serving.recommender import Answer

RECOMMENDATIONS = "recommendations"


@lru_cache(maxsize=8)
def tuning_digest(tuning: Tuning) -> str:
    """8 hex digits that stand for the settings of the session adjustment."""
    return hashlib.blake2b(repr(tuning).encode(), digest_size=4).hexdigest()


def session_digest(session: Sequence[SessionEvent]) -> str:
    """16 hex digits that stand for the items of a session in their order: a replay shows that it found the same."""
    text = "\n".join([event.item_id for event in session])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@lru_cache(maxsize=64)
def _names_of(user_id: str | None, anonymous_id: str | None, session_id: str | None) -> tuple[str, str | None]:
    """Subject and session as a decision names them. The decisions of a page are made one after another."""
    hashed = None if session_id is None else f"{session_hash(session_id):016x}"
    return subject_key(user_id, anonymous_id), hashed


def recommendation_decision(
    answer: Answer,
    request: SlateRequest,
    *,
    recommendation_id: str,
    placement: str,
    may_store: bool,
    tuning: str,
    now_micros: int,
    kind: str = RECOMMENDATIONS,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """The payload of an answer; `more`: further inputs, about a person only where `list_inputs` says so. When
    `may_store` is false nothing in it is about a person: no subject, no session, no events, no exclusions."""
    slate = answer.slate
    subject = hashed = None
    inputs: dict[str, Any] = {"num_results": request.num_results, "tuning": tuning, "personalized": slate.personalized}
    if request.category is not None:
        inputs["category"] = request.category
    if request.region is not None and (may_store or not request.region_of_user):
        inputs["region"] = request.region
    if request.personalize is not None:
        inputs["personalize"] = request.personalize
    if request.policy is not None:
        inputs["policy"] = request.policy.inputs()
    if slate.ranking is not None:
        inputs["ranker"] = {"ranker": slate.ranking.ranker, "reason": slate.ranking.reason}
        if may_store and slate.ranking.digest is not None:
            inputs["ranker"] |= {"features_at": slate.ranking.micros, "digest": slate.ranking.digest}
    if may_store:
        if request.user_id is not None or request.anonymous_id is not None:
            subject, hashed = _names_of(request.user_id, request.anonymous_id, request.session_id)
        if request.recent_events:
            inputs["recent_events"] = [[e.micros, e.event_type, e.item_id] for e in request.recent_events]
        if request.exclude_item_ids:
            inputs["exclude_item_ids"] = sorted(request.exclude_item_ids)
        if request.policy is not None and request.policy.item_ids is not None:
            inputs["item_ids"] = request.policy.item_ids
        if slate.session:
            newest = slate.session[-1].micros
            inputs["session"] = {
                "events": len(slate.session), "newest": newest, "digest": session_digest(slate.session)
            }  # fmt: skip
    else:
        inputs["store"] = False
    if more:
        knows_whom = subject is not None and slate.personalized
        inputs |= more if knows_whom else {name: value for name, value in more.items() if name not in ABOUT_PERSON}
    if parts.writing is not None:
        written: bytes | None = parts.writing.decision(
            slate.items, answer.catalogue, recommendation_id, kind, placement, subject, hashed, slate.fallback_level,
            slate.fallback_reason, answer.degraded, inputs, now_micros, slate.propensities,
        )  # fmt: skip
        if written is not None:
            return written
    return _payload(
        slate.items,
        answer.catalogue,
        recommendation_id=recommendation_id,
        kind=kind,
        placement=placement,
        subject=subject,
        session=hashed,
        level=slate.fallback_level,
        reason=slate.fallback_reason,
        degraded=answer.degraded,
        inputs=inputs,
        now_micros=now_micros,
        propensities=slate.propensities,
    )


def _payload(
    items: Sequence[SlateItem],
    catalogue: Catalogue,
    *,
    recommendation_id: str,
    kind: str,
    placement: str,
    subject: str | None,
    session: str | None,
    level: str,
    reason: str | None,
    degraded: Sequence[str],
    inputs: Mapping[str, Any],
    now_micros: int,
    propensities: Sequence[float] = (),
) -> bytes:
    numbers, item_ids, scores, _, _, sources, _ = zip(*items, strict=True) if items else ((),) * 7
    return encode_json(
        {
            "v": DECISION_FORMAT,
            "id": recommendation_id,
            "at": now_micros,
            "kind": kind,
            "placement": placement,
            "subject": subject,
            "session": session,
            "version": catalogue.version,
            "level": level,
            "reason": reason,
            "degraded": degraded,
            "items": item_ids,
            "numbers": numbers,
            "scores": scores,
            "sources": sources,
            "rules": (),
            "propensities": propensities or [DETERMINISTIC] * len(items),
            "experiments": (),
            "inputs": inputs,
        }
    )
