# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Answers and their decisions as JSON, in native code. The twins are `api.rendering` and `api.decisions`; they say what
is right, and the bytes are the same. Whatever is odd is declined (None), and the twin writes.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint32_t

from serving.native.borrowed cimport soon
from serving.native.pieces cimport Items, Out, Written, give_back, items_of, put_age, put_item, put_reason, take_out

import orjson

cdef object _dumps = orjson.dumps


cdef int open_answer(Out out, object recommendation_id, object placement) except -1:
    """Up to the items."""
    out.put_bytes(b'{"recommendation_id":')
    out.put_text(recommendation_id)
    out.put_bytes(b',"placement":')
    out.put_text(placement)
    return out.put_bytes(b',"items":[')


cdef int close_answer(
    Out out, object catalogue, int64_t took_micros, object level, object reason, object degraded, int64_t now_micros,
    object feature_micros, object session_micros, object changes_micros
) except -1:
    """Behind the items, but for the last brace. Raises OverflowError for what the twin has to write."""
    if not 0 <= took_micros < 1000000000000000:
        raise OverflowError("days")
    out.put_bytes(b'],"model_version":')
    out.put_text(catalogue.version)
    out.put_bytes(b',"took_ms":')
    out.put_thousandths(took_micros)
    out.put_bytes(b',"fallback_level":')
    out.put_text(level)
    out.put_bytes(b',"fallback_reason":')
    out.put_text(reason)
    out.put_bytes(b',"degraded":true' if degraded else b',"degraded":false')
    out.put_bytes(b',"freshness":{"model":')
    put_age(out, catalogue.as_of_micros, now_micros)
    out.put_bytes(b',"data":')
    put_age(out, catalogue.last_event_micros, now_micros)
    out.put_bytes(b',"candidates":')
    put_age(out, catalogue.published_micros, now_micros)
    out.put_bytes(b',"features":')
    put_age(out, feature_micros, now_micros)
    out.put_bytes(b',"session":')
    put_age(out, session_micros, now_micros)
    out.put_bytes(b',"catalogue":')
    put_age(out, changes_micros, now_micros)
    out.put_bytes(b'},"experiments":[]')
    if degraded:
        out.put_bytes(b',"degraded_reasons":')
        out.put_bytes(_dumps(degraded))
    return 0


def answer(
    object items,
    object catalogue,
    object recommendation_id,
    object placement,
    int64_t took_micros,
    object level,
    object reason,
    object degraded,
    int64_t now_micros,
    object feature_micros,
    object session_micros,
    object changes_micros,
    object filtered=None,
):
    """`rendering.render_answer` without explanations; None when the twin has to write. `filtered`: of a short slate."""
    cdef Out out = take_out()
    cdef Items prepared
    try:
        if type(items) is not list:
            return None
        prepared = items_of(catalogue)
        open_answer(out, recommendation_id, placement)
        _put_items(out, items, prepared)
        close_answer(
            out, catalogue, took_micros, level, reason, degraded, now_micros, feature_micros, session_micros,
            changes_micros
        )
        if filtered is not None:
            out.put_bytes(b',"filtered":')
            out.put_bytes(_dumps(filtered))
        out.put_one(125)
        return PyBytes_FromStringAndSize(out.data, out.size)
    except (KeyError, OverflowError, TypeError, ValueError, AttributeError):
        return None
    finally:
        give_back(out)


cdef int _put_items(Out out, list items, Items prepared) except -1:
    """Raises TypeError, ValueError for one that the twin has to write."""
    cdef Py_ssize_t rank = 0
    cdef Written* written
    cdef bint is_first
    for item in items:
        for reason in <tuple>(<tuple>item)[6]:
            soon(prepared.place_of(reason))
        prepared.soon_item((<tuple>item)[0])
    for item in items:
        if type((<tuple>item)[2]) is not float:
            raise TypeError("another kind of number")
        rank += 1
        written = prepared.of((<tuple>item)[0])
        put_item(out, written, (<tuple>item)[2], rank, (<tuple>item)[5])
        is_first = True
        for reason in <tuple>(<tuple>item)[6]:
            if not is_first:
                out.put_one(44)
            is_first = False
            put_reason(out, prepared.place_of(reason), reason)
        out.put(written.text + written.head, written.size - written.head)
    return 0


