"""Consent for personalization: whoever says no wins."""

from __future__ import annotations

from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED
from serving.pipeline.values import Person, SlateRequest


def allows_personalization(request: SlateRequest, person: Person) -> bool:
    """False when the request, the session record or the candidates record says no. Silence is a yes."""
    denied_by_session = bool(person.session.flags & FLAG_PERSONALIZE_DENIED)
    return not (request.personalize is False or denied_by_session or person.candidates_deny)
