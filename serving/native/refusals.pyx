# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Refusals in native code: the address of a request that came whole, found without parsing it. The twin is
`serving.api.front_protocol.whole_post_by_twin`. And bytes that leave for a socket at once."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.string cimport memchr, memcmp


cdef extern from *:
    """
    #define _GNU_SOURCE
    """


cdef extern from "<string.h>" nogil:
    void* memmem(const void* where, size_t size, const void* what, size_t length)


cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char* one, const char* other, size_t size)


cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    enum: MSG_DONTWAIT


cdef extern from *:
    """
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    """
    enum: MSG_NOSIGNAL


cdef inline bint _begins(const char* line, Py_ssize_t size, const char* name, Py_ssize_t length) noexcept nogil:
    return size >= length and strncasecmp(line, name, length) == 0


cdef bint _is_unusual(const char* line, Py_ssize_t size) noexcept nogil:
    """Whether a header needs a parser: it changes where the request ends, or what the answer says."""
    cdef Py_ssize_t length = 0
    if _begins(line, size, b"transfer-encoding", 17):
        length = 17
    elif _begins(line, size, b"expect", 6):
        length = 6
    elif _begins(line, size, b"upgrade", 7):
        length = 7
    elif _begins(line, size, b"x-request-id", 12):
        length = 12
    if length:
        return size > length and (line[length] == c' ' or line[length] == c':')
    if _begins(line, size, b"connection", 10):
        return not (size == 22 and strncasecmp(line + 10, b": keep-alive", 12) == 0)
    return False


cdef Py_ssize_t _length_in(const char* line, Py_ssize_t size) noexcept nogil:
    """What a content-length says; -1 for another header, -2 for one that is not plain, or whose name only begins so."""
    cdef Py_ssize_t at = 15, found = 0
    if not _begins(line, size, b"content-length:", 15):
        return -2 if _begins(line, size, b"content-length", 14) else -1
    if at < size and line[at] == c' ':
        at += 1
    if at == size or size - at > 9:
        return -2
    while at < size:
        if not c'0' <= line[at] <= c'9':
            return -2
        found = 10 * found + (line[at] - c'0')
        at += 1
    return found


def whole_post(bytes data):
    """`serving.api.front_protocol.whole_post_by_twin`."""
    cdef const char* text = PyBytes_AS_STRING(data)
    cdef const char* end
    cdef const char* line
    cdef const char* next_line
    cdef const char* path_end
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), length = -1, found
    if size < 20 or memcmp(text, b"POST /", 6):
        return None
    end = <const char*>memmem(text, size, b"\r\n\r\n", 4)
    if end == NULL:
        return None
    line = <const char*>memchr(text, c'\r', end - text + 1)
    path_end = <const char*>memchr(text + 5, c' ', line - text - 5)
    if path_end == NULL or line - path_end != 9 or line[1] != c'\n' or memcmp(path_end, b" HTTP/1.1", 9):
        return None
    if memchr(text + 5, c'\n', path_end - text - 5) != NULL:
        return None
    while line < end:
        line += 2
        next_line = <const char*>memmem(line, end + 2 - line, b"\r\n", 2)
        found = _length_in(line, next_line - line)
        if found == -2 or (found >= 0 and length >= 0) or _is_unusual(line, next_line - line):
            return None
        if found >= 0:
            length = found
        line = next_line
    if length < 0 or size != end + 4 - text + length:
        return None
    return PyBytes_FromStringAndSize(text + 5, path_end - text - 5)


def send(int fd, bytes data):
    """How many of the bytes the socket took at once; 0 where it takes none now, or is broken."""
    cdef ssize_t done
    cdef const char* text = PyBytes_AS_STRING(data)
    cdef size_t size = PyBytes_GET_SIZE(data)
    with nogil:
        done = c_send(fd, text, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        while done < 0 and errno == EINTR:
            done = c_send(fd, text, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    return done if done > 0 else 0
