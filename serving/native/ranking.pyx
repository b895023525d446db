# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The order of given items in native code. Its twin is `pipeline.rank_given`, which says what is right.

What is odd is declined, as in `slates`: numbers that are not finite, a list or a popularity of an unknown kind, a source
without a name.
"""

import builtins

from cpython.object cimport PyObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memchr, memcpy

from serving.native.borrowed cimport PyDict_GetItemWithError, PyList_GET_ITEM, soon
from serving.native.columns cimport Column, Columns, columns_of
from serving.native.names cimport Names
from serving.native.order cimport Room, sort_places
from serving.native.votes cimport Votes
from serving.native.work cimport MOST, Entry, Work, give_back, take_work

from feature_repo.contracts.events import DISMISSING_TYPES, MAX_ID_BYTES
from feature_repo.contracts.packing import CANDIDATE_ROW, CandidateRows, Source
from feature_repo.contracts.session_blend import BELOW, FLOOR
from serving.native.columns import Declined
from serving.pipeline.values import SlateItem


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyUnicode_IS_ASCII(object text)
    void* PyUnicode_1BYTE_DATA(object text)


assert CANDIDATE_ROW.size == ROW_BYTES and CANDIDATE_ROW.format == "<IfBII"

cdef dict _SOURCES = {int(source): source for source in Source}
cdef object _SESSION = Source.SESSION
cdef uint32_t _GIVEN = Source.GIVEN
cdef uint32_t _POPULARITY = Source.POPULARITY
cdef Py_ssize_t _MAX_ID_BYTES = MAX_ID_BYTES
cdef double _BELOW = BELOW
cdef double _FLOOR = FLOOR
cdef object _DISMISSING = frozenset(DISMISSING_TYPES)
cdef object _tuple_of = tuple.__new__
cdef object _sum = builtins.sum  # not written out by the compiler: Python's own rounds as it does
cdef Room _room = Room()


cdef class Ranking(Votes):
    """One list under way. Of an entry `is_leading` says that it is given, `first` what is known of it."""

    cdef bint admits(self, Entry* entry) except -1:
        """Only what is given gets votes."""
        return entry.is_leading

    cdef int begin(self, int64_t now_micros) except -1:
        self.now_micros = now_micros
        self.has_times = bool(self.columns.expire) or bool(self.columns.available)
        self.weight = 0.0
        self.wanted = MOST
        return 0

    cdef Py_ssize_t enter_given(self, object item_ids, object excluded, list refused, dict unknown) except -1:
        """Fills `work.order`; how many of the items are there and may be shown to anybody."""
        cdef Work work = self.work
        cdef Entry* entry
        cdef Py_ssize_t count = 0, at, size
        cdef bint has_excluded = bool(excluded)
        cdef int64_t number
        cdef const char* name
        cdef Names by_name = self.columns.by_name()
        for item_id in item_ids:
            name = PyUnicode_AsUTF8AndSize(item_id, &size)
            by_name.soon_name(name, size)
        for item_id in item_ids:
            if has_excluded and item_id in excluded:
                continue
            name = PyUnicode_AsUTF8AndSize(item_id, &size)
            number = by_name.find(name, size)
            if number < 0:
                unknown[item_id] = None
                continue
            entry = work.enter(<uint32_t>number)
            if entry.is_refused >= 0:
                continue  # it came before
            if not Votes.admits(self, entry):
                refused.append(number)
                continue
            if count == MOST:
                raise Declined
            entry.is_leading = True
            entry.first, entry.source = NOTHING, _GIVEN
            work.order[count] = <uint32_t>(entry - work.entries)
            count += 1
        return count

    cdef int silence(self, list session, object dismissed) except -1:
        """`silenced_items`; whether there are any."""
        cdef bint found = False
        for event in session:
            if (<tuple>event)[1] in _DISMISSING:
                found = True
                self.exclude((<tuple>event)[3], True)
        for mark in dismissed:
            found = True
            self.exclude((<tuple>mark)[1], True)
        return found

    cdef Py_ssize_t look_up_list(self, object candidates, double* lowest) except -1:
        """What the night's list says of the given items; of how many."""
        cdef Column record
        if candidates is None:
            return 0
        if type(candidates) is not CandidateRows:
            raise Declined
        record = Column(candidates.packed, ROW_BYTES)
        if len(candidates) > record.size:
            raise Declined
        return self.look_up_rows(<const uint8_t*>record.data, len(candidates), lowest)

    cdef Py_ssize_t look_up_rows(self, const uint8_t* packed, Py_ssize_t count, double* lowest) except -1:
        """The same of its rows."""
        cdef Work work = self.work
        cdef Py_ssize_t at, found = 0
        cdef double top, last, base
        cdef uint32_t number
        cdef Entry* entry
        if count == 0:
            return 0
        top, last = _score_at(packed, 0), _score_at(packed, count - 1)
        if last > 0 and top == 0:
            raise Declined
        for at in range(count):
            memcpy(&number, packed + at * ROW_BYTES, 4)
            entry = work.find(number)
            if entry is NULL or not entry.is_leading:
                continue
            base = _score_at(packed, at)
            if last > 0:
                base = base / top
            elif top - last > 0:
                base = (base - last) / (top - last)
            else:
                base = 1.0
            if base < _FLOOR:
                base = _FLOOR
            if not base > 0:
                continue
            found += entry.first == NOTHING
            entry.first, entry.source = LISTED, packed[at * ROW_BYTES + 8]
            entry.base = base
            lowest[0] = base if base < lowest[0] else lowest[0]
        return found

    cdef Py_ssize_t look_up_popularity(self, Py_ssize_t count, object popularity, double lowest) except -1:
        """What popularity says of the others; of how many."""
        cdef Work work = self.work
        cdef Py_ssize_t at, found = 0
        cdef double most = 0.0, top
        cdef Entry* entry
        cdef PyObject* score
        if type(popularity) is not dict:
            raise Declined
        for at in range(count):
            entry = &work.entries[work.order[at]]
            if entry.first != NOTHING:
                continue
            number = entry.number
            score = PyDict_GetItemWithError(popularity, number)
            if score is NULL:
                continue
            entry.first, entry.source, entry.base = POPULAR, _POPULARITY, <object>score
            if not isfinite(entry.base):
                raise Declined
            most = entry.base if not found or entry.base > most else most
            found += 1
        if not found:
            return 0
        if most == 0:
            raise Declined
        top = lowest * _BELOW / most
        for at in range(count):
            entry = &work.entries[work.order[at]]
            if entry.first == POPULAR:
                entry.base = entry.base * top
        return found

    cdef bint weigh(self, object tuning) except -1:
        """The votes of what was cast; whether there are any."""
        cdef Work work = self.work
        cdef Py_ssize_t at
        cdef double most, total
        if not work.ballot_count or not self.count_votes():
            return False
        most = tuning.session_weight
        total = _sum([work.ballots[at].weight for at in range(work.ballot_count)])
        if total == -1:
            raise Declined
        self.weight = most * total / (total + 1)
        if not (isfinite(self.weight) and self.weight >= 0):
            raise Declined
        return True

    cdef bint is_of_session(self, Entry* entry, bint has_votes) noexcept:
        """Whether the session says more for an item than all else."""
        return has_votes and entry.vote > 0 and self.weight * entry.vote > entry.base

    cdef int arrange(self, Py_ssize_t count, bint has_votes, bint has_silenced) except -1:
        """Scores, and the places in order of them; what was dismissed behind the rest."""
        cdef Work work = self.work
        cdef Py_ssize_t size = work.entry_count, at, to = 0
        cdef double share = 1 + self.weight
        cdef double* keys = <double*>_room.of(size * sizeof(double) + count * sizeof(uint32_t))
        cdef uint32_t* spare = <uint32_t*>(keys + size)
        cdef Entry* entry
        for at in range(count):
            entry = &work.entries[work.order[at]]
            entry.score = (entry.base + self.weight * entry.vote) / share if has_votes else entry.base
            if not isfinite(entry.score):
                raise Declined
            keys[work.order[at]] = entry.score
        sort_places(work.order, count, keys, spare, work, None)
        if has_silenced:
            for at in range(count):
                if not work.entries[work.order[at]].is_silenced:
                    spare[to] = work.order[at]
                    to += 1
            for at in range(count):
                if work.entries[work.order[at]].is_silenced:
                    spare[to] = work.order[at]
                    to += 1
            memcpy(work.order, spare, count * sizeof(uint32_t))
        return 0

    cdef list items(self, Py_ssize_t count, bint has_votes):
        cdef Work work = self.work
        cdef list item_ids = self.columns.item_ids, items = []
        cdef Py_ssize_t at
        cdef double vote
        cdef Entry* entry
        for at in range(count):
            entry = &work.entries[work.order[at]]
            vote = entry.vote if has_votes else 0.0
            if self.is_of_session(entry, has_votes):
                source = _SESSION
            else:
                source = _SOURCES.get(entry.source)
                if source is None:
                    raise Declined
            one = (entry.number, item_ids[entry.number], entry.score, entry.base, vote, source, ())
            items.append(_tuple_of(SlateItem, one))
        return items


