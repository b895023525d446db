"""The files of the quality bench: what is read, what is refused and in which words, and what a slice is made of."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from feature_repo.contracts.errors import DataError
from infra.bench.quality import formats, tasks
from infra.bench.quality.prepare import prepare
from infra.bench.quality.ranking import measure
from infra.bench.quality.tasks import Slice, open_test, open_training

DAY = 86_400


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.txt", "packed.gz"])
def test_lists_sessions_and_prefixes(tmp_path: Path, name: str) -> None:
    lists = formats.read_lists(write(tmp_path / name, "u1 a b\n\nu2\nu1 c\r\n"), "--train")
    assert lists == (["u1", "u2", "u1"], [["a", "b"], [], ["c"]])
    users, items, places = formats.flatten(lists)
    assert (users.tolist(), items.tolist(), places.tolist()) == (["u1", "u1", "u1"], ["a", "b", "c"], [0, 1, 0])
    assert formats.read_sessions(write(tmp_path / name, "a b a\nc\n"), "--train") == [["a", "b", "a"], ["c"]]
    assert formats.read_prefixes(write(tmp_path / name, "a b\tc\nd\te\n"), "--test") == (
        [["a", "b"], ["d"]],
        ["c", "e"],
    )
    lines = formats.read_negatives(write(tmp_path / name, "a b\nc\n"), "--negatives", by_line=True)
    assert lines == (["0", "1"], [["a", "b"], ["c"]])


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path: Path) -> None:
    found = formats.read_lists(write(tmp_path / "t.txt", "\ufeffu1 a b\r\n\ufeffu2 a\r\n"), "--train")
    assert found.users == ["u1", "\ufeffu2"]


def test_attributes_as_lines_or_as_one_object(tmp_path: Path) -> None:
    lines = formats.read_attributes(write(tmp_path / "a.txt", "i1 red home\ni2\ni1 7\n"), "--attributes")
    assert lines == {"i1": ["red", "home", "7"], "i2": []}
    found = formats.read_attributes(write(tmp_path / "a.gz", '{"4": [1, "x y", null],\n "5": []}'), "--attributes")
    assert found == {"4": ["1", "x y"], "5": []}
    for text, words in (
        ("i1\n", "no line `item attribute ...`"),
        ("{broken", "not JSON"),
        ('{"4": {"a": 1}}', "item '4' has"),
        ('{"4": [[1]]}', "item '4' has"),
        ('{"4": []}', "no item with at least one attribute"),
    ):
        with pytest.raises(DataError, match=words):
            formats.read_attributes(write(tmp_path / "wrong", text), "--attributes")


def test_a_test_of_what_everybody_had_is_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "u1 a b c\nu2 b c a\n")
    task = open_training("pairs", train=train, test=train)
    with pytest.raises(DataError, match="nobody in it has an item that may be recommended"):
        open_test(task)


def test_attributes_reach_every_training_and_are_only_those_of_known_items(tmp_path: Path) -> None:
    data = write(tmp_path / "s.txt", "u1 a b c\nu2 b c a\nu3 c a b d\n")
    said = write(tmp_path / "a.json", '{"c": ["red"], "zz": ["red"], "a": ["red", "old"]}')
    task = open_training("sequences", train=data, test=data, attributes=said)
    assert task.training.item_names.tolist() == ["a", "b", "c"]
    content = task.training.content
    assert content is not None
    assert content.terms.toarray().tolist() == [[1, 1], [0, 0], [0, 1]]
    assert [one.training.content is content for one in task.validations] == [True]
    recipe = {"weights": {tasks.ONLY_TYPE: 1.0}, "half_life_days": None}
    assert task.training.matrix(recipe).content is content
    strangers = write(tmp_path / "b.json", '{"zz": ["red"]}')
    with pytest.raises(DataError, match="none of its 1 items is in the training data; it begins with 'zz'"):
        open_training("sequences", train=data, test=data, attributes=strangers)


def test_events_by_their_header(tmp_path: Path) -> None:
    text = "Time,item,colour,user,Event,rating\n1000,i1,red,u1,View,3\n2000.5,i2,,u2,buy,4.5\n"
    found = formats.read_events(write(tmp_path / "e.csv", text), "--train")
    assert (found.user.tolist(), found.item.tolist()) == (["u1", "u2"], ["i1", "i2"])
    assert found.event is not None
    assert found.event.tolist() == ["view", "buy"]
    assert found.micros is not None
    assert found.micros.tolist() == [1_000_000_000, 2_000_500_000]
    assert found.rating is not None
    assert found.rating.tolist() == [3.0, 4.5]
    bare = formats.read_events(write(tmp_path / "e.csv.gz", "user,item\n007,NA\n"), "--train")
    assert (bare.user.tolist(), bare.item.tolist(), bare.event, bare.micros) == (["007"], ["NA"], None, None)
    for moment in ("1700000000", "1700000000000", "2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"):
        found = formats.read_events(write(tmp_path / "e.csv", f"user,item,time\nu,i,{moment}\n"), "--train")
        assert found.micros is not None
        assert found.micros.tolist() == [1_700_000_000_000_000], moment


@pytest.mark.parametrize(
    ("time", "micros"),
    [
        ("99999999999", 99_999_999_999_000_000),
        ("100000000000", 100_000_000_000_000),
        ("1700000000000000", 1_700_000_000_000_000),
        ("1700000000000000000", 1_700_000_000_000_000),
        ("-5.5", -5_500_000),
        ("-1700000000000", -1_700_000_000_000_000),
    ],
)
def test_times_in_any_part_of_a_second(tmp_path: Path, time: str, micros: int) -> None:
    found = formats.read_events(write(tmp_path / "e.csv", f"user,item,time\nu,i,{time}\n"), "--train")
    assert found.micros is not None
    assert found.micros.tolist() == [micros]


def test_a_comma_at_the_end_of_rows_moves_no_column(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    found = formats.read_events(write(tmp_path / "e.csv", "\ufeffuser,item\r\nu1,a,\r\nu2,b,\r\n"), "--train")
    assert (found.user.tolist(), found.item.tolist()) == (["u1", "u2"], ["a", "b"])
    assert not recwarn.list


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (formats.read_lists, "\n\n", "--train .*: no line `user item ...` with at least one item"),
        (formats.read_lists, "u1\nu2\n", "at least one item"),
        (formats.read_sessions, "a\tb\n", "line 1: a tab in a line of training sessions"),
        (formats.read_sessions, "", "no session in it"),
        (formats.read_prefixes, "a b\tc\na b c\n", r"line 2: 'a b c', expected `item item \.\.\.<TAB>next item`"),
        (formats.read_prefixes, "a\tb c\n", "line 1"),
        (formats.read_prefixes, "\tb\n", "line 1"),
        (formats.read_events, "usr,item\nu,i\n", r"no column 'user'; it has usr, item; did you mean 'usr'\?"),
        (formats.read_events, "user,item\nu,i\n,j\n", "line 3: no user"),
        (formats.read_events, "user,item\n", "a header and no row"),
        (formats.read_events, "", "not a csv"),
        (formats.read_events, "user,item,time\nu,i,1\nu,i,soon\n", "line 3: time 'soon', expected seconds \\(or parts"),
        (formats.read_events, "user,item,time\nu,i,1\nu,i,2024-01-01\n", "one of them in the whole column"),
        (
            formats.read_events,
            "user,item,time\nu,i,1\nu,i,1e30\n",
            "line 3: time '1e30' is outside the years 1 to 9999",
        ),
        (formats.read_events, "user,item,time\nu,i,-9e10\n", "line 2: time '-9e10' is outside the years"),
        (formats.read_events, "user,User,item\nu,v,i\n", "two columns 'user'"),
        (formats.read_events, "user,item,rating\nu,i,good\n", "line 2: rating 'good', expected a number"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path: Path, reader, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader(write(tmp_path / "x.txt", text), "--train")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--test .*nowhere: there is no such file"):
        formats.read_lists(tmp_path / "nowhere", "--test")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"u1 a b\n" * 500)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        formats.read_lists(cut, "--train")
    (tmp_path / "latin.txt").write_bytes(b"u1 a\nu2 caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        formats.read_lists(tmp_path / "latin.txt", "--train")


# --- slices ------------------------------------------------------------------------------------------------------


def asked(found: Slice) -> dict[str, tuple[list[str], int]]:
    """By user: (the answers that can be found, how many there are)."""
    training = found.training
    answers = {}
    for row, user in enumerate(found.questions.users):
        items = found.relevant.indices[found.relevant.indptr[row] : found.relevant.indptr[row + 1]]
        name = str(training.user_names[user]) if user >= 0 else f"?{row}"
        answers[name] = ([str(training.item_names[item]) for item in items], int(found.relevant_counts[row]))
    return answers


def rows_of(found: Slice) -> list[tuple[str, str, str]]:
    table = found.training.table
    assert table is not None
    names = found.training.item_names
    return [(row["subject_key"], str(names[row["item_number"]]), row["event_type"]) for row in table.to_pylist()]


def test_pairs_validate_on_a_share_of_each_user(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "".join(f"u{n} a b c d e f g h i j\n" for n in (1, 3, 4, 5)) + "u2 a\n")
    test = write(tmp_path / "test.txt", "u1 k a\nu2 b zz\nnew a\nu3 b\n")
    task = open_training("pairs", train=train, test=test)
    assert len(task.validations) == 4, "so few users answer four times"
    held = []
    for found in task.validations:
        answers = asked(found)
        assert {user: count for user, (_, count) in answers.items()} == dict.fromkeys(("u1", "u3", "u4", "u5"), 1), (
            "a tenth of ten"
        )
        kept = {(subject, item) for subject, item, _ in rows_of(found)}
        assert len(kept) == 37
        assert not {("u:u1", item) for item in answers["u1"][0]} & kept
        assert ("u:u2", "a") in kept, "somebody's only item is never held back"
        held.append(answers["u1"][0][0])
    assert len(set(held)) == 4, "no item is held back twice"
    whole = open_test(task)
    # u1's k is unknown (a miss), a was seen; u2's zz is unknown; u3 had b: nothing is left to ask.
    assert asked(whole) == {"u1": ([], 1), "u2": (["b"], 2), "?0": (["a"], 1)}


@pytest.mark.parametrize(("users", "slices"), [(1, 4), (999, 4), (1000, 4), (1333, 4), (1334, 3), (2001, 2), (4000, 1)])
def test_the_fewer_users_the_more_tenths_are_held_back(users: int, slices: int) -> None:
    names = np.array([f"u{number}" for number in range(users) for _ in range(2)] + ["once"] * 1, dtype=object)
    assert tasks._pairs_slices(names) == slices


def test_a_user_with_few_items_is_in_few_slices(tmp_path: Path) -> None:
    many = "".join(f"u{n} a b c d e f\n" for n in (3, 4, 5, 6))
    train = write(tmp_path / "train.txt", "u1 a b\nu2 a b c\n" + many)
    task = open_training("pairs", train=train, test=tmp_path / "none")
    slices = [sorted(asked(found)) for found in task.validations]
    assert len(slices) == 4
    assert [sum(user in users for users in slices) for user in ("u1", "u2", "u3", "u6")] == [2, 3, 4, 4]


def test_sequences_hide_the_last_item_until_the_test(tmp_path: Path) -> None:
    data = write(tmp_path / "data.txt", "u1 a b c last1\nu2 b a\nu3 c\nu4 a c b a2\n")
    task = open_training("sequences", train=data, test=data)
    assert [str(name) for name in task.training.item_names] == ["a", "b", "c"]
    (found,) = task.validations
    assert asked(found) == {"u1": (["c"], 1), "u4": (["b"], 1)}
    assert sorted(row[:2] for row in rows_of(found)) == [
        ("u:u1", "a"), ("u:u1", "b"), ("u:u2", "b"), ("u:u3", "c"), ("u:u4", "a"), ("u:u4", "c"),
    ]  # fmt: skip
    _, sequences = task.training.sequences({"weights": {tasks.ONLY_TYPE: 1.0}})
    assert [str(task.training.item_names[n]) for n in sequences.items[:3]] == ["a", "b", "c"]
    assert asked(open_test(task)) == {"u1": ([], 1), "u2": (["a"], 1), "u4": ([], 1)}


EVENTS = f"""user,item,event,time
u1,a,view,{1 * DAY}
u1,a,buy,{2 * DAY}
u1,b,buy,{9 * DAY}
u1,b,view,{8 * DAY}
u2,a,view,{3 * DAY}
u2,b,view,{4 * DAY}
u2,b,buy,{5 * DAY}
u2,a,buy,{9 * DAY}
u3,c,buy,{1 * DAY}
u3,a,buy,{9.5 * DAY}
u4,b,view,{9.6 * DAY}
"""


def test_events_validate_by_time_and_on_each_last_purchase(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", EVENTS)
    test = write(tmp_path / "test.csv", "user,item,event\nu1,c,view\nu2,c,buy\nu3,b,buy\nu4,a,buy\n")
    task = open_training("events", train=train, test=test)
    assert task.training.types == {"purchase": 6, "view_item": 5}
    assert task.training.target_types == ("purchase",)
    by_time, last = task.validations
    # The newest fifth of six purchases is one; everything since the one before it is left out of training.
    assert asked(by_time) == {"u3": (["a"], 1)}
    assert by_time.training.cut_off == 9 * DAY * 1_000_000 + 1
    assert {row[0] for row in rows_of(by_time)} == {"u:u1", "u:u2", "u:u3"}
    # The last purchase of each, with all else that the user did with that item.
    assert asked(last) == {"u1": (["b"], 1), "u2": (["a"], 1), "u3": (["a"], 1)}
    assert ("u:u1", "b", "view_item") not in rows_of(last)
    assert ("u:u2", "a", "view_item") not in rows_of(last)
    assert ("u:u4", "b", "view_item") in rows_of(last)
    assert asked(open_test(task)) == {"u2": (["c"], 1), "u3": (["b"], 1), "u4": (["a"], 1)}, "a view is no answer"


def test_repeats_may_be_asked_for(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", EVENTS)
    test = write(tmp_path / "test.csv", "user,item\nu1,a\nu1,c\n")
    task = open_training("events", train=train, test=test, repeats="allowed")
    by_time, last = task.validations
    assert by_time.seen is None
    assert asked(by_time) == {"u3": (["a"], 1)}
    assert asked(last) == {"u1": (["b"], 1), "u2": (["a"], 1), "u3": (["a"], 1)}
    assert ("u:u2", "a", "view_item") in rows_of(last), "what came before stays"
    assert ("u:u2", "a", "purchase") not in rows_of(last)
    assert ("u:u4", "b", "view_item") in rows_of(last), "who bought nothing still teaches"
    assert asked(open_test(task)) == {"u1": (["a", "c"], 2)}
    new_only = open_training("events", train=train, test=test)
    assert asked(open_test(new_only)) == {"u1": (["c"], 1)}


def test_events_without_time_or_type(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.csv", "user,item,rating\n" + "".join(f"u{n},i{n % 3},{n}\nu{n},i3,1\n" for n in range(6))
    )
    task = open_training("events", train=train, test=tmp_path / "none")
    assert len(task.validations) == 2, "each of the two rows of a user is held back once"
    assert not task.training.has_time
    assert task.training.types == {"rating_high": 4, "rating_low": 8}
    assert task.training.target_types == ("rating_high", "rating_low")


@pytest.mark.parametrize("repeats", ["new-only", "allowed"])
def test_where_all_happened_at_one_time_chance_says_what_is_held_back(tmp_path: Path, repeats: str) -> None:
    text = "user,item,time\n" + "".join(f"u{n},{item},7\n" for n in range(5) for item in "abc")
    task = open_training("events", train=write(tmp_path / "t.csv", text), test=tmp_path / "none", repeats=repeats)
    assert len(task.validations) == 3
    assert [len(found.questions) for found in task.validations] == [5, 5, 5]
    held = [{(user, item) for user, (items, _) in asked(found).items() for item in items} for found in task.validations]
    assert len(set.union(*held)) == 15, "each row is held back once"
    assert len(rows_of(task.validations[0])) == 10


def test_a_low_rating_is_asked_for_like_a_high_one_in_validation_and_test(tmp_path: Path) -> None:
    """u1's newest row is rated below the mean of the training (3.6), u2's above it; so are their rows of the test."""
    train = write(
        tmp_path / "train.csv",
        "user,item,time,rating\nu1,a,1,5\nu2,b,1,5\nu3,a,1,4\nu3,b,2,5\nu3,c,3,5\nu1,b,4,1\nu2,a,4,5\n"
        "u4,a,1,1\nu4,c,2,1\nu4,b,5,4\n",
    )
    test = write(tmp_path / "test.csv", "user,item,rating\nu1,c,1\nu2,c,5\n")
    task = open_training("events", train=train, test=test)
    assert task.training.types == {"rating_high": 7, "rating_low": 3}
    _, last = task.validations
    assert {user: found for user, (found, _) in asked(last).items()} == {
        "u1": ["b"], "u2": ["a"], "u3": ["c"], "u4": ["b"],
    }  # fmt: skip
    assert asked(open_test(task)) == {"u1": (["c"], 1), "u2": (["c"], 1)}


def test_sessions_validate_on_the_newest(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "a b\n" * 39 + "a b c\n")
    test = write(tmp_path / "test.txt", "a x\tb\nx\ta\nb\tx\n")
    task = open_training("sessions", train=train, test=test)
    (found,) = task.validations  # 2 of 40: [a] -> b, then [a] -> b and [a, b] -> c, which nobody had before
    assert found.questions.prefixes is not None
    assert [part.tolist() for part in np.split(found.questions.prefixes.items, [1, 2])] == [[0], [0], [0, 1]]
    assert np.diff(found.relevant.indptr).tolist() == [1, 1, 1]
    whole = open_test(task)
    assert whole.questions.prefixes is not None
    assert whole.questions.prefixes.starts.tolist() == [0, 1, 1, 2], "what is unknown is left out of a prefix"
    assert np.diff(whole.relevant.indptr).tolist() == [1, 1, 0]
    assert whole.relevant_counts.tolist() == [1, 1, 1], "an unknown target is a miss"


def test_single_clicks_at_the_end_leave_something_to_validate_on(tmp_path: Path) -> None:
    """The newest session of two items, and what came after it, is what validation holds back."""
    train = write(tmp_path / "t.txt", "a b\nb c\nc d e\n" + "a\n" * 4)
    (found,) = open_training("sessions", train=train, test=train).validations
    assert found.training.sessions is not None
    assert len(found.training.sessions) == 2
    prefixes = found.questions.prefixes
    assert prefixes is not None
    assert prefixes.items.tolist() == [2, 2, 3], "c; c d"
    assert found.relevant.indices.tolist() == [3, 4]


def test_a_session_as_long_as_a_log_is_validated_by_its_last_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.bench.quality.tasks.LONGEST_PREFIX", 3)
    train = write(tmp_path / "train.txt", "a b c d e f\n" * 19 + "a b c d e f\n")
    (found,) = open_training("sessions", train=train, test=tmp_path / "none").validations
    assert found.questions.prefixes is not None
    prefixes = np.split(found.questions.prefixes.items, found.questions.prefixes.starts[1:-1])
    assert [part.tolist() for part in prefixes] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert found.relevant.indices.tolist() == [1, 2, 3, 4, 5]


def test_what_cannot_be_validated_is_refused(tmp_path: Path) -> None:
    for text in ("u1 a\nu2 b\n", "u1 a b c d e\nu2 f g h i\n", "u1 a a\nu2 a\n"):
        with pytest.raises(DataError, match=r"nothing to validate on: each user .* that nobody else has"):
            open_training("pairs", train=write(tmp_path / "t", text), test=tmp_path / "none")


# --- metrics -----------------------------------------------------------------------------------------------------


def test_measured_by_hand_with_seen_items_and_with_negatives(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "u1 a b\nu2 c a\nu3 d e f\nu4 a b c d e f\nu5 a b c d e f\n")
    test = write(tmp_path / "test.txt", "u1 c e\nu2 b\n")
    task = open_training("pairs", train=train, test=test)
    whole = open_test(task)
    scores = np.array([[9, 9, 1, 5, 5, 7], [0, 1, 9, 2, 0, 0]], np.float32)  # items a to f
    found = measure(scores.copy(), whole, 2)
    # u1: a, b are seen; f, then d before e (a tie, by number): no hit. u2: d, b (a and c are seen).
    assert found["recall@2"].tolist() == [0.0, 1.0]
    assert found["mrr@2"].tolist() == [0.0, 0.5]
    assert found["hr@2"].tolist() == [0.0, 1.0]
    assert found["ndcg@2"].tolist() == pytest.approx([0.0, 1 / np.log2(3)])
    assert measure(scores.copy(), whole, 4)["recall@4"].tolist() == [1.0, 1.0]

    negatives = write(tmp_path / "neg.txt", "u1 d f zz\nu2 d e\n")
    sampled = open_test(open_training("pairs", train=train, test=test, negatives=negatives))
    found = measure(scores.copy(), sampled, 2)
    # u1: c is third of c, d, f; e second of e, d (the tie goes to d), f: third. u2: b second, behind d.
    assert found["hr@2"].tolist() == [0.0, 1.0]
    assert found["ndcg@2"].tolist() == pytest.approx([0.0, 1 / np.log2(3)])
    assert measure(scores.copy(), sampled, 3)["mrr@3"].tolist() == pytest.approx([1 / 3, 0.5])
    missing = write(tmp_path / "neg.txt", "u1 d f\n")
    with pytest.raises(DataError, match="no known item for 'u2' and 0 others of 2"):
        open_test(open_training("pairs", train=train, test=test, negatives=missing))


# --- prepared sets -----------------------------------------------------------------------------------------------


def test_online_retail_is_cleaned_and_cut_in_november(tmp_path: Path) -> None:
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    lines = [
        "1,10001A,x,2,2011-10-31 23:59:00,1.5,7,UK",
        "2,10002,x,1,2011-06-01 12:00:00,1,8.0,UK",
        "C3,10001A,x,-2,2011-10-31 10:00:00,1.5,7,UK",  # a cancellation
        "4,10001A,x,2,2011-10-31 10:00:00,1.5,,UK",  # nobody
        "5,10001A,x,2,2011-10-31 10:00:00,0,7,UK",  # for nothing
        "6,POST,x,2,2011-10-31 10:00:00,1.5,7,UK",  # no goods
        "7,10002,x,1,2011-11-01 00:00:00,1,7,UK",
        "8,10003,x,1,2011-11-02 00:00:00,1,7,UK",  # an unknown product
        "9,10002,x,1,2011-11-02 00:00:00,1,9,UK",  # an unknown customer
    ]
    source = write(tmp_path / "online_retail.csv.gz", header + "\n".join(lines) + "\n")
    train, test = prepare("online-retail", source, tmp_path / "out")
    assert gzip.decompress(train.read_bytes()).decode().splitlines() == [
        "user,item,event,time",
        "7,10001A,purchase,2011-10-31T23:59:00Z",
        "8,10002,purchase,2011-06-01T11:00:00Z",
    ]
    assert gzip.decompress(test.read_bytes()).decode().splitlines()[1:] == ["7,10002,purchase,2011-11-01T00:00:00Z"]
    before = [path.read_bytes() for path in (train, test)]
    assert [path.read_bytes() for path in prepare("online-retail", source.parent, tmp_path / "out")] == before


def test_ml_100k_gives_five_seeds_of_a_quarter(tmp_path: Path) -> None:
    ratings = "".join(f"{user}\t{item}\t{item % 5 + 1}\t{item}\n" for user in (1, 2) for item in range(8 * user))
    source = write(tmp_path / "u.data", ratings)
    paths = prepare("ml-100k", source, tmp_path / "out")
    assert [path.name for path in paths] == [f"{part}-{n}.txt.gz" for n in range(5) for part in ("train", "test")]
    parts = set()
    for train, test in zip(paths[::2], paths[1::2], strict=True):
        held, kept = formats.read_lists(test, "--test"), formats.read_lists(train, "--train")
        assert [len(items) for items in held.items] == [2, 4]
        for n, user in enumerate((1, 2)):
            assert sorted(held.items[n] + kept.items[n], key=int) == [str(item) for item in range(8 * user)]
        parts.add(str(held.items))
    assert len(parts) == 5
    with pytest.raises(DataError, match="did you mean 'ml-100k'"):
        prepare("ml-100", source, tmp_path / "out")
    with pytest.raises(DataError, match=r"neither u\.data\.gz nor u\.data"):
        prepare("ml-100k", tmp_path / "out", tmp_path / "other")
