"""Bundles, versions in memory, Feast's bytes and settings."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import ContractError, DataError, DependencyError
from feature_repo.contracts.publication import ITEMS_FILE, MANIFEST_FILE, NEIGHBOURS_FILE
from serving.adapters.bundle import load_catalogue, newest_bundle
from serving.adapters.feast_online import (
    entity_key,
    feature_field,
    murmur3_32,
    read_string_value,
    read_timestamp_micros,
)
from serving.adapters.json_bytes import decode_json, encode_json
from serving.adapters.json_columns import read_columns
from serving.adapters.pace import REST_SECONDS, WORK_SECONDS, Pace
from serving.adapters.shelf import RETRY_SECONDS, VersionShelf
from serving.main import _expect_versions
from serving.pipeline.catalogue import Catalogue
from serving.settings import ServingSettings
from tests.serving_builders import TENANT, Shop

SHOP = Shop(
    {
        "i1": {"title": "One", "category": "A > B", "price": 1.5, "expire_time": "2024-03-09T00:00:00Z"},
        "i2": {"availability": "BACKORDER", "available_quantity": 0},
    },
    neighbours={"i2": [("i1", 0.5)]},
    popular=[("i1", 2.0)],
    by_category={"A": [("i1", 2.0)]},
    first_number=3,
)


class TestBundle:
    def test_a_bundle_becomes_a_catalogue(self, tmp_path: Path) -> None:
        found = SHOP.catalogue(tmp_path)
        assert found.numbers == {"i1": 3, "i2": 4}
        assert found.item_ids == [None, None, None, "i1", "i2"]
        assert found.attributes[3] == {"title": "One", "category": "A > B", "price": 1.5}
        assert (found.neighbours(4), found.neighbours(3), found.neighbours(77)) == ([(3, 0.5)], [], [])
        assert (found.popular_in_category("A > B > C"), found.popular_in_category("B")) == (("A", [(3, 2.0)]), None)
        midnight = 1_709_942_400_000_000  # 2024-03-09T00:00:00Z
        assert [found.refusal(3, midnight - 1), found.refusal(3, midnight), found.refusal(4, 0)] == [
            None, "expired", None,
        ]  # fmt: skip
        assert (found.refusal(0, 0), found.refusal(99, 0), found.refusal(-1, 0)) == ("not_in_bundle",) * 3
        day = 86_400_000_000
        assert found.as_of_micros == midnight - day
        assert found.last_event_micros == midnight - day - 2 * 3_600_000_000
        assert found.published_micros == midnight - day + 3 * 3_600_000_000

    @pytest.mark.parametrize("name", [ITEMS_FILE, NEIGHBOURS_FILE])
    def test_a_damaged_file_is_refused_by_its_hash(self, tmp_path: Path, name: str) -> None:
        version = SHOP.write(tmp_path)
        path = tmp_path / TENANT / version / name
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
        with pytest.raises(ContractError, match=name):
            load_catalogue(str(tmp_path), version, tenant=TENANT)

    def test_a_manifest_of_another_version_is_refused(self, tmp_path: Path) -> None:
        version = SHOP.write(tmp_path)
        folder = tmp_path / TENANT / version
        manifest = (folder / MANIFEST_FILE).read_text().replace('"model": "als"', '"model": "knn"')
        (folder / MANIFEST_FILE).write_text(manifest)
        with pytest.raises(ContractError, match="describes 2024-03-08-"):
            load_catalogue(str(tmp_path), version, tenant=TENANT)

    def test_a_missing_bundle_is_a_dependency_that_fails(self, tmp_path: Path) -> None:
        with pytest.raises(DependencyError, match="2024-03-08-00000000"):
            load_catalogue(str(tmp_path), "2024-03-08-00000000", tenant=TENANT)


class TestShelf:
    """`loads` records what was loaded; the catalogue itself does not matter here."""

    def shelf(self, tmp_path: Path, **options: object) -> tuple[VersionShelf, list[str]]:
        loads: list[str] = []
        made = SHOP.catalogue(tmp_path)

        def load(version: str, _: Pace) -> Catalogue:
            loads.append(version)
            if version.startswith("bad"):
                raise ContractError(version)
            return made

        return VersionShelf(load, **options), loads

    async def test_the_last_three_stay_loaded(self, tmp_path: Path) -> None:
        shelf, loads = self.shelf(tmp_path)
        for version in ("v1", "v2", "v3", "v1", "v4", "v2"):
            await shelf.switch_to(version)
        # v1 was used again before v4 came, so v2 had to go and is loaded a second time.
        assert loads == ["v1", "v2", "v3", "v4", "v2"]
        assert shelf.versions() == ["v1", "v4", "v2"]

    async def test_a_version_is_loaded_once_however_many_ask_and_off_the_loop(self, tmp_path: Path) -> None:
        threads: list[int] = []
        release = threading.Event()
        made = SHOP.catalogue(tmp_path)

        def load(_: str, __: Pace) -> Catalogue:
            threads.append(threading.get_ident())
            assert release.wait(5)
            return made

        shelf = VersionShelf(load)
        first, second = asyncio.create_task(shelf.switch_to("v1")), asyncio.create_task(shelf.switch_to("v1"))
        await asyncio.sleep(0.05)
        first.cancel()  # a caller that gives up does not stop the loading
        release.set()
        assert await second is made
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()

    async def test_a_broken_version_leaves_the_current_one_and_is_not_tried_at_once(self, tmp_path: Path) -> None:
        now = [100.0]
        shelf, loads = self.shelf(tmp_path, timer=lambda: now[0])
        current = await shelf.switch_to("v1")
        for later in (0.0, RETRY_SECONDS - 0.1, 0.2):
            now[0] += later
            with pytest.raises(ContractError, match="bad"):
                await shelf.switch_to("bad")
        assert loads == ["v1", "bad", "bad"]  # the second try was refused without loading
        assert shelf.current is current

    async def test_what_is_expected_is_there_when_it_is_served(self, tmp_path: Path) -> None:
        made = {version: replace(SHOP.catalogue(tmp_path / version), version=version) for version in ("v1", "v2", "v3")}
        loads: list[str] = []
        released: list[str] = []

        def load(version: str, _: Pace) -> Catalogue:
            loads.append(version)
            return made[version]

        shelf = VersionShelf(load, keep=2, release=lambda gone: released.append(gone.version))
        await shelf.switch_to("v1")
        for expected in ("v1", "v2", "v2", "v3"):
            await shelf.expect(expected)
            assert shelf.current is made["v1"]
        assert (loads, released) == (["v1", "v2", "v3"], ["v2"])  # v2 never came to be served
        async with shelf.borrowed("v3") as borrowed:
            assert borrowed is made["v3"]
        assert await shelf.switch_to("v3") is made["v3"]
        await shelf.expect(None)
        assert (loads, released, shelf.versions()) == (["v1", "v2", "v3"], ["v2"], ["v1", "v3"])

    async def test_what_is_loaded_at_leisure_is_hurried_when_somebody_waits(self, tmp_path: Path) -> None:
        made = SHOP.catalogue(tmp_path)
        paces: list[Pace] = []

        def load(_: str, pace: Pace) -> Catalogue:
            paces.append(pace)
            deadline = time.monotonic() + 5
            while not pace.is_hurried and time.monotonic() < deadline:
                time.sleep(0.001)
            assert pace.is_hurried
            return made

        released: list[Catalogue] = []
        shelf = VersionShelf(load, release=released.append)
        expecting = asyncio.create_task(shelf.expect(made.version))
        while not paces:
            await asyncio.sleep(0.001)
        assert await shelf.switch_to(made.version) is made
        await expecting
        await shelf.expect(None)
        assert (len(paces), released) == (1, [])  # it is served, and not expected any more

    async def test_a_worker_loads_the_newest_bundle_once_before_it_is_served(self, environment: Environment) -> None:
        loads: list[str] = []
        leisurely = threading.Event()

        def load(version: str, pace: Pace) -> Catalogue:
            loads.append(version)
            while version.endswith("2") and not pace.is_hurried:
                leisurely.set()
                time.sleep(0.001)
            raise ContractError(version)

        async def until(count: int) -> None:
            async with asyncio.timeout(5):
                while len(loads) < count:
                    await asyncio.sleep(0.001)

        folder = Path(environment.publications, environment.tenant)
        stopping = asyncio.Event()
        shelf = VersionShelf(load, timer=iter(range(0, 1_000_000, 10)).__next__)  # it may be tried again at once
        watching = asyncio.create_task(_expect_versions(shelf, environment, 0.005, stopping))
        (folder / "2024-03-08-00000001").mkdir(parents=True)
        await until(1)
        await asyncio.sleep(0.05)
        assert loads == ["2024-03-08-00000001"]  # it is broken, and somebody else will say so
        (folder / "2024-03-09-00000002").mkdir()
        await until(2)
        assert await asyncio.to_thread(leisurely.wait, 5)
        stopping.set()
        await asyncio.wait_for(watching, 5)  # what is under way is hurried
        assert loads == ["2024-03-08-00000001", "2024-03-09-00000002"]


def test_a_pace_rests_after_each_piece_of_work_until_it_is_hurried() -> None:
    now, rests = [0.0], list[float]()
    pace = Pace(seconds=lambda: now[0], sleep=rests.append)
    for row in pace.over(range(128)):
        now[0] += WORK_SECONDS / 32
        assert len(rests) == row // 32
    assert rests == [REST_SECONDS] * 3
    pace.hurry()
    now[0] += 1
    pace.breathe()
    assert list(pace.over([3, 1])) == [3, 1]
    assert len(rests) == 3


COLUMNS = {
    "number": list(range(1_000)),
    "title": ['a,"b"', "c]", "\\", 'e\\"', "ü{", "\n", None, True, -1.5e-7] * 100,
    "tags": [["x,]", 'y"'], [], [1, None]] * 200,
    "none": [],
    "one": [0],
    "by": {"A > B": [[3, 0.5]] * 300, "[": [], "empty": {}},
}


@pytest.mark.parametrize("dumps", [json.dumps, orjson.dumps, partial(json.dumps, indent=1)])
def test_columns_read_in_pieces_are_what_the_parser_reads(dumps: Any) -> None:
    rests: list[float] = []
    text = dumps(COLUMNS)
    data = text if isinstance(text, bytes) else text.encode()
    assert read_columns(data, Pace(seconds=lambda: len(rests) * 1.0, sleep=rests.append)) == COLUMNS
    now = iter(range(1_000))
    assert read_columns(data, Pace(seconds=lambda: float(next(now)), sleep=rests.append)) == COLUMNS
    assert len(rests) >= 1_000 // 256 + 900 // 256 + 600 // 256 + 300 // 256  # after each piece
    for other in (b"[1]", b'{"a": [[[1]]]}', b'{"a": 1, "b": [2]}', b"{}", b' {"a": [{"b": 1}, 2]} '):
        assert read_columns(other, Pace()) == json.loads(other)
    for broken in (data[:-1], data + b"x", data.replace(b"-1.5e-07", b"-1.5e-", 1), b"", b'{"a": [1,]}'):
        if broken != data:
            with pytest.raises(orjson.JSONDecodeError):
                read_columns(broken, Pace())


def test_the_newest_bundle_is_the_one_that_came_last(tmp_path: Path) -> None:
    assert newest_bundle(str(tmp_path), tenant=TENANT) is None
    for at, name in enumerate(("2024-03-09-00000001", "2024-03-08-00000002", ".2024-03-10-00000003.tmp")):
        (tmp_path / TENANT / name).mkdir(parents=True)
        os.utime(tmp_path / TENANT / name, (at, at))
    assert newest_bundle(str(tmp_path), tenant=TENANT) == "2024-03-08-00000002"


class TestFeastBytes:
    def test_murmur3_matches_the_published_vectors(self) -> None:
        vectors = [(b"", 0, 0), (b"", 1, 0x514E28B7), (b"test", 0, 0xBA6BD213), (b"Hello, world!", 0, 0xC0363E43)]
        vectors += [
            (b"\xff\xff\xff\xff", 0, 0x76293B50),
            (b"\x21\x43\x65", 0, 0x7E4A8634),
            (b"aaaa", 0x9747B28C, 0x5A97808A),
        ]
        assert [murmur3_32(data, seed) for data, seed, _ in vectors] == [expected for *_, expected in vectors]

    def test_equal_to_feasts_own_encoding(self) -> None:
        from feast.infra.online_stores.helpers import _mmh3, _redis_key
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value
        from google.protobuf.timestamp_pb2 import Timestamp

        for user in ("u1", "ü user", ""):
            key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val=user)])
            assert entity_key(["user_id"], [user]) == _redis_key("nightjar", key, entity_key_serialization_version=3)
        names = ("user_features:user_top_category_90d", "user_features:a", "ü:b")
        assert [feature_field(*name.split(":")) for name in names] == [_mmh3(name) for name in names]
        text = "Haus > Küche" * 30
        values = [Value(string_val=text), Value(string_val=""), Value(), Value(int64_val=-1), Value(double_val=2.5)]
        read = [read_string_value(value.SerializeToString()) for value in values]
        assert read == [text, "", None, None, None]
        for seconds, nanos in ((1_709_899_200, 123_456_000), (0, 0), (-1, 500_000_000)):
            stamp = Timestamp(seconds=seconds, nanos=nanos).SerializeToString()
            assert read_timestamp_micros(stamp) == seconds * 1_000_000 + nanos // 1000

    @pytest.mark.parametrize("damaged", [b"\x12\x05abc", b"\x12", b"\x80", b"\x0b", b"\x12\x02\xff\xfe"])
    def test_bytes_that_are_no_value_are_refused(self, damaged: bytes) -> None:
        with pytest.raises(ContractError):
            read_string_value(damaged)

    def test_a_timestamp_of_another_shape_is_refused(self) -> None:
        with pytest.raises(ContractError):
            read_timestamp_micros(b"\x0a" + struct.pack("B", 1) + b"x")


class TestJsonBytes:
    @pytest.mark.parametrize("value", [{"a": "ü"}, {"a": "\ud800"}, [2**70, 1.5], None])
    def test_whatever_json_can_say_survives(self, value: object) -> None:
        assert decode_json(encode_json(value)) == value

    @pytest.mark.parametrize("data", [b"", b"{", b"[NaN]", b"[1e", b"\xff", b"[" * 100_000])
    def test_what_is_no_json_is_refused(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r"."):
            decode_json(data)


class TestSettings:
    def test_defaults_and_given_values(self) -> None:
        given = {"NIGHTJAR_SERVING_SESSION_WEIGHT": "0", "NIGHTJAR_SERVING_MAX_EVENTS": "5", "OTHER": "x"}
        settings = ServingSettings.from_mapping(given)
        assert (settings.session_weight, settings.max_events, settings.online_timeout_ms) == (0.0, 5, 5.0)
        assert settings.tuning().session_weight == 0.0

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("SESION_WEIGHT", "1", "did you mean 'NIGHTJAR_SERVING_SESSION_WEIGHT'"),
            ("SESSION_WEIGHT", "much", "must be a number such as 4.0, got 'much'"),
            ("MAX_EVENTS", "1.5", "must be a whole number such as 1000, got '1.5'"),
            ("MAX_EVENTS", "0", "must be a positive number"),
            ("SESSION_WEIGHT", "nan", "must be a positive number"),
            ("POSITION_DECAY", "1.1", r"\(0, 1\], got 1.1"),
        ],
    )
    def test_a_wrong_setting_is_named_with_what_it_says_and_may_say(self, name: str, value: str, words: str) -> None:
        with pytest.raises(DataError, match=words):
            ServingSettings.from_mapping({f"NIGHTJAR_SERVING_{name}": value})
