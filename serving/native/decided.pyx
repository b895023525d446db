# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Decisions as columns of `silver.decisions`, in native code. The twin is `contracts.decisions`: `read_decision`, then
`decision_row`; they say what is right.

Read here is what API workers write: keys in their order, no white space, strings without escapes, no rules, no
experiments. Whatever else comes, and what is none, is declined and leaves nothing behind; the twin looks at it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.float cimport FLT_MAX
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcmp, memset

from serving.native.pieces cimport Out

import orjson

from feature_repo.contracts.packing import Source


cdef extern from "Python.h":
    double PyOS_string_to_double(const char* text, char** end, object overflow) except? -1.0
    object PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef class _Odd(Exception):
    """The twin has to look at it."""


cdef object _loads = orjson.loads
cdef object _dumps = orjson.dumps
cdef object _sorted = orjson.OPT_SORT_KEYS
cdef list _sources = [None] * 256
for _source in Source:
    _sources[int(_source)] = _source.name.lower().encode()

cdef int64_t _day = 86_400_000_000
cdef int64_t _end_of_time = 253_402_300_800 * 1_000_000  # the year 10000


cdef class Texts:
    """A column of strings: where each ends, the bytes of all, and which are none."""

    cdef Out ends, data, is_there
    cdef Py_ssize_t nulls, kept, kept_bytes, kept_nulls

    def __cinit__(self):
        self.ends, self.data, self.is_there = Out(), Out(), Out()
        self.keep()

    cdef Py_ssize_t count(self) noexcept:
        return self.is_there.size

    cdef void keep(self) noexcept:
        """What is there now will stay."""
        self.kept, self.kept_bytes, self.kept_nulls = self.is_there.size, self.data.size, self.nulls

    cdef void give_up(self) noexcept:
        """What came since `keep` goes."""
        self.is_there.size, self.ends.size = self.kept, 4 * self.kept
        self.data.size, self.nulls = self.kept_bytes, self.kept_nulls

    cdef int put(self, const char* text, Py_ssize_t size) except -1:
        """One more string; NULL: none."""
        cdef int32_t end
        if text is not NULL:
            self.data.put(text, size)
        if self.data.size > 0x7fffffff:
            raise _Odd
        end = <int32_t>self.data.size
        self.ends.put(<char*>&end, 4)
        self.is_there.put_one(text is not NULL)
        self.nulls += text is NULL
        return 0

    cdef tuple taken(self):
        """(strings, nulls, validity bits, offsets, bytes), as Arrow has them."""
        cdef Py_ssize_t count = self.count(), at
        cdef bytes bits = PyBytes_FromStringAndSize(NULL, (count + 7) >> 3)
        cdef uint8_t* into = <uint8_t*>PyBytes_AS_STRING(bits)
        memset(into, 0, (count + 7) >> 3)
        for at in range(count):
            into[at >> 3] |= <uint8_t>(self.is_there.data[at] << (at & 7))
        return count, self.nulls, bits, _offsets(self.ends), _bytes(self.data)


cdef bytes _bytes(Out out):
    return PyBytes_FromStringAndSize(out.data, out.size)


cdef bytes _offsets(Out ends):
    return b"\0\0\0\0" + _bytes(ends)


