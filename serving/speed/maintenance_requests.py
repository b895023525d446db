"""How somebody asks the archiver to maintain its tables: a request and an answer in Redis `log`.

The archiver is the only writer of its tables, so it does the work itself, between two rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import redis

from feature_repo.contracts.errors import NightjarError
from feature_repo.contracts.keys import maintenance_key, maintenance_report_key

REQUEST_SECONDS = 3600
"""How long a request, or its answer, waits for whom it is for."""


def ask(log: redis.Redis, tenant: str, request_id: str, *, dry_run: bool, retention_days: int) -> None:
    """Leave a request; an answer to an earlier one of the same id is forgotten. The last request wins."""
    request = {"id": request_id, "dry_run": dry_run, "retention_days": retention_days}
    with log.pipeline(transaction=True) as pipe:
        pipe.delete(maintenance_report_key(request_id, tenant))
        pipe.set(maintenance_key(tenant), json.dumps(request), ex=REQUEST_SECONDS)
        pipe.execute()


def read_answer(log: redis.Redis, tenant: str, request_id: str) -> dict[str, Any] | None:
    """`{"tables": {table: ...}}` or `{"error": words}`; None while there is no answer."""
    stored: Any = log.get(maintenance_report_key(request_id, tenant))
    return json.loads(stored) if stored else None


def answer_request(log: redis.Redis, tenant: str, maintain: Callable[..., dict[str, Any]]) -> bool:
    """Do what is asked, if anything is, and leave the answer; whether there was a request.

    `maintain(dry_run=, retention_days=)` does the work. An error of ours becomes the answer and is raised again, so
    that the role is resumed anew; a request that cannot be read is dropped.
    """
    stored: Any = log.get(maintenance_key(tenant))
    if not stored:
        return False
    log.delete(maintenance_key(tenant))
    try:
        request = json.loads(stored)
        request_id, options = str(request["id"]), (bool(request["dry_run"]), int(request["retention_days"]))
    except (ValueError, KeyError, TypeError):
        return False
    key = maintenance_report_key(request_id, tenant)
    try:
        answer = {"tables": maintain(dry_run=options[0], retention_days=options[1])}
    except NightjarError as error:
        log.set(key, json.dumps({"error": f"{type(error).__name__}: {error}"}), ex=REQUEST_SECONDS)
        raise
    log.set(key, json.dumps(answer), ex=REQUEST_SECONDS)
    return True
