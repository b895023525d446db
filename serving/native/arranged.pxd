"""Arranged slates as answers. Declarations; `arranged.pyx` says what each does."""

from serving.native.answers cimport AnswerWriter
from serving.native.order cimport Room
from serving.native.pieces cimport Out
from serving.native.ruled cimport Ruled
from serving.native.sessions cimport Heard, Record


cdef class ArrangedWriter(AnswerWriter):
    cdef tuple arranged(
        self, Ruled slate, Room room, Out out, object question, object request, object started, object catalogue,
        bytes candidates, bytes session, object segment, object feature_micros, object changes_micros
    )
    cdef Heard hear(self, Ruled slate, Record record, bytes session, object request, object rules) except *
