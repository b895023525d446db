"""A question that native code reads is the one that its twin reads; what native code declines, the twin looks at."""

from __future__ import annotations

import json
import random
from typing import Any

import orjson
import pytest

from feature_repo.contracts.events import MAX_ID_BYTES
from serving.api.answering import Question
from serving.api.hot_slates import plain_placements, read_question, ruled_placements
from serving.api.schemas import MAX_EXCLUDED_ITEMS, MAX_RESULTS
from serving.lists import RECOMMENDATIONS
from serving.native import described, parts
from serving.pipeline.placements import DEFAULT, Placements, read_placements

pytestmark = pytest.mark.skipif(parts.questions is None, reason=f"serving answers from {described()}")

NOW = 1_709_900_000_123_456
PLACEMENTS = Placements()
PLAIN, RULED = plain_placements(PLACEMENTS), ruled_placements(PLACEMENTS)
IDS = ("u1", "ü ser/1", "日本", "x" * MAX_ID_BYTES, " ", "a'b")
ODD = (
    None, True, False, 0, -1, 1.0, 10**30, "", "x" * (MAX_ID_BYTES + 1), "ä" * 129, 'quo"te', "a\x00b", "\ud800", [],
    {}, ["i1", 7], [[]], {"a": 1}, "back\\slash",
)  # fmt: skip


def native(body: bytes) -> Question | None:
    reader = parts.questions.QuestionReader(
        Question, RECOMMENDATIONS, PLAIN, RULED, DEFAULT, lambda: "id1", MAX_RESULTS, MAX_EXCLUDED_ITEMS
    )
    found: Question | None = reader.read(body, NOW)
    return found


def twin(body: bytes) -> Question | None:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return read_question(document, NOW, PLACEMENTS, PLAIN, lambda: "id1") if type(document) is dict else None


def both(body: bytes) -> bool:
    """Whether native code read it; then it read what the twin reads."""
    found = native(body)
    if found is not None:
        assert found == twin(body), body
        assert type(found) is Question
        assert type(found.slate.exclude_item_ids) is frozenset
    return found is not None


def document(drawn: random.Random) -> dict[str, Any]:
    def or_odd(value: Any) -> Any:
        return drawn.choice(ODD) if drawn.random() < 0.04 else value

    fields: dict[str, Any] = {
        "user_id": drawn.choice(IDS),
        "anonymous_id": drawn.choice([None, *IDS]),
        "session_id": drawn.choice(IDS),
        "num_results": drawn.choice([1, 10, 100, None]),
        "placement": drawn.choice(["default", "home", "nobody's"]),
        "exclude_item_ids": [or_odd(drawn.choice(IDS)) for _ in range(drawn.randrange(4))],
        "context": {
            name: or_odd(drawn.choice(["A > B", "", None])) for name in drawn.sample(["category", "region"], 1)
        },
        "consent": {
            name: or_odd(drawn.choice([True, False, None]))
            for name in drawn.sample(["personalize", "store", "train", "share"], drawn.randrange(4))
        },
        "explain": False,
        drawn.choice(["filter", "unknown", "recent_events", "User_id"]): drawn.choice(["price < 3", []]),
    }
    names = drawn.sample(list(fields)[:-1], drawn.randrange(6))
    if drawn.random() < 0.1:
        names.append(list(fields)[-1])
    return {name: or_odd(fields[name]) for name in names}


def test_random_bodies_are_read_as_the_twin_reads_them() -> None:
    drawn = random.Random(17)
    read = 0
    for _ in range(3_000):
        said = document(drawn)
        plain = json.dumps(said, ensure_ascii=drawn.random() < 0.3, indent=drawn.choice([None, None, 1, "\t"]))
        read += both(plain.encode("utf-8", "surrogatepass"))
    assert read > 1_200


