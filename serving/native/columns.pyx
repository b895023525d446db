# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A catalogue as native code looks into it: its columns where they lie, and its popular lists.

Each place in a record or a map is held against the length of what it lies in before it is read.
"""

from array import array

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t

from serving.native.borrowed cimport PyDict_GetItemWithError
from serving.native.names cimport Names

from serving.pipeline.catalogue import RankedList


class Declined(Exception):
    """The twin has to answer."""


cdef class Column:
    """Numbers of one size, looked into where they lie, and kept alive."""

    def __cinit__(self, object of, Py_ssize_t item_bytes):
        self.is_open = False
        PyObject_GetBuffer(of, &self.view, PyBUF_SIMPLE)
        self.is_open = True
        self.size = self.view.len // item_bytes
        self.data = self.view.buf

    def __dealloc__(self):
        if self.is_open:
            PyBuffer_Release(&self.view)


cdef Column column(object values, str kind):
    """Of a view of such numbers, or of any sequence of them. Raises OverflowError, TypeError."""
    is_view = type(values) is memoryview and values.format == kind and values.contiguous
    return Column(values if is_view else array(kind, values), array(kind).itemsize)


cdef class PopularRows:
    """A popular list: numbers and scores, best first, and of each number its first row, in order of number."""

    def __init__(self, rows):
        first = {}
        for at, (number, _) in enumerate(rows):
            first.setdefault(number, at)
        self.numbers = column([number for number, _ in rows], "I")
        self.scores = column([score for _, score in rows], "d")
        self.by_number = column([at for _, at in sorted(first.items())], "I")

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


cdef PopularRows popular_rows(object rows):
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

    def __init__(self, catalogue):
        self.refusals = catalogue.refusals
        self.refused = Column(catalogue.refusals.flags, 1)
        self.neighbour_offsets = catalogue.neighbour_offsets
        self.offsets = column(catalogue.neighbour_offsets, "I")
        self.neighbours = column(catalogue.neighbour_numbers, "I")
        self.similarities = column(catalogue.similarities, "f")
        self.session_index = catalogue.session_index
        if self.session_index is not None:
            offsets, numbers, weights = self.session_index.columns
            self.index_offsets = column(offsets, "I")
            self.index_numbers = column(numbers, "I")
            self.index_weights = column(weights, "f")
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

    def arrive(self, Py_ssize_t number):
        """An item was given this number, which was nobody's."""
        if self.names is not None:
            self.names.enter(number, self.item_ids[number])

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

    cdef bint are_of(self, object catalogue):
        """Whether the catalogue still has what was looked into."""
        return (
            self.refusals is catalogue.refusals
            and self.neighbour_offsets is catalogue.neighbour_offsets
            and self.session_index is catalogue.session_index
        )

    cdef Names by_name(self):
        """The items by the bytes of their ids, made when it is first asked for."""
        if self.names is None and not self.is_nameless:
            try:
                self.names = Names(self.item_ids, self.numbers)
            except ValueError:
                self.is_nameless = True
        if self.is_nameless:
            raise Declined
        return self.names


cdef Columns columns_of(object catalogue):
    """The catalogue as `Columns`, made once; None when it is of a kind that is not known here."""
    found = catalogue.remember("native").get("columns")
    if found is None:
        try:
            found = Columns(catalogue)
        except (AttributeError, BufferError, OverflowError, TypeError, ValueError):
            found = False
        catalogue.remember("native")["columns"] = found
    return found or None
