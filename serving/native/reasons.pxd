"""Why each item is in a slate. Declarations; `reasons.pyx` says what each does."""

from serving.native.votes cimport Votes


cdef list explain(Votes slate, Py_ssize_t count, object catalogue, object request, object person)