@pytest.mark.parametrize(
    "common",
    [
        b"{}",
        b' {\r\n"user_id"\t: "u1" , "num_results" : 10}\n',
        b'{"user_id":"u1","session_id":"s1","num_results":10,"placement":"default","explain":false}',
        b'{"anonymous_id":"a1","user_id":null,"context":{"category":"A > B","region":null}}',
        b'{"context":{},"consent":{},"exclude_item_ids":[]}',
        b'{"exclude_item_ids":["i1","i2","i1"],"consent":{"personalize":true,"store":false,"share":null}}',
        b'{"user_id":"u1","user_id":"u2","context":{"category":"A"},"context":{"region":"DE"}}',
        b'{"num_results":5,"num_results":null}',
    ],
)
def test_it_knows_what_is_common(common: bytes) -> None:
    assert both(common)
    for size in range(len(common.strip())):  # cut short, it is nothing
        assert native(common[:size]) is None


@pytest.mark.parametrize(
    "odd",
    [
        b"", b"[]", b"null", b"{} {}", b"{}x", b'{"user_id":"u1",}', b'{,"user_id":"u1"}', b'{"user_id" "u1"}',
        b'{"user_id":u1}', b'{"user_id":"u\\u0031"}', b'{"user_id":"\xff"}', b'{"user_id":"\xed\xa0\x80"}',
        b'{"user_id":"a\x00b"}', b'{"user_id":"a\nb"}', b'{"num_results":010}', b'{"num_results":1e1}',
        b'{"num_results":10.0}', b'{"num_results":-1}', b'{"num_results":0}', b'{"num_results":1001}',
        b'{"num_results":99999999999}', b'{"num_results":true}', b'{"exclude_item_ids":["i1",]}',
        b'{"exclude_item_ids":["i1"', b'{"exclude_item_ids":[""]}', b'{"explain":true}', b'{"explain":null}',
        b'{"context":null}', b'{"consent":{"store":1}}', b'{"consent":{"stor":true}}', b'{"placement":null}',
        b'{"placement":"home","diversity":0.5}', b"\xef\xbb\xbf{}",
        b'{"user_id":nullx}', b'{"consent":{"store":truee}}',
    ],
)  # fmt: skip
def test_what_may_be_wrong_or_is_rare_is_declined(odd: bytes) -> None:
    assert native(odd) is None


def test_garbled_bodies_are_read_as_the_twin_reads_them() -> None:
    drawn = random.Random(3)
    whole = b'{"user_id":"u1","context":{"category":"A"},"exclude_item_ids":["i1"],"num_results":9,"consent":{}}'
    read = 0
    for _ in range(3_000):
        garbled = bytearray(whole)
        garbled[drawn.randrange(len(garbled))] = drawn.choice(b'"{}[],: \\0a1\xc3')
        read += both(bytes(garbled))
    assert 0 < read < 3_000


@pytest.mark.parametrize("placement", PLACEMENTS.by_name)
def test_the_policy_of_a_placement_is_read_too(placement: str) -> None:
    assert both(orjson.dumps({"placement": placement}))
    assert both(orjson.dumps({"placement": placement, "user_id": "u1", "num_results": 3}))
    assert native(orjson.dumps({"placement": placement, "exploration": 0.1})) is None


def test_the_rules_of_default_are_the_twins_for_a_name_that_is_none() -> None:
    placements = read_placements('{"placements":{"default":{"diversity":0.2}}}', is_json=True)
    plain, ruled = plain_placements(placements), ruled_placements(placements)
    reader = parts.questions.QuestionReader(
        Question, RECOMMENDATIONS, plain, ruled, DEFAULT, lambda: "id1", MAX_RESULTS, MAX_EXCLUDED_ITEMS
    )
    assert reader.read(b'{"placement":"nobody\'s"}', NOW) is None
    found = reader.read(b"{}", NOW)
    assert found is not None
    assert found == read_question({}, NOW, placements, plain, lambda: "id1")
    assert found.slate.policy is not None


def test_too_many_excluded_items_are_declined() -> None:
    most = ["i1"] * MAX_EXCLUDED_ITEMS
    assert both(orjson.dumps({"exclude_item_ids": most}))
    assert native(orjson.dumps({"exclude_item_ids": [*most, "i2"]})) is None
