# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""What answers and decisions are written of, in native code: numbers and strings as JSON, and the items of a catalogue.

What is written of an item, and of a reason, is made once by the twins' own parts and copied from then on, until the
shop changes the item.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.math cimport floor, signbit
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from serving.native.borrowed cimport PyList_GET_ITEM, soon

import orjson

from feature_repo.contracts.packing import Source
from serving.pipeline.catalogue import MAX_REMEMBERED
from serving.pipeline.explain import interest_reason


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef extern from *:
    """
    #define NIGHTJAR_ITEMS(list) (((PyListObject *)(list))->ob_item)
    """
    PyObject** items_in "NIGHTJAR_ITEMS"(list of) noexcept

cdef object _dumps = orjson.dumps
cdef list _SOURCES = [None] * 256
for _source in Source:
    _SOURCES[int(_source)] = f',"source":"{_source.name.lower()}","reasons":['.encode()


cdef class Out:
    """Bytes that grow."""

    def __cinit__(self):
        self.room = 16384
        self.data = <char*>PyMem_Malloc(self.room)
        if not self.data:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t room = self.room
        cdef char* data
        while room < self.size + more:
            room *= 2
        data = <char*>PyMem_Realloc(self.data, room)
        if not data:
            raise MemoryError()
        self.data, self.room = data, room
        return 0

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

    cdef int put_score(self, double score) except -1:
        """Rounded to six places, as orjson writes it."""
        cdef double scaled, whole
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
        if score == 1.0:
            return self.put(b"1.0", 3)
        if score == 0 and not signbit(score):
            return self.put(b"0.0", 3)
        return self.put_bytes(_dumps(round(<object>score, 6)))

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


cdef class Items:
    """`Written` by item number, and reasons as they are written, of one catalogue. What is written of an item lies in one
    piece: the items of an answer are all over memory, and to wait for that is most of what it costs to write them."""

    def __cinit__(self, catalogue):
        self.attributes = catalogue.attributes
        self.item_ids = catalogue.item_ids
        if len(self.item_ids) != len(self.attributes):
            raise ValueError("columns of different length")
        self.size = len(self.attributes)
        self.written = <Written**>PyMem_Calloc(self.size + 1, sizeof(Written*))
        self.interests = <Written**>PyMem_Calloc(self.size + 1, sizeof(Written*))
        self.said = <Said*>PyMem_Calloc(REASONS, sizeof(Said))
        if not (self.written and self.interests and self.said):
            raise MemoryError()

    def __dealloc__(self):
        cdef Py_ssize_t at
        if self.written and self.interests:
            self.forget()
        if self.said:
            for at in range(REASONS):
                Py_XDECREF(self.said[at].reason)
                Py_XDECREF(self.said[at].text)
        PyMem_Free(self.written)
        PyMem_Free(self.interests)
        PyMem_Free(self.said)

    cdef void forget(self) noexcept:
        cdef Py_ssize_t number
        for number in range(self.size):
            _forget(&self.written[number])
            _forget(&self.interests[number])
        self.count = 0

    cdef int learn(self, Written** place, object facts, bytes text) except -1:
        """Remember a text that was made of these attributes."""
        cdef Written* made
        if not place[0] and self.count >= MAX_REMEMBERED:
            self.forget()
        if not place[0]:
            self.count += 1
        _forget(place)
        made = <Written*>PyMem_Malloc(sizeof(Written) + len(text))
        if not made:
            raise MemoryError()
        Py_INCREF(facts)
        made.facts = <PyObject*>facts
        made.size = len(text)
        memcpy(made.text, PyBytes_AS_STRING(text), len(text))
        place[0] = made
        return 0

    cdef Written* of(self, Py_ssize_t number) except NULL:
        """Raises ValueError for a number that is no item's."""
        cdef Written* found
        if not 0 <= number < self.size:
            raise ValueError("no item")
        found = self.written[number]
        if found and found.facts == PyList_GET_ITEM(self.attributes, number):
            return found
        if self.item_ids[number] is None:
            raise ValueError("no item")
        facts = self.attributes[number]
        item_id = _dumps(self.item_ids[number])
        head = b'{"item_id":' + item_id + b',"score":'
        self.learn(&self.written[number], facts, head + b'],"attributes":' + _dumps(facts) + b"}")
        found = self.written[number]
        found.head = len(head)
        found.id_start = len(b'{"item_id":')
        found.id_end = found.id_start + len(item_id)
        return found

    cdef Written* interest(self, Py_ssize_t number, object catalogue) except? NULL:
        """`interest_reason`, as it is written; NULL for a number that is no item's."""
        cdef Written* found
        if not 0 <= number < self.size:
            return NULL
        found = self.interests[number]
        if found and found.facts == PyList_GET_ITEM(self.attributes, number):
            return found
        if self.item_ids[number] is None:
            return NULL
        facts = self.attributes[number]
        self.learn(&self.interests[number], facts, _dumps(interest_reason(number, catalogue)._asdict()))
        return self.interests[number]

    cdef Said* place_of(self, object reason) noexcept:
        return &self.said[(<uintptr_t><PyObject*>reason >> 4) * <uintptr_t>2654435769 >> 7 & (REASONS - 1)]

    cdef void soon_item(self, Py_ssize_t number) noexcept:
        """Let the memory begin to bring what is written of an item."""
        cdef Py_ssize_t at
        cdef const char* place
        if 0 <= number < self.size:
            soon(_place_in(self.attributes, number))
            place = <const char*>self.written[number]
            if place:
                for at in range(0, 256, 64):
                    soon(place + at)

    cdef void soon_interest(self, Py_ssize_t number) noexcept:
        """The same of one's interest in it."""
        cdef const char* place
        if 0 <= number < self.size:
            soon(_place_in(self.attributes, number))
            place = <const char*>self.interests[number]
            if place:
                soon(place)
                soon(place + 64)


