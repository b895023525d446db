"""Consent for personalization: whoever says no wins."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from feature_repo.contracts.packing import FLAG_BOT, FLAG_PERSONALIZE_DENIED
from serving.pipeline.values import Person, SlateRequest

NOBODY = Person()
_ANY_NO = FLAG_BOT | FLAG_PERSONALIZE_DENIED
BOT = "bot"
"""The fallback reason of a subject that behaves like a bot (`contracts.bots`)."""


class Allowed(NamedTuple):
    """Request and person as far as an answer may use them. `unavailable`: why the person cannot be used, although
    consent does not forbid it, or None."""

    request: SlateRequest
    person: Person
    personalized: bool
    unavailable: str | None


def as_allowed(request: SlateRequest, person: Person) -> Allowed:
    """Without consent, and for a bot, neither the person nor the session exists."""
    if not (
        person.session.flags & _ANY_NO
        or person.candidates_deny
        or person.consent_unknown
        or request.personalize is False
    ):
        return Allowed(request, person, True, person.unavailable)  # nobody says no: nearly everybody
    consents = allows_personalization(request, person)
    is_bot = consents and bool(person.session.flags & FLAG_BOT)
    unavailable = person.unavailable or (BOT if is_bot else None)
    if consents and not is_bot:
        return Allowed(request, person, True, unavailable)
    nobody = replace(request, user_id=None, anonymous_id=None, session_id=None, recent_events=())
    return Allowed(nobody, NOBODY, False, unavailable)


def with_refusal(request: SlateRequest, *, refuses: bool) -> SlateRequest:
    """The request as of somebody whose newest word, through the users API, is a no: it wins over a yes in the request.

    Such a word is known to every worker as soon as it is in the log, long before the night knows it.
    """
    return replace(request, personalize=False) if refuses else request


def allows_personalization(request: SlateRequest, person: Person) -> bool:
    """False when the request, the session record or the candidates record says no. Silence is a yes.

    When a record that might say no cannot be read, only a request that itself says yes is a yes; a request that names
    nobody has no records.
    """
    denied_by_session = bool(person.session.flags & FLAG_PERSONALIZE_DENIED)
    if request.personalize is False or denied_by_session or person.candidates_deny:
        return False
    names_somebody = request.user_id is not None or request.anonymous_id is not None
    return not (person.consent_unknown and names_somebody and request.personalize is None)
