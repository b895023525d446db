# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A list and what tops it up, in native code. Its twin is `pipeline.list_slate`, which says what is right; what is odd is
declined, as in `slates`.
"""

from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy

from serving.native.columns cimport Columns, PopularRows, columns_of
from serving.native.order cimport Room, sort_places
from serving.native.votes cimport Votes
from serving.native.work cimport MOST, Entry, Work, give_back, take_work

from feature_repo.contracts.packing import Source
from feature_repo.contracts.session_blend import BELOW, FLOOR
from serving.native.columns import Declined
from serving.pipeline.values import RungReport, SlateItem

cdef dict _SOURCES = {int(source): source for source in Source}
cdef double _BELOW = BELOW
cdef double _FLOOR = FLOOR
cdef object _tuple_of = tuple.__new__
cdef Room _room = Room()


cdef class Shelving(Votes):
    """One list under way. `refused`: numbers of what was offered and may not be shown; with None nobody asks."""

    cdef int begin(self, Columns columns, Py_ssize_t wanted, int64_t now_micros) except -1:
        self.columns, self.wanted, self.now_micros = columns, wanted, now_micros
        self.has_times = bool(columns.expire) or bool(columns.available)
        self.count = 0
        return 0

    cdef bint is_taken(self, Rung* rung, uint32_t number, double score) except -1:
        """A row of `fill_candidates` without votes; False where nothing behind it has to be looked at."""
        cdef double base = base_of(rung, score)
        cdef bint is_new
        cdef Entry* entry
        if not isfinite(base):
            raise Declined
        if not rung.whole and self.count >= self.wanted and base < rung.lowest:
            return False
        if not base > 0:
            return True
        entry = self.work.enter(number)
        if entry.base > 0:
            return True
        is_new = entry.is_refused < 0
        if not self.admits(entry):
            if is_new and self.refused is not None:
                self.refused.append(number)
            return True
        entry.base = rung.lowest = base
        entry.source = rung.source
        self.count += 1
        return True

    cdef int climb(self, object rows, uint32_t source, bint whole, double* ceiling) except -1:
        """One rung of Python's rows."""
        cdef Rung rung = rung_of(rows[0][1], rows[len(rows) - 1][1], source, whole, ceiling[0], self.count)
        for row in rows:
            if not self.is_taken(&rung, row[0], row[1]):
                break
        return leave(&rung, self.count, ceiling)

    cdef Py_ssize_t climb_popular(self, PopularRows popular, uint32_t source, double* ceiling) except -1:
        """One rung, of a popular list; how many candidates it gave."""
        return self.climb_scored(
            <const uint32_t*>popular.numbers.data, <const double*>popular.scores.data, popular.numbers.size, source,
            False, ceiling
        )

    cdef Py_ssize_t climb_scored(
        self, const uint32_t* numbers, const double* scores, Py_ssize_t count, uint32_t source, bint whole,
        double* ceiling
    ) except -1:
        """The same of numbers and their scores."""
        cdef Rung rung
        cdef Py_ssize_t at
        if not count:
            return 0
        rung = rung_of(scores[0], scores[count - 1], source, whole, ceiling[0], self.count)
        for at in range(count):
            if not self.is_taken(&rung, numbers[at], scores[at]):
                break
        leave(&rung, self.count, ceiling)
        return self.count - rung.before

    cdef Py_ssize_t climb_similar(
        self, const uint32_t* numbers, const float* scores, Py_ssize_t count, uint32_t source, double* ceiling
    ) except -1:
        """The same of smaller numbers."""
        cdef Rung rung
        cdef Py_ssize_t at
        if not count:
            return 0
        rung = rung_of(scores[0], scores[count - 1], source, False, ceiling[0], self.count)
        for at in range(count):
            if not self.is_taken(&rung, numbers[at], scores[at]):
                break
        leave(&rung, self.count, ceiling)
        return self.count - rung.before

    cdef Py_ssize_t order(self) except -1:
        """Places of the best entries in `work.order`, best first, ties by item id; how many."""
        cdef Work work = self.work
        cdef Py_ssize_t size = work.entry_count, at, count = 0
        cdef double* keys = <double*>_room.of(size * (sizeof(double) + 2 * sizeof(uint32_t)) + 16)
        cdef uint32_t* ranked = <uint32_t*>(keys + size)
        for at in range(size):
            if work.entries[at].base > 0:
                keys[at] = work.entries[at].base
                ranked[count] = <uint32_t>at
                count += 1
        sort_places(ranked, count, keys, ranked + size, work, self.columns.item_ids)
        count = min(count, self.wanted)
        if count > MOST:
            raise Declined
        memcpy(work.order, ranked, count * sizeof(uint32_t))
        return count

    cdef list items(self, object tell):
        """The best of them."""
        cdef Work work = self.work
        cdef Py_ssize_t at, count = self.order()
        cdef list item_ids = self.columns.item_ids, found = [], items = []
        cdef Entry entry
        for at in range(count):
            entry = work.entries[work.order[at]]
            found.append((entry.number, entry.base, _SOURCES[entry.source]))
        for number, base, source in found:  # `tell` may do anything: nothing of ours is looked at any more
            one = (number, item_ids[number], base, base, 0.0, source, tell(number, source))
            items.append(_tuple_of(SlateItem, one))
        return items


cdef Rung rung_of(double top, double last, uint32_t source, bint whole, double ceiling, Py_ssize_t before) except *:
    cdef Rung rung
    if last > 0 and top == 0:
        raise Declined
    rung.top, rung.last, rung.source, rung.whole = top, last, source, whole
    rung.ceiling = rung.lowest = ceiling
    rung.before = before
    return rung


cdef double base_of(const Rung* rung, double score) noexcept:
    """`ceiling` x `normaliser`."""
    cdef double base = 1.0
    if rung.last > 0:
        base = score / rung.top
    elif rung.top - rung.last > 0:
        base = (score - rung.last) / (rung.top - rung.last)
    return rung.ceiling * (_FLOOR if base < _FLOOR else base)


cdef int leave(const Rung* rung, Py_ssize_t count, double* ceiling) except -1:
    """What comes next is below all of this."""
    if count > rung.before:
        ceiling[0] = rung.lowest * _BELOW
    return 0


def shelve(
    object rungs, list kept, Py_ssize_t wanted, object taken_out, object catalogue, object now_micros, bint whole,
    object tell,
):
    """(items, rungs, numbers that were refused) of `list_slate`; None when the twin has to answer. `kept` gets the rungs
    that were looked at."""
    cdef Columns columns = columns_of(catalogue)
    cdef Shelving shelving
    cdef double ceiling = 1.0
    cdef Py_ssize_t before
    cdef list reports = []
    if columns is None or not columns.are_of(catalogue) or wanted <= 0:
        return None
    shelving = Shelving.__new__(Shelving)
    shelving.work = take_work()
    shelving.refused = []
    try:
        shelving.begin(columns, wanted, now_micros)
        for number in taken_out:
            shelving.work.enter(<uint32_t>number).is_excluded = True
        for rung in rungs:
            kept.append(rung)
            name, rows, source = rung
            before = shelving.count
            if rows:
                shelving.climb(rows, <uint32_t>int(source), whole, &ceiling)
            reports.append(_tuple_of(RungReport, (name, len(rows), shelving.count - before)))
            if rows and shelving.count >= wanted:
                break
        return shelving.items(tell), reports, shelving.refused
    except (Declined, OverflowError, TypeError, KeyError):
        return None
    finally:
        give_back(shelving.work)
