"""Consent for personalization: whoever says no wins."""

from __future__ import annotations

from dataclasses import replace

from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from serving.pipeline.values import Person, SlateRequest


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
