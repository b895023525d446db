# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The commands that read a person, packed by native code. The twin is `online.ReadCommands`, which made the parts."""

from libc.stdint cimport uint32_t

from serving.native.pieces cimport Out, give_back, take_out

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef class CommandWriter:
    """Of one tenant. `parts` has, for a user and for a device, the keys of the session, of the older session and of the
    edges up to where the id goes."""

    cdef bytes newer, older, edges, device_newer, device_older, device_edges
    cdef bytes entity, project, fields

    def __init__(self, parts, device_parts, entity, project, fields):
        self.newer, self.older, self.edges = parts
        self.device_newer, self.device_older, self.device_edges = device_parts
        self.entity, self.project, self.fields = entity, project, fields

    def of_user(self, object user_id, bytes own):
        """Those of a user, with the list whose key begins with `own`; None when the id has to be quoted."""
        cdef Py_ssize_t size
        cdef const char* name = _plain(user_id, &size)
        cdef uint32_t raw
        cdef Py_ssize_t entity
        cdef Out out
        if name is NULL:
            return None
        out = take_out()
        try:
            out.put_bytes(b"*4\r\n$4\r\nMGET\r\n")
            _put_key(out, self.newer, name, size)
            _put_key(out, self.older, name, size)
            _put_key(out, own, name, size)
            out.put_bytes(b"*2\r\n$7\r\nHGETALL\r\n")
            _put_key(out, self.edges, name, size)
            out.put_bytes(b"*4\r\n$5\r\nHMGET\r\n$")
            entity = PyBytes_GET_SIZE(self.entity) + 4 + size + PyBytes_GET_SIZE(self.project)
            out.put_int(entity)
            out.put_bytes(b"\r\n")
            out.put_bytes(self.entity)
            raw = <uint32_t>size
            out.put(<const char*>&raw, 4)
            out.put(name, size)
            out.put_bytes(self.project)
            out.put_bytes(b"\r\n")
            out.put_bytes(self.fields)
            return PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            give_back(out)

    def of_device(self, object anonymous_id):
        """Those of a device; None when the id has to be quoted."""
        cdef Py_ssize_t size
        cdef const char* name = _plain(anonymous_id, &size)
        cdef Out out
        if name is NULL:
            return None
        out = take_out()
        try:
            out.put_bytes(b"*3\r\n$4\r\nMGET\r\n")
            _put_key(out, self.device_newer, name, size)
            _put_key(out, self.device_older, name, size)
            out.put_bytes(b"*2\r\n$7\r\nHGETALL\r\n")
            _put_key(out, self.device_edges, name, size)
            return PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            give_back(out)


cdef const char* _plain(object name, Py_ssize_t* size) except? NULL:
    """The bytes of an id that stands in a key as it is; NULL for another."""
    cdef const char* text
    cdef Py_ssize_t at
    cdef char one
    try:
        text = PyUnicode_AsUTF8AndSize(name, size)
    except UnicodeEncodeError:
        return NULL
    for at in range(size[0]):
        one = text[at]
        if not (97 <= one <= 122 or 48 <= one <= 57 or 65 <= one <= 90 or one in (95, 46, 126, 45)):  # _ . ~ -
            return NULL
    return text


cdef int _put_key(Out out, bytes key, const char* name, Py_ssize_t size) except -1:
    """`$length` and the key of a name, with the brace that ends its hash tag."""
    out.put_one(36)
    out.put_int(PyBytes_GET_SIZE(key) + size + 1)
    out.put_bytes(b"\r\n")
    out.put_bytes(key)
    out.put(name, size)
    return out.put_bytes(b"}\r\n")
