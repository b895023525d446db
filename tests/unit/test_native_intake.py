"""Native code takes, writes and answers events as its twins do, or leaves them to the twins; whatever the bytes are."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hiredis
import orjson
import pytest

from feature_repo.contracts.common_events import COMMON_TYPES
from feature_repo.contracts.errors import DependencyError
from feature_repo.contracts.events import EVENT_FIELDS
from serving.adapters.event_log import CoroutineWaiter, LogEntry
from serving.adapters.log_writes import GroupPacker, PackedGroup, WriteRequest
from serving.api.hot_events import HotEvents
from serving.api.hot_protocol import accepted_by_twin
from serving.main import with_hot_routes
from serving.native import described, parts
from tests.contract.test_hot_events import unused_environment
from tests.front_door import FrontDoor

pytestmark = pytest.mark.skipif(parts.intake is None, reason=f"serving answers from {described()}")

SPACES = ["", "", "", "", " ", "\n", "\t\r\n "]
IDS = [
    "a", "id-1", "e.2~x_Y", "f47ac10b-58cc-4372-a567-0e02b2c3d479", "<&>/ %{}", "\x7f", "x" * 256, "x" * 257, "",
    "ä", "a\\u0000b", "\\ud800", "a\\nb", 'a\\"b', "a\x00b", "a\tb", "\ud7ff", "u9",
]  # fmt: skip
TIMES = [
    "2024-03-08T12:00:00Z", "2024-03-08T12:00:00.250Z", "2024-03-08T12:00:00.000Z", "2024-03-08T12:00:00.000001Z",
    "2024-03-08T12:00:00.123456+00:00", "2024-02-29T23:59:59Z", "2023-02-29T00:00:00Z", "2024-04-31T00:00:00Z",
    "1994-12-31T23:59:59.999999Z", "1995-01-01T00:00:00Z", "2024-03-09T13:00:00Z", "2024-03-09T13:00:00.000001Z",
    "2024-03-08T24:00:00Z", "2024-03-08T12:60:00Z", "2024-03-08T12:00:60Z", "2024-00-08T12:00:00Z",
    "2024-13-08T12:00:00Z", "2024-03-00T12:00:00Z", "2000-02-29T00:00:00Z", "2100-02-29T00:00:00Z",
    "2024-03-08T12:00:00.1Z", "2024-03-08T12:00:00.1234567Z", "2024-03-08T12:00:00.Z", "2024-03-08T13:00:00+01:00",
    "2024-03-08T12:00:00-00:00", "2024-03-08T12:00:00", "2024-03-08 12:00:00Z", "2024-03-08t12:00:00z", "2024-03-08",
    "2024-W10-5T12:00:00Z", "20240308T120000Z", " 2024-03-08T12:00:00Z", "0000-01-01T00:00:00Z", "now",
    "2024-03-08T12:00:00+00:00Z", "2024-3-08T12:00:00.00Z", "9999-12-31T23:59:59Z",
]  # fmt: skip
NUMBERS = [
    "0", "1", "-1", "-0", "00", "01", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "999999999999999999", "18446744073709551615", "18446744073709551616", "1" * 400, "0.0",
    "-0.0", "1.0", "1.50", "1.5", "9.99", "-3.25", "0.001", "0.0001", "0.00001", "0.0009", "0.000", "1e3", "1E3",
    "1.5e-7", "1e400", "123456789012345.0", "12345678901234.5", "99999999999999.9", "1234567890123456.5", "0.1234567",
    "0.123456789012345", "3.14159265358979", "1.", ".5", "+1", "-", "NaN", "Infinity", "1_0", "0x1", "true", "null",
]  # fmt: skip
FLAT = [
    "{}", "{ }", '{"a":1}', '{"colour":"grün","n":2.5,"ok":true,"no":false,"nil":null}', '{"a":1,"a":2}',
    '{"a":{"b":1}}', '{"a":[]}', "[]", "null", '{"":""}', '{"ä":1}', '{"a":"\\n"}', '{"a" : "x y" , "b" :\t-1.5 }',
    '{"a":"\u2028\U0001f600"}', '{"a":1,}', '{"a"}', '{"a":nul}', '{"a":truee}',
    "{" + ",".join(f'"k{n}":{n}' for n in range(32)) + "}", "{" + ",".join(f'"k{n}":{n}' for n in range(33)) + "}",
]  # fmt: skip


class Bodies:
    """Bodies of requests, some of them good."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def space(self) -> str:
        return self.random.choice(SPACES)

    def value(self, name: str) -> str:
        draw = self.random
        if draw.random() < 0.03:
            return draw.choice([*NUMBERS, *FLAT, '""', '"x"'])
        if name == "event_type":
            kinds = [*sorted(COMMON_TYPES), "click", "click", "alias", "Product Viewed", "no", ""]
            return f'"{draw.choice(kinds)}"'
        if name in ("timestamp", "sent_at"):
            return f'"{draw.choice(TIMES) if draw.random() < 0.15 else TIMES[draw.randrange(6)]}"'
        if name in ("value", "quantity", "price"):
            return draw.choice(NUMBERS) if draw.random() < 0.3 else str(draw.randrange(1, 10**9) / 100)
        if name in ("context", "properties", "consent"):
            return draw.choice(FLAT)
        if name == "items":
            return '[{"item_id":"i1"}]'
        return f'"{draw.choice(IDS) if draw.random() < 0.05 else IDS[draw.randrange(4)]}"'

    def event(self) -> str:
        draw = self.random
        names = ["event_id", "event_type", "user_id", "item_id", "timestamp"]
        names += draw.sample(EVENT_FIELDS, draw.choice([0, 0, 1, 2, 3]))
        if draw.random() < 0.05:
            names.remove(draw.choice(names))
        if draw.random() < 0.05:
            names.append(draw.choice(["unknown", "", "event_ID", "events", "event_i", *names]))
        names = [name for name in names if draw.random() < 0.98 or name not in ("items", "sent_at", "consent")]
        if draw.random() < 0.9:
            names = list(dict.fromkeys(names))
        if draw.random() < 0.7:
            names.sort(key=lambda name: EVENT_FIELDS.index(name) if name in EVENT_FIELDS else 99)
        s = self.space if draw.random() < 0.3 else lambda: ""
        inner = f"{s()},{s()}".join(f'"{name}"{s()}:{s()}{self.value(name)}' for name in names)
        return f"{{{s()}{inner}{s()}}}"

    def body(self) -> bytes:
        draw = self.random
        form = draw.random()
        if form < 0.6:
            text = self.event()
        else:
            some = f"{self.space()},".join(self.event() for _ in range(draw.choice([0, 1, 2, 2, 3, 5, 6, 40])))
            text = f"[{self.space()}{some}]"
            if form > 0.8:
                text = f'{{"events"{self.space()}:{text}{self.space()}}}'
        found = f"{self.space()}{text}{self.space()}".encode("utf-8", "surrogatepass")
        return self.broken(found) if draw.random() < 0.3 else found

    def broken(self, body: bytes) -> bytes:
        """A few bytes are others, more or less."""
        draw, found = self.random, bytearray(body)
        for _ in range(draw.choice([1, 1, 1, 2, 5])):
            at = draw.randrange(len(found) + 1)
            how = draw.randrange(6)
            if how == 0 and found:
                found[min(at, len(found) - 1)] = draw.choice(
                    b'\x00"\\{}[],: 0\xc3\xff\x7feE.-+' + bytes([draw.randrange(256)])
                )
            elif how == 1:
                found[at:at] = draw.choice(
                    [b'"', b"\\", b",", b"}", b"{", b"\xed\xa0\x80", b"\xc0\x80", b"0", b" ", b"\x00"]
                )
            elif how == 2:
                del found[at : at + draw.choice([1, 1, 2, 9])]
            elif how == 3:
                del found[at:]
            elif how == 4:
                found[at:at] = found[draw.randrange(len(found) + 1) :][: draw.randrange(30)]
            else:
                found += draw.choice([b"]", b"}", b"\x00", b"\n", b"x", b"\xef\xbb\xbf"])
        return bytes(found)


