# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""A group of events as Redis' commands, what Redis said about it, and the answers, in native code. The twins are
`log_writes.GroupPacker`, `log_writes.settle` and `hot_protocol.accepted`; they say what is right.

Known here are groups of `CommonEvents` alone, and replies as they are when all went well. About all else the twins
decide.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t

from serving.native.intake cimport CommonEvents, Taken
from serving.native.pieces cimport Out, give_back, take_out

from feature_repo.contracts.keys import EVENT_PARTITIONS
from serving.adapters import log_writes as _twin


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef struct Mark:
    Py_ssize_t request, number   # of the group, and of the request's events

cdef struct Multi:
    Py_ssize_t first, count      # of its marks
    Py_ssize_t commands

cdef const char* _HEX = b"0123456789ABCDEF"


cdef class Packed:
    """A group as it is written. `log_writes.Written` says what is asked of it."""

    cdef readonly bytes payload
    cdef readonly Py_ssize_t reply_count
    cdef object group
    cdef Mark* marks
    cdef Multi* multis
    cdef Py_ssize_t multi_count

    def __dealloc__(self):
        PyMem_Free(self.marks)
        PyMem_Free(self.multis)

    def settle(self, list replies):
        """`log_writes.settle` of each MULTI."""
        cdef Py_ssize_t at = 0, number, place
        cdef Multi* multi
        cdef Mark* mark
        cdef list results, found = []
        if len(replies) != self.reply_count:
            raise ValueError("not the replies to this group")
        for request in self.group:
            found.append(request.is_new)
        for number in range(self.multi_count):
            multi = &self.multis[number]
            mark = &self.marks[multi.first]
            error = None
            if not _went_well(replies, at, multi.commands):
                error = _twin.refusal_of(replies[at : at + multi.commands + 2])
            if error is None:
                results = <list?>replies[at + multi.commands + 1]
                for place in range(min(multi.count, len(results))):
                    (<list>found[mark[place].request])[mark[place].number] = results[place] is not None
            else:
                for place in range(multi.count):
                    self.group[mark[place].request].error = error
            at += multi.commands + 2


cdef bint _went_well(list replies, Py_ssize_t at, Py_ssize_t commands) except -1:
    """Whether a MULTI that begins at a reply has nothing but words, numbers and nulls as its replies."""
    cdef Py_ssize_t number
    cdef list results
    for number in range(commands + 1):
        if type(replies[at + number]) is not bytes:
            return False
    if type(replies[at + commands + 1]) is not list:
        return False
    results = <list>replies[at + commands + 1]
    if len(results) != commands:
        return False
    for result in results:
        if type(result) is not bytes and type(result) is not int and result is not None:
            return False
    return True


