"""API keys: what one looks like, what it may do, and what is kept of it (never the key itself).

A key is `nj_<key_id>_<secret>`: 12 hex digits that are no secret and name it in logs and lists, then 256 random bits.
Kept is the SHA-256 of the whole text. A plain hash is right for a secret that nobody chose: there is no dictionary of
256 random bits, and a slow hash would only make every request slow.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from feature_repo.contracts.errors import ContractError, DataError, nearest

READ, WRITE, ADMIN, ERASE = "read", "write", "admin", "erase"
SCOPES: Mapping[str, int] = {READ: 1, WRITE: 2, ADMIN: 4, ERASE: 8}
"""Scope -> bit. None implies another."""

PREFIX = "nj_"
ID_DIGITS = 12
SECRET_BYTES = 32
_KEY = re.compile(r"nj_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
MAX_NAME = 80


class ApiKey(NamedTuple):
    """What is kept of one key. Times are microseconds since 1970, UTC; null where there is none.

    digest               SHA-256 of the key's text, 64 hex digits
    requests_per_second  lasting rate over all workers of one server; null: no limit
    burst                requests that may come at once after a pause (the bucket's size); null without a limit
    expires_at           from here on it is refused (the old key of a rotation)
    replaces             the key_id of the key that this one was rotated from
    """

    key_id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    created_at: int
    created_by: str
    requests_per_second: float | None = None
    burst: int | None = None
    expires_at: int | None = None
    revoked_at: int | None = None
    replaces: str | None = None

    def is_valid_at(self, micros: int) -> bool:
        """Whether it opens anything at this instant."""
        return self.revoked_at is None and (self.expires_at is None or micros < self.expires_at)

    def to_json(self) -> bytes:
        """ASCII JSON. Inverse: `from_json`."""
        return json.dumps(self._asdict(), separators=(",", ":")).encode("ascii")

    @classmethod
    def from_json(cls, text: str | bytes) -> ApiKey:
        """Raises ContractError on text that is no record of a key."""
        try:
            fields: dict[str, Any] = json.loads(text)
            key = cls(**{**fields, "scopes": tuple(fields["scopes"])})
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise ContractError(f"not the record of an API key: {type(error).__name__}") from error
        is_whole = (
            isinstance(key.key_id, str)
            and isinstance(key.name, str)
            and re.fullmatch("[0-9a-f]{64}", str(key.digest)) is not None
            and all(scope in SCOPES for scope in key.scopes)
            and (key.requests_per_second is None or (key.requests_per_second > 0 and (key.burst or 0) >= 1))
        )
        if not is_whole:
            raise ContractError(f"the record of API key {str(key.key_id)[:40]!r} is not whole")
        return key


def make_key(random: bytes) -> tuple[str, str, str]:
    """(key, key_id, digest) from `ID_DIGITS / 2 + SECRET_BYTES` random bytes."""
    if len(random) != ID_DIGITS // 2 + SECRET_BYTES:
        raise ContractError(f"a key is made of {ID_DIGITS // 2 + SECRET_BYTES} random bytes, got {len(random)}")
    key_id = random[: ID_DIGITS // 2].hex()
    secret = base64.urlsafe_b64encode(random[ID_DIGITS // 2 :]).rstrip(b"=").decode("ascii")
    key = f"{PREFIX}{key_id}_{secret}"
    return key, key_id, digest_of(key)


def key_id_of(key: str) -> str:
    """The id inside a key. Raises ContractError on text that is no key; the text itself is never repeated."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise ContractError(f"not an API key: a key is {PREFIX}<12 hex digits>_<43 letters>")
    return match[1]


def digest_of(key: str) -> str:
    """What is kept of a key's text."""
    return hashlib.sha256(key.encode("ascii")).hexdigest()


def check_scopes(words: list[str]) -> tuple[str, ...]:
    """The scopes in their order, each once. Raises DataError naming one that there is not."""
    for word in words:
        if word not in SCOPES:
            raise DataError(
                f"scope {word!r}, expected one of {', '.join(SCOPES)}{nearest(word, SCOPES)}", field="scope"
            )
    if not words:
        raise DataError(f"a key needs at least one scope of {', '.join(SCOPES)}", field="scope")
    return tuple(scope for scope in SCOPES if scope in words)


def check_name(name: str) -> str:
    """A name for people: 1 to 80 printable characters, no surrounding blanks. Raises DataError."""
    if not name or name != name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise DataError(f"a key's name has 1 to {MAX_NAME} printable characters, got {name[:MAX_NAME]!r}", field="name")
    return name