cdef int open_decision(
    Out out, object catalogue, object recommendation_id, object kind, object placement, object subject, object session,
    object level, object reason, object degraded, int64_t now_micros
) except -1:
    """Up to the items."""
    out.put_bytes(b'{"v":1,"id":')
    out.put_text(recommendation_id)
    out.put_bytes(b',"at":')
    out.put_int(now_micros)
    out.put_bytes(b',"kind":')
    out.put_text(kind)
    out.put_bytes(b',"placement":')
    out.put_text(placement)
    out.put_bytes(b',"subject":')
    out.put_text(subject)
    out.put_bytes(b',"session":')
    out.put_text(session)
    out.put_bytes(b',"version":')
    out.put_text(catalogue.version)
    out.put_bytes(b',"level":')
    out.put_text(level)
    out.put_bytes(b',"reason":')
    out.put_text(reason)
    out.put_bytes(b',"degraded":')
    return out.put_bytes(_dumps(degraded) if degraded else b"[]")


cdef int close_decision(
    Out out, Items prepared, const uint32_t* numbers, const uint32_t* sources, list scores, object propensities
) except -1:
    """The items, up to the inputs, which are still to be written, with a brace. `propensities` is empty where nothing was
    left to chance."""
    cdef Py_ssize_t count = len(scores), at
    cdef Written* written
    out.put_bytes(b',"items":[')
    for at in range(count):
        written = prepared.of(numbers[at])
        out.put(written.text + written.id_start, written.id_end - written.id_start)
        out.put_one(44)
    out.size -= count > 0
    out.put_bytes(b'],"numbers":[')
    for at in range(count):
        out.put_int(numbers[at])
        out.put_one(44)
    out.size -= count > 0
    out.put_bytes(b'],"scores":')
    out.put_bytes(_dumps(scores))
    out.put_bytes(b',"sources":[')
    for at in range(count):
        out.put_int(sources[at])
        out.put_one(44)
    out.size -= count > 0
    out.put_bytes(b'],"rules":[],"propensities":')
    if propensities:
        out.put_bytes(_dumps(propensities))
    else:
        out.put_one(91)
        for at in range(count):
            out.put_bytes(b"1.0,")
        out.size -= count > 0
        out.put_one(93)
    return out.put_bytes(b',"experiments":[],"inputs":')


def decision(
    object items,
    object catalogue,
    object recommendation_id,
    object kind,
    object placement,
    object subject,
    object session,
    object level,
    object reason,
    object degraded,
    object inputs,
    int64_t now_micros,
    object propensities=(),
):
    """`decisions._payload`; None when the twin has to write."""
    cdef Out out = take_out()
    cdef Py_ssize_t count = len(items), at
    cdef uint32_t* numbers = NULL
    try:
        if type(items) is not list:
            return None
        numbers = <uint32_t*>PyMem_Malloc(2 * (count + 1) * sizeof(uint32_t))
        if not numbers:
            raise MemoryError()
        for at in range(count):
            numbers[at] = (<tuple>(<list>items)[at])[0]
            numbers[count + at] = (<tuple>(<list>items)[at])[5]
        open_decision(
            out, catalogue, recommendation_id, kind, placement, subject, session, level, reason, degraded, now_micros
        )
        scores = [(<tuple>(<list>items)[at])[2] for at in range(count)]
        close_decision(out, items_of(catalogue), numbers, numbers + count, scores, propensities)
        out.put_bytes(_dumps(inputs))
        out.put_one(125)
        return PyBytes_FromStringAndSize(out.data, out.size)
    except (KeyError, OverflowError, TypeError, ValueError, AttributeError):
        return None
    finally:
        PyMem_Free(numbers)
        give_back(out)
