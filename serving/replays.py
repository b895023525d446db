"""A decision made again from what was logged of it: version, inputs, and what the person had done by then.

What a replay cannot have any more it names; it never guesses. The instant of the decision is the clock of its replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple

from feature_repo.contracts.errors import DependencyError, NightjarError
from feature_repo.contracts.packing import FLAG_BOT, SessionEvent, SessionState
from serving.adapters.shelf import VersionShelf
from serving.lists import (
    BOUGHT_TOGETHER,
    BUY_AGAIN,
    CONTINUE,
    KINDS,
    NEW,
    RECOMMENDATIONS,
    TRENDING,
    Lists,
)  # fmt: skip
from serving.pipeline.cart import cart_contents
from serving.pipeline.catalogue import FIRST_VERSION, Catalogue
from serving.pipeline.consent import as_allowed
from serving.pipeline.list_inputs import INTERESTS, KNOWN, TREND, logged_votes, record_of
from serving.pipeline.new_items import new_slate
from serving.pipeline.own_items import continue_slate
from serving.pipeline.policy import SlatePolicy
from serving.pipeline.rank_given import rank_given
from serving.pipeline.rotation import DAY_MICROS
from serving.pipeline.similar import bought_together, similar_items
from serving.pipeline.trending import trending_slate
from serving.pipeline.values import Person, Slate, SlateRequest, Tuning
from serving.recommender import Asker, Recommender, asks_ranker
from serving.settled import STORE_DOWN

VERSION_GONE = "version_gone"
NO_VERSION_THEN = "no_version_then"
SUBJECT_NOT_LOGGED = "subject_not_logged"
CONSENT_WITHDRAWN = "consent_withdrawn"
SESSION_GONE = "session_gone"
LIST_GONE = "personal_list_gone"
SETTINGS_CHANGED = "settings_changed"
RECORD_CHANGED = "record_changed"
VOTES_NOT_KEPT = "votes_not_kept"
ITEMS_ARRIVED = "items_arrived"
INPUTS_NOT_KEPT = "inputs_not_kept"
INPUTS_UNKNOWN = "inputs_unknown"
LEFT_TO_CHANCE = "left_to_chance"
FEATURES_CHANGED = "features_changed"
STORE_DOWN_NOW = "online_store_unavailable"

WORDS: Mapping[str, str] = {
    VERSION_GONE: "the version that answered is not kept any more",
    NO_VERSION_THEN: "it was made before the first version, from items and votes as they were then",
    SUBJECT_NOT_LOGGED: "the person did not allow storing, so it is not known to whom this was answered",
    CONSENT_WITHDRAWN: "the person does not allow it any more that what we know of them is used",
    SESSION_GONE: "the events of the session that was used are not kept any more, or others have come among them",
    LIST_GONE: "the person's list in that version is not kept any more",
    SETTINGS_CHANGED: "the session settings are others now",
    RECORD_CHANGED: "what is kept of the person is not all that was known of them then",
    VOTES_NOT_KEPT: "it looked at more votes than its decision names, or the decision is from before it named any",
    ITEMS_ARRIVED: "newer items have come since, and the ages of all are counted beside those",
    INPUTS_NOT_KEPT: "it depended on what its decision does not say: the person or the request allowed no storing, "
    "or the decision is from before it was said",
    INPUTS_UNKNOWN: "it has inputs that this server does not know",
    LEFT_TO_CHANCE: "a place was left to chance",
    FEATURES_CHANGED: "the features that the ranker read are others now, or cannot be read",
    STORE_DOWN_NOW: "the online store does not answer now",
}

_KNOWN_INPUTS = frozenset(
    {"num_results", "tuning", "personalized", "category", "region", "personalize", "recent_events", "exclude_item_ids",
     "session", "store", "policy", "item_id", "item_ids", "max_age_days", "window", "page", "place", "ranker", TREND,
     INTERESTS, KNOWN}
)  # fmt: skip
_OF_PERSON = frozenset({TRENDING, NEW, CONTINUE, BUY_AGAIN})
"""Lists that use more of a person's record than a session."""
_SCORE_TOLERANCE = 1e-5
"""Delta keeps scores as 32-bit floats."""

SessionDigest = Callable[[Sequence[SessionEvent]], str]