cdef class Scan:
    """A payload under way, from left to right; it ends in a zero, as the bytes of Python do."""

    cdef const char* at
    cdef const char* end
    cdef bint is_wide

    cdef int take(self, bytes wanted) except -1:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(wanted)
        if self.end - self.at < size or memcmp(self.at, PyBytes_AS_STRING(wanted), size) != 0:
            raise _Odd
        self.at += size
        return 0

    cdef Py_ssize_t string(self, const char** start) except -1:
        """Takes a string without escapes: its bytes, and how many."""
        cdef const char* at = self.at
        cdef uint8_t wide = 0
        if at[0] != 34:
            raise _Odd
        at += 1
        start[0] = at
        while at[0] != 34:
            if <uint8_t>at[0] < 32 or at[0] == 92:  # also the zero at the end
                raise _Odd
            wide |= <uint8_t>at[0]
            at += 1
        self.at = at + 1
        self.is_wide |= wide >= 128
        return at - start[0]

    cdef int text(self, Texts into) except -1:
        """A string, or null."""
        cdef const char* start
        cdef Py_ssize_t size
        if self.at[0] == 110:
            self.take(b"null")
            return into.put(NULL, 0)
        size = self.string(&start)
        return into.put(start, size)

    cdef Py_ssize_t digits(self) except -1:
        """How many are here, at least one; takes them."""
        cdef const char* start = self.at
        while 48 <= self.at[0] <= 57:
            self.at += 1
        if self.at == start:
            raise _Odd
        return self.at - start

    cdef int64_t whole(self) except? -1:
        """An integer of at most 18 digits."""
        cdef bint is_negative = self.at[0] == 45
        cdef const char* at
        cdef int64_t found = 0
        self.at += is_negative
        at = self.at
        size = self.digits()
        if size > 18 or (at[0] == 48 and size > 1):
            raise _Odd
        while at < self.at:
            found = 10 * found + at[0] - 48
            at += 1
        return -found if is_negative else found

    cdef double fraction(self) except? -1.0:
        """A number with a fraction or an exponent."""
        cdef const char* start = self.at
        cdef const char* first
        cdef char* end
        cdef double found
        cdef bint is_whole = True
        self.at += self.at[0] == 45
        first = self.at
        if self.digits() > 1 and first[0] == 48:
            raise _Odd
        if self.at[0] == 46:
            self.at += 1
            self.digits()
            is_whole = False
        if self.at[0] == 101 or self.at[0] == 69:
            self.at += 1
            self.at += self.at[0] == 43 or self.at[0] == 45
            self.digits()
            is_whole = False
        if is_whole:
            raise _Odd
        if self.at - start == 3 and start[0] == 49 and start[2] == 48:
            return 1.0  # the usual propensity
        found = PyOS_string_to_double(start, &end, OverflowError)
        if end != self.at:
            raise _Odd
        return found

    cdef bint goes_on(self) except -1:
        """Behind an entry of a list: whether another follows; else the list is closed."""
        cdef char found = self.at[0]
        self.at += 1
        if found == 44:
            return True
        if found != 93:
            raise _Odd
        return False

    cdef bint opens(self) except -1:
        """Whether a list begins that has entries; one without any is taken."""
        self.take(b"[")
        if self.at[0] == 93:
            self.at += 1
            return False
        return True


