# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Why each item is in a slate, in native code. The twin is `pipeline.explain`."""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from serving.native.borrowed cimport PyDict_GetItemWithError, PyList_GET_ITEM, PyUnicode_Compare, soon
from serving.native.columns cimport Columns
from serving.native.votes cimport Votes
from serving.native.work cimport Ballot, Entry, Work

from feature_repo.contracts.packing import NO_REASON, Source
from serving.native.columns import Declined
from serving.pipeline.explain import MAX_REASONS, base_reasons, interest_reason, session_reason
from serving.pipeline.values import SlateItem

cdef uint32_t NONE = NO_REASON
cdef dict _SOURCES = {int(source): source for source in Source}
cdef object _SESSION = Source.SESSION
cdef Py_ssize_t _MAX_REASONS = MAX_REASONS
assert MAX_REASONS == 2
cdef object _tuple_of = tuple.__new__


cdef struct Voice:
    uint32_t number
    double total
    double most
    Py_ssize_t ballot


cdef tuple because_of_session(Votes slate, list kept, uint32_t number, object catalogue):
    """`SessionReasons.of`."""
    cdef Columns columns = slate.columns
    cdef Work work = slate.work
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
            reason = _session_reason(columns, best.number, <object>ballot.kind, catalogue)
            kept.append(reason)
            ballot.reason = <PyObject*>reason
        if chosen == 0:
            first = <object>ballot.reason
        else:
            return (first, <object>ballot.reason)
    return (first,) if count else ()


cdef bint is_of_session(Votes slate, Entry* entry) noexcept:
    """Whether an item is in the slate for the session's sake: it would not be there without, or owes it most."""
    return entry.vote > 0 and (not entry.is_leading or slate.weight * entry.vote > entry.base)


cdef object _session_reason(Columns columns, uint32_t number, object kind, object catalogue):
    cdef PyObject* found = PyDict_GetItemWithError(columns.of_sessions, (number, kind))
    if found is not NULL and (<tuple>found)[0] is columns.attributes[number]:
        return (<tuple>found)[1]
    return session_reason(number, kind, catalogue)


cdef object _interest_reason(Columns columns, uint32_t number, object catalogue):
    cdef PyObject* found = PyDict_GetItemWithError(columns.of_interests, number)
    if found is not NULL and (<tuple>found)[0] is columns.attributes[number]:
        return (<tuple>found)[1]
    return interest_reason(number, catalogue)


cdef tuple _because_of_origin(
    Columns columns, Entry* entry, dict known, object catalogue, object request, object person
):
    """`base_reasons`."""
    cdef Py_ssize_t size = len(columns.item_ids)
    cdef bint has_first = entry.first < size and columns.item_ids[entry.first] is not None
    cdef bint has_second = entry.second < size and columns.item_ids[entry.second] is not None
    if has_first and has_second:
        return (_interest_reason(columns, entry.first, catalogue), _interest_reason(columns, entry.second, catalogue))
    if has_first or has_second:
        return (_interest_reason(columns, entry.first if has_first else entry.second, catalogue),)
    said = known.get(entry.source)
    if said is None:
        said = known[entry.source] = base_reasons((entry.source, NONE, NONE), catalogue, request, person)
    return said


cdef list explain(Votes slate, Py_ssize_t count, object catalogue, object request, object person):
    """`explain_slate`."""
    cdef Work work = slate.work
    cdef Entry entry
    cdef Py_ssize_t at
    cdef dict known = {}
    cdef list items = [], kept = []
    for at in range(count):
        soon(PyList_GET_ITEM(slate.columns.item_ids, work.entries[work.order[at]].number))
    for at in range(count):
        entry = work.entries[work.order[at]]
        if is_of_session(slate, &entry):
            source, reasons = _SESSION, because_of_session(slate, kept, entry.number, catalogue)
        else:
            source = _SOURCES.get(entry.source)
            if source is None:
                raise Declined
            reasons = _because_of_origin(slate.columns, &entry, known, catalogue, request, person)
        one = (
            entry.number, slate.columns.item_ids[entry.number], entry.score, entry.base, entry.vote, source, reasons
        )
        items.append(_tuple_of(SlateItem, one))
    return items
