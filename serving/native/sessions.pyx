# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The session of a record, picked and heard where it lies. The twins are `pipeline.identify`, `contracts.session_record`
and `session_digest` of `api.decisions`.

A record that is not a whole one of the formats that are written, and one of a person who may not be known, is declined.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from serving.native.blake cimport blake2b_8
from serving.native.names cimport Names
from serving.native.votes cimport BUYS, Votes, know_kind
from serving.native.work cimport Event

from feature_repo.contracts.packing import FLAG_BOT, FLAG_PERSONALIZE_DENIED
from feature_repo.contracts.session_record import EVENT_TYPE_ORDER, FORMAT_V3, FORMAT_V4, NO_REGION, ROW_FORMATS, WORD_ORDER
from serving.native.columns import Declined
from serving.pipeline.identify import CLIENT_GAP_MICROS


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef enum:
    HEADER = 52
    STEP = 21
    VOTE = 8
    COUNT = 5
    WORD = 11
    REGION = 2
    DIGESTED = 4096  # bytes of the items of a session

assert (FORMAT_V3, FORMAT_V4, NO_REGION) == (3, 4, 65535)
assert ROW_FORMATS == (
    "<BBqqqI9H2BH", "<qBQIH", "<qBQI", "<qBHIH", "<qH", "<qH", "<qH", "<HHH", "<BIBH", "<BI", "<BqH", "<HHH"
)
cdef tuple _TYPES = tuple(EVENT_TYPE_ORDER)
cdef Py_ssize_t _TYPE_COUNT = len(_TYPES)
cdef Py_ssize_t _WORD_COUNT = len(WORD_ORDER)
cdef uint8_t _ANY_NO = FLAG_BOT | FLAG_PERSONALIZE_DENIED
cdef int64_t _CLIENT_GAP = CLIENT_GAP_MICROS


cdef uint64_t hash_of(object session_id) except? 1:
    """`session_hash`."""
    cdef Py_ssize_t size
    cdef const char* said
    if not session_id:
        return 0
    said = PyUnicode_AsUTF8AndSize(session_id, &size)
    return blake2b_8(said, size) or 1


cdef int open_record(bytes record, Sections* told) except -1:
    """Where everything lies in a record; the rows of its session and of what was bought or dismissed lead to names.
    Raises Declined, UnicodeError."""
    cdef const char* data = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record), at
    cdef uint32_t name_bytes
    cdef const char* start
    cdef const char* stop
    cdef const char* end
    if size < HEADER or not 3 <= data[0] <= 4 or <uint8_t>data[1] & _ANY_NO:
        raise Declined
    memcpy(&name_bytes, data + 26, 4)
    told.name_count, told.events, told.steps, told.cart = two(data + 30), two(data + 32), two(data + 34), two(data + 36)
    told.bought, told.dismissed, told.seen = two(data + 38), two(data + 40), two(data + 42)
    told.interests, told.votes = two(data + 44), two(data + 46)
    told.counts, told.words, told.showings = <uint8_t>data[48], <uint8_t>data[49], two(data + 50)
    if size < HEADER + <Py_ssize_t>name_bytes or told.name_count > NAMES or told.events > EVENTS:
        raise Declined
    told.event_rows = data + HEADER + name_bytes
    told.step_rows = told.event_rows + told.events * EVENT
    told.cart_rows = told.step_rows + told.steps * STEP
    told.bought_rows = told.cart_rows + told.cart * CART
    told.dismissed_rows = told.bought_rows + told.bought * MARK
    told.seen_rows = told.dismissed_rows + told.dismissed * MARK
    told.interest_rows = told.seen_rows + told.seen * MARK
    told.vote_rows = told.interest_rows + told.interests * INTEREST
    told.count_rows = told.vote_rows + told.votes * VOTE
    told.word_rows = told.count_rows + told.counts * COUNT
    told.showing_rows = told.word_rows + told.words * WORD
    told.region_rows = told.showing_rows + told.showings * SHOWING
    told.regions = told.votes if data[0] == 4 else 0
    if told.region_rows + told.regions * REGION != data + size:
        raise Declined

    start, stop = data + HEADER, data + HEADER + name_bytes
    for at in range(name_bytes):
        if <uint8_t>start[at] >= 128:
            PyUnicode_DecodeUTF8(start, name_bytes, NULL)
            break
    for at in range(told.name_count):
        told.names[at] = start
        end = <const char*>memchr(start, 0, stop - start) if start < stop else NULL
        if end is NULL:
            end = stop
            if at != told.name_count - 1:
                raise Declined
        elif at == told.name_count - 1:
            raise Declined
        told.sizes[at] = end - start
        start = end + 1

    for at in range(told.events):
        if <uint8_t>told.event_rows[at * EVENT + 8] >= _TYPE_COUNT:
            raise Declined
    check_names(told, told.event_rows + 21, told.events, EVENT)
    return check_names(told, told.bought_rows + 8, told.bought + told.dismissed, MARK)


