"""Blue/green publication in Redis `online`: rows under version keys, a verified mark, one pointer.

A version goes through: `announce` (its manifest enters the versions hash, unverified) -> `put_records` (from many
processes at once) -> `verify` -> `mark_verified` -> `flip`. Only a verified version can be flipped or rolled back to.
Everything can be repeated: a version's name is a hash of its content, so a second attempt writes the same bytes to the
same keys. A version that never got verified (its run died and was not retried) is dropped by the next flip.

No key of a version has a TTL, no value is written in two steps, and nothing here is a script on the server.
Light at import: redis and the contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import ConstantBackoff
from redis.client import Pipeline
from redis.exceptions import RedisError, ResponseError, WatchError
from redis.retry import Retry

from feature_repo.contracts.errors import ContractError, DataError, DependencyError, nearest
from feature_repo.contracts.keys import (
    DEFAULT_TENANT,
    candidates_key,
    candidates_prefix,
    parse_candidates_key,
    parse_purchases_key,
    pointer_key,
    previous_pointer_key,
    purchases_key,
    purchases_prefix,
    versions_key,
)
from feature_repo.contracts.packing import CANDIDATES_HEADER_BYTES
from feature_repo.contracts.publication import (
    PURCHASES_PART,
    WARM_VERSIONS,
    Manifest,
    candidates_checksum,
    parse_version,
    record_digest,
)
from feature_repo.contracts.purchase_record import HEADER_BYTES as PURCHASES_HEADER_BYTES
from feature_repo.contracts.purchase_record import Purchase, pack_purchases, unpack_purchases
from feature_repo.contracts.times import format_timestamp
from spark_jobs.giving_way import ask_in_pieces

PIECE_RECORDS = 50
"""Records in one command: more saves round trips and delays the requests of others behind it."""

NO_VERSION = "1970-01-01-00000000"
"""Stands in the header of records that are only digested: a digest does not cover it."""

_SCAN_COUNT = 1_000
_POINTER_ATTEMPTS = 10
_EXAMPLES = 3

T = TypeVar("T")


class Version(NamedTuple):
    """One version in Redis. `verified_at` is None while it is being published, or when its last check failed."""

    version: str
    manifest: Manifest
    verified_at: str | None
    is_served: bool
    is_previous: bool


class Flip(NamedTuple):
    """What a flip or a rollback did: the version now served, the one served before it (None on the first night),
    the versions dropped because nothing can return to them any more."""

    served: str
    previous: str | None
    dropped: tuple[str, ...] = ()


@dataclass(slots=True)
class Verification:
    """What `verify` found. `differences` is empty when the version is whole."""

    version: str
    record_count: int = 0
    row_count: int = 0
    checksum: str = ""
    differences: list[str] = field(default_factory=list)


def candidates_digest(user_id: str, record: bytes) -> int:
    """`record_digest` of a packed record, which covers the flags byte, the rows, and the shares behind them.

    The rest of the header (format, count, version) stays out: the version depends on this digest, and format and count
    are held against the length of the record.
    """
    return record_digest(user_id, record[1:2] + record[CANDIDATES_HEADER_BYTES:])


def purchases_digest(user_id: str, record: bytes) -> int:
    """`record_digest` of a purchase record: its rows, as of a candidates record."""
    return record_digest(user_id, record[PURCHASES_HEADER_BYTES:])


def purchases_part(purchases: Iterable[tuple[str, Sequence[Purchase]]], params: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of the users' purchases: `user_count`, `checksum`, and the `params` of their model."""
    digests = [purchases_digest(user_id, pack_purchases(NO_VERSION, rows)) for user_id, rows in purchases]
    return {"user_count": len(digests), "checksum": candidates_checksum(digests), "params": dict(params)}


