"""Making, rotating and revoking API keys: records in Redis `log`, which every worker reads within a fifth of a second.

Every change is one MULTI that also raises the count by which workers see it; a change that was based on an older state
is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import redis

from feature_repo.contracts.api_keys import ID_DIGITS, SECRET_BYTES, ApiKey, check_name, check_scopes, make_key
from feature_repo.contracts.errors import DataError, nearest
from feature_repo.contracts.keys import api_keys_key, api_keys_version_key

Random = Callable[[int], bytes]


class ApiKeys:
    """The keys of one tenant. `random` gives so many random bytes (`os.urandom`)."""

    def __init__(self, log: redis.Redis, *, tenant: str, random: Random) -> None:
        self._log = log
        self._records = api_keys_key(tenant)
        self._version = api_keys_version_key(tenant)
        self._random = random

    def all(self) -> list[ApiKey]:
        """Oldest first, also those that are no longer valid."""
        records: Any = self._log.hvals(self._records)
        return sorted(map(ApiKey.from_json, records), key=lambda key: (key.created_at, key.key_id))

    def create(
        self,
        name: str,
        scopes: list[str],
        *,
        requests_per_second: float | None = None,
        burst: int | None = None,
        by: str,
        at_micros: int,
    ) -> tuple[str, ApiKey]:
        """(the key, its record). The key is nowhere else. Raises DataError."""
        if requests_per_second is None and burst is not None:
            raise DataError("a burst needs a rate beside it", field="burst")
        if requests_per_second is not None and not 0 < requests_per_second < 1e9:
            words = f"the rate is a positive number of requests a second, got {requests_per_second:g}"
            raise DataError(words, field="rate")
        if burst is not None and burst < 1:
            raise DataError(f"the burst is at least 1 request, got {burst}", field="burst")
        if requests_per_second is not None and burst is None:
            burst = max(1, round(2 * requests_per_second))
        key, key_id, digest = make_key(self._random(ID_DIGITS // 2 + SECRET_BYTES))
        record = ApiKey(
            key_id, check_name(name), digest, check_scopes(scopes), at_micros, by, requests_per_second, burst
        )
        self._change(lambda _: [record])
        return key, record

    def rotate(self, key_id: str, *, overlap_micros: int, by: str, at_micros: int) -> tuple[str, ApiKey, ApiKey]:
        """(the new key, its record, the old one's): same name, scopes and limit; the old one ends after the overlap.

        Raises DataError for a key that is not known or no longer valid.
        """
        key, new_id, digest = make_key(self._random(ID_DIGITS // 2 + SECRET_BYTES))
        made: list[ApiKey] = []

        def change(known: Mapping[str, ApiKey]) -> list[ApiKey]:
            old = _one_of(known, key_id)
            if not old.is_valid_at(at_micros):
                raise DataError(f"key {old.key_id} ({old.name}) is no longer valid; make a new one", field="key_id")
            ends_at = min(old.expires_at or at_micros + overlap_micros, at_micros + overlap_micros)
            made[:] = [
                old._replace(key_id=new_id, digest=digest, created_at=at_micros, created_by=by, expires_at=None,
                             replaces=old.key_id),
                old._replace(expires_at=ends_at),
            ]  # fmt: skip
            return made

        self._change(change)
        return key, made[0], made[1]

    def revoke(self, key_id: str, *, at_micros: int) -> tuple[ApiKey, bool]:
        """(the record, whether it was valid until now). Raises DataError for a key that is not known."""
        found: list[Any] = []

        def change(known: Mapping[str, ApiKey]) -> list[ApiKey]:
            old = _one_of(known, key_id)
            was_valid = old.is_valid_at(at_micros)
            found[:] = [old._replace(revoked_at=at_micros) if old.revoked_at is None else old, was_valid]
            return [] if old.revoked_at is not None else [found[0]]

        self._change(change)
        return found[0], found[1]

    def _change(self, change: Callable[[Mapping[str, ApiKey]], list[ApiKey]]) -> None:
        def write(pipe: Any) -> None:
            known = [ApiKey.from_json(record) for record in pipe.hvals(self._records)]
            records = change({key.key_id: key for key in known})
            pipe.multi()
            if records:
                pipe.hset(self._records, mapping={record.key_id: record.to_json() for record in records})
                pipe.incr(self._version)

        self._log.transaction(write, self._records)


def _one_of(known: Mapping[str, ApiKey], key_id: str) -> ApiKey:
    if key_id not in known:
        raise DataError(
            f"no key {key_id[:40]!r}{nearest(key_id, known)}; `nightjar keys list` shows them", field="key_id"
        )
    return known[key_id]
