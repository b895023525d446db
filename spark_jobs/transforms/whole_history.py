"""Sessions and interactions of a whole history in memory: what `identity.resolve_subjects`, `sessions` and
`interactions` say of frames, said of arrays. A test holds the two to each other.

Some thirty bytes an event are held. An event is its place in the history; people, client ids and items are numbers, -1
for none.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from feature_repo.contracts import bots
from feature_repo.contracts.events import CLIENT_SESSION_GAP, DEFAULT_PREFERENCE_WEIGHTS, SESSION_GAP
from feature_repo.contracts.tables import table

Numbers = NDArray[np.int32]
Micros = NDArray[np.int64]

_USER, _DEVICE = "u:", "a:"
_KEY_BYTES = 16
_KEYS_AT_ONCE = 100_000
_DAY_MICROS = 86_400_000_000
_SECOND_MICROS = 1_000_000


class People(NamedTuple):
    """Who did each event: `number` of each event is the place of the person's subject_key in `keys`."""

    keys: pa.StringArray
    number: Numbers


class Sessions(NamedTuple):
    """`of_event` is the number of each event's session, -1 for one that is in none; the rest is by session number,
    sorted by person. `key` has 16 bytes a session, the session_key without its hex."""

    of_event: Numbers
    person: Numbers
    client_id: Numbers
    started: Micros
    ended: Micros
    event_count: NDArray[np.int64]
    item_count: NDArray[np.int64]
    has_purchase: NDArray[np.bool_]
    key: NDArray[np.uint8]


def short_hashes(texts: pa.Array) -> NDArray[np.uint64]:
    """Eight bytes of each text: equal ones for equal texts, and hardly ever for others. All nulls have the same."""
    return pd.util.hash_array(texts.to_numpy(zero_copy_only=False), categorize=False)


def more_than_once(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The numbers that come more than once, sorted."""
    ordered = np.sort(numbers)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def subject_keys(user_id: pa.ChunkedArray, anonymous_id: pa.ChunkedArray) -> pa.ChunkedArray:
    """`events.subject_key` of each event."""
    return pc.coalesce(
        pc.binary_join_element_wise(_USER, user_id, ""), pc.binary_join_element_wise(_DEVICE, anonymous_id, "")
    )


def suspects(events: pa.Table) -> pa.Table:
    """Of one day's events (with subject_key) all that `bots.find_bots` asks for: browsing events of subjects that may
    break a rule (`_may_be_bots`), and events that may name a crawler. Among these alone it finds the same bots."""
    browsing = pc.is_in(events["event_type"], value_set=pa.array([str(kind) for kind in bots.BROWSING_TYPES]))
    looked = events.select(["subject_key", "event_timestamp"]).filter(browsing)
    of_busy = pc.and_(browsing, pc.is_in(events["subject_key"], value_set=_may_be_bots(looked)))
    return events.filter(pc.or_(of_busy, _may_name_crawler(events["properties"])))


def _may_be_bots(browsing: pa.Table) -> pa.Array:
    """The subjects of a day's browsing events that have enough of them for the rules that count more than a second's,
    or more in one second than a person has."""
    counts = pc.value_counts(browsing["subject_key"])
    many = pc.greater(counts.field("counts"), bots.LEAST_BUSY)
    busy = browsing.filter(pc.is_in(browsing["subject_key"], value_set=counts.field("values").filter(many)))
    second = busy["event_timestamp"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy() // _SECOND_MICROS
    subject = busy["subject_key"].combine_chunks().dictionary_encode()
    places, counted = np.unique(
        np.column_stack([np.asarray(subject.indices, np.int64), second]), axis=0, return_counts=True
    )
    fast = np.unique(places[counted > bots.MAX_PER_SECOND, 0])
    long = counts.field("values").filter(pc.greater_equal(counts.field("counts"), bots.LEAST_FOR_LONG_RULES))
    return pc.unique(pa.concat_arrays([long, subject.dictionary.take(pa.array(fast))]))


def _may_name_crawler(properties: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether the JSON text could name one: it has a crawler's word, an escape or a letter that is not plain."""
    words = "|".join(re.escape(word) for word in (*bots.CRAWLER_WORDS, *bots.NOT_CRAWLERS))
    names_agent = pc.match_substring(properties, "gent")
    text = pc.if_else(names_agent, properties, pa.scalar(None, pa.string()))
    return pc.fill_null(pc.match_substring_regex(text, rf"(?i){words}|\\|[^\x00-\x7f]"), False)


def whose(subjects: pa.DictionaryArray, micros: Micros, stretches: pa.Table, names: pa.Table | None) -> People:
    """The person of each event: `identity.resolve_subjects` of subject_key and event time (us since 1970 UTC).

    `stretches` are those of `device_stretches`, `names` those of `current_names`, None when nobody was renamed.
    """
    number = subjects.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=True)
    keys = subjects.dictionary
    owners = pc.binary_join_element_wise(_USER, pc.unique(stretches["owner_id"].combine_chunks()), "")
    keys = _with_more(keys, owners)
    owner_number = _places(pc.binary_join_element_wise(_USER, stretches["owner_id"].combine_chunks(), ""), keys)
    device_number = _places(pc.binary_join_element_wise(_DEVICE, stretches["anonymous_id"].combine_chunks(), ""), keys)
    met = np.flatnonzero(device_number >= 0)
    if met.size:
        first, until = (stretches[name].to_numpy()[met] for name in ("from_micros", "until_micros"))
        device, owner = device_number[met], owner_number[met]
        is_owned = np.zeros(len(keys), bool)
        is_owned[device] = True
        events = np.flatnonzero(is_owned[number])
        found = _stretch_at(number[events], micros[events], device, first, until)
        number[events[found >= 0]] = owner[found[found >= 0]]
    if names is not None and names.num_rows:
        called = pc.binary_join_element_wise(_USER, names["current_user_id"].combine_chunks(), "")
        keys = _with_more(keys, pc.unique(called))
        now = np.arange(len(keys), dtype=np.int32)
        former = _places(pc.binary_join_element_wise(_USER, names["user_id"].combine_chunks(), ""), keys)
        now[former[former >= 0]] = _places(called, keys)[former >= 0]
        number = now[number]
    return People(keys, number)