LIMITS = {"max_events": 5, "max_body_bytes": 4000, "max_written_bytes": 3000}


@pytest.fixture(scope="module")
def hot() -> HotEvents:
    app: Any = with_hot_routes(FrontDoor(unused_environment(), **LIMITS).app)
    app.entries(b"")  # it looks at the clock
    app._ever_refused = lambda user_id: user_id == "u9"
    return app  # type: ignore[no-any-return]


def read(hot: HotEvents, body: bytes, nonce: str = "n") -> Sequence[LogEntry] | None:
    return parts.intake.EventReader(LIMITS["max_events"], LIMITS["max_written_bytes"]).read(  # type: ignore[no-any-return]
        body, hot._latest_micros, nonce, hot._ever_refused
    )


def twin(hot: HotEvents, body: bytes) -> list[LogEntry] | None:
    found = hot.entries_by_twin(body)
    return found and [entry._replace(nonce=f"n.{number}") for number, entry in enumerate(found)]


def check(hot: HotEvents, body: bytes) -> bool:
    """Whether native code knew it."""
    found = read(hot, body)
    if found is None:
        return False
    assert list(found) == twin(hot, body), body
    assert found.byte_count == sum(len(entry.event) for entry in found)  # type: ignore[attr-defined]
    return True


GOOD = '{"event_id":"e1","event_type":"view_item","user_id":"u1","item_id":"i1","timestamp":"2024-03-08T12:00:00Z"%s}'
KNOWN_NUMBERS = [
    "0", "1", "-1", "2147483647", "2147483648", "999999999999999999", "0.0", "1.0", "1.5", "9.99", "-3.25", "0.001",
    "12345678901234.5", "99999999999999.9", "0.1234567", "3.14159265358979",
]  # fmt: skip
KNOWN_TIMES = {
    "2024-03-08T12:00:00Z": "2024-03-08T12:00:00Z",
    "2024-03-08T12:00:00.250Z": "2024-03-08T12:00:00.250000Z",
    "2024-03-08T12:00:00.000Z": "2024-03-08T12:00:00Z",
    "2024-03-08T12:00:00.000001Z": "2024-03-08T12:00:00.000001Z",
    "2024-03-08T12:00:00.123456+00:00": "2024-03-08T12:00:00.123456Z",
    "2024-02-29T23:59:59Z": "2024-02-29T23:59:59Z",
    "2000-02-29T00:00:00Z": "2000-02-29T00:00:00Z",
    "1995-01-01T00:00:00Z": "1995-01-01T00:00:00Z",
    "2024-03-09T13:00:00Z": "2024-03-09T13:00:00Z",
}


