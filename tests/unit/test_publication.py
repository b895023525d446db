"""Publication against a real Redis: what a flip serves, where a rollback goes, what is dropped, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.keys import candidates_key, pointer_key, versions_key
from feature_repo.contracts.packing import FLAG_PERSONALIZE_DENIED, PackedCandidate, pack_candidates
from feature_repo.contracts.publication import Manifest, candidates_checksum, record_digest
from infra.local.redis_server import RunningServer
from spark_jobs.io.publication import Publication, candidates_digest, shown_url

pytestmark = pytest.mark.redis

NOON = datetime(2024, 3, 9, 12, tzinfo=UTC)

LISTS = {
    "u1": [
        PackedCandidate(7, 0.9, 2, 1, 3),
        PackedCandidate(2, 0.5, 2),
        PackedCandidate(4, 0.5, 2),
    ],  # a tie: by number
    "u2": [],  # saw everything
    "ü 3": [PackedCandidate(1, -0.25, 3)],  # not ASCII, with a space
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer("online", tmp_path_factory.mktemp("online")) as running:
        yield running


@pytest.fixture
def raw(server: RunningServer) -> redis.Redis:
    client = redis.Redis.from_url(server.url)
    client.flushall()
    return client


@pytest.fixture
def publication(server: RunningServer, raw: redis.Redis) -> Publication:
    return Publication(server.url)


def manifest_of(
    day: int, lists: dict[str, list[PackedCandidate]] = LISTS, *, seed: int = 1, published_at: str = ""
) -> Manifest:
    """A manifest whose checksum is worked out without the code under test: flags byte 0, then the packed rows."""
    payloads = {u: b"\0" + pack_candidates("2000-01-01-00000000", rows)[12:] for u, rows in lists.items()}
    return Manifest(
        as_of=f"2024-03-{day:02d}",
        model="als",
        recipe={"seed": seed},
        user_count=len(lists),
        item_count=9,
        candidates_checksum=candidates_checksum([record_digest(u, p) for u, p in payloads.items()]),
        last_event_at=None,
        volatile={"published_at": published_at or f"2024-03-{day:02d}T01:00:00Z"},
    )


def records(version: str, lists: dict[str, list[PackedCandidate]] = LISTS) -> list[tuple[str, bytes]]:
    return [(user, pack_candidates(version, rows)) for user, rows in lists.items()]


def publish(publication: Publication, manifest: Manifest) -> str:
    version = publication.announce(manifest)
    publication.put_records(version, records(version))
    assert publication.verify(version, LISTS).differences == []
    publication.mark_verified(version, at=NOON)
    return version


def keys_of(raw: redis.Redis, version: str) -> int:
    return sum(version.encode() in key for key in raw.keys("*:cand:*"))


def test_first_flip_serves_the_version_and_has_no_previous(publication: Publication, raw: redis.Redis) -> None:
    version = publish(publication, manifest_of(8))
    assert publication.served_version() is None
    assert publication.flip(version) == (version, None, ())
    assert (publication.served_version(), publication.previous_version()) == (version, None)
    assert raw.get(candidates_key(version, "ü 3")) == pack_candidates(version, LISTS["ü 3"])
    assert raw.ttl(candidates_key(version, "u1")) == -1  # a served list never expires
    (listed,) = publication.list_versions()
    assert (listed.version, listed.is_served, listed.is_previous, listed.verified_at) == (
        version, True, False, "2024-03-09T12:00:00Z",
    )  # fmt: skip


def test_only_a_version_that_nobody_needs_is_dropped(publication: Publication, raw: redis.Redis) -> None:
    versions = [publish(publication, manifest_of(day)) for day in (6, 7, 8)]
    for version in versions[:2]:
        publication.flip(version)
    for version in versions[:2]:
        with pytest.raises(DataError, match=f"version {version} is served, or was served before it"):
            publication.drop(version)
    assert keys_of(raw, versions[2]) == 3
    publication.drop(versions[2])
    assert keys_of(raw, versions[2]) == 0
    assert {v.version for v in publication.list_versions()} == set(versions[:2])


def test_many_records_are_all_put_across_chunks(publication: Publication, raw: redis.Redis) -> None:
    version = publication.announce(manifest_of(8))
    users = {f"u{n}": LISTS["u1"] for n in range(1_203)}
    assert publication.put_records(version, iter(records(version, users))) == 1_203
    assert keys_of(raw, version) == 1_203


def test_rollback_goes_back_and_forth_and_copies_nothing(publication: Publication, raw: redis.Redis) -> None:
    first, second = publish(publication, manifest_of(7)), publish(publication, manifest_of(8))
    publication.flip(first)
    publication.flip(second)
    before = raw.dbsize()
    assert publication.rollback() == (first, second, ())
    assert publication.served_version() == first
    assert publication.rollback() == (second, first, ())
    assert publication.served_version() == second
    assert raw.dbsize() == before


def test_rollback_to_a_named_version(publication: Publication) -> None:
    versions = [publish(publication, manifest_of(day)) for day in (6, 7, 8)]
    for version in versions:
        publication.flip(version)
    assert publication.rollback(versions[0]).served == versions[0]
    assert publication.previous_version() == versions[2]


def test_rollback_refuses_what_it_cannot_serve(publication: Publication) -> None:
    with pytest.raises(DataError, match="nothing to roll back to"):
        publication.rollback()
    version = publish(publication, manifest_of(8))
    publication.flip(version)
    with pytest.raises(DataError, match="nothing to roll back to"):
        publication.rollback()
    with pytest.raises(DataError, match="already served"):
        publication.rollback(version)
    with pytest.raises(DataError, match=f"did you mean '{version}'"):
        publication.rollback(version[:-1] + "_")
    pending = publication.announce(manifest_of(9))
    with pytest.raises(DataError, match=f"{pending} is not verified"):
        publication.rollback(pending)
    assert publication.served_version() == version


def test_flip_refuses_unknown_and_unverified_versions(publication: Publication, raw: redis.Redis) -> None:
    served = publish(publication, manifest_of(7))
    publication.flip(served)
    version = publication.announce(manifest_of(8))
    publication.put_records(version, records(version))
    with pytest.raises(DataError, match="not verified"):
        publication.flip(version)
    with pytest.raises(DataError, match="no version '2024-03-08-00000000'"):
        publication.flip("2024-03-08-00000000")
    assert raw.get(pointer_key()) == served.encode()


def test_flipping_twice_changes_nothing(publication: Publication) -> None:
    """A flip task killed after its EXEC is run again: `previous` must not become the served version itself."""
    first, second = publish(publication, manifest_of(7)), publish(publication, manifest_of(8))
    publication.flip(first)
    assert publication.flip(second).previous == first
    assert publication.flip(second) == (second, first, ())


def test_three_versions_stay_warm_and_older_ones_leave_with_their_rows(
    publication: Publication, raw: redis.Redis
) -> None:
    versions, dropped = [], []
    for day in (4, 5, 6, 7):
        versions.append(publish(publication, manifest_of(day)))
        dropped.append(publication.flip(versions[-1]).dropped)
    assert dropped == [(), (), (), (versions[0],)]
    assert [v.version for v in publication.list_versions()] == versions[:0:-1]
    assert [keys_of(raw, version) for version in versions] == [0, 3, 3, 3]


def test_served_and_previous_stay_even_when_they_are_the_oldest(publication: Publication) -> None:
    """After a rollback to the oldest version, the next flip keeps it: it is what a bare rollback returns to."""
    versions = [publish(publication, manifest_of(day)) for day in (5, 6, 7)]
    for version in versions:
        publication.flip(version)
    publication.rollback(versions[0])
    newest = publish(publication, manifest_of(8))
    assert publication.flip(newest) == (newest, versions[0], (versions[1],))
    assert publication.rollback().served == versions[0]


def test_a_version_that_was_never_verified_is_dropped_by_the_next_flip(
    publication: Publication, raw: redis.Redis
) -> None:
    dead = publication.announce(manifest_of(8, seed=1))
    publication.put_records(dead, records(dead)[:2])  # killed here
    coming = publication.announce(manifest_of(9))  # another night, still publishing: not ours to drop
    publication.put_records(coming, records(coming))
    version = publish(publication, manifest_of(8, seed=2))
    assert publication.flip(version).dropped == (dead,)
    assert [keys_of(raw, v) for v in (dead, version, coming)] == [0, 3, 3]
    assert {v.version for v in publication.list_versions()} == {version, coming}


def test_a_killed_publication_is_repeated_over_its_own_leftovers(publication: Publication, raw: redis.Redis) -> None:
    manifest = manifest_of(8)
    version = publication.announce(manifest)
    publication.put_records(version, records(version)[:1])  # killed here
    assert publish(publication, manifest) == version
    assert keys_of(raw, version) == 3
    publication.flip(version)
    publication.announce(manifest)  # the same night once more: what is served stays verified
    assert publication.list_versions()[0].verified_at is not None


def test_a_failed_check_takes_the_mark_away(publication: Publication) -> None:
    version = publish(publication, manifest_of(8))
    publication.mark_verified(version, at=None)
    with pytest.raises(DataError, match="not verified"):
        publication.flip(version)


def damage_none(raw: redis.Redis, version: str) -> None:
    raw.delete(candidates_key(version, "u1"))


def damage_version(raw: redis.Redis, version: str) -> None:
    raw.set(candidates_key(version, "u1"), pack_candidates("2024-03-08-00000000", LISTS["u1"]))


def damage_flags(raw: redis.Redis, version: str) -> None:
    raw.set(candidates_key(version, "u1"), pack_candidates(version, LISTS["u1"], flags=FLAG_PERSONALIZE_DENIED))


def damage_order(raw: redis.Redis, version: str) -> None:
    raw.set(candidates_key(version, "u1"), pack_candidates(version, [LISTS["u1"][i] for i in (0, 2, 1)]))


def damage_score(raw: redis.Redis, version: str) -> None:
    raw.set(candidates_key(version, "u1"), pack_candidates(version, [PackedCandidate(1, float("nan"), 2)]))


def damage_twice(raw: redis.Redis, version: str) -> None:
    rows = [PackedCandidate(1, 0.5, 2), PackedCandidate(1, 0.25, 2)]
    raw.set(candidates_key(version, "u1"), pack_candidates(version, rows))


def damage_cut(raw: redis.Redis, version: str) -> None:
    raw.set(candidates_key(version, "u1"), pack_candidates(version, LISTS["u1"])[:-1])


def damage_extra(raw: redis.Redis, version: str) -> None:
    raw.set(candidates_key(version, "u9"), pack_candidates(version, []))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (damage_none, ["no record: 1 users ('u1')", "records: found 2,", "keys: found 2,", "checksum"]),
        (damage_version, ["record of version 2024-03-08-00000000: 1 users ('u1')"]),
        (damage_flags, ["checksum"]),
        (damage_order, ["rows out of order: 1 users ('u1')", "checksum"]),
        (damage_score, ["score not finite: 1 users ('u1')", "checksum"]),
        (damage_twice, ["item listed twice: 1 users ('u1')", "checksum"]),
        (damage_cut, ["damaged record: 1 users ('u1')", "checksum"]),
        (damage_extra, ["keys: found 4,"]),
    ],
    ids=lambda p: getattr(p, "__name__", ""),
)
def test_verify_names_each_kind_of_damage(publication: Publication, raw: redis.Redis, damage, expected) -> None:
    version = publication.announce(manifest_of(8))
    publication.put_records(version, records(version))
    whole = publication.verify(version, LISTS)
    assert (whole.record_count, whole.row_count, whole.differences) == (3, 4, [])
    damage(raw, version)
    found = publication.verify(version, LISTS).differences
    assert len(found) == len(expected), found
    for difference, start in zip(found, expected, strict=True):
        assert difference.startswith(start)


def test_digest_covers_flags_and_rows_but_not_the_version() -> None:
    rows = LISTS["u1"]
    here, there = (candidates_digest("u1", pack_candidates(f"2024-03-0{d}-0000000{d}", rows)) for d in (1, 2))
    denied = candidates_digest("u1", pack_candidates("2024-03-01-00000001", rows, flags=1))
    fewer = candidates_digest("u1", pack_candidates("2024-03-01-00000001", rows[:2]))
    other = candidates_digest("u2", pack_candidates("2024-03-01-00000001", rows))
    assert here == there
    assert len({here, denied, fewer, other}) == 4


def test_stored_checksum_tells_what_is_there(publication: Publication, raw: redis.Redis) -> None:
    version = publication.announce(manifest_of(8))
    assert publication.stored_checksum(version) == (0, "0" * 16)
    publication.put_records(version, records(version))
    assert publication.stored_checksum(version) == (3, manifest_of(8).candidates_checksum)
    damage_flags(raw, version)
    assert publication.stored_checksum(version) != (3, manifest_of(8).candidates_checksum)


def test_two_flips_at_once_leave_a_pointer_and_its_true_predecessor(
    publication: Publication, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process flips between our read and our EXEC: WATCH makes us read again."""
    first, second, third = (publish(publication, manifest_of(day)) for day in (6, 7, 8))
    publication.flip(first)
    read, interfered = publication._read_state, []

    def read_then_interfere(pipe):
        state = read(pipe)
        if not interfered:
            interfered.append(True)
            raw.set(pointer_key(), second)
        return state

    monkeypatch.setattr(publication, "_read_state", read_then_interfere)
    assert publication.flip(third).previous == second


