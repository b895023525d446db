# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Answers and their decisions as JSON, in native code. The twins are `api.rendering` and `api.decisions`; they say what
is right, and the bytes are the same.

What is written of an item, and of a reason, is made once by the twins' own parts and copied from then on, until the
shop changes the item. Whatever is odd is declined (None), and the twin writes.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.math cimport floor, signbit
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from serving.native.borrowed cimport PyList_GET_ITEM, soon

import orjson

from feature_repo.contracts.packing import Source
from serving.pipeline.catalogue import MAX_REMEMBERED


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef enum:
    REASONS = 65536  # places for reasons; a power of two

cdef object _dumps = orjson.dumps
cdef dict _SOURCES = {int(source): f',"source":"{source.name.lower()}","reasons":['.encode() for source in Source}


cdef class Out:
    """Bytes that grow."""

    cdef char* data
    cdef Py_ssize_t size, room

    def __cinit__(self):
        self.room = 16384
        self.data = <char*>PyMem_Malloc(self.room)
        if not self.data:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int need(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t room = self.room
        cdef char* data
        if self.size + more <= room:
            return 0
        while room < self.size + more:
            room *= 2
        data = <char*>PyMem_Realloc(self.data, room)
        if not data:
            raise MemoryError()
        self.data, self.room = data, room
        return 0

    cdef int put(self, const char* data, Py_ssize_t size) except -1:
        self.need(size)
        memcpy(self.data + self.size, data, size)
        self.size += size
        return 0

    cdef int put_bytes(self, bytes data) except -1:
        return self.put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef int put_int(self, int64_t number) except -1:
        cdef char digits[24]
        cdef int at = 24
        cdef bint is_negative = number < 0
        cdef uint64_t left = <uint64_t>0 - <uint64_t>number if is_negative else <uint64_t>number
        while True:
            at -= 1
            digits[at] = <char>(48 + left % 10)
            left //= 10
            if not left:
                break
        if is_negative:
            at -= 1
            digits[at] = 45
        return self.put(digits + at, 24 - at)

    cdef int put_thousandths(self, int64_t number) except -1:
        """number / 1000 as orjson writes it; 0 <= number < 10^15."""
        cdef int64_t rest = number % 1000
        self.put_int(number // 1000)
        self.need(4)
        self.data[self.size] = 46
        self.data[self.size + 1] = <char>(48 + rest // 100)
        self.data[self.size + 2] = <char>(48 + rest // 10 % 10)
        self.data[self.size + 3] = <char>(48 + rest % 10)
        self.size += 4
        while self.data[self.size - 1] == 48 and self.data[self.size - 2] != 46:
            self.size -= 1
        return 0

    cdef int put_score(self, object value) except -1:
        """Rounded to six places, as orjson writes it."""
        cdef double score = value, scaled, whole
        cdef int64_t number
        cdef int at
        if 0.001 <= score < 1.0:
            scaled = score * 1e6
            whole = floor(scaled)
            scaled -= whole
            if scaled < 0.499 or scaled > 0.501:  # the product's own rounding cannot matter
                number = <int64_t>whole + (scaled > 0.5)
                if number == 1000000:
                    return self.put(b"1.0", 3)
                self.need(8)
                self.data[self.size] = 48
                self.data[self.size + 1] = 46
                for at in range(7, 1, -1):
                    self.data[self.size + at] = <char>(48 + number % 10)
                    number //= 10
                self.size += 8
                while self.data[self.size - 1] == 48 and self.data[self.size - 2] != 46:
                    self.size -= 1
                return 0
        if score == 0 and not signbit(score):
            return self.put(b"0.0", 3)
        return self.put_bytes(_dumps(round(value, 6)))

    cdef int put_text(self, object text) except -1:
        """A string, or null. Raises UnicodeEncodeError on half a character, TypeError on what is neither."""
        cdef Py_ssize_t size, at
        cdef const char* data
        if text is None:
            return self.put(b"null", 4)
        if type(text) is not str:
            raise TypeError("not a string")
        data = PyUnicode_AsUTF8AndSize(text, &size)
        for at in range(size):
            if <uint8_t>data[at] < 32 or data[at] == 34 or data[at] == 92:
                return self.put_bytes(_dumps(text))
        self.need(size + 2)
        self.data[self.size] = 34
        memcpy(self.data + self.size + 1, data, size)
        self.data[self.size + 1 + size] = 34
        self.size += size + 2
        return 0


cdef struct Written:
    PyObject* facts      # the item's attributes, of which this was made; a reference
    Py_ssize_t size      # of the text
    Py_ssize_t head      # of the text up to the score
    Py_ssize_t id_start, id_end
    char text[1]         # as long as it is: the item up to its score, then what comes behind its reasons


cdef struct Said:
    PyObject* reason     # references, both
    PyObject* text


cdef class Items:
    """`Written` by item number, and reasons as they are written, of one catalogue. What is written of an item lies in one
    piece: the items of an answer are all over memory, and to wait for that is most of what it costs to write them."""

    cdef list attributes, item_ids
    cdef Written** written
    cdef Said* said
    cdef Py_ssize_t size, count

    def __cinit__(self, catalogue):
        self.attributes = catalogue.attributes
        self.item_ids = catalogue.item_ids
        if len(self.item_ids) != len(self.attributes):
            raise ValueError("columns of different length")
        self.size = len(self.attributes)
        self.written = <Written**>PyMem_Calloc(self.size + 1, sizeof(Written*))
        self.said = <Said*>PyMem_Calloc(REASONS, sizeof(Said))
        if not (self.written and self.said):
            raise MemoryError()

    def __dealloc__(self):
        cdef Py_ssize_t at
        if self.written:
            self.forget()
        if self.said:
            for at in range(REASONS):
                Py_XDECREF(self.said[at].reason)
                Py_XDECREF(self.said[at].text)
        PyMem_Free(self.written)
        PyMem_Free(self.said)

    cdef void forget(self) noexcept:
        cdef Py_ssize_t number
        for number in range(self.size):
            if self.written[number]:
                Py_DECREF(<object>self.written[number].facts)
                PyMem_Free(self.written[number])
                self.written[number] = NULL
        self.count = 0

    cdef Written* of(self, Py_ssize_t number) except NULL:
        """Raises ValueError for a number that is no item's."""
        cdef Written* found
        cdef bytes text
        if not 0 <= number < self.size or self.item_ids[number] is None:
            raise ValueError("no item")
        found = self.written[number]
        if found and found.facts == PyList_GET_ITEM(self.attributes, number):
            return found
        facts = self.attributes[number]
        item_id = _dumps(self.item_ids[number])
        head = b'{"item_id":' + item_id + b',"score":'
        text = head + b'],"attributes":' + _dumps(facts) + b"}"
        if found:
            self.written[number] = NULL
            Py_DECREF(<object>found.facts)
            PyMem_Free(found)
        else:
            if self.count >= MAX_REMEMBERED:
                self.forget()
            self.count += 1
        found = <Written*>PyMem_Malloc(sizeof(Written) + len(text))
        if not found:
            raise MemoryError()
        Py_INCREF(facts)
        found.facts, found.size, found.head = <PyObject*>facts, len(text), len(head)
        found.id_start = len(b'{"item_id":')
        found.id_end = found.id_start + len(item_id)
        memcpy(found.text, PyBytes_AS_STRING(text), len(text))
        self.written[number] = found
        return found

    cdef Said* place_of(self, object reason) noexcept:
        return &self.said[(<uintptr_t><PyObject*>reason >> 4) * <uintptr_t>2654435769 >> 7 & (REASONS - 1)]

    cdef int soon_all(self, list items) except -1:
        """Let the memory begin to bring what is written of all of them."""
        cdef Py_ssize_t number, at
        cdef const char* place
        for item in items:
            number = (<tuple>item)[0]
            if 0 <= number < self.size:
                for reason in <tuple>(<tuple>item)[6]:
                    soon(self.place_of(reason))
                place = <const char*>self.written[number]
                if place:
                    for at in range(0, 256, 64):
                        soon(place + at)
        return 0


cdef list _free = []


cdef int _put_reason(Out out, Said* said, object reason) except -1:
    """A `Reason`, whose place is `said`. It is known by itself, not by its words: those that the pipeline remembers come
    again and again."""
    cdef PyObject* reason_before
    cdef PyObject* text_before
    if said.reason != <PyObject*>reason:
        made = _dumps(reason._asdict())
        text = PyBytes_FromStringAndSize(PyBytes_AS_STRING(made), PyBytes_GET_SIZE(made))  # orjson's has room for 1 kB
        reason_before, text_before = said.reason, said.text
        Py_INCREF(reason)
        Py_INCREF(text)
        said.reason, said.text = <PyObject*>reason, <PyObject*>text
        Py_XDECREF(reason_before)
        Py_XDECREF(text_before)
    return out.put_bytes(<bytes>said.text)


cdef Items _items_of(object catalogue):
    remembered = catalogue.remember("native items")
    found = remembered.get("items")
    if found is None or (<Items>found).attributes is not catalogue.attributes:
        found = remembered["items"] = Items(catalogue)
    return found


cdef int _put_age(Out out, object moment_micros, int64_t now_micros) except -1:
    """`_age_seconds`."""
    cdef int64_t age
    if moment_micros is None:
        return out.put_bytes(b"null")
    age = now_micros - <int64_t>moment_micros + 500
    age = 0 if age < 0 else age // 1000
    if age >= 1000000000000000:
        raise OverflowError("centuries")
    return out.put_thousandths(age)


cdef int _put_items(Out out, list items, Items prepared) except -1:
    """The list of items. Raises ValueError for one that the twin has to write."""
    cdef Py_ssize_t rank = 0
    cdef Written* written
    cdef bytes source
    cdef bint is_first
    prepared.soon_all(items)
    out.put_bytes(b"[")
    for item in items:
        written = prepared.of((<tuple>item)[0])
        if rank:
            out.put_bytes(b",")
        rank += 1
        out.put(written.text, written.head)
        out.put_score((<tuple>item)[2])
        out.put_bytes(b',"rank":')
        out.put_int(rank)
        source = _SOURCES[(<tuple>item)[5]]
        out.put_bytes(source)
        is_first = True
        for reason in <tuple>(<tuple>item)[6]:
            if not is_first:
                out.put_bytes(b",")
            is_first = False
            _put_reason(out, prepared.place_of(reason), reason)
        out.put(written.text + written.head, written.size - written.head)
    return out.put_bytes(b"]")


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
    cdef Out out = _free.pop() if _free else Out()
    out.size = 0
    try:
        if type(items) is not list or not 0 <= took_micros < 1000000000000000:
            return None
        out.put_bytes(b'{"recommendation_id":')
        out.put_text(recommendation_id)
        out.put_bytes(b',"placement":')
        out.put_text(placement)
        out.put_bytes(b',"items":')
        _put_items(out, items, _items_of(catalogue))
        out.put_bytes(b',"model_version":')
        out.put_text(catalogue.version)
        out.put_bytes(b',"took_ms":')
        out.put_thousandths(took_micros)
        out.put_bytes(b',"fallback_level":')
        out.put_text(level)
        out.put_bytes(b',"fallback_reason":')
        out.put_text(reason)
        out.put_bytes(b',"degraded":true' if degraded else b',"degraded":false')
        out.put_bytes(b',"freshness":{"model":')
        _put_age(out, catalogue.as_of_micros, now_micros)
        out.put_bytes(b',"data":')
        _put_age(out, catalogue.last_event_micros, now_micros)
        out.put_bytes(b',"candidates":')
        _put_age(out, catalogue.published_micros, now_micros)
        out.put_bytes(b',"features":')
        _put_age(out, feature_micros, now_micros)
        out.put_bytes(b',"session":')
        _put_age(out, session_micros, now_micros)
        out.put_bytes(b',"catalogue":')
        _put_age(out, changes_micros, now_micros)
        out.put_bytes(b'},"experiments":[]')
        if degraded:
            out.put_bytes(b',"degraded_reasons":')
            out.put_bytes(_dumps(degraded))
        if filtered is not None:
            out.put_bytes(b',"filtered":')
            out.put_bytes(_dumps(filtered))
        out.put_bytes(b"}")
        return PyBytes_FromStringAndSize(out.data, out.size)
    except (KeyError, OverflowError, TypeError, ValueError, AttributeError):
        return None
    finally:
        _free.append(out)


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
    cdef Out out = _free.pop() if _free else Out()
    cdef Items prepared
    cdef Written* written
    cdef Py_ssize_t count = len(items), at
    out.size = 0
    try:
        if type(items) is not list:
            return None
        prepared = _items_of(catalogue)
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
        out.put_bytes(_dumps(degraded))
        out.put_bytes(b',"items":[')
        for at in range(count):
            written = prepared.of((<tuple>(<list>items)[at])[0])
            out.put(written.text + written.id_start, written.id_end - written.id_start)
            out.put_bytes(b",")
        out.size -= count > 0
        out.put_bytes(b'],"numbers":[')
        for at in range(count):
            out.put_int((<tuple>(<list>items)[at])[0])
            out.put_bytes(b",")
        out.size -= count > 0
        out.put_bytes(b'],"scores":')
        out.put_bytes(_dumps([(<tuple>(<list>items)[at])[2] for at in range(count)]))
        out.put_bytes(b',"sources":[')
        for at in range(count):
            out.put_int((<tuple>(<list>items)[at])[5])
            out.put_bytes(b",")
        out.size -= count > 0
        out.put_bytes(b'],"rules":[],"propensities":')
        if propensities:
            out.put_bytes(_dumps(propensities))
        else:
            out.put_bytes(b"[")
            for at in range(count):
                out.put_bytes(b"1.0,")
            out.size -= count > 0
            out.put_bytes(b"]")
        out.put_bytes(b',"experiments":[],"inputs":')
        out.put_bytes(_dumps(inputs))
        out.put_bytes(b"}")
        return PyBytes_FromStringAndSize(out.data, out.size)
    except (KeyError, OverflowError, TypeError, ValueError, AttributeError):
        return None
    finally:
        _free.append(out)