cdef class GroupWriter:
    """Packs groups of one tenant; by partition: its stream, its INCRBY up to the number, what its marks begin with.
    `set_head`, `set_tail`: what is before and behind the mark and the nonce of a SET."""

    cdef list streams, more, marks
    cdef bytes multi, execute, set_head, set_tail

    def __init__(self, streams, more, marks, bytes multi, bytes execute, bytes set_head, bytes set_tail):
        self.streams, self.more, self.marks = list(streams), list(more), list(marks)
        if not len(self.streams) == len(self.more) == len(self.marks) == EVENT_PARTITIONS:
            raise ValueError("not one of each partition")
        self.multi, self.execute, self.set_head, self.set_tail = multi, execute, set_head, set_tail

    def pack(self, group, Py_ssize_t max_multi, Py_ssize_t max_entry):
        """The group as `GroupPacker` packs it; None when it is for the twin. At most `max_multi` events of a MULTI and
        `max_entry` of a stream's entry."""
        cdef list all_entries = []
        cdef CommonEvents events
        cdef Py_ssize_t total = 0, request, number, at, size
        cdef Py_ssize_t starts[65]
        cdef Packed packed
        cdef Out out
        if EVENT_PARTITIONS > 64:
            return None
        for one in group:
            entries = one.entries
            if type(entries) is not CommonEvents or one.quarantined or one.changes:
                return None
            all_entries.append(entries)
            total += (<CommonEvents>entries).count
        for at in range(EVENT_PARTITIONS + 1):
            starts[at] = 0
        for entries in all_entries:
            events = <CommonEvents>entries
            for number in range(events.count):
                starts[events.events[number].partition + 1] += 1
        for at in range(EVENT_PARTITIONS):
            starts[at + 1] += starts[at]
        packed = Packed.__new__(Packed)
        packed.group = group
        packed.marks = <Mark*>PyMem_Malloc(max(1, total) * sizeof(Mark))
        packed.multis = <Multi*>PyMem_Malloc((total // max_multi + EVENT_PARTITIONS + 1) * sizeof(Multi))
        if not packed.marks or not packed.multis:
            raise MemoryError()
        for request in range(len(all_entries)):
            events = <CommonEvents>all_entries[request]
            for number in range(events.count):
                at = events.events[number].partition
                packed.marks[starts[at]].request = request
                packed.marks[starts[at]].number = number
                starts[at] += 1
        # each start has become the next one's
        out = take_out()
        try:
            number = 0
            for at in range(EVENT_PARTITIONS):
                while number < starts[at]:
                    size = min(max_multi, starts[at] - number)
                    packed.multis[packed.multi_count].first = number
                    packed.multis[packed.multi_count].count = size
                    self._write(out, packed, &packed.multis[packed.multi_count], all_entries, at, max_entry)
                    packed.reply_count += packed.multis[packed.multi_count].commands + 2
                    packed.multi_count += 1
                    number += size
            packed.payload = PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            give_back(out)
        return packed

    cdef int _write(
        self, Out out, Packed packed, Multi* multi, list all_entries, Py_ssize_t partition, Py_ssize_t max_entry
    ) except -1:
        """One MULTI: the marks of all, then their entries in the same order."""
        cdef Mark* marks = &packed.marks[multi.first]
        cdef bytes prefix = <bytes>self.marks[partition], stream = <bytes>self.streams[partition]
        cdef Py_ssize_t at, size, more = 0
        multi.commands = multi.count
        out.put_bytes(self.multi)
        for at in range(multi.count):
            out.put_bytes(self.set_head)
            _put_mark(out, prefix, <CommonEvents>all_entries[marks[at].request], marks[at].number)
            _put_nonce(out, <CommonEvents>all_entries[marks[at].request], marks[at].number)
            out.put_bytes(self.set_tail)
        at = 0
        while at < multi.count:
            size = min(max_entry, multi.count - at)
            _put_entry(out, stream, all_entries, marks + at, size)
            multi.commands += 1
            more += size - 1
            at += size
        if more:
            out.put_bytes(<bytes>self.more[partition])
            out.put_one(36)
            out.put_int(_digits(more))
            out.put(b"\r\n", 2)
            out.put_int(more)
            out.put(b"\r\n", 2)
            multi.commands += 1
        return out.put_bytes(self.execute)


cdef Py_ssize_t _digits(Py_ssize_t number) noexcept:
    cdef Py_ssize_t found = 1
    while number >= 10:
        number //= 10
        found += 1
    return found


cdef inline bint _is_unquoted(uint8_t one) noexcept:
    return 97 <= one <= 122 or 48 <= one <= 57 or 65 <= one <= 90 or one in (95, 46, 126, 45)  # _ . ~ -


cdef int _put_mark(Out out, bytes prefix, CommonEvents events, Py_ssize_t number) except -1:
    """The key of an event's mark, after its length."""
    cdef Taken* event = &events.events[number]
    cdef const uint8_t* name = <const uint8_t*>PyBytes_AS_STRING(events.text) + event.id_start
    cdef Py_ssize_t at, size = event.id_size
    for at in range(event.id_size):
        if not _is_unquoted(name[at]):
            size += 2
    out.put_int(PyBytes_GET_SIZE(prefix) + size)
    out.put(b"\r\n", 2)
    out.put_bytes(prefix)
    if size == event.id_size:
        out.put(<const char*>name, size)
    else:
        for at in range(event.id_size):
            if _is_unquoted(name[at]):
                out.put_one(<char>name[at])
            else:
                out.put_one(37)
                out.put_one(_HEX[name[at] >> 4])
                out.put_one(_HEX[name[at] & 15])
    return out.put(b"\r\n$", 3)


cdef Py_ssize_t _nonce_size(CommonEvents events, Py_ssize_t number) except -1:
    cdef Py_ssize_t size
    PyUnicode_AsUTF8AndSize(events.nonce, &size)
    return size + 1 + _digits(number)


cdef int _put_nonce_alone(Out out, CommonEvents events, Py_ssize_t number) except -1:
    cdef Py_ssize_t size
    cdef const char* nonce = PyUnicode_AsUTF8AndSize(events.nonce, &size)
    out.put(nonce, size)
    out.put_one(46)
    return out.put_int(number)


cdef int _put_nonce(Out out, CommonEvents events, Py_ssize_t number) except -1:
    """The nonce of an event, after its length."""
    out.put_int(_nonce_size(events, number))
    out.put(b"\r\n", 2)
    return _put_nonce_alone(out, events, number)


cdef int _put_entry(Out out, bytes stream, list all_entries, Mark* marks, Py_ssize_t count) except -1:
    """The XADD of an entry of so many events."""
    cdef Py_ssize_t at, events_size = count - 1, nonces_size = count - 1
    cdef CommonEvents events
    cdef Taken* event
    for at in range(count):
        events = <CommonEvents>all_entries[marks[at].request]
        events_size += events.events[marks[at].number].size
        nonces_size += _nonce_size(events, marks[at].number)
    out.put_bytes(b"*7\r\n$4\r\nXADD\r\n$")
    out.put_int(PyBytes_GET_SIZE(stream))
    out.put(b"\r\n", 2)
    out.put_bytes(stream)
    out.put_bytes(b"\r\n$1\r\n*\r\n$5\r\nevent\r\n$" if count == 1 else b"\r\n$1\r\n*\r\n$6\r\nevents\r\n$")
    out.put_int(events_size)
    out.put(b"\r\n", 2)
    for at in range(count):
        if at:
            out.put_one(10)
        events = <CommonEvents>all_entries[marks[at].request]
        event = &events.events[marks[at].number]
        out.put(PyBytes_AS_STRING(events.text) + event.start, event.size)
    out.put_bytes(b"\r\n$5\r\nnonce\r\n$" if count == 1 else b"\r\n$6\r\nnonces\r\n$")
    out.put_int(nonces_size)
    out.put(b"\r\n", 2)
    for at in range(count):
        if at:
            out.put_one(10)
        _put_nonce_alone(out, <CommonEvents>all_entries[marks[at].request], marks[at].number)
    return out.put(b"\r\n", 2)


# --- answers ----------------------------------------------------------------------------------------------------------


def accepted(entries, is_new, bytes head, bytes last):
    """`hot_protocol.accepted`; None when it is for the twin."""
    cdef CommonEvents events
    cdef Out out, body
    cdef Py_ssize_t at
    if type(entries) is not CommonEvents or type(is_new) is not list:
        return None
    events = <CommonEvents>entries
    if len(<list>is_new) != events.count:
        return None
    out, body = take_out(), take_out()
    try:
        body.put_bytes(b'{"results":[')
        for at in range(events.count):
            body.put_bytes(b',{"index":' if at else b'{"index":')
            body.put_int(at)
            body.put_bytes(b',"event_id":"')
            body.put(PyBytes_AS_STRING(events.text) + events.events[at].id_start, events.events[at].id_size)
            body.put_bytes(b'","status":"accepted"}' if (<list>is_new)[at] else b'","status":"duplicate"}')
        body.put(b"]}", 2)
        out.put_bytes(head)
        out.put_bytes(b"content-length: ")
        out.put_int(body.size)
        out.put_bytes(b"\r\ncontent-type: application/json\r\n")
        out.put_bytes(last)
        out.put(b"\r\n", 2)
        out.put(body.data, body.size)
        return PyBytes_FromStringAndSize(out.data, out.size)
    finally:
        give_back(out)
        give_back(body)