class Replay(NamedTuple):
    """What became of a replay. `why_not` has the reasons (`WORDS`) why there is none."""

    slate: Slate | None
    catalogue: Catalogue | None
    why_not: Sequence[str] = ()


class Replays:
    """`tuning_digest` and `session_digest` are those of the decision log; `timer`: monotonic nanoseconds."""

    def __init__(
        self,
        recommender: Recommender,
        lists: Lists,
        shelf: VersionShelf,
        tuning: Tuning,
        *,
        tuning_digest: Callable[[Tuning], str],
        session_digest: SessionDigest,
        timer: Callable[[], int],
    ) -> None:
        self._recommender = recommender
        self._lists = lists
        self._shelf = shelf
        self._tuning = tuning
        self._tuning_digest = tuning_digest
        self._session_digest = session_digest
        self._timer = timer

    async def replay(self, decision: Mapping[str, Any]) -> Replay:
        """The slate of a decision, made again."""
        if why_not := self._hindrances(decision):
            return Replay(None, None, why_not)
        try:
            async with self._shelf.borrowed(decision["version"]) as catalogue:
                made = await self._in_version(decision, catalogue)
                return made if _is_told(decision, made) else Replay(None, None, [INPUTS_NOT_KEPT])
        except NightjarError:
            return Replay(None, None, [VERSION_GONE])

    def _hindrances(self, decision: Mapping[str, Any]) -> list[str]:
        """What the decision itself says against a replay."""
        inputs, kind = decision["inputs"], decision["kind"]
        personalized = inputs.get("personalized", False)
        found = []
        if decision["version"] == FIRST_VERSION:
            found.append(NO_VERSION_THEN)
        if kind not in KINDS:
            found.append(INPUTS_UNKNOWN)
        if kind == TRENDING and logged_votes(inputs.get(TREND)) is None:
            found.append(VOTES_NOT_KEPT)
        if personalized and decision["subject"] is not None and _uses_record(decision) and KNOWN not in inputs:
            found.append(INPUTS_NOT_KEPT)
        if not inputs.keys() <= _KNOWN_INPUTS or decision["experiments"] or any(decision["rules"]):
            found.append(INPUTS_UNKNOWN)
        if "policy" not in inputs and any(chance != 1.0 for chance in decision["propensities"]):
            found.append(LEFT_TO_CHANCE)
        if personalized and inputs.get("store") is False:
            found.append(SUBJECT_NOT_LOGGED)
        if inputs.get("tuning", self._tuning_digest(self._tuning)) != self._tuning_digest(self._tuning):
            found.append(SETTINGS_CHANGED)
        return found

    async def _in_version(self, decision: Mapping[str, Any], catalogue: Catalogue) -> Replay:
        inputs, at = decision["inputs"], decision["at"]
        if decision["kind"] == NEW and catalogue.arrivals.put_micros > at:
            return Replay(None, None, [ITEMS_ARRIVED])
        personalized = inputs.get("personalized", False)
        subject = decision["subject"] if personalized else None
        question = SlateRequest(
            inputs["num_results"],
            user_id=subject[2:] if subject and subject.startswith("u:") else None,
            anonymous_id=subject[2:] if subject and subject.startswith("a:") else None,
            category=inputs.get("category"),
            region=inputs.get("region"),
            exclude_item_ids=frozenset(inputs.get("exclude_item_ids", ())),
            personalize=None if personalized else False,
        )
        try:
            asker = await self._recommender.meet(question, catalogue=catalogue)
        except DependencyError:
            return Replay(None, None, [STORE_DOWN_NOW])
        if personalized and (asker.request.personalize is False or asker.refuses_storing):
            return Replay(None, None, [CONSENT_WITHDRAWN])
        person = asker.person
        session: list[SessionEvent] = []
        if personalized:
            if not as_allowed(asker.request, _without_bot(person)).personalized:
                return Replay(None, None, [CONSENT_WITHDRAWN])
            if decision["level"] == "personal" and person.candidates is None:
                return Replay(None, None, [LIST_GONE])
            found = self._session_then(decision, person.session)
            if found is None:
                return Replay(None, None, [SESSION_GONE])
            session = found
            then = _state_then(person.session, at)
            if not _is_whole(inputs.get(KNOWN, {}), then):
                return Replay(None, None, [RECORD_CHANGED])
            # A list of the person's own items takes its sessions from the record; others have one, in the request.
            kept = replace(then, events=_of_session(decision, then.events) if _is_own(decision) else [])
            person = replace(person, session=kept, unavailable=None)
        request = replace(asker.request, recent_events=session, policy=_policy_of(decision))
        asker = asker._replace(request=request, person=person)
        if decision["kind"] == BUY_AGAIN:
            return await self._buy_again(decision, asker, request, catalogue)
        if decision["kind"] == RECOMMENDATIONS and asks_ranker(request):
            return await self._ranked(decision, asker, request, catalogue)
        slate = self._slate(decision, asker, request, catalogue)
        logged = inputs.get("session")
        if logged is not None and _is_own(decision) and self._session_digest(slate.session) != logged["digest"]:
            return Replay(None, None, [SESSION_GONE])
        return Replay(slate, catalogue)

    async def _ranked(
        self, decision: Mapping[str, Any], asker: Asker, request: SlateRequest, catalogue: Catalogue
    ) -> Replay:
        """What a ranker ordered is made again where it reads what it read then; what it could not order then, it does
        not order now."""
        then = decision["inputs"].get("ranker", {})
        slate, _, _ = await self._recommender.ranked_slate(
            asker, request, now_micros=decision["at"], known=then.get("reason")
        )
        now = slate.ranking
        if now is None or (now.reason, now.digest) != (then.get("reason"), then.get("digest")):
            return Replay(None, None, [FEATURES_CHANGED])
        return Replay(slate, catalogue)

    async def _buy_again(
        self, decision: Mapping[str, Any], asker: Asker, request: SlateRequest, catalogue: Catalogue
    ) -> Replay:
        """From the purchases that the version has; when it was made without them, or with others, it is not made."""
        built = await self._lists.buy_again(asker, request, now_micros=decision["at"])
        if STORE_DOWN in built.degraded:
            return Replay(None, None, [STORE_DOWN_NOW])
        known = decision["inputs"].get(KNOWN)
        if known is not None and built.inputs[KNOWN]["purchases"] != known["purchases"]:
            return Replay(None, None, [RECORD_CHANGED])
        return Replay(built.slate, catalogue)

    def _slate(self, decision: Mapping[str, Any], asker: Asker, request: SlateRequest, catalogue: Catalogue) -> Slate:
        inputs, at = decision["inputs"], decision["at"]
        match decision["kind"]:
            case "similar":
                number = catalogue.numbers.get(inputs["item_id"])
                return similar_items(number, request, asker.person, catalogue, self._tuning, now_micros=at)
            case "bought_together":
                item_ids = inputs["item_ids"] or list(cart_contents(as_allowed(request, asker.person).person.session))
                asked = [catalogue.numbers[i] for i in item_ids if i in catalogue.numbers]
                return bought_together(asked, request, asker.person, catalogue, self._tuning, now_micros=at)
            case "new":
                return new_slate(
                    request, asker.person, catalogue, self._tuning, max_age_days=inputs["max_age_days"], now_micros=at,
                    interests=inputs.get(INTERESTS, {}),
                )  # fmt: skip
            case "trending":
                voted = logged_votes(inputs[TREND])
                assert voted is not None  # or it has a hindrance
                return trending_slate(
                    voted, request, asker.person, catalogue, self._tuning, window=inputs["window"], now_micros=at
                )  # fmt: skip
            case "continue":
                return continue_slate(request, asker.person, catalogue, self._tuning, now_micros=at)
            case "rank":
                return rank_given(
                    inputs["item_ids"], request, asker.person, catalogue, self._tuning, now_micros=at,
                    timer=self._timer,
                )  # fmt: skip
        return self._recommender.slate(asker, request, now_micros=at)

    def _session_then(self, decision: Mapping[str, Any], state: SessionState) -> list[SessionEvent] | None:
        """The events that were used, oldest first, as the digest confirms; None when they cannot be had."""
        inputs = decision["inputs"]
        brought = [SessionEvent(micros, kind, 0, item_id) for micros, kind, item_id in inputs.get("recent_events", ())]
        logged = inputs.get("session")
        if _is_own(decision):
            return brought
        if logged is None:
            return brought if not brought or decision["kind"] != RECOMMENDATIONS else None
        stored = [event for event in state.events if event.micros <= logged["newest"]]
        if decision["session"] is not None:
            stored = [event for event in stored if f"{event.session_hash:016x}" == decision["session"]]
        elif stored:
            stored = [event for event in stored if event.session_hash == stored[-1].session_hash]
        count = logged["events"] - len(brought)
        kept = stored[len(stored) - count :] if 0 < count <= len(stored) else []
        session = sorted([*kept, *brought], key=lambda event: event.micros)
        return session if self._session_digest(session) == logged["digest"] else None


