# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What the session says, in native code: which items it takes out, and which it speaks for; and which items filters take
out. The twins are `pipeline.filters`, `pipeline.ruled_slate` and `pipeline.score`.
"""

from cpython.object cimport PyObject
from libc.math cimport isfinite, pow
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from serving.native.borrowed cimport PyDict_GetItemWithError, soon
from serving.native.columns cimport Column, Columns
from serving.native.work cimport Ballot, Entry, Event, Work, push

from feature_repo.contracts.events import DISMISSING_TYPES, SESSION_VOTE_WEIGHTS
from serving.native.columns import Declined
from serving.pipeline.identify import BUYING_TYPES, MICROS, TOUCHING_TYPES


cdef dict _KINDS = {
    str(kind): (
        (kind in TOUCHING_TYPES) * TOUCHES + (kind in DISMISSING_TYPES) * DISMISSES + (kind in BUYING_TYPES) * BUYS,
        float(SESSION_VOTE_WEIGHTS.get(kind, 0)),
    )
    for kind in {*TOUCHING_TYPES, *DISMISSING_TYPES, *BUYING_TYPES, *SESSION_VOTE_WEIGHTS}
}
"""Kind of an event -> its deeds, and what it weighs as a vote."""
assert all(SESSION_VOTE_WEIGHTS.values())
cdef object _DISMISSING = frozenset(DISMISSING_TYPES)
cdef double _HALF = float("0.5")  # not a constant: pow(0.5, x) may not become another function
cdef double _MICROS = MICROS
cdef double _ALMOST = 1 - 1e-9


cdef int know_kind(Event* event, PyObject* kind) except -1:
    """Fills in what is known of a kind of events."""
    cdef PyObject* found = PyDict_GetItemWithError(_KINDS, <object>kind)
    event.kind = kind
    if found is NULL:
        event.deeds, event.weight = 0, 0.0
    else:
        event.deeds = (<tuple>found)[0]
        event.weight = (<tuple>found)[1]
    return 0


cdef class Votes:
    """One slate under way, as far as the session shapes it."""

    cdef bint admits(self, Entry* entry) except -1:
        """`SlateFilter.admits`, or `RuledSlate.admits`, remembered in the entry."""
        cdef Columns columns = self.columns
        cdef PyObject* moment
        if entry.is_refused >= 0:
            return not entry.is_refused
        entry.is_refused = (
            entry.is_excluded
            or <Py_ssize_t>entry.number >= columns.refused.size
            or (<const uint8_t*>columns.refused.data)[entry.number] != 0
        )
        if self.has_times and not entry.is_refused:
            number = entry.number
            moment = PyDict_GetItemWithError(columns.expire, number)
            if moment is not NULL and <int64_t>(<object>moment) <= self.now_micros:
                entry.is_refused = 1
            else:
                moment = PyDict_GetItemWithError(columns.available, number)
                if moment is not NULL and <int64_t>(<object>moment) > self.now_micros:
                    entry.is_refused = 1
        if self.filters is not None and not entry.is_refused and not self.filters.admit(entry.number):
            entry.is_refused = 1
        return not entry.is_refused

    cdef int exclude(self, object item_id, bint is_silenced) except -1:
        return self.exclude_number(self.columns.number_of(item_id), is_silenced)

    cdef int exclude_number(self, int64_t number, bint is_silenced) except -1:
        """-1 is nobody's."""
        cdef Entry* entry
        if number >= 0:
            entry = self.work.enter(<uint32_t>number)
            entry.is_excluded = True
            entry.is_silenced = entry.is_silenced or is_silenced
        return 0

    cdef int hear(self, list session) except -1:
        """The session's events, oldest first, as `Event`; the list keeps their kinds alive."""
        cdef Event* event
        self.work.event_count = 0
        for one in session:
            event = self.work.event()
            event.micros = (<tuple>one)[0]
            know_kind(event, <PyObject*>(<tuple>one)[1])
            event.number = -1
            if event.deeds or event.weight:
                event.number = self.columns.number_of((<tuple>one)[3])
        return 0

    cdef int exclude_events(self, int deeds) except -1:
        """What the session did to items, of these deeds, takes them out of its slates."""
        cdef Py_ssize_t at
        for at in range(self.work.event_count):
            if self.work.events[at].deeds & deeds:
                self.exclude_number(self.work.events[at].number, (self.work.events[at].deeds & DISMISSES) != 0)
        return 0

    cdef int exclude_ruled(self, object taken_out, list session, object dismissed) except -1:
        """What the rules take out, and `silenced_items`."""
        for number in taken_out:
            self.work.enter(<uint32_t>number).is_excluded = True
        for event in session:
            if (<tuple>event)[1] in _DISMISSING:
                self.exclude((<tuple>event)[3], True)
        for mark in dismissed:
            self.exclude((<tuple>mark)[1], True)
        return 0

    cdef int exclude_all(self, list session, object state, object exclude_item_ids) except -1:
        """`personal_exclusions` and `silenced_items`."""
        self.hear(session)
        self.exclude_events(TOUCHES | DISMISSES | BUYS)
        for mark in state.dismissed:
            self.exclude((<tuple>mark)[1], True)
        for mark in state.bought:
            self.exclude((<tuple>mark)[1], False)
        for item_id in exclude_item_ids:
            self.exclude(item_id, False)
        return 0

    cdef int cast_ballots(self, list session, object tuning) except -1:
        """`session_ballots`."""
        if self.work.event_count != len(session):
            self.hear(session)
        return self.cast(tuning)

    cdef int cast(self, object tuning) except -1:
        """`session_ballots` of what was heard."""
        cdef Columns columns = self.columns
        cdef Work work = self.work
        cdef bint by_index = columns.session_index is not None
        cdef Column offsets = columns.index_offsets if by_index else columns.offsets
        cdef Column numbers = columns.index_numbers if by_index else columns.neighbours
        cdef Column similarities = columns.index_weights if by_index else columns.similarities
        cdef double position_decay = tuning.position_decay, half_life = tuning.half_life_seconds
        cdef double type_weight, weight, age
        cdef int64_t number, micros, newest = 0, latest = -1
        cdef Py_ssize_t most = tuning.session_events, at, start, end, near, step = -1
        cdef Py_ssize_t steps = len(columns.reads) if by_index else 0
        cdef bint is_repeat = False
        cdef Ballot* ballot
        cdef Entry* entry
        cdef Event* event
        if half_life == 0:
            raise Declined
        for at in range(work.event_count - 1, -1, -1):
            event = &work.events[at]
            type_weight, number = event.weight, event.number
            if type_weight == 0 or number < 0:
                continue
            entry = work.find(<uint32_t>number)
            if entry is not NULL and entry.is_silenced:
                continue
            micros = event.micros
            if by_index:
                newest = newest or micros
                if number != latest:
                    step, latest = step + 1, number
                    is_repeat = entry is not NULL and entry.ballot == -2
                    if step == steps:
                        break
                    entry = work.enter(<uint32_t>number)
                    entry.ballot = -2  # heard
                if is_repeat:
                    continue
            start = end = 0
            if number < offsets.size - 1:
                start = (<const uint32_t*>offsets.data)[number]
                end = (<const uint32_t*>offsets.data)[number + 1]
            if by_index:
                end = min(end, start + <Py_ssize_t>columns.reads[step])
            end = min(end, min(numbers.size, similarities.size))
            if not by_index:
                if start >= end:
                    continue
                newest = newest or micros
            if not -(1 << 53) < newest - micros < (1 << 53):
                raise Declined
            age = <double>(newest - micros) / _MICROS
            if by_index:
                weight = type_weight * <double>columns.loudness[step] * pow(_HALF, age / half_life)
            else:
                weight = type_weight * (
                    pow(position_decay, <double>work.ballot_count) * pow(_HALF, age / half_life)
                )
            if not isfinite(weight):
                raise Declined
            if by_index and work.ballot_count and work.ballots[work.ballot_count - 1].number == number:
                ballot = &work.ballots[work.ballot_count - 1]
                if weight > ballot.weight:
                    ballot.kind, ballot.weight = event.kind, weight
                    ballot.reason = NULL
                continue
            if start >= end:
                continue
            ballot = work.ballot()
            ballot.number, ballot.weight, ballot.kind = <uint32_t>number, weight, event.kind
            ballot.start, ballot.count, ballot.reason = start, end - start, NULL
            for near in range(start, min(end, start + 64), 16):
                soon(<const uint32_t*>numbers.data + near)
                soon(<const float*>similarities.data + near)
            if not by_index and work.ballot_count == most:
                break
        return 0

    cdef int count_votes(self) except -1:
        """`count_votes` of what may be shown, and how many it leaves. The sum of each item, over the largest."""
        cdef Columns columns = self.columns
        cdef Work work = self.work
        cdef bint by_index = columns.session_index is not None
        cdef const uint32_t* numbers = <const uint32_t*>(columns.index_numbers if by_index else columns.neighbours).data
        cdef const float* similarities = <const float*>(columns.index_weights if by_index else columns.similarities).data
        cdef Py_ssize_t place, at, total = 0, kept = 0, left = 0
        cdef double top = 0.0, least = 0.0
        cdef Entry* entry
        cdef Ballot ballot
        for place in range(work.ballot_count):
            ballot = work.ballots[place]
            for at in range(ballot.start, ballot.start + ballot.count):
                entry = work.enter(numbers[at])
                if entry.ballot < 0:
                    entry.vote = ballot.weight * <double>similarities[at]
                elif entry.ballot == place:
                    raise Declined  # named twice in one row
                else:
                    entry.vote = entry.vote + ballot.weight * <double>similarities[at]
                entry.ballot = <int32_t>place
        for at in range(work.entry_count):
            entry = &work.entries[at]
            if entry.ballot < 0:
                continue
            if not self.admits(entry):
                entry.ballot, entry.vote = -1, 0.0
                continue
            if not isfinite(entry.vote):
                raise Declined
            total += 1
            top = entry.vote if total == 1 or entry.vote > top else top
            push(work.heap, &kept, self.wanted, entry.vote)
        if total > self.wanted and self.weight > 0:
            least = work.heap[0] * _ALMOST - top / self.weight
        for at in range(work.entry_count):
            entry = &work.entries[at]
            if entry.ballot < 0:
                continue
            if entry.vote > 0 and entry.vote >= least:
                entry.vote = entry.vote / top
                if not entry.vote > 0:
                    raise Declined  # too small for a number
                left += 1
            else:
                entry.vote = 0.0
        return left