def _with_more(keys: pa.StringArray, more: pa.Array) -> pa.StringArray:
    new = more.filter(pc.invert(pc.is_in(more, value_set=keys)))
    return pa.concat_arrays([keys, new.cast(keys.type)]) if len(new) else keys


def _places(texts: pa.Array, keys: pa.StringArray) -> Numbers:
    found = pc.fill_null(pc.index_in(texts, value_set=keys), -1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int32)


def _stretch_at(device: Numbers, moment: Micros, of: Numbers, first: Micros, until: Micros) -> NDArray[np.int64]:
    """The place of the stretch of this device that holds the moment, both ends included; -1 for none. The stretches of
    one device are disjoint, so it is the last that had begun."""
    instants = np.unique(first)
    width = len(instants) + 1
    begins = of.astype(np.int64) * width + np.searchsorted(instants, first) + 1
    order = np.argsort(begins)
    asked = device.astype(np.int64) * width + np.searchsorted(instants, moment, side="right")
    place = np.searchsorted(begins[order], asked, side="right") - 1
    stretch = order[np.maximum(place, 0)]
    holds = (place >= 0) & (of[stretch] == device) & (moment <= until[stretch])
    return np.where(holds, stretch, -1)


def split_sessions(
    people: People, *, client_id: Numbers, client_ids: pa.StringArray | None, micros: Micros, item: Numbers,
    is_purchase: NDArray[np.bool_], counts: NDArray[np.bool_],
) -> Sessions:  # fmt: skip
    """`sessions.assign_sessions` and what `summarise_sessions` counts, of the events that `counts` (no bot's, no
    operator's unmerge). Without `client_ids` there are no session keys."""
    rows = np.flatnonzero(counts)
    width = int(client_id.max(initial=-1)) + 2
    group = people.number[rows].astype(np.int64) * width + client_id[rows] + 1
    order = np.lexsort((micros[rows], group))
    group, rows = group[order], rows[order]
    moment = micros[rows]
    limit = np.where(client_id[rows] < 0, _micros(SESSION_GAP), _micros(CLIENT_SESSION_GAP))
    starts = np.ones(len(rows), bool)
    starts[1:] = (group[1:] != group[:-1]) | (moment[1:] - moment[:-1] >= limit[1:])
    first = np.flatnonzero(starts)
    number = (np.cumsum(starts) - 1).astype(np.int32)
    of_event = np.full(len(counts), -1, np.int32)
    of_event[rows] = number
    person, client, started = people.number[rows[first]], client_id[rows[first]], moment[first]
    no_keys = np.empty((0, _KEY_BYTES), np.uint8)
    return Sessions(
        of_event=of_event, person=person, client_id=client, started=started,
        ended=moment[np.append(first[1:], len(rows)) - 1] if len(rows) else moment,
        event_count=np.diff(np.append(first, len(rows))),
        item_count=_distinct_items(number, item[rows], len(first)),
        has_purchase=np.bincount(number, weights=is_purchase[rows], minlength=len(first)) > 0,
        key=no_keys if client_ids is None else _session_keys(people.keys, client_ids, person, client, started),
    )  # fmt: skip


