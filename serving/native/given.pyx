# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Given items in order, and the decision, from the records of a person in one call: what `answers` is for slates. The twin
is the way through `Recommender`, `rank_given`, `render_answer` and `recommendation_decision`; that says what is right.

Declined is what `answers` and `ranking` decline, and a list that ends with ids which the version does not know.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint32_t

from serving.native.answers cimport HEADER, AnswerWriter, deeds_of, is_answered_here, why_not_personal
from serving.native.columns cimport Columns, columns_of
from serving.native.pieces cimport Items, Out, Written, give_back, items_of, put_item, take_out
from serving.native.ranking cimport Ranking
from serving.native.sessions cimport Heard, hear_record
from serving.native.work cimport MOST, Entry, Work, take_work
from serving.native.work cimport give_back as give_back_work
from serving.native.writing cimport close_answer, open_answer

import orjson

from feature_repo.contracts.packing import Source
from serving.native.columns import Declined
from serving.pipeline.filters import SlateFilter

cdef object _dumps = orjson.dumps
cdef uint32_t _SESSION = Source.SESSION
cdef frozenset _SOURCES = frozenset(map(int, Source))


cdef class GivenWriter(AnswerWriter):
    """Of one process."""

    def rank(self, object question, list item_ids, object started, object catalogue, object read, object feature_micros,
             int64_t now_micros, object changes_micros):
        """As `AnswerWriter.write`, for these items."""
        cdef object request = (<tuple>question)[0]
        cdef Columns columns = columns_of(catalogue)
        cdef Ranking ranking
        cdef Out out
        if request.policy is not None or not is_answered_here(request, columns, catalogue):
            return None
        ranking = Ranking.__new__(Ranking)
        ranking.columns = columns
        ranking.work = take_work()
        out = take_out()
        try:
            ranking.begin(now_micros)
            return self.ranked(
                ranking, out, question, item_ids, started, catalogue, (<tuple>read)[1], (<tuple>read)[2], feature_micros,
                changes_micros,
            )
        except (Declined, KeyError, OverflowError, TypeError, ValueError, AttributeError):
            return None
        finally:
            give_back(out)
            give_back_work(ranking.work)

    cdef tuple ranked(
        self, Ranking ranking, Out out, object question, list item_ids, object started, object catalogue,
        bytes candidates, bytes session, object feature_micros, object changes_micros
    ):
        cdef object request = (<tuple>question)[0]
        cdef Work work = ranking.work
        cdef Items prepared
        cdef Heard heard
        cdef list refused = [], scores = []
        cdef dict unknown = {}
        cdef Py_ssize_t own = 0, count, shown, personal, popular, at
        cdef const uint8_t* packed = NULL
        cdef double lowest = 1.0
        cdef bint has_votes = False, has_silenced = False
        cdef uint32_t numbers[MOST]
        cdef uint32_t sources[MOST]
        cdef str level
        cdef object session_micros = None, reason
        cdef bytes body
        if candidates is not None:
            own = self.rows_of(candidates, catalogue)
            packed = <const uint8_t*>PyBytes_AS_STRING(candidates) + HEADER
        count = ranking.enter_given(item_ids, request.exclude_item_ids, refused, unknown)
        shown = min(count, <Py_ssize_t>request.num_results)
        if unknown and shown < request.num_results:
            return None
        personal = ranking.look_up_rows(packed, own, &lowest)
        popular = ranking.look_up_popularity(count, catalogue.popularity, lowest)
        heard.count = 0
        if session is not None:
            heard = hear_record(ranking, session, request.session_id, self.gap_micros, deeds_of(None), INT64_MIN)
            for at in range(count):
                has_silenced = has_silenced or work.entries[work.order[at]].is_silenced
        if heard.count and count:
            ranking.cast(self.tuning)
            has_votes = ranking.weigh(self.tuning)
        ranking.arrange(count, has_votes, has_silenced)
        level = "personal" if personal else "session" if has_votes else "popular" if popular else "given"
        reason = why_not_personal(level, request, candidates)
        if heard.count:
            session_micros = heard.newest

        prepared = items_of(catalogue)
        open_answer(out, (<tuple>question)[1], (<tuple>question)[2])
        put_ranked(ranking, out, prepared, shown, has_votes, numbers, sources, scores)
        close_answer(
            out, catalogue, (self.timer() - started) // 1000, level, reason, None, (<tuple>question)[4], feature_micros,
            session_micros, changes_micros
        )
        if shown < request.num_results:
            out.put_bytes(b',"filtered":')
            out.put_bytes(_dumps(counts_of(refused, catalogue, ranking.now_micros)))
        out.put_bytes(b',"unknown_item_ids":[]}')
        body = PyBytes_FromStringAndSize(out.data, out.size)

        self.decide(out, question, catalogue, level, reason, prepared, numbers, sources, scores, None, &heard)
        out.put_bytes(b',"item_ids":')
        out.put_bytes(_dumps(item_ids))
        out.put_bytes(b"}}")
        return body, PyBytes_FromStringAndSize(out.data, out.size), level


cdef int put_ranked(
    Ranking ranking, Out out, Items prepared, Py_ssize_t count, bint has_votes, uint32_t* numbers, uint32_t* sources,
    list scores
) except -1:
    """The items as they are written, without reasons, with number, source and score of each."""
    cdef Work work = ranking.work
    cdef Entry* entry
    cdef Written* written
    cdef Py_ssize_t at
    for at in range(count):
        prepared.soon_item(work.entries[work.order[at]].number)
    for at in range(count):
        entry = &work.entries[work.order[at]]
        numbers[at] = entry.number
        sources[at] = _SESSION if ranking.is_of_session(entry, has_votes) else entry.source
        if sources[at] not in _SOURCES:
            raise Declined
        scores.append(entry.score)
        written = prepared.of(entry.number)
        put_item(out, written, entry.score, at + 1, sources[at])
        out.put(written.text + written.head, written.size - written.head)
    return 0


cdef dict counts_of(list refused, object catalogue, int64_t now_micros):
    """Filter -> how many of the items it took out."""
    eligible = SlateFilter(catalogue, taken_out={}, now_micros=now_micros)
    for number in refused:
        eligible.admits(number)
    return eligible.counts()