cdef int check_names(const Sections* told, const char* first, Py_ssize_t rows, Py_ssize_t size) except -1:
    """Raises Declined where one of the rows leads to no name."""
    cdef Py_ssize_t at
    for at in range(rows):
        if two(first + at * size) >= told.name_count:
            raise Declined
    return 0


cdef int check_rest(const Sections* told) except -1:
    """The same of all other rows: where one of them leads nowhere, the twin knows nothing of any."""
    cdef Py_ssize_t at
    check_names(told, told.cart_rows + 15, told.cart, CART)
    check_names(told, told.seen_rows + 8, told.seen, MARK)
    check_names(told, told.interest_rows + 2, told.interests, INTEREST)
    check_names(told, told.vote_rows + 6, told.votes, VOTE)
    check_names(told, told.word_rows + 9, told.words, WORD)
    check_names(told, told.showing_rows + 2, told.showings, SHOWING)
    for at in range(told.regions):
        if two(told.region_rows + at * REGION) != 65535:
            check_names(told, told.region_rows + at * REGION, 1, REGION)
    for at in range(told.steps):
        if <uint8_t>told.step_rows[at * STEP + 8] >= _TYPE_COUNT:
            raise Declined
    for at in range(told.counts):
        if <uint8_t>told.count_rows[at * COUNT] >= _TYPE_COUNT:
            raise Declined
    for at in range(told.words):
        if <uint8_t>told.word_rows[at * WORD] >= _WORD_COUNT:
            raise Declined
    return 0


cdef Py_ssize_t pick(
    const Sections* told, object session_id, int64_t gap_micros, int64_t now_micros, Py_ssize_t* places
) except -1:
    """`session_events`: the rows of the session that asks, the newest first; how many."""
    cdef Py_ssize_t events = told.events, at, picked = 0
    cdef int64_t micros, after = 0, gap = _CLIENT_GAP
    cdef uint64_t hashed, wanted = hash_of(session_id)
    cdef const char* row
    if session_id is None and events:
        row = told.event_rows + (events - 1) * EVENT
        if now_micros - eight(row) > gap_micros:
            return 0
        memcpy(&wanted, row + 9, 8)
        gap = _CLIENT_GAP if wanted else gap_micros
    for at in range(events - 1, -1, -1):
        row = told.event_rows + at * EVENT
        memcpy(&hashed, row + 9, 8)
        if hashed != wanted:
            continue
        micros = eight(row)
        if not -(1 << 62) < micros < (1 << 62):
            raise Declined
        if picked and after - micros >= gap:
            break
        after = micros
        places[picked] = at
        picked += 1
    return picked


cdef Py_ssize_t pick_last(const Sections* told, int64_t gap_micros, Py_ssize_t* places) except -1:
    """The same of the last session, however old: `own_items._last_session`, where none is running."""
    cdef Py_ssize_t at, picked = 0
    cdef int64_t micros, after = 0
    cdef uint64_t hashed, wanted = 0
    cdef const char* row
    for at in range(told.events - 1, -1, -1):
        row = told.event_rows + at * EVENT
        memcpy(&hashed, row + 9, 8)
        micros = eight(row)
        if not -(1 << 62) < micros < (1 << 62):
            raise Declined
        if picked and (hashed != wanted or after - micros >= (_CLIENT_GAP if wanted else gap_micros)):
            break
        wanted, after = hashed, micros
        places[picked] = at
        picked += 1
    return picked


