# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A list and what tops it up, in native code. Its twin is `pipeline.list_slate`, which says what is right; what is odd is
declined, as in `slates`.
"""

from libc.math cimport isfinite
from libc.stdint cimport uint32_t

from serving.native.columns cimport Columns, columns_of
from serving.native.order cimport Room, sort_places
from serving.native.votes cimport Votes
from serving.native.work cimport Entry, Work, give_back, take_work

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
    """One list under way. `refused`: numbers of what was offered and may not be shown."""

    cdef list refused
    cdef Py_ssize_t count

    cdef int climb(self, object rows, uint32_t source, bint whole, double* ceiling) except -1:
        """One rung of `fill_candidates` without votes."""
        cdef Py_ssize_t before = self.count
        cdef double lowest = ceiling[0], top, last, base
        cdef bint is_new
        cdef uint32_t number
        cdef Entry* entry
        top, last = rows[0][1], rows[len(rows) - 1][1]
        if last > 0 and top == 0:
            raise Declined
        for row in rows:
            base = row[1]
            if last > 0:
                base = base / top
            elif top - last > 0:
                base = (base - last) / (top - last)
            else:
                base = 1.0
            base = ceiling[0] * (_FLOOR if base < _FLOOR else base)
            if not isfinite(base):
                raise Declined
            if not whole and self.count >= self.wanted and base < lowest:
                break
            if not base > 0:
                continue
            number = row[0]
            entry = self.work.enter(number)
            if entry.base > 0:
                continue
            is_new = entry.is_refused < 0
            if not self.admits(entry):
                if is_new:
                    self.refused.append(row[0])
                continue
            entry.base = lowest = base
            entry.source = source
            self.count += 1
        if self.count > before:
            ceiling[0] = lowest * _BELOW
        return 0

    cdef list items(self, object tell):
        """The best of them, best first; ties by item id."""
        cdef Work work = self.work
        cdef Py_ssize_t size = work.entry_count, at, count = 0
        cdef double* keys = <double*>_room.of(size * (sizeof(double) + 2 * sizeof(uint32_t)) + 16)
        cdef uint32_t* ranked = <uint32_t*>(keys + size)
        cdef list item_ids = self.columns.item_ids, found = [], items = []
        cdef Entry entry
        for at in range(size):
            if work.entries[at].base > 0:
                keys[at] = work.entries[at].base
                ranked[count] = <uint32_t>at
                count += 1
        sort_places(ranked, count, keys, ranked + size, work, item_ids)
        for at in range(min(count, self.wanted)):
            entry = work.entries[ranked[at]]
            found.append((entry.number, entry.base, _SOURCES[entry.source]))
        for number, base, source in found:  # `tell` may do anything: nothing of ours is looked at any more
            one = (number, item_ids[number], base, base, 0.0, source, tell(number, source))
            items.append(_tuple_of(SlateItem, one))
        return items


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
    shelving.columns = columns
    shelving.work = take_work()
    shelving.refused = []
    shelving.wanted, shelving.count = wanted, 0
    try:
        shelving.now_micros = now_micros
        shelving.has_times = bool(columns.expire) or bool(columns.available)
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
