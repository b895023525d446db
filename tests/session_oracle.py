"""The slow and obvious way from events to a session record: all of them at once, sorted, each part from scratch."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from feature_repo.contracts.session_record import CartChange, ItemMark, Regions, SessionEvent, SessionState, Votes, Word
from feature_repo.contracts.session_record import session_hash as hashed

TOUCHING = {"view_item", "select_item", "click", "watch", "add_to_wishlist", "like", "add_to_cart", "purchase",
            "remove_from_cart", "rating", "share"}  # fmt: skip
HALVES = {"view_item": 2, "select_item": 2, "click": 2, "watch": 2, "add_to_wishlist": 3, "like": 3, "add_to_cart": 4,
          "purchase": 2}  # fmt: skip
NO_STEP = TOUCHING | {"dislike", "not_interested", "impression", "view_item_list"}
WINDOWS = {0: (300, 60), 1: (3600, 300), 2: (86_400, 3600)}  # number: seconds, seconds of a bucket


def micros_of(event: Mapping[str, Any]) -> int:
    moment = event["timestamp"]
    return int(moment.timestamp()) * 1_000_000 + int(moment.microsecond)


def items_of(event: Mapping[str, Any]) -> list[str]:
    if event.get("items"):
        return [line["item_id"] for line in event["items"]]
    return [event["item_id"]] if "item_id" in event else []


def newest_marks(events: Iterable[Mapping[str, Any]], limit: int) -> list[ItemMark]:
    newest: dict[str, int] = {}
    for event in sorted(events, key=micros_of):
        for item in items_of(event):
            newest[item] = micros_of(event)
    return sorted(ItemMark(at, item) for item, at in newest.items())[-limit:]


def oracle(deliveries: Iterable[Mapping[str, Any]]) -> SessionState:
    """The record after these checked events of one subject; an event id counts once."""
    events = list({event["event_id"]: event for event in deliveries}.values())
    if not events:
        return SessionState()
    mark = {event["event_id"]: zlib.crc32(event["event_id"].encode()) for event in events}

    def rows(kept: set[str]) -> list[SessionEvent]:
        found = {
            SessionEvent(
                micros_of(e), e["event_type"], hashed(e.get("session_id")), item if touches else "", mark[e["event_id"]]
            )
            for e in events
            for touches in [e["event_type"] in TOUCHING]
            for item in (items_of(e) if touches else [""])
            if (e["event_type"] in kept)
        }
        return sorted(found, key=lambda e: (e.micros, e.item_id, e.event_type, e.session_hash, e.event_hash))

    steps = {e["event_type"] for e in events} - NO_STEP
    cart = []
    for event in events:
        out = event["event_type"] == "remove_from_cart"
        if out or event["event_type"] == "add_to_cart":
            for line in event.get("items") or [event]:
                quantity = line.get("quantity") or event.get("quantity") or (0 if out else 1)
                cart.append(CartChange(micros_of(event), out, quantity, line["item_id"], mark[event["event_id"]]))
    interests: Counter[tuple[int, str]] = Counter()
    for event in events:
        for item in items_of(event):
            if event["event_type"] in HALVES:
                interests[micros_of(event) // 86_400_000_000, item] += HALVES[event["event_type"]]
    shown: Counter[tuple[int, str]] = Counter()
    for event in events:
        if event["event_type"] == "impression":
            shown.update((micros_of(event) // 86_400_000_000, item) for item in items_of(event))
    words = {}
    for name, of in {
        "channel": lambda e: e.get("channel"),
        "device": lambda e: e.get("context", {}).get("device"),
        "referrer": lambda e: e.get("context", {}).get("referrer"),
    }.items():
        said = [Word(micros_of(e), of(e)) for e in events if of(e)]
        if said:
            words[name] = max(said)
            if name == "referrer":
                words["first_referrer"] = min(said)
    consents = [(micros_of(e), e["consent"]["personalize"]) for e in events if "personalize" in e.get("consent", {})]
    last_word = max((at for at, _ in consents), default=0)
    denied = any(at == last_word and not agreed for at, agreed in consents)
    times = [micros_of(e) for e in events]
    showing = [e for e in events if e["event_type"] in TOUCHING | {"impression"}]
    return SessionState(
        events=rows(TOUCHING)[-50:],
        steps=rows(steps)[-30:],
        cart=sorted(set(cart))[-64:],
        bought=newest_marks((e for e in events if e["event_type"] == "purchase"), 200),
        dismissed=newest_marks((e for e in events if e["event_type"] in ("dislike", "not_interested")), 200),
        seen={mark.item_id: mark.micros for mark in newest_marks(showing, 100)},
        interests={key: interests[key] for key in sorted(interests)[-100:]},
        votes=votes_of(events),
        counts=dict(Counter(e["event_type"] for e in events)),
        words=words,
        flags=int(denied),
        consent_micros=last_word,
        first_micros=min(times),
        last_micros=max(times),
        shown={key: shown[key] for key in sorted(shown)[-200:]},
        regions=regions_of(events),
    )


def votes_of(events: Iterable[Mapping[str, Any]]) -> Votes:
    speaking = [
        (micros_of(e) // 1_000_000, item)
        for e in events
        if e["event_type"] in HALVES and e.get("consent", {}).get("train") is not False
        for item in items_of(e)
    ]
    votes: Votes = {}
    for window, (seconds, bucket_seconds) in WINDOWS.items():
        for period in sorted({at // seconds for at, _ in speaking})[-2:]:
            first: dict[str, int] = {}
            for at, item in speaking:
                if at // seconds == period:
                    bucket = at % seconds // bucket_seconds
                    first[item] = min(bucket, first.get(item, bucket))
            chosen = sorted(first, key=lambda item: (zlib.crc32(item.encode()), item))[:8]
            votes[window, period] = {item: first[item] for item in chosen}
    return votes


def regions_of(events: Iterable[Mapping[str, Any]]) -> Regions:
    """Of each vote: of the regions that were named with the item in its bucket, the one that sorts first."""
    events = list(events)
    found: Regions = {}
    for (window, period), votes in votes_of(events).items():
        seconds, bucket_seconds = WINDOWS[window]
        for item, bucket in votes.items():
            begin = period * seconds + bucket * bucket_seconds
            named = [
                e["context"]["region"]
                for e in events
                if e["event_type"] in HALVES
                and e.get("consent", {}).get("train") is not False
                and item in items_of(e)
                and begin <= micros_of(e) // 1_000_000 < begin + bucket_seconds
                and e.get("context", {}).get("region")
            ]
            if named:
                found[window, period, item] = min(named)
    return found
