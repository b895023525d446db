# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The common slate in native code. Its twin is `pipeline.slate` with all that it calls; that says what is right.

One call does what `personal_exclusions`, `session_ballots`, `count_votes`, `fill_candidates`, `score_candidates`,
`order_candidates` and `explain_slate` do, on the bytes as they lie in the records and in the memory maps. Arithmetic is
that of Python's floats, in the same order (and the build forbids fused operations), so a slate is the same to the bit.

Whatever is odd is declined, and the twin answers: a number that is not finite, a division by zero, a neighbour that a
row names twice, a list of a kind that is not known here, a source without a name. A slate that would be short is
declined too: it is answered with the counts of all filters.

Each place in a record or a map is held against the length of what it lies in before it is read.
"""

import builtins
from array import array

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from libc.math cimport isfinite, pow
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from feature_repo.contracts.events import DISMISSING_TYPES, SESSION_VOTE_WEIGHTS
from feature_repo.contracts.packing import CANDIDATE_ROW, NO_REASON, CandidateRows, Source
from feature_repo.contracts.session_blend import BELOW, FLOOR
from serving.pipeline.catalogue import RankedList
from serving.pipeline.explain import MAX_REASONS, base_reasons, interest_reason, session_reason
from serving.pipeline.identify import BUYING_TYPES, MICROS, TOUCHING_TYPES
from serving.pipeline.values import RungReport, SlateItem


cdef extern from "Python.h":
    PyObject* PyDict_GetItemWithError(object dictionary, object key) except? NULL
    int PyUnicode_Compare(object left, object right) except? -1
    PyObject* PyList_GET_ITEM(list of, Py_ssize_t at)


cdef extern from *:
    """
    #if defined(__GNUC__)
    #define NIGHTJAR_FETCH(place) __builtin_prefetch(place)
    #else
    #define NIGHTJAR_FETCH(place) ((void)(place))
    #endif
    """
    void soon "NIGHTJAR_FETCH"(const void* place) nogil  # it is looked at soon: let the memory begin to bring it


cdef enum:
    ROW_BYTES = 17  # of a candidate: number u32, score f32, source u8, two reasons u32
    MOST = 1000  # of items in a slate
    TOUCHES = 1
    DISMISSES = 2
    BUYS = 4

assert CANDIDATE_ROW.size == ROW_BYTES and CANDIDATE_ROW.format == "<IfBII"

cdef uint32_t NONE = NO_REASON
cdef dict _VOTE_WEIGHTS = {str(kind): float(weight) for kind, weight in SESSION_VOTE_WEIGHTS.items()}
cdef dict _DEEDS = {
    str(kind): (kind in TOUCHING_TYPES) * TOUCHES + (kind in DISMISSING_TYPES) * DISMISSES + (kind in BUYING_TYPES) * BUYS
    for kind in {*TOUCHING_TYPES, *DISMISSING_TYPES, *BUYING_TYPES}
}
cdef dict _SOURCES = {int(source): source for source in Source}
cdef uint32_t _SEGMENT = Source.SEGMENT
cdef uint32_t _CATEGORY = Source.CATEGORY
cdef uint32_t _REGION = Source.REGION
cdef uint32_t _POPULARITY = Source.POPULARITY
cdef uint32_t _STATIC = Source.STATIC
cdef double _BELOW = BELOW
cdef double _FLOOR = FLOOR
cdef double _HALF = float("0.5")  # not a constant: pow(0.5, x) may not become another function
cdef double _MICROS = MICROS
cdef double _ALMOST = 1 - 1e-9
cdef Py_ssize_t _MAX_REASONS = MAX_REASONS
assert MAX_REASONS == 2
cdef object _tuple_of = tuple.__new__
cdef object _sum = builtins.sum  # not written out by the compiler: Python's own rounds as it does
cdef object _SESSION = Source.SESSION


class Declined(Exception):
    """The twin has to answer."""


cdef class Column:
    """Numbers of one size, looked into where they lie, and kept alive."""

    cdef Py_buffer view
    cdef bint is_open
    cdef Py_ssize_t size
    cdef const void* data

    def __cinit__(self, object of, Py_ssize_t item_bytes):
        self.is_open = False
        PyObject_GetBuffer(of, &self.view, PyBUF_SIMPLE)
        self.is_open = True
        self.size = self.view.len // item_bytes
        self.data = self.view.buf

    def __dealloc__(self):
        if self.is_open:
            PyBuffer_Release(&self.view)


cdef Column _column(object values, str kind):
    """Of a view of such numbers, or of any sequence of them. Raises OverflowError, TypeError."""
    is_view = type(values) is memoryview and values.format == kind and values.contiguous
    return Column(values if is_view else array(kind, values), array(kind).itemsize)


cdef class PopularRows:
    """A popular list: numbers and scores, best first, and of each number its first row, in order of number."""

    cdef Column numbers
    cdef Column scores
    cdef Column by_number

    def __init__(self, rows):
        first = {}
        for at, (number, _) in enumerate(rows):
            first.setdefault(number, at)
        self.numbers = _column([number for number, _ in rows], "I")
        self.scores = _column([score for _, score in rows], "d")
        self.by_number = _column([at for _, at in sorted(first.items())], "I")

    cdef Py_ssize_t find(self, uint32_t number) noexcept:
        """The first row of the number; -1: none."""
        cdef const uint32_t* rows = <const uint32_t*>self.by_number.data
        cdef const uint32_t* numbers = <const uint32_t*>self.numbers.data
        cdef Py_ssize_t low = 0, high = self.by_number.size, middle
        while low < high:
            middle = (low + high) >> 1
            if numbers[rows[middle]] < number:
                low = middle + 1
            else:
                high = middle
        if low < self.by_number.size and numbers[rows[low]] == number:
            return rows[low]
        return -1


cdef PopularRows _popular_rows(object rows):
    """The list as `PopularRows`, made once. Raises Declined for a list of another kind."""
    if type(rows) is not RankedList:
        raise Declined
    found = rows.prepared
    if found is None:
        try:
            found = PopularRows(rows)
        except (OverflowError, TypeError, ValueError):
            found = False
        rows.prepared = found
    if found is False:
        raise Declined
    return found


cdef class Columns:
    """A catalogue as it is looked into here. What the shop changes while it is served is read where it is changed."""

    cdef Column offsets, neighbours, similarities
    cdef Column index_offsets, index_numbers, index_weights
    cdef Column refused
    cdef object refusals, neighbour_offsets, session_index
    cdef list item_ids, attributes
    cdef dict numbers, expire, available, of_sessions, of_interests
    cdef tuple reads, loudness

    def __init__(self, catalogue):
        self.refusals = catalogue.refusals
        self.refused = Column(catalogue.refusals.flags, 1)
        self.neighbour_offsets = catalogue.neighbour_offsets
        self.offsets = _column(catalogue.neighbour_offsets, "I")
        self.neighbours = _column(catalogue.neighbour_numbers, "I")
        self.similarities = _column(catalogue.similarities, "f")
        self.session_index = catalogue.session_index
        if self.session_index is not None:
            offsets, numbers, weights = self.session_index.columns
            self.index_offsets = _column(offsets, "I")
            self.index_numbers = _column(numbers, "I")
            self.index_weights = _column(weights, "f")
            self.reads = tuple(self.session_index.reads)
            self.loudness = tuple(self.session_index.loudness)
        self.item_ids = catalogue.item_ids
        self.numbers = catalogue.numbers
        self.expire = catalogue.expire_micros
        self.available = catalogue.available_micros
        self.attributes = catalogue.attributes
        self.of_sessions = catalogue.remember("session reasons")
        self.of_interests = catalogue.remember("interest reasons")
        if not len(self.item_ids) == len(self.attributes) == self.refused.size:
            raise ValueError("columns of different length")

    cdef int64_t number_of(self, object item_id) except -2:
        """The number of an item; -1: the version does not know it."""
        cdef PyObject* found = PyDict_GetItemWithError(self.numbers, item_id)
        cdef int64_t number
        if found is NULL:
            return -1
        number = <object>found
        if not 0 <= number < self.refused.size:
            raise Declined
        return number


def columns_of(catalogue):
    """The catalogue as `Columns`, made once; None when it is of a kind that is not known here."""
    found = catalogue.remember("native").get("columns")
    if found is None:
        try:
            found = Columns(catalogue)
        except (AttributeError, BufferError, OverflowError, TypeError, ValueError):
            found = False
        catalogue.remember("native")["columns"] = found
    return found or None


cdef struct Entry:
    uint32_t number
    int32_t ballot       # the last one that added to it
    int8_t is_refused    # -1: nobody has looked
    bint is_excluded
    bint is_silenced
    bint is_leading      # in the slate as it would be without votes
    uint32_t source
    uint32_t first
    uint32_t second
    double vote          # 0: none
    double base          # 0: no candidate
    double score


cdef struct Ballot:
    uint32_t number
    Py_ssize_t start
    Py_ssize_t count
    double weight
    PyObject* kind       # of its event; the session keeps it alive
    PyObject* reason     # once it was asked for; `Slates.kept` keeps it alive


cdef struct Voice:
    uint32_t number
    double total
    double most
    Py_ssize_t ballot


cdef class Work:
    """The memory of one slate. Entries are found by item number; a table of places into them is filled to a half."""

    cdef Entry* entries
    cdef uint32_t* table
    cdef Ballot* ballots
    cdef double* heap
    cdef uint32_t* order
    cdef Py_ssize_t entry_count, entry_room, table_size, ballot_count, ballot_room

    def __cinit__(self):
        self.entry_room, self.table_size, self.ballot_room = 512, 1024, 64
        self.entries = <Entry*>PyMem_Malloc(self.entry_room * sizeof(Entry))
        self.table = <uint32_t*>PyMem_Malloc(self.table_size * sizeof(uint32_t))
        self.ballots = <Ballot*>PyMem_Malloc(self.ballot_room * sizeof(Ballot))
        self.heap = <double*>PyMem_Malloc(MOST * sizeof(double))
        self.order = <uint32_t*>PyMem_Malloc(MOST * sizeof(uint32_t))
        if not (self.entries and self.table and self.ballots and self.heap and self.order):
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self.entries)
        PyMem_Free(self.table)
        PyMem_Free(self.ballots)
        PyMem_Free(self.heap)
        PyMem_Free(self.order)

    cdef void clear(self) noexcept:
        self.entry_count = self.ballot_count = 0
        memset(self.table, 0, self.table_size * sizeof(uint32_t))

    cdef Entry* find(self, uint32_t number) noexcept:
        """The entry of an item, or NULL."""
        cdef Py_ssize_t mask = self.table_size - 1
        cdef Py_ssize_t at = (number * <uint32_t>2654435769) & mask
        while self.table[at]:
            if self.entries[self.table[at] - 1].number == number:
                return &self.entries[self.table[at] - 1]
            at = (at + 1) & mask
        return NULL

    cdef Entry* enter(self, uint32_t number) except NULL:
        """The entry of an item, made if there is none. Entries may move: pointers from before are worth nothing."""
        cdef Py_ssize_t mask = self.table_size - 1
        cdef Py_ssize_t at = (number * <uint32_t>2654435769) & mask
        cdef Entry* made
        while self.table[at]:
            if self.entries[self.table[at] - 1].number == number:
                return &self.entries[self.table[at] - 1]
            at = (at + 1) & mask
        if self.entry_count == self.entry_room:
            self.grow()
            mask = self.table_size - 1
            at = (number * <uint32_t>2654435769) & mask
            while self.table[at]:
                at = (at + 1) & mask
        made = &self.entries[self.entry_count]
        self.entry_count += 1
        self.table[at] = <uint32_t>self.entry_count
        made.number = number
        made.ballot = -1
        made.is_refused = -1
        made.is_excluded = made.is_silenced = made.is_leading = False
        made.vote = made.base = 0.0
        return made

    cdef int grow(self) except -1:
        cdef Entry* entries = <Entry*>PyMem_Realloc(self.entries, 2 * self.entry_room * sizeof(Entry))
        cdef uint32_t* table
        cdef Py_ssize_t mask, at, place
        if not entries:
            raise MemoryError()
        self.entries = entries
        table = <uint32_t*>PyMem_Realloc(self.table, 2 * self.table_size * sizeof(uint32_t))
        if not table:
            raise MemoryError()
        self.table = table
        self.entry_room *= 2
        self.table_size *= 2
        memset(self.table, 0, self.table_size * sizeof(uint32_t))
        mask = self.table_size - 1
        for place in range(self.entry_count):
            at = (self.entries[place].number * <uint32_t>2654435769) & mask
            while self.table[at]:
                at = (at + 1) & mask
            self.table[at] = <uint32_t>(place + 1)
        return 0

    cdef Ballot* ballot(self) except NULL:
        """Room for one more."""
        cdef Ballot* ballots
        if self.ballot_count == self.ballot_room:
            ballots = <Ballot*>PyMem_Realloc(self.ballots, 2 * self.ballot_room * sizeof(Ballot))
            if not ballots:
                raise MemoryError()
            self.ballots = ballots
            self.ballot_room *= 2
        self.ballot_count += 1
        return &self.ballots[self.ballot_count - 1]


cdef list _free_work = []


cdef inline void _push(double* heap, Py_ssize_t* count, Py_ssize_t wanted, double value) noexcept:
    """Keep the `wanted` largest of what is pushed; heap[0] is the smallest of them."""
    cdef Py_ssize_t at, child
    cdef double other
    if count[0] < wanted:
        at = count[0]
        count[0] += 1
        while at > 0 and heap[(at - 1) >> 1] > value:
            heap[at] = heap[(at - 1) >> 1]
            at = (at - 1) >> 1
        heap[at] = value
        return
    if value <= heap[0]:
        return
    at = 0
    while True:
        child = 2 * at + 1
        if child >= wanted:
            break
        if child + 1 < wanted and heap[child + 1] < heap[child]:
            child += 1
        other = heap[child]
        if other >= value:
            break
        heap[at] = other
        at = child
    heap[at] = value


cdef class Slates:
    """One slate under way: what it is made of, for the steps below."""

    cdef Columns columns
    cdef Work work
    cdef int64_t now_micros
    cdef bint has_times
    cdef Py_ssize_t wanted
    cdef Py_ssize_t candidate_count
    cdef double weight
    cdef list kept

    cdef bint admits(self, Entry* entry) except -1:
        """`SlateFilter.admits`, remembered in the entry."""
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
        return not entry.is_refused

    cdef int exclude(self, object item_id, bint is_silenced) except -1:
        cdef int64_t number = self.columns.number_of(item_id)
        cdef Entry* entry
        if number >= 0:
            entry = self.work.enter(<uint32_t>number)
            entry.is_excluded = True
            entry.is_silenced = entry.is_silenced or is_silenced
        return 0

    cdef int exclude_all(self, list session, object state, object exclude_item_ids) except -1:
        """`personal_exclusions` and `silenced_items`."""
        cdef PyObject* found
        cdef int deeds
        for event in session:
            found = PyDict_GetItemWithError(_DEEDS, (<tuple>event)[1])
            if found is not NULL:
                deeds = <object>found
                self.exclude((<tuple>event)[3], deeds & DISMISSES)
        for mark in state.dismissed:
            self.exclude((<tuple>mark)[1], True)
        for mark in state.bought:
            self.exclude((<tuple>mark)[1], False)
        for item_id in exclude_item_ids:
            self.exclude(item_id, False)
        return 0

    cdef int cast_ballots(self, list session, object tuning) except -1:
        """`session_ballots`."""
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
        cdef PyObject* found
        cdef object event
        if half_life == 0:
            raise Declined
        for at in range(len(session) - 1, -1, -1):
            event = session[at]
            found = PyDict_GetItemWithError(_VOTE_WEIGHTS, (<tuple>event)[1])
            if found is NULL:
                continue
            type_weight = <object>found
            number = columns.number_of((<tuple>event)[3])
            if number < 0:
                continue
            entry = work.find(<uint32_t>number)
            if entry is not NULL and entry.is_silenced:
                continue
            micros = (<tuple>event)[0]
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
                    ballot.kind, ballot.weight = <PyObject*>(<tuple>event)[1], weight
                    ballot.reason = NULL
                continue
            if start >= end:
                continue
            ballot = work.ballot()
            ballot.number, ballot.weight, ballot.kind = <uint32_t>number, weight, <PyObject*>(<tuple>event)[1]
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
            _push(work.heap, &kept, self.wanted, entry.vote)
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

    cdef double within_reach(self) noexcept:
        """`_within_reach`."""
        cdef Work work = self.work
        cdef Py_ssize_t at, kept = 0
        cdef Entry* entry
        for at in range(work.entry_count):
            entry = &work.entries[at]
            if entry.base > 0 or entry.vote > 0:
                _push(work.heap, &kept, self.wanted, entry.base + self.weight * entry.vote)
        return work.heap[0] * _ALMOST if kept >= self.wanted else 0.0

    cdef int score(self, bint has_votes) except -1:
        """`score_candidates`: fills `score`, 0 for what has none."""
        cdef Work work = self.work
        cdef double share = 1 + self.weight, least = 0.0
        cdef Py_ssize_t at, kept = 0
        cdef Entry* entry
        for at in range(work.entry_count):
            entry = &work.entries[at]
            entry.score = 0.0
            if entry.base > 0:
                entry.score = (entry.base + self.weight * entry.vote) / share if has_votes else entry.base
                _push(work.heap, &kept, self.wanted, entry.score)
        if not has_votes:
            return 0
        if kept >= self.wanted and self.weight > 0:
            least = work.heap[0] * share / self.weight * _ALMOST
        for at in range(work.entry_count):
            entry = &work.entries[at]
            if entry.vote > 0 and entry.vote >= least and not entry.base > 0:
                entry.score = self.weight * entry.vote / share
            if not isfinite(entry.score):
                raise Declined
        return 0

    cdef Py_ssize_t order(self, bint by_base) except -1:
        """`order_candidates`: places of the best entries in `work.order`, best first; how many. Ties by item id."""
        cdef Work work = self.work
        cdef Entry* entries = work.entries
        cdef Py_ssize_t at, to, count = 0
        cdef double score, other
        for at in range(work.entry_count):
            score = entries[at].base if by_base else entries[at].score
            if not score > 0:
                continue
            to = count
            while to > 0:
                other = entries[work.order[to - 1]].base if by_base else entries[work.order[to - 1]].score
                if score < other or score == other and not self.is_before(at, work.order[to - 1]):
                    break
                if to < self.wanted:
                    work.order[to] = work.order[to - 1]
                to -= 1
            if to < self.wanted:
                work.order[to] = <uint32_t>at
                count = min(count + 1, self.wanted)
        return count

    cdef bint is_before(self, Py_ssize_t one, Py_ssize_t other) except -1:
        ids = self.columns.item_ids
        return PyUnicode_Compare(ids[self.work.entries[one].number], ids[self.work.entries[other].number]) < 0

    cdef Py_ssize_t climb(self, object rows, uint32_t source, double* ceiling, bint has_votes) except -1:
        """One rung of `fill_candidates`: takes its candidates; how many."""
        cdef Work work = self.work
        cdef double share = 1.0 + self.weight, lowest = ceiling[0], base, top, last, least
        cdef Py_ssize_t at, place, count, before = self.candidate_count
        cdef bint is_positive, is_packed = type(rows) is CandidateRows
        cdef PopularRows popular = None
        cdef Column record = None
        cdef const uint8_t* packed = NULL
        cdef const uint32_t* numbers = NULL
        cdef const double* scores = NULL
        cdef uint32_t number
        cdef Entry* entry
        if is_packed:
            record = Column(rows.packed, ROW_BYTES)
            count, packed = len(rows), <const uint8_t*>record.data
            if count > record.size:
                raise Declined
        else:
            popular = _popular_rows(rows)
            count = popular.numbers.size
            numbers, scores = <const uint32_t*>popular.numbers.data, <const double*>popular.scores.data
        if count == 0:
            return 0
        top = _score_at(packed, 0) if is_packed else scores[0]
        last = _score_at(packed, count - 1) if is_packed else scores[count - 1]
        is_positive = last > 0
        if is_positive and top == 0:
            raise Declined
        for at in range(count):
            base = _base_of(_score_at(packed, at) if is_packed else scores[at], top, last, is_positive, ceiling[0])
            if self.candidate_count >= self.wanted and base / share < lowest / share:
                if not has_votes:
                    break
                least = self.within_reach()
                if is_packed:
                    for place in range(count):
                        number = _number_at(packed, place)
                        entry = work.find(number)
                        if entry is NULL or not entry.vote > 0 or entry.base > 0:
                            continue
                        base = _base_of(_score_at(packed, place), top, last, is_positive, ceiling[0])
                        if base > 0 and base + self.weight * entry.vote >= least:
                            self.take(entry, base, source, packed, place)
                else:
                    for place in range(work.entry_count):
                        entry = &work.entries[place]
                        if not entry.vote > 0 or entry.base > 0:
                            continue
                        at = popular.find(entry.number)
                        if at < 0:
                            continue
                        base = _base_of(scores[at], top, last, is_positive, ceiling[0])
                        if base > 0 and base + self.weight * entry.vote >= least:
                            self.take(entry, base, source, NULL, 0)
                break
            if not base > 0:
                continue
            entry = work.enter(_number_at(packed, at) if is_packed else numbers[at])
            if not entry.base > 0 and self.admits(entry):
                self.take(entry, base, source, packed, at)
                lowest = base
        if self.candidate_count > before:
            ceiling[0] = lowest * _BELOW
        return self.candidate_count - before

    cdef int take(self, Entry* entry, double base, uint32_t source, const uint8_t* packed, Py_ssize_t at) except -1:
        """The entry is a candidate. `source` 0: the row says where it comes from."""
        if not isfinite(base):
            raise Declined
        entry.base = base
        self.candidate_count += 1
        entry.source, entry.first, entry.second = source, NONE, NONE
        if source == 0:
            entry.source = packed[at * ROW_BYTES + 8]
            memcpy(&entry.first, packed + at * ROW_BYTES + 9, 4)
            memcpy(&entry.second, packed + at * ROW_BYTES + 13, 4)
        return 0

    cdef tuple because_of_session(self, uint32_t number, object catalogue):
        """`SessionReasons.of`."""
        cdef Columns columns = self.columns
        cdef Work work = self.work
        cdef bint by_index = columns.session_index is not None
        cdef const uint32_t* numbers = <const uint32_t*>(columns.index_numbers if by_index else columns.neighbours).data
        cdef const float* similarities = <const float*>(columns.index_weights if by_index else columns.similarities).data
        cdef Voice voices[64]
        cdef Voice best
        cdef Py_ssize_t place, at, count = 0, to, chosen
        cdef double loudness
        cdef Ballot* ballot
        for place in range(work.ballot_count):
            ballot = &work.ballots[place]
            for at in range(ballot.start, ballot.start + ballot.count):
                if numbers[at] == number:
                    break
            else:
                continue
            loudness = ballot.weight * <double>similarities[at]
            if not loudness > 0:
                continue
            for to in range(count):
                if voices[to].number == ballot.number:
                    voices[to].total = voices[to].total + loudness
                    if loudness > voices[to].most:
                        voices[to].most, voices[to].ballot = loudness, place
                    break
            else:
                if count == 64:
                    raise Declined
                voices[count].number, voices[count].ballot = ballot.number, place
                voices[count].total = voices[count].most = loudness
                count += 1
        first = None
        for chosen in range(min(_MAX_REASONS, count)):
            best, to = voices[chosen], chosen
            for at in range(chosen + 1, count):
                if voices[at].total > best.total or (
                    voices[at].total == best.total
                    and PyUnicode_Compare(columns.item_ids[voices[at].number], columns.item_ids[best.number]) < 0
                ):
                    best, to = voices[at], at
            voices[to] = voices[chosen]
            voices[chosen] = best
            ballot = &work.ballots[best.ballot]
            if ballot.reason is NULL:
                reason = self.session_reason(best.number, <object>ballot.kind, catalogue)
                self.kept.append(reason)
                ballot.reason = <PyObject*>reason
            if chosen == 0:
                first = <object>ballot.reason
            else:
                return (first, <object>ballot.reason)
        return (first,) if count else ()

    cdef object session_reason(self, uint32_t number, object kind, object catalogue):
        cdef PyObject* found = PyDict_GetItemWithError(self.columns.of_sessions, (number, kind))
        if found is not NULL and (<tuple>found)[0] is self.columns.attributes[number]:
            return (<tuple>found)[1]
        return session_reason(number, kind, catalogue)

    cdef object interest_reason(self, uint32_t number, object catalogue):
        cdef PyObject* found = PyDict_GetItemWithError(self.columns.of_interests, number)
        if found is not NULL and (<tuple>found)[0] is self.columns.attributes[number]:
            return (<tuple>found)[1]
        return interest_reason(number, catalogue)

    cdef tuple because_of_origin(self, Entry* entry, dict known, object catalogue, object request, object person):
        """`base_reasons`."""
        cdef Py_ssize_t size = len(self.columns.item_ids)
        cdef bint has_first = entry.first < size and self.columns.item_ids[entry.first] is not None
        cdef bint has_second = entry.second < size and self.columns.item_ids[entry.second] is not None
        if has_first and has_second:
            return (self.interest_reason(entry.first, catalogue), self.interest_reason(entry.second, catalogue))
        if has_first or has_second:
            return (self.interest_reason(entry.first if has_first else entry.second, catalogue),)
        said = known.get(entry.source)
        if said is None:
            said = known[entry.source] = base_reasons((entry.source, NONE, NONE), catalogue, request, person)
        return said

    cdef list explain(self, Py_ssize_t count, object catalogue, object request, object person):
        """`explain_slate`."""
        cdef Work work = self.work
        cdef Entry entry
        cdef Py_ssize_t at
        cdef dict known = {}
        cdef list items = []
        for at in range(count):
            soon(PyList_GET_ITEM(self.columns.item_ids, work.entries[work.order[at]].number))
        for at in range(count):
            entry = work.entries[work.order[at]]
            if entry.vote > 0 and (not entry.is_leading or self.weight * entry.vote > entry.base):
                source, reasons = _SESSION, self.because_of_session(entry.number, catalogue)
            else:
                source = _SOURCES.get(entry.source)
                if source is None:
                    raise Declined
                reasons = self.because_of_origin(&entry, known, catalogue, request, person)
            one = (
                entry.number, self.columns.item_ids[entry.number], entry.score, entry.base, entry.vote, source, reasons
            )
            items.append(_tuple_of(SlateItem, one))
        return items


cdef inline uint32_t _number_at(const uint8_t* packed, Py_ssize_t at) noexcept:
    cdef uint32_t number
    memcpy(&number, packed + at * ROW_BYTES, 4)
    return number


cdef inline double _score_at(const uint8_t* packed, Py_ssize_t at) noexcept:
    cdef float score
    memcpy(&score, packed + at * ROW_BYTES + 4, 4)
    return <double>score


cdef inline double _base_of(double score, double top, double last, bint is_positive, double ceiling) noexcept:
    """`ceiling` x `normaliser`."""
    cdef double base
    if is_positive:
        base = score / top
    elif top - last > 0:
        base = (score - last) / (top - last)
    else:
        return ceiling * 1.0
    return ceiling * (_FLOOR if base < _FLOOR else base)


def choose(object request, object person, list session, object catalogue, object tuning, object now_micros):
    """(items, rungs, weight of the session, fallback level) of `build_slate` for a request that is allowed, has no policy and is not to
    be explained; None when the twin has to answer."""
    cdef Columns columns = columns_of(catalogue)
    cdef Slates slate
    if columns is None or columns.refusals is not catalogue.refusals:
        return None
    if columns.neighbour_offsets is not catalogue.neighbour_offsets:
        return None
    if columns.session_index is not catalogue.session_index or not 0 < request.num_results <= MOST:
        return None
    slate = Slates.__new__(Slates)
    slate.columns = columns
    slate.work = _free_work.pop() if _free_work else Work()
    try:
        return _choose(slate, request, person, session, catalogue, tuning, now_micros)
    except Declined:
        return None
    finally:
        _free_work.append(slate.work)


cdef object _choose(Slates slate, object request, object person, list session, object catalogue, object tuning, object now_micros):
    cdef Work work = slate.work
    cdef Columns columns = slate.columns
    cdef bint has_votes = False
    cdef double ceiling = 1.0
    cdef Py_ssize_t count, at, own
    cdef list rungs = []
    cdef double total, most
    work.clear()
    slate.now_micros = now_micros
    slate.wanted = request.num_results
    slate.has_times = bool(columns.expire) or bool(columns.available)
    slate.weight = 0.0
    slate.kept = []
    state = person.session
    slate.exclude_all(session, state, request.exclude_item_ids)
    if session:
        slate.cast_ballots(session, tuning)
    candidates = person.candidates
    own = 0 if candidates is None else len(candidates)
    if work.ballot_count:
        most = tuning.session_weight if own else tuning.session_weight_alone
        total = _sum([work.ballots[at].weight for at in range(work.ballot_count)])
        slate.weight = most * total / (total + 1)
        if not (isfinite(slate.weight) and slate.weight >= 0):
            return None
        has_votes = slate.count_votes() > 0
        if not has_votes:
            slate.weight = 0.0

    while True:  # one pass; left where the slate is full
        if own and _is_full(slate, rungs, "personal", candidates, 0, &ceiling, has_votes):
            break
        if person.segment:
            found = catalogue.popular_in_category(person.segment)
            if found and _is_full(slate, rungs, "segment", found[1], _SEGMENT, &ceiling, has_votes):
                break
        if request.category:
            found = catalogue.popular_in_category(request.category)
            if found and _is_full(slate, rungs, "category", found[1], _CATEGORY, &ceiling, has_votes):
                break
        if request.region:
            found = catalogue.popular_by_region.get(request.region)
            if found is not None and _is_full(slate, rungs, "region", found, _REGION, &ceiling, has_votes):
                break
        if catalogue.popular and _is_full(slate, rungs, "popular", catalogue.popular, _POPULARITY, &ceiling, has_votes):
            break
        if catalogue.static:
            _is_full(slate, rungs, "static", catalogue.static, _STATIC, &ceiling, has_votes)
        break

    slate.score(has_votes)
    if has_votes:
        count = slate.order(True)
        for at in range(count):
            work.entries[work.order[at]].is_leading = True
    count = slate.order(False)
    if count < slate.wanted:
        return None
    return slate.explain(count, catalogue, request, person), rungs, slate.weight, _level(rungs)


cdef bint _is_full(
    Slates slate, list rungs, str name, object rows, uint32_t source, double* ceiling, bint has_votes
) except -1:
    """Takes a rung, and says whether there are candidates enough."""
    cdef Py_ssize_t taken = slate.climb(rows, source, ceiling, has_votes)
    rungs.append(_tuple_of(RungReport, (name, len(rows), taken)))
    return slate.candidate_count >= slate.wanted


cdef object _level(list rungs):
    """`fallback_level` of a slate that is not empty."""
    for rung in rungs:
        if (<tuple>rung)[2]:
            return (<tuple>rung)[0]
    return "session"