def test_a_manifest_that_describes_another_version_is_refused(publication: Publication, raw: redis.Redis) -> None:
    raw.hset(versions_key(), "2024-03-08-00000000", manifest_of(8).to_json())
    with pytest.raises(ContractError, match="stored for 2024-03-08-00000000 describes"):
        publication.list_versions()


def test_tenants_do_not_see_each_other(publication: Publication, server: RunningServer) -> None:
    version = publish(publication, manifest_of(8))
    publication.flip(version)
    other = Publication(server.url, tenant="shop-b")
    assert (other.list_versions(), other.served_version()) == ([], None)


def test_redis_down_is_a_dependency_error_without_the_password(tmp_path: Path) -> None:
    with RunningServer("online", tmp_path) as gone:
        url = gone.url.replace("redis://", "redis://writer:s3cret@")
    with pytest.raises(DependencyError) as caught:
        Publication(url).list_versions()
    assert f"redis://127.0.0.1:{gone.port}/0" in str(caught.value)
    assert "nightjar up" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_full_redis_says_so(publication: Publication, raw: redis.Redis) -> None:
    version = publication.announce(manifest_of(8))
    raw.config_set("maxmemory", "1")
    try:
        with pytest.raises(DependencyError, match=r"refused: .*maxmemory"):
            publication.put_records(version, records(version))
    finally:
        raw.config_set("maxmemory", "0")


def test_shown_url_has_no_credentials() -> None:
    assert shown_url("rediss://me:p%40ss@cache.example:6390/2?ssl_cert_reqs=none") == "rediss://cache.example:6390/2"
    assert shown_url("redis://127.0.0.1:6379/0") == "redis://127.0.0.1:6379/0"


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(DataError, match="not a Redis URL: 'localhost:6379'"):
        Publication("localhost:6379")