def _uses_record(decision: Mapping[str, Any]) -> bool:
    return decision["kind"] in _OF_PERSON or _is_own(decision)


def _is_own(decision: Mapping[str, Any]) -> bool:
    """Whether a list is made of the person's own items: what they began, bought, or have in the cart."""
    kind = decision["kind"]
    return kind in (CONTINUE, BUY_AGAIN) or (kind == BOUGHT_TOGETHER and not decision["inputs"].get("item_ids"))


def _of_session(decision: Mapping[str, Any], events: list[SessionEvent]) -> list[SessionEvent]:
    """Those of the session that was asked for, where it had any; else all."""
    asked = decision["session"]
    return [event for event in events if f"{event.session_hash:016x}" == asked] or events


def _is_whole(known: Mapping[str, int], then: SessionState) -> bool:
    """Whether as much of a record is there as the decision says there was."""
    return all(count == known[name] for name, count in record_of(then).items() if name in known)


def _is_told(decision: Mapping[str, Any], made: Replay) -> bool:
    """False for another slate than the decided one where the decision does not say what was to be left out of it."""
    if made.slate is None or made.catalogue is None or decision["inputs"].get("store") is not False:
        return True
    return not differences(decision, made.slate, made.catalogue, now_micros=decision["at"])


def differences(decision: Mapping[str, Any], slate: Slate, catalogue: Catalogue, *, now_micros: int) -> list[Any]:
    """Where the replayed slate is not the decided one: {"rank", "decided", "replayed", "why"}. A score that differs
    alone is a difference too."""
    found = []
    decided: list[tuple[str | None, float]] = list(zip(decision["items"], decision["scores"], strict=True))
    replayed: list[tuple[str | None, float]] = [(item.item_id, item.score) for item in slate.items]
    nothing: tuple[str | None, float] = (None, 0.0)
    pairs = zip_longest(decided, replayed, fillvalue=nothing)
    for rank, ((decided_id, decided_score), (replayed_id, replayed_score)) in enumerate(pairs, start=1):
        if decided_id == replayed_id and abs(decided_score - replayed_score) <= _SCORE_TOLERANCE:
            continue
        number = catalogue.numbers.get(decided_id) if decided_id else None
        why = catalogue.refusal(number, now_micros) if number is not None else None
        found.append({"rank": rank, "decided": decided_id, "replayed": replayed_id, "why": why})
    return found


def _policy_of(decision: Mapping[str, Any]) -> SlatePolicy | None:
    """The policy of a logged decision; its chance comes from the decision's id, so it falls the same way again."""
    inputs = decision["inputs"]
    if "policy" not in inputs:
        return None
    return SlatePolicy.from_inputs(inputs["policy"], item_ids=inputs.get("item_ids"), seed=decision["id"])


def _state_then(state: SessionState, at: int) -> SessionState:
    """What was known at that instant: events and marks that came later had not been made."""
    return replace(
        state,
        events=[event for event in state.events if event.micros <= at],
        bought=[mark for mark in state.bought if mark.micros <= at],
        dismissed=[mark for mark in state.dismissed if mark.micros <= at],
        cart=[change for change in state.cart if change.micros <= at],
        seen={item_id: micros for item_id, micros in state.seen.items() if micros <= at},
        shown={key: count for key, count in state.shown.items() if key[0] <= at // DAY_MICROS},
        flags=state.flags & ~FLAG_BOT,
    )


def _without_bot(person: Person) -> Person:
    return replace(person, session=replace(person.session, flags=person.session.flags & ~FLAG_BOT))