cdef inline const void* _place_in(list values, Py_ssize_t at) noexcept:
    return <const void*>(items_in(values) + at)


cdef void _forget(Written** place) noexcept:
    if place[0]:
        Py_DECREF(<object>place[0].facts)
        PyMem_Free(place[0])
        place[0] = NULL


cdef list _free = []


cdef Out take_out():
    """One that nobody writes into, empty."""
    cdef Out out = _free.pop() if _free else Out()
    out.size = 0
    return out


cdef int give_back(Out out) except -1:
    _free.append(out)
    return 0


cdef int put_reason(Out out, Said* said, object reason) except -1:
    """A `Reason`, whose place is `said`."""
    return out.put_bytes(reason_text(said, reason))


cdef bytes reason_text(Said* said, object reason):
    """A `Reason` as it is written. It is known by itself, not by its words: those that the pipeline remembers come
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
    return <bytes>said.text


cdef Items items_of(object catalogue):
    remembered = catalogue.remember("native items")
    found = remembered.get("items")
    if found is None or (<Items>found).attributes is not catalogue.attributes:
        found = remembered["items"] = Items(catalogue)
    return found


cdef int put_age(Out out, object moment_micros, int64_t now_micros) except -1:
    """`_age_seconds`."""
    cdef int64_t age
    if moment_micros is None:
        return out.put_bytes(b"null")
    age = now_micros - <int64_t>moment_micros + 500
    age = 0 if age < 0 else age // 1000
    if age >= 1000000000000000:
        raise OverflowError("centuries")
    return out.put_thousandths(age)


cdef int put_item(Out out, Written* written, double score, Py_ssize_t rank, uint32_t source) except -1:
    """An item up to its reasons. Raises ValueError for a source without a name."""
    if rank > 1:
        out.put_one(44)
    out.put(written.text, written.head)
    out.put_score(score)
    out.put_bytes(b',"rank":')
    out.put_int(rank)
    if source > 255 or _SOURCES[source] is None:
        raise ValueError("a source without a name")
    return out.put_bytes(<bytes>_SOURCES[source])
