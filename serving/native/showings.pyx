# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What was shown and left alone, from the record where it lies. The twin is `fatigue.left_alone`."""

from libc.stdint cimport int64_t, uint32_t

from serving.native.sessions cimport EVENT, INTEREST, MARK, SHOWING, Record, Sections, eight, two
from serving.native.work cimport Entry, Work, give_back, take_work

from serving.native.columns import Declined
from serving.pipeline.rotation import DAY_MICROS


cdef struct Shown:
    int64_t micros    # when it was last shown or touched
    int64_t touched   # when it was last touched; -1: never
    int64_t exact     # the same by an event; -1: by none
    int64_t times

cdef enum:
    MOST_SHOWN = 256     # items
    MOST_SHOWINGS = 256  # rows

cdef int64_t _DAY_MICROS = DAY_MICROS


cdef dict left_alone(Record record, int64_t since_micros):
    """Item number -> (when it was last shown, how often since it was last touched), of items of the version. Raises
    Declined for a record with more than any has."""
    cdef Work work
    if not record.told.seen:
        return {}
    if record.told.seen > MOST_SHOWN or record.told.showings > MOST_SHOWINGS:
        raise Declined
    work = take_work()
    try:
        return _left_alone(work, record, since_micros // _DAY_MICROS)
    finally:
        give_back(work)


cdef Shown* _find(Shown* shown, Work work, int64_t number) noexcept:
    cdef Entry* entry = work.find(<uint32_t>number) if number >= 0 else NULL
    return NULL if entry is NULL else &shown[entry - work.entries]


cdef dict _left_alone(Work work, Record record, int64_t first_day):
    cdef const Sections* told = &record.told
    cdef Shown shown[MOST_SHOWN]
    cdef Shown* counted[MOST_SHOWINGS]
    cdef int64_t days[MOST_SHOWINGS]
    cdef Shown* one
    cdef Py_ssize_t at, other, count = 0
    cdef int64_t number, day
    cdef const char* row
    cdef dict found = {}
    for at in range(told.seen):
        row = told.seen_rows + at * MARK
        number = record.number(row + 8)
        if number >= 0:
            one = &shown[work.enter(<uint32_t>number) - work.entries]
            one.micros, one.touched, one.exact, one.times = eight(row), -1, -1, 0
    for at in range(told.interests):
        row = told.interest_rows + at * INTEREST
        one = _find(shown, work, record.number(row + 2))
        if one is not NULL:
            one.touched = max((two(row) + 1) * _DAY_MICROS, one.touched)
    for at in range(told.events):
        row = told.event_rows + at * EVENT
        one = _find(shown, work, record.number(row + 21))
        if one is not NULL:
            one.exact = max(eight(row), max(one.exact, 0))
    for at in range(work.entry_count):
        one = &shown[at]
        one.touched = one.exact if one.exact >= 0 else one.touched
    for at in range(told.showings):
        row = told.showing_rows + at * SHOWING
        day = two(row)
        one = _find(shown, work, record.number(row + 2)) if day >= first_day else NULL
        if one is NULL or one.micros <= one.touched or one.touched >= 0 and day <= one.touched // _DAY_MICROS:
            continue
        for other in range(count):
            if counted[other] == one and days[other] == day:
                raise Declined  # said twice
        counted[count], days[count] = one, day
        count += 1
        one.times += two(row + 4)
    for at in range(work.entry_count):
        one = &shown[at]
        if one.micros > one.touched:
            found[work.entries[at].number] = (one.micros, max(one.times, 1))
    return found