class TestWhatIsRead:
    def test_an_event_in_the_order_of_the_fields_without_white_space(self, hot: HotEvents) -> None:
        body = b"""
            { "properties" : {"b": "x y", "a":"\xc3\xbc" }, "timestamp":"2024-03-08T12:00:00.5000+00:00",
              "event_id":"e", "event_type":"search", "price": 9.90, "anonymous_id":"d 1" }"""
        assert read(hot, body) is None  # four decimals, and a number that is not written as it would be
        found = read(hot, body.replace(b".5000", b".500").replace(b"9.90", b"9.9"), "abc")
        assert found is not None
        assert list(found) == [
            LogEntry(
                "a:d 1", "e", "abc.0",
                b'{"event_id":"e","event_type":"search","anonymous_id":"d 1","timestamp":"2024-03-08T12:00:00.500000Z",'
                b'"price":9.9,"properties":{"b":"x y","a":"\xc3\xbc"}}',
                True,
            )
        ]  # fmt: skip

    @pytest.mark.parametrize("form", ["%s", "[%s]", ' {"events" : [ %s , %s]} ', "[%s,%s,%s,%s,%s]"])
    def test_one_event_and_several(self, hot: HotEvents, form: str) -> None:
        events = tuple(GOOD.replace("e1", f"e{number}") % "" for number in range(form.count("%s")))
        found = read(hot, (form % events).encode())
        assert found is not None
        assert [(one.subject, one.event_id, one.nonce, one.event.decode()) for one in found] == [
            ("u:u1", f"e{number}", f"n.{number}", event) for number, event in enumerate(events)
        ]

    @pytest.mark.parametrize(
        "body",
        [
            "", " ", "[]", "{}", "null", "[%s", "%s]", "[%s]]", "%s%s", "[%s,]", "[%s %s]", '{"events":[%s],"a":1}',
            '{"events":%s}', '{"events":[%s]', '{"a":1,"events":[%s]}', "[[%s]]", "[%s,7]", "\ufeff%s", "%s\0",
            "[%s,%s,%s,%s,%s,%s]",
        ],
    )  # fmt: skip
    def test_nothing_of_what_is_not_plainly_events(self, hot: HotEvents, body: str) -> None:
        assert read(hot, body.replace("%s", GOOD % "").encode()) is None

    def test_nothing_of_what_is_too_much_to_write(self, hot: HotEvents) -> None:
        body = (GOOD % (',"channel":"%s"' % ("c" * 200))).encode()
        fits = LIMITS["max_written_bytes"] // len(body)
        assert fits > 5  # so another limit is needed here
        for most, is_known in ((2 * len(body), True), (2 * len(body) - 1, False)):
            reader = parts.intake.EventReader(5, most)
            found = reader.read(b"[%b,%b]" % (body, body), hot._latest_micros, "n", None)
            assert (found is not None) is is_known

    @pytest.mark.parametrize("user_id", ["u9", "u1"])
    def test_nothing_of_who_ever_refused(self, hot: HotEvents, user_id: str) -> None:
        body = f"[{GOOD % ''},{GOOD.replace('u1', user_id) % ''}]".encode()
        assert (read(hot, body) is None) is (user_id == "u9")
        assert parts.intake.EventReader(5, 3000).read(body, hot._latest_micros, "n", None) is not None

    def test_of_any_bytes_what_the_twin_reads_or_nothing(self, hot: HotEvents) -> None:
        bodies = Bodies(31)
        known = sum([check(hot, bodies.body()) for _ in range(5_000)])
        assert known > 800

    @pytest.mark.parametrize("number", NUMBERS)
    def test_numbers(self, hot: HotEvents, number: str) -> None:
        for form in (',"value":%s', ',"price":%s', ',"quantity":%s', ',"properties":{"a":%s}'):
            is_known = check(hot, (GOOD % (form % number)).encode())
            if "value" in form:
                assert is_known is (number in KNOWN_NUMBERS)

    @pytest.mark.parametrize("moment", TIMES)
    def test_times(self, hot: HotEvents, moment: str) -> None:
        body = (GOOD % "").replace("2024-03-08T12:00:00Z", moment).encode()
        assert check(hot, body) is (moment in KNOWN_TIMES)
        if moment in KNOWN_TIMES:
            found = read(hot, body)
            assert found is not None
            assert orjson.loads(found[0].event)["timestamp"] == KNOWN_TIMES[moment]

    @pytest.mark.parametrize("flat", FLAT)
    def test_objects(self, hot: HotEvents, flat: str) -> None:
        is_known = check(hot, (GOOD % f',"context":{flat}').encode())
        assert is_known is (flat in FLAT[:4] or flat in ('{"":""}', FLAT[12], FLAT[13], FLAT[18]))

    def test_characters_are_those_of_utf8(self, hot: HotEvents) -> None:
        """The first and last of each length, what is beside them, half characters, and those that are cut off."""
        edges = [0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xCFFF, 0xD000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
        good = [chr(edge).encode() for edge in edges]
        broken = ("80", "c080", "c1bf", "e09fbf", "eda080", "edbfbf", "f08fbfbf", "f4908080", "f5808080", "ff")
        bad = [bytes.fromhex(text) for text in broken]
        bad += [one[:-1] for one in good if len(one) > 1] + [one[:-1] + b"A" for one in good if len(one) > 1]
        for text, is_good in [*((one, True) for one in good), *((one, False) for one in bad)]:
            body = (GOOD % ',"properties":{"a":"%%"}').encode().replace(b"%", text)
            assert check(hot, body) is is_good, text

    def test_beyond_its_end_nothing_is_read(self, hot: HotEvents) -> None:
        """Every beginning of a body, with what would complete it behind its end."""
        body = (GOOD % ',"value":1.5,"properties":{"a":"\u00e4","b":true}').encode()
        whole = read(hot, body)
        assert whole is not None
        for end in range(len(body)):
            assert read(hot, body[:end]) is None


# --- groups ---------------------------------------------------------------------------------------------------------


class Nobody(CoroutineWaiter):
    def __init__(self) -> None:
        """It waits for nothing."""


def groups(hot: HotEvents, seed: int) -> Iterator[list[WriteRequest]]:
    """Requests of one event and of several, of many subjects and of one; ids that a key holds and others."""
    draw = random.Random(seed)
    for size in [1, 1, 2, 3, 7, 70, 200]:
        group = []
        for number in range(size):
            names = [
                draw.choice(["e", "a b", "x/%7f\x7f"]) + str(draw.randrange(10**6))
                for _ in range(draw.choice([1, 1, 5]))
            ]
            users = [f"v{draw.randrange(40) if size < 70 else number % 2}" for _ in names]
            events = [
                (GOOD % "").replace("e1", name).replace("u1", user) for name, user in zip(names, users, strict=True)
            ]
            entries = read(hot, f"[{','.join(events)}]".encode(), nonce=f"{draw.randrange(10**9)}")
            assert entries is not None
            group.append(request_of(entries))
        yield group


def request_of(entries: Sequence[LogEntry]) -> WriteRequest:
    return WriteRequest(entries, (), len(entries), 0, Nobody(), [False] * len(entries))


def said_to(payload: bytes, answer: Callable[[list[bytes]], bytes | None]) -> list[Any]:
    """What a Redis that answers so to commands in a MULTI would reply; None for an answer refuses the transaction."""
    reader, replies = hiredis.Reader(), []
    reader.feed(payload)
    results: list[bytes] = []
    while (command := reader.gets()) is not False:
        if command[0] == b"MULTI":
            results = []
            replies.append(b"+OK\r\n")
        elif command[0] == b"EXEC":
            replies.append(b"*%d\r\n%b" % (len(results), b"".join(results)))
        else:
            said = answer(command)
            replies.append(b"+QUEUED\r\n" if said is not None else b"-OOM no room\r\n")
            results.append(said or b"")
    parser = hiredis.Reader()
    parser.feed(b"".join(b"*-1\r\n" if b"OOM" in b"".join(replies) and r[:1] == b"*" else r for r in replies))
    return list(iter(parser.gets, False))


class TestGroups:
    @pytest.mark.parametrize("bounds", [(500, 64), (3, 2), (5, 64), (64, 1)])
    def test_are_written_as_the_twin_writes_them(
        self, hot: HotEvents, bounds: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("serving.adapters.log_writes.MAX_MULTI_EVENTS", bounds[0])
        monkeypatch.setattr("serving.adapters.log_writes.MAX_ENTRY_EVENTS", bounds[1])
        packer = GroupPacker("shop")
        found = list(groups(hot, 5))
        assert [len(group) for group in found] == [1, 1, 2, 3, 7, 70, 200]
        for group in found:
            packed, by_twin = packer.pack(group), PackedGroup(packer.multis(group))
            assert type(packed) is parts.groups.Packed
            assert (packed.payload, packed.reply_count) == (by_twin.payload, by_twin.reply_count)

    def test_of_other_requests_are_the_twins(self, hot: HotEvents) -> None:
        packer = GroupPacker("shop")
        native = next(groups(hot, 6))
        listed = request_of([LogEntry("u:1", "e", "n", b"{}", False)])
        changed = request_of(native[0].entries)
        changed.changes = [b"{}"]
        for other in (listed, changed):
            packed = packer.pack([*native, other])
            assert type(packed) is PackedGroup
            assert packed.payload == PackedGroup(packer.multis([*native, other])).payload

    @pytest.mark.parametrize("trouble", ["none", "refused", "an error", "all null", "odd"])
    def test_are_told_what_redis_said(self, hot: HotEvents, trouble: str) -> None:
        draw = random.Random(9)

        def answer(command: list[bytes]) -> bytes | None:
            if command[0] != b"SET":
                if trouble == "an error" and command[0] == b"XADD" and draw.random() < 0.3:
                    return b"-WRONGTYPE no stream\r\n"
                return b":1\r\n" if command[0] == b"INCRBY" else b"$3\r\n1-1\r\n"
            if trouble == "refused" and draw.random() < 0.02:
                return None
            if trouble == "odd" and draw.random() < 0.1:
                return b"*0\r\n"
            return b"+OK\r\n" if draw.random() < 0.7 and trouble != "all null" else b"$-1\r\n"

        packer = GroupPacker("shop")
        seen = set()
        for group in groups(hot, 7):
            again = [request_of(request.entries) for request in group]
            packed, by_twin = packer.pack(group), PackedGroup(packer.multis(again))
            replies = said_to(packed.payload, answer)
            packed.settle(replies)
            by_twin.settle(replies)
            for request, other in zip(group, again, strict=True):
                assert (request.is_new, str(request.error)) == (other.is_new, str(other.error))
                seen |= {*request.is_new, type(request.error)}
        assert {False, type(None)} <= seen
        assert (True in seen) is (trouble != "all null")
        assert (DependencyError in seen) is (trouble in ("refused", "an error"))

    def test_replies_to_another_group_are_not_taken(self, hot: HotEvents) -> None:
        packed = GroupPacker("shop").pack(next(groups(hot, 8)))
        with pytest.raises(ValueError, match="not the replies"):
            packed.settle([b"OK"])


class TestAnswers:
    def test_are_the_twins(self, hot: HotEvents) -> None:
        draw = random.Random(11)
        requests = [request for group in groups(hot, 10) for request in group]
        assert len(requests) == 284
        for request in requests:
            is_new = [draw.random() < 0.5 for _ in request.entries]
            words = (request.entries, is_new, b"HTTP/1.1 202 Accepted\r\ndate: now\r\n", b"x-request-id: 1\r\n")
            assert parts.groups.accepted(*words) == accepted_by_twin(*words)

    def test_of_other_requests_are_left_to_the_twin(self, hot: HotEvents) -> None:
        entries = next(groups(hot, 12))[0].entries
        assert parts.groups.accepted(list(entries), [True] * len(entries), b"", b"") is None
        assert parts.groups.accepted(entries, [True] * (len(entries) + 1), b"", b"") is None