def _distinct_items(session: Numbers, item: Numbers, session_count: int) -> NDArray[np.int64]:
    named = item >= 0
    width = int(item.max(initial=0)) + 1
    pairs = np.unique(session[named].astype(np.int64) * width + item[named])
    return np.bincount(pairs // width, minlength=session_count)


def _session_keys(
    keys: pa.StringArray, client_ids: pa.StringArray, person: Numbers, client: Numbers, started: Micros
) -> NDArray[np.uint8]:
    """The first 16 bytes of the hash that `sessions` makes a session_key of."""
    subjects, ids = keys.to_pylist(), [*client_ids.to_pylist(), ""]  # the last is that of none, -1
    hashed = bytearray()
    for begin in range(0, len(person), _KEYS_AT_ONCE):
        some = slice(begin, begin + _KEYS_AT_ONCE)
        named = zip(person[some].tolist(), client[some].tolist(), started[some].tolist(), strict=True)
        hashed += b"".join(
            sha256(f"{subjects[p]}\0{ids[c]}\0{at}".encode()).digest()[:_KEY_BYTES] for p, c, at in named
        )
    return np.frombuffer(bytes(hashed), np.uint8).reshape(-1, _KEY_BYTES)


def session_days(sessions: Sessions) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(days since 1970, the numbers of the sessions that began on that UTC day), in order of days."""
    day = sessions.started // _DAY_MICROS
    order = np.argsort(day, kind="stable")
    ends = np.flatnonzero(np.diff(day[order])) + 1
    for some in np.split(order, ends):
        if len(some):
            yield int(day[some[0]]), some


def session_rows(sessions: Sessions, people: People, client_ids: pa.StringArray, some: NDArray[np.int64]) -> pa.Table:
    """Rows of silver.sessions, session_date excepted, of the sessions with these numbers."""
    started, ended = sessions.started[some], sessions.ended[some]
    subject_key = people.keys.take(pa.array(sessions.person[some]))
    client = sessions.client_id[some]
    return pa.table(
        {
            "session_key": _hex(sessions.key[some]),
            "subject_key": subject_key,
            "user_id": _user_ids(subject_key),
            "session_id": client_ids.take(pa.array(client, mask=client < 0)),
            "started_at": _moments(started),
            "ended_at": _moments(ended),
            "event_count": sessions.event_count[some],
            "item_count": sessions.item_count[some],
            "duration_seconds": (ended - started) / 1e6,
            "has_purchase": sessions.has_purchase[some],
        }
    )


def interaction_rows(
    events: pa.Table, person: Numbers, session: Numbers, *, people: People, sessions: Sessions,
    is_denied: NDArray[np.bool_], untold: pa.Array,
) -> pa.Table:  # fmt: skip
    """Rows of silver.interactions, event_date excepted, from some events: `interactions.select_interactions`.

    events     columns of silver.events; person and session are those of each
    is_denied  of each person: whether its events may not be learned from
    untold     event_ids that break a rule by which they are not learned from
    """
    is_preference = pc.is_in(events["event_type"], value_set=pa.array(sorted(map(str, DEFAULT_PREFERENCE_WEIGHTS))))
    may_train = pc.fill_null(events["consent_train"], True)
    chosen = pc.and_(pc.and_(is_preference, may_train), pc.is_valid(events["item_id"]))
    chosen = pc.and_(chosen, pa.array((session >= 0) & ~is_denied[person]))
    if len(untold):
        chosen = pc.and_(chosen, pc.invert(pc.is_in(events["event_id"], value_set=untold)))
    kept = chosen.combine_chunks() if isinstance(chosen, pa.ChunkedArray) else chosen
    rows, places = events.filter(kept), kept.to_numpy(zero_copy_only=False)
    subject_key = people.keys.take(pa.array(person[places]))
    own = {
        "subject_key": subject_key,
        "user_id": _user_ids(subject_key),
        "session_key": _hex(sessions.key[session[places]]),
    }
    names = [name for name in table("silver.interactions").columns if name != "event_date"]
    return pa.table({name: own[name] if name in own else rows[name] for name in names})


def _user_ids(subject_key: pa.StringArray) -> pa.Array:
    is_user = pc.starts_with(subject_key, _USER)
    return pc.if_else(is_user, pc.utf8_slice_codeunits(subject_key, len(_USER)), pa.scalar(None, pa.string()))


def _moments(micros: Micros) -> pa.Array:
    return pa.array(micros).cast(pa.timestamp("us", tz="UTC"))


def _hex(keys: NDArray[np.uint8]) -> pa.StringArray:
    text = binascii.hexlify(keys.tobytes())
    offsets = np.arange(len(keys) + 1, dtype=np.int32) * (2 * _KEY_BYTES)
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(text))


def _micros(length: timedelta) -> int:
    return length // timedelta(microseconds=1)