cdef inline double _score_at(const uint8_t* packed, Py_ssize_t at) noexcept:
    cdef float score
    memcpy(&score, packed + at * ROW_BYTES + 4, 4)
    return <double>score


def are_plain_ids(list values):
    """Whether all are ids of ASCII, as `hot_slates.is_id` takes them; what is not plain may be one too."""
    cdef Py_ssize_t size
    for value in values:
        if type(value) is not str or not PyUnicode_IS_ASCII(value):
            return False
        size = len(<str>value)
        if not 0 < size <= _MAX_ID_BYTES or memchr(PyUnicode_1BYTE_DATA(value), 0, size) is not NULL:
            return False
    return True


def rank(
    object item_ids, object request, object person, list session, object catalogue, object tuning, object now_micros
):
    """(items that the version knows, best first; numbers of those that may not be shown; ids that it does not know; how
    many the list knew, and popularity; the weight of the session; whether it voted), for a request that is allowed and
    not to be explained. None when the twin has to answer."""
    cdef Columns columns = columns_of(catalogue)
    cdef Ranking ranking
    if columns is None or not columns.are_of(catalogue):
        return None
    ranking = Ranking.__new__(Ranking)
    ranking.columns = columns
    ranking.work = take_work()
    try:
        return _rank(ranking, item_ids, request, person, session, catalogue, tuning, now_micros)
    except (Declined, OverflowError, TypeError):
        return None
    finally:
        give_back(ranking.work)


cdef object _rank(
    Ranking ranking, object item_ids, object request, object person, list session, object catalogue, object tuning,
    object now_micros,
):
    cdef Work work = ranking.work
    cdef list refused = []
    cdef dict unknown = {}
    cdef Py_ssize_t count, personal, popular, shown, at
    cdef double lowest = 1.0
    cdef bint has_votes = False, has_silenced
    ranking.begin(now_micros)
    count = ranking.enter_given(item_ids, request.exclude_item_ids, refused, unknown)
    personal = ranking.look_up_list(person.candidates, &lowest)
    popular = ranking.look_up_popularity(count, catalogue.popularity, lowest)
    has_silenced = ranking.silence(session, person.session.dismissed)
    if session and count:
        ranking.cast_ballots(session, tuning)
        has_votes = ranking.weigh(tuning)
    ranking.arrange(count, has_votes, has_silenced)
    shown = min(count, <Py_ssize_t>request.num_results)
    for at in range(shown):
        soon(PyList_GET_ITEM(ranking.columns.item_ids, work.entries[work.order[at]].number))
    return ranking.items(shown, has_votes), refused, list(unknown), personal, popular, ranking.weight, has_votes