def shown_url(url: str) -> str:
    """A Redis URL fit for messages: without user and password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


class Publication:
    """The versions of one tenant in Redis `online`. Every method raises DependencyError when Redis does not answer."""

    def __init__(self, redis_url: str, tenant: str = DEFAULT_TENANT) -> None:
        self.tenant = tenant
        self._shown = shown_url(redis_url)
        try:
            self._redis = redis.Redis.from_url(
                redis_url,
                socket_connect_timeout=2,
                socket_timeout=30,
                retry=Retry(ConstantBackoff(0.05), 2),
            )
        except ValueError as error:
            raise DataError(f"not a Redis URL: {self._shown!r} ({error})", field="redis_online_url") from error

    # --- publishing ----------------------------------------------------------------------------------------------

    def announce(self, manifest: Manifest) -> str:
        """Put the manifest among the versions; returns the version.

        A version that is already there keeps its verified mark: the bytes that follow are the ones it has.
        """
        version = manifest.version()

        def change(pipe: Pipeline) -> str:
            stored = pipe.hget(versions_key(self.tenant), version)
            pipe.multi()
            mark = _manifest(version, stored).volatile.get("verified_at") if stored else None
            self._store(pipe, version, _marked(manifest, mark))
            return version

        return self._transaction(change)

    def put_records(self, version: str, records: Iterable[tuple[str, bytes]]) -> int:
        """SET each user's whole packed record under its version key; returns how many. Order does not matter.

        In small pieces with rests between them: whoever asks the store meanwhile waits for one piece at most."""
        parse_version(version)
        keyed = ((candidates_key(version, user_id, self.tenant), record) for user_id, record in records)
        return self._put(keyed)

    def put_purchases(self, version: str, purchases: Iterable[tuple[str, Sequence[Purchase]]]) -> None:
        """SET each user's packed purchases under its version key."""
        self._put(
            (purchases_key(version, user_id, self.tenant), pack_purchases(version, rows)) for user_id, rows in purchases
        )

    def _put(self, records: Iterable[tuple[str, bytes]]) -> int:
        """SET each record under its key; returns how many."""
        with self._answering():
            return sum(
                len(piece)
                for piece, _ in ask_in_pieces(records, PIECE_RECORDS, lambda piece: self._redis.mset(dict(piece)))
            )

    def verify(self, version: str, user_ids: Iterable[str]) -> Verification:
        """Read back every record of `user_ids` (each user once) and compare with the manifest.

        Checks: every record is there, whole, of this version, ordered (score downwards, then item number upwards),
        finite; as many as the manifest says and no others under the version's prefix; the same checksum.
        Raises DataError when the version was never announced.
        """
        from spark_jobs.transforms.record_checks import record_faults, row_count

        manifest = self.manifest(version)
        found = Verification(version)
        digest_sum = 0
        faults: dict[str, list[str]] = {}
        for users, records in self._read_records(version, user_ids):
            for user_id, record, fault in zip(users, records, record_faults(version, records), strict=True):
                if fault is not None:
                    faults.setdefault(fault, []).append(user_id)
                if record is not None:
                    found.record_count += 1
                    found.row_count += row_count(record)
                    digest_sum += candidates_digest(user_id, record)
        found.checksum = candidates_checksum([digest_sum])
        for fault, users in sorted(faults.items()):
            shown = ", ".join(repr(u) for u in sorted(users)[:_EXAMPLES]) + (", ..." if len(users) > _EXAMPLES else "")
            found.differences.append(f"{fault}: {len(users):,} users ({shown})")
        if found.record_count != manifest.user_count:
            found.differences.append(
                f"records: found {found.record_count:,}, the manifest says {manifest.user_count:,}"
            )
        stored = len(set(self._scan(version)))
        if stored != manifest.user_count:
            found.differences.append(f"keys: found {stored:,}, the manifest says {manifest.user_count:,}")
        if found.checksum != manifest.candidates_checksum:
            found.differences.append(
                f"checksum: found {found.checksum}, the manifest says {manifest.candidates_checksum}"
            )
        found.differences += self._purchase_faults(version, manifest)
        return found

    def _purchase_faults(self, version: str, manifest: Manifest) -> list[str]:
        """How the purchase records of a version differ from what its manifest says of them, in words."""
        said = manifest.parts.get(PURCHASES_PART, {})
        users = {
            parse_purchases_key(key.decode(), self.tenant)[1]
            for key in self._scan_prefix(purchases_prefix(version, self.tenant))
        }
        digests, damaged = [], 0
        for some, records in self._ask_for(sorted(users), partial(purchases_key, version, tenant=self.tenant)):
            for user_id, record in zip(some, records, strict=True):
                try:
                    unpack_purchases(record or b"", expected_version=version)
                    digests.append(purchases_digest(user_id, record or b""))
                except ContractError:
                    damaged += 1
        faults = [f"purchases: {damaged:,} records are damaged or of another version"] if damaged else []
        if len(users) != said.get("user_count", 0):
            faults.append(f"purchases: found {len(users):,} records, the manifest says {said.get('user_count', 0):,}")
        elif candidates_checksum(digests) != said.get("checksum", candidates_checksum([])):
            faults.append("purchases: they are not those that the manifest has the checksum of")
        return faults

    def stored_checksum(self, version: str) -> tuple[int, str]:
        """(records, checksum) of whatever lies under the version's keys, without asking the manifest or any table."""
        keys = sorted(set(self._scan(version)))
        users = (parse_candidates_key(key.decode(), self.tenant)[1] for key in keys)
        digest_sum = count = 0
        for some, records in self._read_records(version, users):
            found = [(user_id, record) for user_id, record in zip(some, records, strict=True) if record is not None]
            digest_sum += sum(candidates_digest(user_id, record) for user_id, record in found)
            count += len(found)
        return count, candidates_checksum([digest_sum])

    def mark_verified(self, version: str, *, at: datetime | None) -> None:
        """Set the verified mark, or take it away (`at` None: the check failed, nothing may flip to it)."""

        def change(pipe: Pipeline) -> None:
            stored = pipe.hget(versions_key(self.tenant), version)
            pipe.multi()
            if stored is None:
                raise self._unknown(version)
            mark = None if at is None else format_timestamp(at)
            self._store(pipe, version, _marked(_manifest(version, stored), mark))

        self._transaction(change)

    # --- the pointer ---------------------------------------------------------------------------------------------

    def flip(self, version: str) -> Flip:
        """Serve `version`; what was served becomes the previous version. Then drop what nothing can return to.

        Kept: the served version, the previous one, and of the other verified ones the last published, up to
        WARM_VERSIONS in all; and a version that is being published for a later day. Flipping to the served version
        changes no pointer. Raises DataError when the version is unknown or not verified.
        """

        def change(pipe: Pipeline) -> Flip:
            served, previous, versions = self._read_state(pipe)
            self._require_verified(version, versions)
            if served != version:
                previous = served
            dropped = _droppable(versions, version, previous)
            pipe.multi()
            for gone in dropped:
                self._store(pipe, gone, _marked(versions[gone], None))
            self._point(pipe, version, previous)
            return Flip(version, previous, tuple(dropped))

        done = self._transaction(change)
        for gone in done.dropped:
            self._drop(gone)
        return done

    def rollback(self, version: str | None = None) -> Flip:
        """Serve the previous version, or the one named. Nothing is copied or dropped; repeating it returns.

        Raises DataError when there is nothing to return to, or the version is unknown, unverified or already served.
        """

        def change(pipe: Pipeline) -> Flip:
            served, previous, versions = self._read_state(pipe)
            target = version or previous
            if target is None:
                raise DataError("nothing to roll back to: no version was served before this one", field="version")
            self._require_verified(target, versions)
            if target == served:
                raise DataError(f"version {target} is already served", field="version")
            pipe.multi()
            self._point(pipe, target, served)
            return Flip(target, served)

        return self._transaction(change)

    def served_version(self) -> str | None:
        """The pointer; None before the first flip."""
        with self._answering():
            return _text(self._redis.get(pointer_key(self.tenant)))

    def previous_version(self) -> str | None:
        """The version that a bare rollback returns to; None before the second flip."""
        with self._answering():
            return _text(self._redis.get(previous_pointer_key(self.tenant)))

    def manifest(self, version: str) -> Manifest:
        """The manifest of an announced version. Raises DataError naming the nearest one when it is unknown."""
        with self._answering():
            stored = self._redis.hget(versions_key(self.tenant), version)
        if stored is None:
            raise self._unknown(version)
        return _manifest(version, stored)

    def list_versions(self) -> list[Version]:
        """Every version in Redis, newest publication first; ties by name, downwards."""
        with self._answering(), self._redis.pipeline(transaction=True) as pipe:
            pipe.get(pointer_key(self.tenant))
            pipe.get(previous_pointer_key(self.tenant))
            pipe.hgetall(versions_key(self.tenant))
            served, previous, stored = pipe.execute()
        versions = _manifests(stored)
        return [
            Version(
                name,
                versions[name],
                versions[name].volatile.get("verified_at"),
                name == _text(served),
                name == _text(previous),
            )
            for name in sorted(versions, key=lambda v: _published_order(v, versions[v]), reverse=True)
        ]

    # --- inside --------------------------------------------------------------------------------------------------

    def _read_state(self, pipe: Pipeline) -> tuple[str | None, str | None, dict[str, Manifest]]:
        served = _text(pipe.get(pointer_key(self.tenant)))
        previous = _text(pipe.get(previous_pointer_key(self.tenant)))
        return served, previous, _manifests(pipe.hgetall(versions_key(self.tenant)))

    def _point(self, pipe: Pipeline, served: str, previous: str | None) -> None:
        pipe.set(pointer_key(self.tenant), served)
        if previous is not None:
            pipe.set(previous_pointer_key(self.tenant), previous)

    def _store(self, pipe: Pipeline, version: str, manifest: Manifest) -> None:
        pipe.hset(versions_key(self.tenant), version, manifest.to_json())

    def _require_verified(self, version: str, versions: dict[str, Manifest]) -> None:
        if version not in versions:
            raise DataError(
                f"no version {version!r} in Redis{nearest(version, versions)}; "
                f"there are {', '.join(sorted(versions)) or 'none'}",
                field="version",
            )
        if versions[version].volatile.get("verified_at") is None:
            raise DataError(f"version {version} is not verified: it cannot be served", field="version")

    def _unknown(self, version: str) -> DataError:
        names = [v.version for v in self.list_versions()]
        known = ", ".join(names) or "none"
        return DataError(
            f"no version {version!r} in Redis{nearest(version, names)}; there are {known}", field="version"
        )

    def drop(self, version: str) -> None:
        """Take a version's lists away. Raises DataError for one that is served, or that a rollback would return to."""
        if version in (self.served_version(), self.previous_version()):
            raise DataError(f"version {version} is served, or was served before it: it stays", field="version")
        self._drop(version)

    def _drop(self, version: str) -> None:
        """Rows first, then the manifest, so that a drop that dies halfway is found and finished by the next flip."""
        with self._answering():
            keys = chain(self._scan(version), self._scan_prefix(purchases_prefix(version, self.tenant)))
            for _ in ask_in_pieces(keys, PIECE_RECORDS, lambda piece: self._redis.unlink(*piece)):
                pass
            self._redis.hdel(versions_key(self.tenant), version)

    def _scan(self, version: str) -> Iterator[bytes]:
        """Every record key of a version; SCAN may repeat some."""
        return self._scan_prefix(candidates_prefix(version, self.tenant))

    def _scan_prefix(self, prefix: str) -> Iterator[bytes]:
        with self._answering():
            yield from self._redis.scan_iter(match=prefix + "*", count=_SCAN_COUNT)

    def _read_records(self, version: str, user_ids: Iterable[str]) -> Iterator[tuple[list[str], list[bytes | None]]]:
        return self._ask_for(user_ids, partial(candidates_key, version, tenant=self.tenant))

    def _ask_for(
        self, user_ids: Iterable[str], key_of: Callable[[str], str]
    ) -> Iterator[tuple[list[str], list[bytes | None]]]:
        """Some users and their records, again and again; None where there is none."""

        def ask(users: list[str]) -> list[bytes | None]:
            with self._answering():
                records: Any = self._redis.mget([key_of(user_id) for user_id in users])
            return list(records)

        return ask_in_pieces(user_ids, PIECE_RECORDS, ask)

    def _transaction(self, change: Callable[[Pipeline], T]) -> T:
        """WATCH the pointers and the versions, let `change` read, call `multi()` and queue writes; EXEC; again when
        somebody else changed them meanwhile."""
        with self._answering(), self._redis.pipeline(transaction=True) as pipe:
            for _ in range(_POINTER_ATTEMPTS):
                try:
                    pipe.watch(pointer_key(self.tenant), previous_pointer_key(self.tenant), versions_key(self.tenant))
                    result = change(pipe)
                    pipe.execute()
                    return result
                except WatchError:
                    continue
        raise DependencyError(f"the pointer at {self._shown} kept moving: {_POINTER_ATTEMPTS} attempts in vain")

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except WatchError:
            raise
        except ResponseError as error:
            raise DependencyError(f"Redis (role online) at {self._shown} refused: {error}") from error
        except RedisError as error:
            raise DependencyError(
                f"Redis (role online) at {self._shown} does not answer ({error}); start the stack with `nightjar up`"
            ) from error


