"""Why each item is in a slate. Declarations; `reasons.pyx` says what each does."""

from libc.stdint cimport uint32_t

from serving.native.votes cimport Votes
from serving.native.work cimport Entry


cdef list explain(Votes slate, Py_ssize_t count, object catalogue, object request, object person)
cdef tuple because_of_session(Votes slate, list kept, uint32_t number, object catalogue)
cdef bint is_of_session(Votes slate, Entry* entry) noexcept
