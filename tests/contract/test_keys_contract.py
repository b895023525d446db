"""Keys have inverses, tenants never meet, and everything about one subject lies in one cluster slot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from feature_repo.contracts import keys
from feature_repo.contracts.errors import ContractError

VERSION = "2024-03-08-1a2b3c4d"
IDS = st.text(min_size=1, max_size=60).filter(lambda s: "\x00" not in s and s.isprintable())


@given(user_id=IDS)
def test_candidates_key_has_an_inverse(user_id: str) -> None:
    assert keys.parse_candidates_key(keys.candidates_key(VERSION, user_id)) == (VERSION, user_id)


@given(subject=st.tuples(st.sampled_from(["u:", "a:"]), IDS).map("".join))
def test_session_key_has_an_inverse(subject: str) -> None:
    assert keys.parse_session_key(keys.session_key(subject)) == subject


@given(user_id=IDS)
def test_one_slot_holds_a_user(user_id: str) -> None:
    candidates = key_slot(keys.candidates_key(VERSION, user_id).encode())
    assert candidates == key_slot(keys.session_key("u:" + user_id).encode())


def test_a_stream_and_its_marks_share_a_slot() -> None:
    slots = {key_slot(keys.stream_key(2).encode()), key_slot(keys.dedup_key(2, "e:{1}").encode())}
    assert len(slots) == 1
    assert key_slot(keys.stream_key(2).encode()) != key_slot(keys.stream_key(3).encode())


def test_awkward_ids_stay_apart() -> None:
    awkward = ["a:b", "a%3Ab", "a", "{a}", "a}", "ä", " a", "a/b"]
    built = {keys.candidates_key(VERSION, u) for u in awkward}
    assert len(built) == len(awkward) == 8


@pytest.mark.parametrize(
    "key",
    [
        "nj:default:cand:v2:2024-03-08-1a2b3c4d:{u:1}",
        "nj:other:cand:v1:2024-03-08-1a2b3c4d:{u:1}",
        "nj:default:cand:v1:2024-03-08-1a2b3c4d:{a:1}",
        "nj:default:cand:v1:2024-03-08-1a2b3c4d:{u:1}x",
        "",
    ],
)
def test_a_foreign_key_is_refused(key: str) -> None:
    with pytest.raises(ContractError, match="not a v1 candidates key"):
        keys.parse_candidates_key(key)


def test_a_session_key_is_not_a_candidates_key() -> None:
    with pytest.raises(ContractError, match="not a v2 session key"):
        keys.parse_session_key(keys.candidates_key(VERSION, "1"))


@pytest.mark.parametrize("tenant", ["", "Default", "a:b", "-a", "a" * 64, "a\n"])
def test_a_tenant_is_a_plain_name(tenant: str) -> None:
    with pytest.raises(ContractError, match="lower-case name"):
        keys.pointer_key(tenant)


def test_stored_names_never_change() -> None:
    """These strings are in running installations: a change needs a migration."""
    assert keys.pointer_key() == "nj:default:pointer"
    assert keys.versions_key("shop-2") == "nj:shop-2:versions"
    assert keys.candidates_key(VERSION, "17 850") == "nj:default:cand:v1:2024-03-08-1a2b3c4d:{u:17%20850}"
    assert keys.session_key("a:x:y") == "nj:default:sess:v2:{a:x%3Ay}"
    assert keys.session_key_v1("a:x:y") == "nj:default:sess:v1:{a:x%3Ay}"
    assert keys.trend_key(2, 475_000, 3) == "nj:default:trend:v1:2:475000:3"
    assert keys.region_trend_key(2, 475_000, 3, "US:NY") == "nj:default:regiontrend:v1:2:475000:3:US%3ANY"
    assert keys.trend_regions_key(2, 475_000, 3, "shop") == "nj:shop:trendregions:v1:2:475000:3"
    assert keys.fence_key(3) == "nj:default:fence:3"
    assert keys.stream_key(1) == "nj:default:{events:1}"
    assert keys.dedup_key(1, "e 1") == "nj:default:{events:1}:dedup:e%201"
    assert [keys.partition_of(s) for s in ("u:1", "a:1", "u:ä")] == [2, 2, 0]  # CRC-32 modulo 4