def _text(value: Any) -> str | None:
    return None if value is None else value.decode()


def _manifest(version: str, stored: Any) -> Manifest:
    manifest = Manifest.from_json(stored)
    if manifest.version() != version:
        raise ContractError(f"the manifest stored for {version} describes {manifest.version()}")
    return manifest


def _manifests(stored: Any) -> dict[str, Manifest]:
    return {name.decode(): _manifest(name.decode(), text) for name, text in stored.items()}


def _marked(manifest: Manifest, verified_at: str | None) -> Manifest:
    return replace(manifest, volatile={**manifest.volatile, "verified_at": verified_at})


def _published_order(version: str, manifest: Manifest) -> tuple[str, str]:
    return str(manifest.volatile.get("published_at") or ""), version


def _droppable(versions: dict[str, Manifest], served: str, previous: str | None) -> list[str]:
    """Verified versions beyond the warm ones, and unverified ones of the served day or before; sorted."""
    kept = {served, previous}
    others = [v for v in versions if v not in kept]
    verified = [v for v in others if versions[v].volatile.get("verified_at") is not None]
    verified.sort(key=lambda v: _published_order(v, versions[v]), reverse=True)
    spare = max(0, WARM_VERSIONS - len(kept - {None}))
    abandoned = [
        v
        for v in others
        if versions[v].volatile.get("verified_at") is None and parse_version(v)[0] <= parse_version(served)[0]
    ]
    return sorted(verified[spare:] + abandoned)