cdef class DecisionColumns:
    """What one commit adds, column by column."""

    cdef Texts id, kind, placement, subject, session, version, level, reason, inputs, source
    cdef Texts degraded, items, source_names
    cdef tuple texts
    cdef Out at, days, degraded_ends, item_ends, numbers, scores, propensities, positions
    cdef Py_ssize_t rows
    cdef Scan scan

    def __init__(self):
        self.id, self.kind, self.placement, self.subject, self.session = Texts(), Texts(), Texts(), Texts(), Texts()
        self.version, self.level, self.reason, self.inputs, self.source = Texts(), Texts(), Texts(), Texts(), Texts()
        self.degraded, self.items, self.source_names = Texts(), Texts(), Texts()
        self.texts = (
            self.id, self.kind, self.placement, self.subject, self.session, self.version, self.level, self.reason,
            self.inputs, self.source, self.degraded, self.items, self.source_names,
        )
        self.at, self.days, self.degraded_ends, self.item_ends = Out(), Out(), Out(), Out()
        self.numbers, self.scores, self.propensities, self.positions = Out(), Out(), Out(), Out()
        self.scan = Scan()

    def __len__(self):
        return self.rows

    def add(self, bytes payload, bytes source, int64_t source_position):
        """The row of one payload; whether there is one. If not, nothing has changed, and the twin looks at it."""
        try:
            self.read(payload, source, source_position)
        except (_Odd, OverflowError, TypeError, ValueError):
            self.give_up()
            return False
        for texts in self.texts:
            (<Texts>texts).keep()
        self.rows += 1
        return True

    cdef int read(self, bytes payload, bytes source, int64_t source_position) except -1:
        cdef Scan scan = self.scan
        cdef int64_t micros
        cdef int32_t day, end
        scan.at = PyBytes_AS_STRING(payload)
        scan.end = scan.at + PyBytes_GET_SIZE(payload)
        scan.is_wide = False
        scan.take(b'{"v":1,"id":')
        scan.text(self.id)
        scan.take(b',"at":')
        micros = scan.whole()
        if not 0 <= micros < _end_of_time:
            raise _Odd
        day = <int32_t>(micros // _day)
        scan.take(b',"kind":')
        scan.text(self.kind)
        scan.take(b',"placement":')
        scan.text(self.placement)
        scan.take(b',"subject":')
        scan.text(self.subject)
        scan.take(b',"session":')
        scan.text(self.session)
        scan.take(b',"version":')
        scan.text(self.version)
        scan.take(b',"level":')
        scan.text(self.level)
        scan.take(b',"reason":')
        scan.text(self.reason)
        scan.take(b',"degraded":')
        self.read_texts(self.degraded)
        end = <int32_t>self.degraded.count()
        self.read_items(scan)
        scan.take(b',"experiments":[],"inputs":')
        self.read_inputs(scan)
        if scan.is_wide:
            PyUnicode_DecodeUTF8(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), NULL)
        self.source.put(PyBytes_AS_STRING(source), PyBytes_GET_SIZE(source))
        self.degraded_ends.put(<char*>&end, 4)
        end = <int32_t>self.items.count()
        self.item_ends.put(<char*>&end, 4)
        self.at.put(<char*>&micros, 8)
        self.days.put(<char*>&day, 4)
        return self.positions.put(<char*>&source_position, 8)

    cdef int read_texts(self, Texts into) except -1:
        """A list of strings."""
        cdef const char* start
        cdef Py_ssize_t size
        cdef bint is_open = self.scan.opens()
        while is_open:
            size = self.scan.string(&start)
            into.put(start, size)
            is_open = self.scan.goes_on()
        return 0

    cdef int read_items(self, Scan scan) except -1:
        """The lists that have an entry for each item."""
        cdef Py_ssize_t count
        cdef int64_t number
        cdef int32_t item
        cdef float score
        cdef double propensity
        cdef bytes name
        cdef bint is_open
        scan.take(b',"items":')
        self.read_texts(self.items)
        count = self.items.count()
        scan.take(b',"numbers":')
        is_open = scan.opens()
        while is_open:
            number = scan.whole()
            item = <int32_t>number
            if item != number:
                raise _Odd
            self.numbers.put(<char*>&item, 4)
            is_open = scan.goes_on()
        scan.take(b',"scores":')
        is_open = scan.opens()
        while is_open:
            propensity = scan.fraction()
            if not -FLT_MAX <= propensity <= FLT_MAX:
                raise _Odd
            score = <float>propensity
            self.scores.put(<char*>&score, 4)
            is_open = scan.goes_on()
        scan.take(b',"sources":')
        is_open = scan.opens()
        while is_open:
            number = scan.whole()
            if not 0 <= number < 256 or _sources[number] is None:
                raise _Odd
            name = <bytes>_sources[number]
            self.source_names.put(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
            is_open = scan.goes_on()
        scan.take(b',"rules":[],"propensities":')
        is_open = scan.opens()
        while is_open:
            propensity = scan.fraction()
            self.propensities.put(<char*>&propensity, 8)
            is_open = scan.goes_on()
        if not (
            self.numbers.size == self.scores.size == 4 * count
            and self.source_names.count() == count
            and self.propensities.size == 8 * count
        ):
            raise _Odd
        return 0

    cdef int read_inputs(self, Scan scan) except -1:
        """The last value, as compact JSON with sorted keys."""
        cdef bytes inputs
        if scan.end - scan.at < 3 or scan.at[0] != 123 or scan.end[-1] != 125:
            raise _Odd
        found = _loads(PyBytes_FromStringAndSize(scan.at, scan.end - scan.at - 1))
        inputs = _dumps(found, None, _sorted)
        return self.inputs.put(PyBytes_AS_STRING(inputs), PyBytes_GET_SIZE(inputs))

    cdef void give_up(self) noexcept:
        cdef Py_ssize_t items
        for texts in self.texts:
            (<Texts>texts).give_up()
        items = self.items.count()
        self.numbers.size = self.scores.size = 4 * items
        self.propensities.size = 8 * items
        self.at.size = self.positions.size = 8 * self.rows
        self.days.size = self.degraded_ends.size = self.item_ends.size = 4 * self.rows

    def taken(self):
        """Column -> its buffers, as Arrow has them: of strings (strings, nulls, validity, offsets, bytes), of numbers
        their bytes. `item_offsets` and `degraded_offsets` say which entries belong to which row."""
        return {
            "recommendation_id": self.id.taken(),
            "decided_at": _bytes(self.at),
            "kind": self.kind.taken(),
            "placement": self.placement.taken(),
            "subject_key": self.subject.taken(),
            "session_hash": self.session.taken(),
            "model_version": self.version.taken(),
            "fallback_level": self.level.taken(),
            "fallback_reason": self.reason.taken(),
            "degraded_offsets": _offsets(self.degraded_ends),
            "degraded_reasons": self.degraded.taken(),
            "item_offsets": _offsets(self.item_ends),
            "item_ids": self.items.taken(),
            "item_numbers": _bytes(self.numbers),
            "scores": _bytes(self.scores),
            "sources": self.source_names.taken(),
            "propensities": _bytes(self.propensities),
            "inputs": self.inputs.taken(),
            "source": self.source.taken(),
            "source_position": _bytes(self.positions),
            "decision_date": _bytes(self.days),
        }
