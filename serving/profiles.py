"""What we believe of a person, and why: all that their answers are made of, as far as they allow its use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feature_repo.contracts.errors import ContractError, DependencyError
from feature_repo.contracts.feature_table import FEATURE_VIEWS
from feature_repo.contracts.packing import FLAG_BOT, NO_REASON, SessionState
from feature_repo.contracts.purchase_record import Purchase
from feature_repo.contracts.times import format_timestamp, from_micros
from serving.adapters.feature_store import FeatureColumns, FeatureStore
from serving.adapters.purchases import PurchaseStore, read_purchases
from serving.observability import REFUSED_RECORDS
from serving.pipeline.cart import cart_contents
from serving.pipeline.catalogue import Catalogue
from serving.pipeline.consent import BOT, as_allowed
from serving.pipeline.identify import session_events
from serving.pipeline.new_items import listed_categories
from serving.pipeline.own_items import bring_up_to_date, in_plain_words
from serving.pipeline.session_signals import category_interests, session_signals
from serving.pipeline.values import Row, Tuning
from serving.recommender import Asker
from serving.settled import STORE_DOWN

MOST_SHOWN = 10
DAMAGED_FEATURES = "features_damaged"
_VIEW = FEATURE_VIEWS["user_features"]
_NAMES = tuple(feature.name for feature in _VIEW.features)


async def profile_of(
    user_id: str,
    asker: Asker,
    purchases: PurchaseStore,
    features: FeatureStore,
    tuning: Tuning,
    *,
    now_micros: int,
    changes_micros: int | None,
) -> dict[str, Any]:
    """The profile as it is answered. Without consent nothing but the consent itself is in it."""
    request, person, catalogue = asker.request, asker.person, asker.catalogue
    allowed = as_allowed(request, person)
    degraded = list(asker.degraded)
    is_bot = bool(person.session.flags & FLAG_BOT)
    profile: dict[str, Any] = {
        "user_id": user_id,
        "known": person.candidates is not None or bool(person.session.first_micros) or person.candidates_deny,
        "consent": _consent(asker, allows=allowed.personalized or is_bot, is_bot=is_bot),
        "model_version": catalogue.version,
        "model": catalogue.manifest.model,
        "freshness": {
            "model": _age(catalogue.trained_micros, now_micros),
            "data": _age(catalogue.last_event_micros, now_micros),
            "candidates": _age(catalogue.published_micros, now_micros),
            "features": None,
            "session": None,
            "catalogue": _age(changes_micros, now_micros),
        },
        "withheld": None,
        "beliefs": None,
    }
    if not allowed.personalized:
        profile["withheld"] = allowed.unavailable if allowed.unavailable in (BOT, *degraded) else "consent"
    else:
        profile["freshness"]["features"] = _age(asker.feature_micros, now_micros)
        profile["freshness"]["session"] = _age(person.session.last_micros or None, now_micros)
        known_as = request.user_id or user_id
        rows: list[Purchase] = []
        counted = FeatureColumns([], [None])
        try:
            record = await purchases.read(catalogue.version, known_as)
            rows = read_purchases(record, catalogue.version, degraded)
            counted = await features.read(_VIEW, _NAMES, [(known_as,)])
        except DependencyError:
            degraded = [*degraded, STORE_DOWN] if STORE_DOWN not in degraded else degraded
        except ContractError:
            REFUSED_RECORDS.labels(DAMAGED_FEATURES).inc()
            degraded = [*degraded, DAMAGED_FEATURES]
        profile["beliefs"] = {**_beliefs(asker, rows, tuning, now_micros), "features": _features(counted)}
    profile["degraded"] = bool(degraded)
    profile["degraded_reasons"] = degraded
    return profile


def _consent(asker: Asker, *, allows: bool, is_bot: bool) -> dict[str, Any]:
    """Whether we may, and whose word decided: the newest through the users API, an event, the night's, or nobody's."""
    person = asker.person
    if asker.request.personalize is False:
        decided_by = "users_api"
    elif person.candidates_deny:
        decided_by = "night"
    elif person.session.consent_micros:
        decided_by = "event"
    elif person.consent_unknown:
        decided_by = "unknown"
    else:
        decided_by = "nobody"
    said_at = person.session.consent_micros if decided_by == "event" else 0
    return {
        "personalize": allows,
        "store": not asker.refuses_storing,
        "decided_by": decided_by,
        "said_at": format_timestamp(from_micros(said_at)) if said_at else None,
        "is_bot": is_bot,
    }


def _beliefs(asker: Asker, purchases: Sequence[Purchase], tuning: Tuning, now_micros: int) -> dict[str, Any]:
    person, catalogue = asker.person, asker.catalogue
    state = person.session
    session = session_events(
        state, session_id=None, recent_events=(), now_micros=now_micros, gap_seconds=tuning.session_gap_seconds
    )
    interests = category_interests(state, catalogue, now_micros=now_micros)
    return {
        "segment": {
            "category": person.segment,
            "why": "the category that the nightly features count most often in 90 days",
        },
        "top_categories": {
            "lately": _shares(interests),
            "by_the_night": _shares(listed_categories(person.candidates or (), catalogue)),
            "why": "lately: what was touched, a purchase or a cart counting more than a look, halving every 3 days; by "
            "the night: the categories of the head of the list that the model made",
        },
        "session": {
            "events": [
                {
                    "event_type": event.event_type,
                    **_item(event.item_id, catalogue),
                    "age_seconds": _age(event.micros, now_micros),
                }
                for event in session[::-1][:MOST_SHOWN]
            ],
            "signals": session_signals(state, now_micros, catalogue),
        },
        "cart": [
            {**_item(item_id, catalogue), "quantity": quantity} for item_id, quantity in cart_contents(state).items()
        ],
        "dismissed": [_item(mark.item_id, catalogue) for mark in state.dismissed[::-1][:MOST_SHOWN]],
        "purchases": _purchases(purchases, state, catalogue),
        "list": {
            "count": len(person.candidates or ()),
            "head": [_candidate(row, catalogue) for row in (person.candidates or ())[:MOST_SHOWN]],
            "why": f"made by {catalogue.manifest.model} from what was done until {catalogue.manifest.last_event_at}",
        },
    }


def _features(counted: FeatureColumns) -> dict[str, Any]:
    """Those of the night that have a value; `as_of` is null when the night knows nobody of this name."""
    (micros,) = counted.micros
    return {
        "as_of": None if micros is None else format_timestamp(from_micros(micros)),
        "values": [
            {"name": f.name, "value": value, "unit": f.unit, "window_days": f.window, "why": f.description}
            for f, (value,) in zip(_VIEW.features, counted.values, strict=False)
            if value is not None
        ],
    }


def _purchases(rows: Sequence[Purchase], state: SessionState, catalogue: Catalogue) -> list[dict[str, Any]]:
    known = [row for row in bring_up_to_date(rows, state, catalogue) if row.item_number < len(catalogue.item_ids)]
    return [
        {
            **_item(catalogue.item_ids[row.item_number] or "", catalogue),
            "visits": row.visits,
            "last_at": format_timestamp(from_micros(row.last_seconds * 1_000_000)),
            "every_days": round(row.expected_days, 1),
            "why": in_plain_words(row),
        }
        for row in known[:MOST_SHOWN]
        if catalogue.item_ids[row.item_number] is not None
    ]


def _candidate(row: Row, catalogue: Catalogue) -> dict[str, Any]:
    number, score, *_, first, second = row
    ids = catalogue.item_ids
    because = [ids[n] for n in (first, second) if n != NO_REASON and n < len(ids) and ids[n] is not None]
    item_id = ids[number] if number < len(ids) else None
    return {**_item(item_id or "", catalogue), "score": round(score, 6), "because_of": because}


def _shares(interests: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"category": name, "share": round(share, 4)} for name, share in list(interests.items())[:MOST_SHOWN]]


def _item(item_id: str, catalogue: Catalogue) -> dict[str, Any]:
    number = catalogue.numbers.get(item_id)
    return {"item_id": item_id, "title": None if number is None else (catalogue.attributes[number] or {}).get("title")}


def _age(moment_micros: int | None, now_micros: int) -> float | None:
    return None if moment_micros is None else max(0.0, round((now_micros - moment_micros) / 1_000_000, 3))