cdef Heard told_of(const Sections* told, const Py_ssize_t* places, Py_ssize_t picked) except *:
    """What a decision says of the events that were picked."""
    cdef char digested[DIGESTED]
    cdef Py_ssize_t place, name, part = 0
    cdef Heard heard
    heard.count, heard.newest, heard.digest = picked, 0, 0
    if not picked:
        return heard
    for place in range(picked - 1, -1, -1):
        name = two(told.event_rows + places[place] * EVENT + 21)
        if part + told.sizes[name] + 1 > DIGESTED:
            raise Declined
        if part:
            digested[part - 1] = 10
        memcpy(digested + part, told.names[name], told.sizes[name])
        part += told.sizes[name] + 1
    heard.newest = eight(told.event_rows + places[0] * EVENT)
    heard.digest = blake2b_8(digested, part - 1)
    return heard


cdef int hear_events(Votes slate, const Sections* told, const Py_ssize_t* places, Py_ssize_t picked) except -1:
    """The events that were picked are heard by the slate, oldest first."""
    cdef Names by_name = slate.columns.by_name()
    cdef Py_ssize_t place, name
    cdef const char* row
    cdef Event* event
    for place in range(picked):
        name = two(told.event_rows + places[place] * EVENT + 21)
        by_name.soon_name(told.names[name], told.sizes[name])
    for place in range(picked - 1, -1, -1):
        row = told.event_rows + places[place] * EVENT
        name = two(row + 21)
        event = slate.work.event()
        event.micros = eight(row)
        know_kind(event, <PyObject*>_TYPES[<uint8_t>row[8]])
        event.number = -1
        if event.deeds or event.weight:
            event.number = by_name.find(told.names[name], told.sizes[name])
    return 0


cdef Heard hear_record(
    Votes slate, bytes record, object session_id, int64_t gap_micros, int deeds, int64_t bought_since
) except *:
    """What the record says is heard by the slate: the events of the session that asks, oldest first. Items leave for these
    deeds of the session, and for having been dismissed, or, where BUYS is among the deeds, bought since. Raises Declined,
    UnicodeError."""
    cdef Sections told
    cdef Py_ssize_t places[EVENTS]
    cdef Py_ssize_t picked, at, name
    cdef Names by_name = slate.columns.by_name()
    open_record(record, &told)
    picked = pick(&told, session_id, gap_micros, slate.now_micros, places)
    hear_events(slate, &told, places, picked)
    slate.exclude_events(deeds)
    for at in range(told.dismissed):
        name = two(told.dismissed_rows + at * MARK + 8)
        slate.exclude_number(by_name.find(told.names[name], told.sizes[name]), True)
    for at in range(told.bought if deeds & BUYS else 0):
        if eight(told.bought_rows + at * MARK) < bought_since:
            continue
        name = two(told.bought_rows + at * MARK + 8)
        slate.exclude_number(by_name.find(told.names[name], told.sizes[name]), False)
    return told_of(&told, places, picked)


cdef class Record:
    """A record of somebody, opened: its sections, and the items that its names stand for."""

    cdef int open(self, bytes record, Names by_name) except -1:
        """Raises Declined, UnicodeError."""
        cdef Py_ssize_t name
        self.record, self.by_name = record, by_name  # what the sections lie in
        open_record(record, &self.told)
        check_rest(&self.told)
        for name in range(self.told.name_count):
            self.numbers[name] = -2
            by_name.soon_name(self.told.names[name], self.told.sizes[name])
        return 0

    cdef int64_t number(self, const char* place) except -2:
        """The item of the name to which a row leads, at this place of it; -1: the version does not know it."""
        cdef Py_ssize_t name = two(place)
        if self.numbers[name] == -2:
            self.numbers[name] = self.by_name.find(self.told.names[name], self.told.sizes[name])
        return self.numbers[name]

    cdef int exclude_dismissed(self, Votes slate) except -1:
        cdef Py_ssize_t at
        for at in range(self.told.dismissed):
            slate.exclude_number(self.number(self.told.dismissed_rows + at * MARK + 8), True)
        return 0

    cdef int exclude_bought(self, Votes slate, int64_t since) except -1:
        cdef Py_ssize_t at
        for at in range(self.told.bought):
            if eight(self.told.bought_rows + at * MARK) < since:
                continue
            slate.exclude_number(self.number(self.told.bought_rows + at * MARK + 8), False)
        return 0


cdef list _free = []


cdef Record take_record():
    """One that nobody uses: it is large, and to be made it would be cleared."""
    return _free.pop() if _free else Record.__new__(Record)


cdef int give_back_record(Record record) except -1:
    record.record = record.by_name = None
    _free.append(record)
    return 0
