# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Features out of Feast's layout in Redis by native code. The twins are in `adapters.feature_rows`.

What is odd is not read here: `rows_of` gives None for all of it, and the twin says what is wrong.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy


cdef extern from "Python.h":
    bytes PyUnicode_AsUTF8String(object text)
    str PyUnicode_DecodeUTF8(const char* data, Py_ssize_t size, const char* errors)


cdef enum:
    STRING = 2 << 3 | 2
    INT32 = 3 << 3 | 0
    INT64 = 4 << 3 | 0
    DOUBLE = 5 << 3 | 1
    FLOAT = 6 << 3 | 5
    TRUTH = 7 << 3 | 0
    NULL_TAG = 0x98


def keys_of(bytes head, tuple order, bytes project, entities):
    """`feature_rows.keys_of`."""
    cdef list keys = [], raws
    cdef bytes raw, key
    cdef Py_ssize_t size, fixed = PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(project)
    cdef uint32_t two[2]
    cdef char* at
    two[0] = 2
    for entity in entities:
        raws = [PyUnicode_AsUTF8String(entity[place]) for place in order]
        size = fixed
        for raw in raws:
            size += 8 + PyBytes_GET_SIZE(raw)
        key = PyBytes_FromStringAndSize(NULL, size)
        at = PyBytes_AS_STRING(key)
        memcpy(at, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head))
        at += PyBytes_GET_SIZE(head)
        for raw in raws:
            two[1] = <uint32_t>PyBytes_GET_SIZE(raw)
            memcpy(at, two, 8)
            memcpy(at + 8, PyBytes_AS_STRING(raw), two[1])
            at += 8 + two[1]
        memcpy(at, PyBytes_AS_STRING(project), PyBytes_GET_SIZE(project))
        keys.append(key)
    return keys


def commands_of(list keys, bytes fields, Py_ssize_t arguments):
    """`feature_rows.commands_of`."""
    cdef bytes head = b"*%d\r\n$5\r\nHMGET\r\n$" % arguments, key, packed
    cdef Py_ssize_t heads = PyBytes_GET_SIZE(head), size = 0, length, digits, rest
    cdef char* at
    for key in keys:
        length = PyBytes_GET_SIZE(key)
        size += heads + _digits(length) + 4 + length + PyBytes_GET_SIZE(fields)
    packed = PyBytes_FromStringAndSize(NULL, size)
    at = PyBytes_AS_STRING(packed)
    for key in keys:
        memcpy(at, PyBytes_AS_STRING(head), heads)
        at += heads
        length = rest = PyBytes_GET_SIZE(key)
        digits = _digits(length)
        for place in range(digits - 1, -1, -1):
            at[place] = <char>(48 + rest % 10)
            rest //= 10
        at += digits
        memcpy(at, b"\r\n", 2)
        memcpy(at + 2, PyBytes_AS_STRING(key), length)
        at += 2 + length
        memcpy(at, b"\r\n", 2)
        memcpy(at + 2, PyBytes_AS_STRING(fields), PyBytes_GET_SIZE(fields))
        at += 2 + PyBytes_GET_SIZE(fields)
    return packed


cdef inline Py_ssize_t _digits(Py_ssize_t number) noexcept:
    cdef Py_ssize_t digits = 1
    while number >= 10:
        number //= 10
        digits += 1
    return digits


def rows_of(list replies, Py_ssize_t features):
    """`feature_rows.rows_of`; None where the twin has to look."""
    cdef list rows = [], reply
    cdef tuple row
    cdef object value, micros = None, last = None, moment
    cdef Py_ssize_t place
    cdef int64_t instant = 0
    try:
        for found in replies:
            reply = found
            if reply is None or PyList_GET_SIZE(reply) != features + 1:
                return None
            moment = <object>PyList_GET_ITEM(reply, features)
            if moment is not None and moment is not last and not (
                last is not None and PyBytes_GET_SIZE(moment) == PyBytes_GET_SIZE(last)
                and memcmp(PyBytes_AS_STRING(moment), PyBytes_AS_STRING(last), PyBytes_GET_SIZE(last)) == 0
            ):
                if not _instant(moment, &instant):
                    return None
                micros, last = instant, moment
            row = PyTuple_New(features + 1)
            for place in range(features):
                value = None if moment is None else _value(<object>PyList_GET_ITEM(reply, place))
                if value is _ODD:
                    return None
                Py_INCREF(value)
                PyTuple_SET_ITEM(row, place, value)
            value = None if moment is None else micros
            Py_INCREF(value)
            PyTuple_SET_ITEM(row, features, value)
            rows.append(row)
    except (TypeError, UnicodeDecodeError):
        return None
    return rows


cdef object _ODD = object()


cdef object _value(object given):
    """A value, or _ODD."""
    cdef bytes message = given
    cdef const uint8_t* data
    cdef Py_ssize_t size, at = 1
    cdef uint64_t number = 0
    cdef double wide
    cdef float narrow
    if message is None:
        return None
    size = PyBytes_GET_SIZE(message)
    if size == 0:
        return None
    data = <const uint8_t*>PyBytes_AS_STRING(message)
    if data[0] == DOUBLE:
        if size != 9:
            return _ODD
        memcpy(&wide, data + 1, 8)
        return wide
    if data[0] == INT64 or data[0] == INT32:
        at = _varint(data, size, 1, &number)
        return <int64_t>number if at == size else _ODD
    if data[0] == STRING:
        at = _varint(data, size, 1, &number)
        if at < 0 or number != <uint64_t>(size - at):
            return _ODD
        return PyUnicode_DecodeUTF8(<const char*>data + at, size - at, NULL)
    if data[0] == FLOAT:
        if size != 5:
            return _ODD
        memcpy(&narrow, data + 1, 4)
        return <double>narrow
    if data[0] == TRUTH:
        return _ODD if size != 2 else data[1] != 0
    return None if data[0] == NULL_TAG else _ODD


cdef Py_ssize_t _varint(const uint8_t* data, Py_ssize_t size, Py_ssize_t at, uint64_t* number) noexcept:
    """The place behind the varint at this one; -1 when it is cut short, or is of more than 63 bits and no negative
    number of 64."""
    cdef int shift = 0
    number[0] = 0
    while at < size and shift < 64:
        if shift == 63 and data[at] != 1:
            return -1
        number[0] |= <uint64_t>(data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return at
        shift += 7
    return -1


cdef bint _instant(object given, int64_t* micros) except -1:
    """Whether it is a Timestamp of seconds and nanoseconds, each once, after 1970; then it is here."""
    cdef bytes message = given
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(message)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(message), at = 0
    cdef uint64_t seconds = 0, nanos = 0
    if at < size and data[at] == 8:
        at = _varint(data, size, at + 1, &seconds)
    if 0 < at < size and data[at] == 16:
        at = _varint(data, size, at + 1, &nanos)
    if at != size or seconds > 1 << 40 or nanos > 1 << 40:
        return False
    micros[0] = <int64_t>(seconds * 1000000 + nanos // 1000)
    return True
