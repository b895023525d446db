"""Refused events on their way back: what the bytes say, repairs, and replays that count once whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError, DependencyError
from infra.importing.events import import_events
from infra.importing.report import Options
from infra.quarantine.originals import LineReader, read_original
from infra.quarantine.records import (
    API_TABLE,
    IMPORT_TABLE,
    Outcome,
    QuarantinedRecord,
    State,
    count_by_reason,
    find_record,
    quarantine_id,
    read_records,
)
from infra.quarantine.repair import Repair, RepairPlan, load_plan, parse_repair
from infra.quarantine.replay import ReplayReport, mend, replay
from spark_jobs.io.light_delta import read_table
from tests.builders import utc, write_rows

RECEIVED = utc("2024-03-08T13:00:00")
STREAM = "nj:default:{quarantine}"
NOW = utc("2024-03-09T08:00:00")


def event(**fields: Any) -> dict[str, Any]:
    base = {"event_id": "e1", "event_type": "view_item", "user_id": "u1", "item_id": "i1",
            "timestamp": "2024-03-08T12:00:00Z"}  # fmt: skip
    return {k: v for k, v in {**base, **fields}.items() if v is not None}


def row(position: int, raw: bytes | dict[str, Any], reason: str = "unknown_event_type", **more: Any) -> dict[str, Any]:
    """A row of bronze.quarantine."""
    return {
        "raw": raw if isinstance(raw, bytes) else json.dumps(raw).encode(), "reason": reason, "field": None,
        "detail": "a test", "source": STREAM, "source_position": position,
        "quarantined_at": RECEIVED + timedelta(seconds=position), **more,
    }  # fmt: skip


def record(raw: bytes | dict[str, Any], *, table: str = API_TABLE, **more: Any) -> QuarantinedRecord:
    values = {**row(7, raw), **more}
    name = quarantine_id(table, values["source"], values["source_position"], values["raw"])
    return QuarantinedRecord(quarantine_id=name, table=table, **values)


class Door:
    """A front door that keeps what it took: ids once, in order. `failures` says which calls fail, and when."""

    def __init__(self, *failures: str) -> None:
        self.events: dict[str, Mapping[str, Any]] = {}
        self.calls = 0
        self._failures = list(failures)

    def __call__(self, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.calls += 1
        failure = self._failures.pop(0) if self._failures else ""
        if failure == "before":
            raise DependencyError("nothing was written")
        results = []
        for one in events:
            is_new = one["event_id"] not in self.events
            self.events.setdefault(one["event_id"], one)
            results.append({"event_id": one["event_id"], "status": "accepted" if is_new else "duplicate"})
        if failure == "after":
            raise DependencyError("written, and the answer was lost")
        return results


def run(
    env: Environment, door: Callable[..., Any], plan: RepairPlan, *, at: datetime = NOW, **more: Any
) -> ReplayReport:
    """What the command does."""
    chosen = [r for r in read_records(env, **more) if r.state is not State.REPLAYED]
    return replay(env, mend(chosen, plan, LineReader(env)), send=door, at=at)


TWO_REASONS = ("invalid_price", "missing_item_id")


def plan(**texts: Sequence[str]) -> RepairPlan:
    return RepairPlan((parse_repair(**texts),))


class TestOriginals:
    def read(self, env: Environment, raw: bytes | dict[str, Any], **more: Any) -> Any:
        return read_original(record(raw, **more), LineReader(env))

    def test_every_dialect_is_read_as_the_entrance_read_it(self, environment: Environment) -> None:
        found = [
            self.read(environment, raw)
            for raw in (
                event(event_type="veiw_item"),
                {"messageId": "m1", "userId": 7, "event": "Item Seen", "properties": {"sku": "i1"}, "type": "track"},
                {"client_id": "c.1", "events": [{"name": "first_visit", "params": {"item_id": "i1"}}]},
                {"specversion": "1.0", "id": "4", "source": "/shop", "type": "com.seen", "data": {"user_id": "u"}},
                b"event_type=seen&user_id=u1&item_id=i1",
            )
        ]  # fmt: skip
        assert [one.form for one in found] == ["native", "segment", "ga4", "cloudevent", "pixel"]
        assert [one.event["event_type"] for one in found] == ["veiw_item", "Item Seen", "first_visit", "seen", "seen"]
        assert (found[1].event["user_id"], found[1].event["item_id"]) == ("7", "i1")
        assert found[4].event["timestamp"] == "2024-03-08T13:00:07Z"  # its receipt

    def test_bytes_that_are_nothing_say_so(self, environment: Environment) -> None:
        for raw in (b'{"event_id": ', b"\xff\xfe", b"[" * 100_000):
            found = self.read(environment, raw)
            assert (found.event, found.problem.reason) == (None, "unreadable")

    def test_a_wrong_clock_is_corrected_as_of_the_receipt(self, environment: Environment) -> None:
        """Sent at 12:30 by its own clock, received at 13:00:07: half an hour slow. A replay changes nothing."""
        found = self.read(environment, event(sent_at="2024-03-08T12:30:07Z"))
        assert found.event["timestamp"] == "2024-03-08T12:30:00Z"
        assert found.event["properties"] == {"original_timestamp": "2024-03-08T12:00:00Z"}
        assert "sent_at" not in found.event


class TestRepairs:
    def test_each_kind(self) -> None:
        repair = parse_repair(
            rename=["properties.sku=item_id", "userid=user_id"],
            values=["event_type:seen=view_item", "items.quantity:0=1"],
            set_=["quantity=2", "user_agent.deep.er=x", "session_id=7", 'currency="EUR"'],
            drop=["items.bad", "nothing"],
        )
        given = {
            "event_type": "seen", "userid": "u1", "properties": {"sku": "i9", "page": 1},
            "items": [{"item_id": "i1", "quantity": 0, "bad": 1}, {"item_id": "i2", "quantity": 3}],
        }  # fmt: skip
        assert repair.apply(given) == {
            "event_type": "view_item", "user_id": "u1", "properties": {"page": 1}, "item_id": "i9",
            "items": [{"item_id": "i1", "quantity": 1}, {"item_id": "i2", "quantity": 3}],
            "quantity": 2, "user_agent": {"deep": {"er": "x"}}, "session_id": "7", "currency": '"EUR"',
        }  # fmt: skip
        assert given["event_type"] == "seen"
        assert given["items"][0] == {"item_id": "i1", "quantity": 0, "bad": 1}

    @pytest.mark.parametrize(
        ("texts", "words"),
        [
            ({"set_": ["quantity"]}, "--set is field=value"),
            ({"values": ["event_type=view"]}, "--map is field:old=new"),
            ({"rename": ["=x"]}, "--rename is old=new"),
        ],
    )
    def test_a_repair_that_is_none_says_what_one_is(self, texts: dict[str, list[str]], words: str) -> None:
        with pytest.raises(DataError, match=words):
            parse_repair(**texts)

    def test_files(self, tmp_path: Path) -> None:
        toml = tmp_path / "fix.toml"
        toml.write_text(
            '[[repair]]\nreason = "unknown_event_type"\n[repair.values.event_type]\nviewed = "view_item"\n'
            '[[repair]]\ndrop = ["price"]\n'
        )
        expected = (
            Repair(reason="unknown_event_type", values={"event_type": {"viewed": "view_item"}}),
            Repair(drop=("price",)),
        )
        assert load_plan(toml).repairs == expected
        mended, said = load_plan(toml).mend("x", "invalid_price", {"event_type": "viewed", "price": -1})
        assert (mended, said) == ({"event_type": "viewed"}, '[{"drop": ["price"]}]')
        lines = tmp_path / "fix.jsonl"
        lines.write_text('{"id": "a", "event": {"x": 1}}\n\n')
        assert load_plan(lines).edited == {"a": {"x": 1}}
        lines.write_text('{"id": "a", "event": {"x": "1\u20282\x853"}}\r\n{"id": "b", "event": {}}', "utf-8")
        assert load_plan(lines).edited == {"a": {"x": "1\u20282\x853"}, "b": {}}

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("a.toml", "[[repair]]\nvalue = {}\n", "repair 1 has no entry 'value'; did you mean 'values'"),
            ("a.toml", '[[repair]]\nreason = "unknown_event"\n', "did you mean 'unknown_event_type'"),
            ("a.toml", "repair = 1\n", "no \\[\\[repair\\]\\] entry"),
            ("a.json", '[{"drop": "price"}]', "drop is a list"),
            ("a.jsonl", '{"id": "a"}', 'line 1 is {"id"'),
            ("a.jsonl", "\n{", "line 2 is no JSON"),
        ],
    )
    def test_files_that_are_wrong_name_the_place(self, tmp_path: Path, name: str, text: str, words: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=words):
            load_plan(tmp_path / name)


class TestReplay:
    def test_what_is_mended_is_sent_once_and_what_is_not_stays(self, environment: Environment) -> None:
        write_rows(
            environment, API_TABLE,
            [
                row(1, event(event_type="seen")),
                row(2, event(event_type="seen", event_id=None)),  # gets an id of where it was refused
                row(3, event(event_type="seen", event_id=None)),  # the same words elsewhere: another event
                row(4, event(event_type="odd")),
                row(5, b"{", "unreadable"),
            ],
        )  # fmt: skip
        door = Door()
        mapped = plan(values=["event_type:seen=view_item"])
        first = run(environment, door, mapped)
        assert first.outcomes == {"accepted": 3, "still_bad": 2}
        assert first.still_bad == {"unknown_event_type": 1, "unreadable": 1}
        ids = list(door.events)
        assert ids[0] == "e1"
        assert [len(name) for name in ids[1:]] == [34, 34]
        assert all(name.startswith("q-") for name in ids[1:])
        records = read_records(environment)
        assert [str(r.state) for r in records] == ["replayed"] * 3 + ["still_bad"] * 2
        assert count_by_reason(records) == {
            "unknown_event_type": {"open": 0, "replayed": 3, "still_bad": 1},
            "unreadable": {"open": 0, "replayed": 0, "still_bad": 1},
        }
        again = run(environment, door, mapped)
        assert (again.outcomes, door.calls) == ({"still_bad": 2}, 1)
        attempts = read_table(environment, "bronze.quarantine_replays").to_pylist()
        assert len(attempts) == 5  # a second failure for the same reason is no news
        done = [a for a in attempts if a["outcome"] == "accepted"]
        assert {(a["event_id"], a["subject_key"]) for a in done} == {(name, "u:u1") for name in ids}
        assert json.loads(done[0]["repair"]) == [{"values": {"event_type": {"seen": "view_item"}}}]
        assert len(read_table(environment, API_TABLE)) == 5  # nothing is deleted

    def test_a_time_in_the_future_is_not_right_once_it_has_come(self, environment: Environment) -> None:
        write_rows(environment, API_TABLE, [row(1, event(timestamp="2024-03-12T12:00:00Z"), "timestamp_in_future")])
        later = utc("2024-06-01")
        assert run(environment, Door(), RepairPlan(), at=later).still_bad == {"timestamp_in_future": 1}
        door = Door()
        assert run(environment, door, plan(set_=["timestamp=2024-03-08T12:00:00Z"]), at=later).outcomes == {
            "accepted": 1
        }
        assert door.events["e1"]["timestamp"] == "2024-03-08T12:00:00Z"

    def test_a_dry_run_changes_nothing(self, environment: Environment) -> None:
        write_rows(environment, API_TABLE, [row(1, event()), row(2, event(event_type="odd"))])
        door = Door()
        mended = mend(read_records(environment), RepairPlan(), LineReader(environment))
        report = replay(environment, mended, send=door, at=NOW, dry_run=True)
        assert (report.outcomes, door.calls) == ({"accepted": 1, "still_bad": 1}, 0)
        assert {r.state for r in read_records(environment)} == {State.OPEN}

    def test_what_the_door_refuses_or_does_not_store(self, environment: Environment) -> None:
        write_rows(environment, API_TABLE, [row(1, event()), row(2, event(event_id="e2"))])

        def door(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            return [
                {"status": "accepted", "stored": False},
                {"status": "quarantined", "reason": "invalid_price", "field": "price", "detail": "no"},
            ]

        assert run(environment, door, RepairPlan()).outcomes == {"not_stored": 1, "still_bad": 1}
        rows = read_table(environment, "bronze.quarantine_replays").to_pylist()
        kept = {(r["outcome"], r["event_id"], r["subject_key"], r["reason"]) for r in rows}
        assert kept == {("not_stored", None, None, None), ("still_bad", None, None, "invalid_price")}

    def test_edited_events(self, environment: Environment) -> None:
        write_rows(environment, API_TABLE, [row(1, b"{", "unreadable"), row(2, event(event_type="odd"))])
        first, second = read_records(environment)
        door = Door()
        edited = RepairPlan(edited={first.quarantine_id: event(event_id=None)})
        assert run(environment, door, edited).outcomes == {"accepted": 1, "still_bad": 1}
        assert list(door.events) == [first.own_event_id]
        with pytest.raises(DataError, match="1 edited events are not among the 1 selected ones: zzz"):
            run(environment, door, RepairPlan(edited={"zzz": {}}))
        assert find_record(environment, second.quarantine_id[:8]) == find_record(environment, second.quarantine_id)
        with pytest.raises(DataError, match="no quarantined event 'zzz'"):
            find_record(environment, "zzz")

    def test_selection_and_its_mistakes(self, environment: Environment) -> None:
        write_rows(environment, API_TABLE, [row(1, event()), row(2, event(), "invalid_price"), row(60, event())])
        assert len(read_records(environment, reason="unknown_event_type")) == 2
        assert [r.source_position for r in read_records(environment, since=RECEIVED + timedelta(seconds=2))] == [2, 60]
        assert len(read_records(environment, states=[State.STILL_BAD])) == 0
        with pytest.raises(DataError, match="there is no reason 'unknown_event'; did you mean 'unknown_event_type'"):
            read_records(environment, reason="unknown_event")

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        tries=st.lists(
            st.tuples(st.sampled_from(["", "before", "after"]), st.sampled_from([None, *TWO_REASONS])),
            max_size=5,
        ),
        kinds=st.lists(st.sampled_from(["good", "no id", "same id", "bad"]), min_size=1, max_size=6),
    )  # fmt: skip
    def test_whatever_dies_each_event_counts_once(
        self, tmp_path_factory: pytest.TempPathFactory, tries: list[tuple[str, str | None]], kinds: list[str]
    ) -> None:
        home = tmp_path_factory.mktemp("q")
        env = Environment.from_mapping({"NIGHTJAR_HOME": str(home)})
        ids = {"good": "own-{}", "same id": "shared", "bad": "bad-{}"}
        events = [
            event(event_id=ids[kind].format(n) if kind in ids else None, price=-1 if kind == "bad" else 1)
            for n, kind in enumerate(kinds)
        ]
        rows = [row(n, one, TWO_REASONS[n % 2]) for n, one in enumerate(events)]
        write_rows(env, API_TABLE, rows)
        door = Door(*(failure for failure, _ in tries))
        for _, reason in [*tries, ("", None)]:
            try:
                run(env, door, RepairPlan(), reason=reason)
            except DependencyError:
                continue
        while door._failures:  # a try that had nothing to send left its failure to the next
            door._failures.pop()
        run(env, door, RepairPlan())
        expected = sum(kind in ("good", "no id") for kind in kinds) + ("same id" in kinds)
        assert len(door.events) == expected
        states = [r.state for r in read_records(env)]
        assert states.count(State.STILL_BAD) == kinds.count("bad")
        assert states.count(State.REPLAYED) == len(kinds) - kinds.count("bad")


class TestImportedLines:
    LINES = (
        "id;who;what;thing;at;qty",
        "1;u1;seen;i1;2024-03-01T10:00:00Z;2",
        "2;u1;view_item;i2;2024-03-01T10:01:00Z;",
        ";u2;seen;;2024-03-01T10:02:00Z;",
        "4;u3;seen;i4;2024-03-01T10:03:00Z;1",
    )

    def bring(self, env: Environment, tmp_path: Path) -> LineReader:
        from infra.importing.mapping import ColumnMap

        path = tmp_path / "orders.csv"
        path.write_text("\n".join(self.LINES) + "\n")
        mapped = ColumnMap.parse(
            ["event_id=id", "user_id=who", "event_type=what", "item_id=thing", "timestamp=at", "quantity=qty"]
        )
        options = Options(rejects_folder=Path(env.home, "rejects", "events"))
        report = import_events(path, env, mapped, received_at=RECEIVED, options=options)
        assert (report.accepted, report.quarantined) == (1, {"unknown_event_type": 3})
        return LineReader(env, mapped)

    def test_lines_go_back_through_the_importer(self, environment: Environment, tmp_path: Path) -> None:
        lines = self.bring(environment, tmp_path)
        write_rows(environment, "bronze.users", [{"user_id": "u3", "consent_store": False}])
        mapped = plan(values=["event_type:seen=view_item"])

        def go() -> ReplayReport:
            mended = mend(read_records(environment), mapped, lines)
            return replay(environment, mended, send=Door("before"), at=NOW)

        # u2's line names no item; u3 does not allow storing by now
        assert go().outcomes == {"imported": 1, "not_stored": 1, "still_bad": 1}
        assert [str(r.state) for r in read_records(environment)] == ["replayed", "still_bad", "replayed"]
        events = read_table(environment, "bronze.events_import").to_pylist()
        assert sorted((e["event_id"], e["item_id"], e["quantity"]) for e in events) == [
            ("1", "i1", 2),
            ("2", "i2", None),
        ]
        assert {e["source"].partition(":")[0] for e in events} == {"orders.csv", "replay"}
        assert go().outcomes == {"still_bad": 1}
        fixed = mend(read_records(environment, states=[State.STILL_BAD]), plan(
            values=["event_type:seen=view_item"], set_=["item_id=i9"]), lines)  # fmt: skip
        assert replay(environment, fixed, send=Door("before"), at=NOW).outcomes == {"imported": 1}
        found = read_table(environment, "bronze.events_import").to_pylist()
        (mended_one,) = [e for e in found if e["item_id"] == "i9"]
        assert mended_one["event_id"].startswith("q-")
        assert {r.state for r in read_records(environment)} == {State.REPLAYED}

    def test_an_import_that_died_before_it_was_remembered_is_made_again(
        self, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = self.bring(environment, tmp_path)
        mapped = plan(values=["event_type:seen=view_item"], set_=["item_id=i1"])
        with monkeypatch.context() as patch:
            patch.setattr("infra.quarantine.replay.append_rows", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                replay(environment, mend(read_records(environment), mapped, lines), send=Door(), at=NOW)
        assert {r.state for r in read_records(environment)} == {State.OPEN}
        assert len(read_table(environment, "bronze.events_import")) == 4
        replay(environment, mend(read_records(environment), mapped, lines), send=Door(), at=NOW)
        assert len(read_table(environment, "bronze.events_import")) == 4

    def test_without_its_header_a_line_says_what_it_needs(self, environment: Environment) -> None:
        line = record(b"1;u1;seen", table=IMPORT_TABLE, source="gone.csv")
        found = read_original(line, LineReader(environment))
        assert found.problem is not None
        assert "--header" in found.problem.detail
        given = read_original(line, LineReader(environment, header="event_id;user_id;event_type"))
        assert given.event == {"event_id": "1", "user_id": "u1", "event_type": "seen"}
        short = read_original(line, LineReader(environment, header="event_id;user_id"))
        assert short.problem is not None
        assert short.problem.detail == "the line has 3 cells, its header 2"


def test_ids_differ_by_place_and_bytes() -> None:
    names = {
        quarantine_id(t, s, p, r) for t in (API_TABLE, IMPORT_TABLE) for s in "ab" for p in (1, 2) for r in (b"", b"x")
    }
    assert len(names) == 16
    assert quarantine_id(API_TABLE, "a", 1, b"x") == quarantine_id(API_TABLE, "a", 1, b"x")
    assert {str(o) for o in Outcome} == {"accepted", "duplicate", "imported", "not_stored", "still_bad"}
