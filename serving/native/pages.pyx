# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""The places of a page from the records of a person, each answer and decision written where it was chosen: what `answers`
is for one slate. The person is read once, and what a place shows is kept from those that follow without objects between.
The twin is `api.pages.PageAnswer` with all that it calls; that says what is right.

A page is only for whom `answers` is. A place that is odd, or would be short, is declined alone: the twin makes that one
and says what it shows. `continue` may be short here too: it nearly always is.
"""

from libc.stdint cimport int64_t, uint32_t

from serving.native.answers cimport (
    AnswerWriter, is_answered_here, is_told_by_records, passing, put_slate, why_not_personal
)
from serving.native.begun cimport begun_words, find_begun
from serving.native.chances cimport day_seed
from serving.native.columns cimport Columns, PopularRows, columns_of, popular_rows
from serving.native.filters cimport filters_of
from serving.native.fresh cimport interest, interests_of, named_interests, shelve_fresh
from serving.native.order cimport Room
from serving.native.page_work cimport PageWork, in_words
from serving.native.pieces cimport Written, put_item, reason_text
from serving.native.ruled cimport Ruled, give_back_room, take_room
from serving.native.sessions cimport EVENTS, Record, pick, pick_last, told_of
from serving.native.shelves cimport Shelves, shelves_of
from serving.native.shelving cimport Shelving
from serving.native.showings cimport left_alone
from serving.native.slates cimport Slates
from serving.native.votes cimport Votes
from serving.native.work cimport MOST, Entry, Work, give_back, take_work
from serving.native.writing cimport open_answer

import orjson

from feature_repo.contracts.packing import Source
from serving.native.columns import Declined
from serving.pipeline.catalogue import MAX_REMEMBERED
from serving.pipeline.filters import SlateFilter
from serving.pipeline.item_filters import category_lists
from serving.pipeline.list_inputs import trend_inputs
from serving.pipeline.list_slate import NOTHING_ELIGIBLE, because_of
from serving.pipeline.new_items import new_in_words, older_rows
from serving.pipeline.rotation import DAY_MICROS
from serving.pipeline.ruled_slate import LOOKED_AT
from serving.pipeline.similar import UNKNOWN
from serving.pipeline.trending import Scope, trending_words, voted_rows


cdef object _dumps = orjson.dumps
cdef uint32_t _SIMILAR = Source.ITEM_KNN
cdef uint32_t _TOGETHER = Source.TOGETHER
cdef uint32_t _TRENDING = Source.TRENDING
cdef uint32_t _CONTINUED = Source.CONTINUED
cdef uint32_t _NEW = Source.NEW
cdef uint32_t _CATEGORY = Source.CATEGORY
cdef uint32_t _REGION = Source.REGION
cdef uint32_t _POPULARITY = Source.POPULARITY
cdef uint32_t _STATIC = Source.STATIC
cdef int64_t _DAY_MICROS = DAY_MICROS
cdef Py_ssize_t _LOOKED_AT = LOOKED_AT
cdef Py_ssize_t _MOST_TRENDS = 256  # categories and regions of a window; regions with votes of their own, and windows
cdef tuple _ODD = (Declined, KeyError, OverflowError, TypeError, ValueError, AttributeError)


cdef class PageWriter(AnswerWriter):
    """Of one process."""

    def open(
        self, object asked, object started, object catalogue, object read, object segment, object feature_micros,
        int64_t now_micros, object changes_micros,
    ):
        """A `Page` for a question (`pages.PageQuestion`) of somebody who was read (`OnlineRecords`); None when the twin
        has to answer. The other arguments are those of `AnswerWriter.write`."""
        cdef object request = (<tuple>asked)[1]
        cdef Columns columns = columns_of(catalogue)
        cdef Page page
        if request.policy is not None or not is_answered_here(request, columns, catalogue):
            return None
        page = Page.__new__(Page)
        page.writer, page.columns, page.catalogue, page.request, page.started = self, columns, catalogue, request, started
        page.name, page.item_id, page.asked_micros = (<tuple>asked)[0], (<tuple>asked)[2], (<tuple>asked)[5]
        page.segment, page.feature_micros, page.changes_micros = segment, feature_micros, changes_micros
        page.now_micros = now_micros
        try:
            page.open((<tuple>asked)[4], (<tuple>read)[1], (<tuple>read)[2])
        except _ODD:
            return None
        return page


cdef class Page(PageWork):
    """A page under way. For each place in order `place`, or `add` where that is False; then `body`."""

    def place(self, object place, str answer_id, object policy, object votes):
        """Whether the next place (`pages.Place`) was made; `votes` are those of its window."""
        cdef Py_ssize_t start = self.content.size
        cdef str kind = (<tuple>place)[0]
        self.asked, self.answer_id, self.placement = place, answer_id, (<tuple>place)[2] or kind
        self.level = self.why_not = None
        self.scores = []
        self.placed.count, self.placed.is_personal = 0, True
        self.placed.heard.count = 0
        try:
            if not 0 < <Py_ssize_t>(<tuple>place)[1] <= MOST:
                return False
            if self.count:
                self.content.put_one(44)
            if kind == "recommendations":
                self.recommend(policy)
            elif kind == "similar":
                self.shelve_similar((<tuple>place)[3] or self.item_id)
            elif kind == "bought_together":
                self.shelve_together((<tuple>place)[3] or self.item_id)
            elif kind == "trending":
                self.shelve_trending(votes)
            elif kind == "new":
                self.shelve_new()
            elif kind == "continue":
                self.shelve_continued()
            else:
                raise Declined
        except _ODD:
            self.content.size = start
            return False
        return True

    # Recommendations

    cdef int recommend(self, object policy) except -1:
        self.placed.heard = self.heard
        if policy is None:
            return self.choose(None)
        if not is_told_by_records(policy):
            raise Declined
        return self.arrange(policy) if policy.rules.arrange else self.choose(policy)

    cdef int choose(self, object policy) except -1:
        """`build_slate` where nothing is arranged."""
        cdef Slates slate = Slates.__new__(Slates)
        slate.work = take_work()
        try:
            slate.begin(self.columns, (<tuple>self.asked)[1], self.now_micros)
            if policy is not None:
                filters = passing(policy, self.catalogue, self.now_micros, self.record is None)
                slate.filters = filters_of(filters, self.columns.refused.size)
                slate.added = list(category_lists(filters, self.catalogue).values())
            self.hear(slate)
            self.exclude_known(slate, None if policy is None else policy.rules)
            self.placed.count = slate.fill(
                None, self.packed, self.own, self.segment, self.request, self.catalogue, self.writer.tuning
            )
            if self.placed.count < slate.wanted:
                raise Declined
            self.level = slate.level or "session"
            return self.put_recommended(slate, policy, None)
        finally:
            give_back(slate.work)

    cdef int arrange(self, object policy) except -1:
        """`RuledSlate.arranged`."""
        cdef object rules = policy.rules, tuning = self.writer.tuning, seed = 0
        cdef Py_ssize_t size = (<tuple>self.asked)[1]
        cdef Ruled slate = Ruled.__new__(Ruled)
        cdef Room room = take_room()
        cdef dict shown = {}
        cdef list propensities
        slate.work = take_work()
        try:
            filters = passing(policy, self.catalogue, self.now_micros, self.record is None)
            slate.begin(self.columns, self.catalogue, filters, size, self.now_micros)
            slate.added = list(category_lists(filters, self.catalogue).values())
            self.hear(slate)
            self.exclude_known(slate, rules)
            slate.vote(tuning, tuning.session_weight if self.own else tuning.session_weight_alone)
            slate.take_rungs(self.packed, self.own, self.segment, self.request, self.catalogue)
            if rules.rotation > 0:
                seed = day_seed(self.subject, self.now_micros)
            if rules.fatigue > 0 and self.record is not None:
                shown = left_alone(self.record, self.now_micros - <int64_t>rules.fatigue_days * _DAY_MICROS)
            propensities = slate.place(room, rules, max(4 * size, _LOOKED_AT), seed, shown, self.answer_id)
            if propensities is None:
                raise Declined
            self.placed.count = size
            self.level = slate.level or "session"
            return self.put_recommended(slate, policy, propensities if rules.exploration > 0 else None)
        finally:
            give_back(slate.work)
            give_back_room(room)

    cdef int put_recommended(self, Votes slate, object policy, object propensities) except -1:
        self.why_not = why_not_personal(self.level, self.request, self.candidates)
        open_answer(self.content, self.answer_id, self.placement)
        put_slate(
            slate, self.content, self.prepared, self.placed.count, self.catalogue, self.request, self.segment,
            self.placed.numbers, self.placed.sources, self.scores, policy is None or policy.reasons
        )
        return self.close_place(policy, propensities, None, b"")

    # Lists

    cdef Shelving shelving(self):
        """An empty list, whose memory is to be given back."""
        cdef Shelving shelf = Shelving.__new__(Shelving)
        shelf.work = take_work()
        shelf.begin(self.columns, (<tuple>self.asked)[1], self.now_micros)
        return shelf

    cdef int decline_dismissed(self) except -1:
        """What is like an item is made by the twin for the few who dismissed something."""
        if self.record is not None and self.record.told.dismissed:
            raise Declined
        return 0

    cdef int shelve_similar(self, object item_id) except -1:
        """`similar_items`."""
        cdef Columns columns = self.columns
        cdef int64_t number = columns.number_of(item_id)
        cdef Py_ssize_t start = 0, end = 0
        cdef double ceiling = 1.0
        cdef dict said = {}
        cdef object category = None
        cdef Shelving shelf
        self.decline_dismissed()
        shelf = self.shelving()
        try:
            self.exclude_taken(shelf)
            shelf.exclude_number(number, False)
            if number >= 0:
                category = self.catalogue.category(number)
                because = (<tuple>because_of(number, self.catalogue, "similar to {title}"))[0]
                said[_SIMILAR] = reason_text(self.prepared.place_of(because), because)
                if columns.neighbours.size != columns.similarities.size:
                    raise Declined
                if number < columns.offsets.size - 1:
                    start = (<const uint32_t*>columns.offsets.data)[number]
                    end = min(<Py_ssize_t>(<const uint32_t*>columns.offsets.data)[number + 1], columns.neighbours.size)
            if start < end:
                self.rung("similar", shelf.climb_similar(
                    <const uint32_t*>columns.neighbours.data + start, <const float*>columns.similarities.data + start,
                    end - start, _SIMILAR, &ceiling
                ))
            self.top_up(shelf, category, None, &ceiling, said)
            self.placed.is_personal = False
            return self.put_shelved(
                shelf, said, "similar", UNKNOWN if number < 0 else None, b',"item_id":' + _dumps(item_id)
            )
        finally:
            give_back(shelf.work)

    cdef int shelve_together(self, object item_id) except -1:
        """`bought_together` of one item; what goes with a cart is left to the twin."""
        cdef int64_t number
        cdef double ceiling = 1.0
        cdef dict said = {}, sums = {}
        cdef object category = None
        cdef Shelving shelf
        if item_id is None:
            raise Declined
        self.decline_dismissed()
        number = self.columns.number_of(item_id)
        shelf = self.shelving()
        try:
            self.exclude_taken(shelf)
            shelf.exclude_number(number, False)
            if number >= 0:
                category = self.catalogue.category(number)
                because = (<tuple>because_of(number, self.catalogue, "often bought together with {title}"))[0]
                said[_TOGETHER] = reason_text(self.prepared.place_of(because), because)
                for other, score in self.catalogue.bought_with(number):
                    if not score > 0 or other in sums:
                        raise Declined
                    sums[other] = 0.0 + score
            if sums:
                before = shelf.count
                shelf.climb(sorted(sums.items(), key=_best_first), _TOGETHER, False, &ceiling)
                self.rung("bought_together", shelf.count - <Py_ssize_t>before)
            self.top_up(shelf, category, None, &ceiling, said)
            self.placed.is_personal = False
            return self.put_shelved(
                shelf, said, "bought_together", UNKNOWN if number < 0 else None,
                b',"item_ids":[' + _dumps(item_id) + b"]",
            )
        finally:
            give_back(shelf.work)

    cdef int shelve_trending(self, object votes) except -1:
        """`trending_slate`."""
        cdef object request = self.request, window = (<tuple>self.asked)[4]
        cdef tuple found = _trend_rows(votes, self.catalogue, window, request.category, request.region)
        cdef PopularRows rows = found[0]
        cdef double ceiling = 1.0
        cdef dict said = {}
        cdef Shelving shelf = self.shelving()
        try:
            self.exclude_marks(shelf)
            is_regional = (<object>found[1]).scope is Scope.REGION
            said[_TRENDING] = in_words(trending_words(window, request.region if is_regional else None))
            self.rung("trending", shelf.climb_popular(rows, _TRENDING, &ceiling))
            self.top_up(shelf, request.category, request.region, &ceiling, said)
            self.voted = found
            return self.put_shelved(shelf, said, "trending", None, b',"window":' + _dumps(window))
        finally:
            give_back(shelf.work)

    cdef int shelve_new(self) except -1:
        """`new_slate`."""
        cdef object request = self.request, category = request.category, catalogue = self.catalogue
        cdef double max_age_days = (<tuple>self.asked)[5]
        cdef double ceiling = 1.0, oldest = <double>catalogue.as_of_micros - max_age_days * <double>_DAY_MICROS
        cdef dict said = {}, interests = {}
        cdef Shelving shelf = self.shelving()
        try:
            self.exclude_marks(shelf)
            if catalogue.newest:
                interests = interests_of(
                    self.record, self.packed, self.own, self.segment, catalogue, self.now_micros
                )
                said[_NEW] = interests
                self.rung("new", shelve_fresh(shelf, catalogue, interests, category, oldest, &ceiling))
                if shelf.count < shelf.wanted:
                    before = shelf.count
                    older = older_rows(catalogue, category, oldest)
                    if older:
                        shelf.climb(older, _NEW, False, &ceiling)
                    self.rung("older", shelf.count - <Py_ssize_t>before)
            self.top_up(shelf, category, request.region, &ceiling, said)
            more = b',"max_age_days":' + _dumps((<tuple>self.asked)[5])
            if interests and self.may_store and self.subject is not None:
                more += b',"interests":' + _dumps(dict(sorted(named_interests(interests, catalogue).items())))
            return self.put_shelved(shelf, said, "new", None, more + self.known(False))
        finally:
            give_back(shelf.work)

    cdef int shelve_continued(self) except -1:
        """`continue_slate`."""
        cdef Py_ssize_t places[EVENTS]
        cdef Py_ssize_t picked = 0, count = 0
        cdef double ceiling = 1.0
        cdef object request = self.request, why_not = None
        cdef Record record = self.record
        cdef Shelving shelf = self.shelving()
        shelf.refused = []
        try:
            if record is not None:
                picked = pick(
                    &record.told, request.session_id, self.writer.gap_micros, self.now_micros, places
                ) or pick_last(&record.told, self.writer.gap_micros, places)
                self.placed.heard = told_of(&record.told, places, picked)
                count = find_begun(shelf, record, places, picked)
                record.exclude_dismissed(shelf)
            self.exclude_taken(shelf)
            if count:
                self.rung("continue", shelf.climb_scored(
                    shelf.work.order, shelf.work.heap, count, _CONTINUED, True, &ceiling
                ))
            if self.subject is None:
                why_not = "no_user"
            elif not count:
                why_not = "nothing_begun"
            return self.put_shelved(shelf, {}, "continue", why_not, self.known(True))
        finally:
            give_back(shelf.work)

    cdef bytes known(self, bint is_whole):
        """`list_inputs.marks_of`, or `record_of`, as a decision has it."""
        cdef Py_ssize_t bought = 0, dismissed = 0, events = 0, cart = 0
        if not self.may_store or self.subject is None:
            return b""
        if self.record is not None:
            bought, dismissed = self.record.told.bought, self.record.told.dismissed
            events, cart = self.record.told.events, self.record.told.cart
        if is_whole:
            return b',"known":{"bought":%d,"dismissed":%d,"events":%d,"cart":%d}' % (bought, dismissed, events, cart)
        return b',"known":{"bought":%d,"dismissed":%d}' % (bought, dismissed)

    cdef int top_up(self, Shelving shelf, object category, object region, double* ceiling, dict said) except -1:
        """`popular_rungs`, as far as there is room."""
        cdef object catalogue = self.catalogue
        if shelf.count < shelf.wanted and category:
            found = catalogue.popular_in_category(category)
            if found:
                said[_CATEGORY] = in_words(f"popular in {category}")
                self.rung("category", shelf.climb_popular(popular_rows(found[1]), _CATEGORY, ceiling))
        if shelf.count < shelf.wanted and region is not None:
            found = catalogue.popular_by_region.get(region)
            if found is not None:
                said[_REGION] = in_words(f"popular in {region}")
                self.rung("region", shelf.climb_popular(popular_rows(found), _REGION, ceiling))
        if shelf.count < shelf.wanted and catalogue.popular:
            said[_POPULARITY] = in_words("popular with everybody")
            self.rung("popular", shelf.climb_popular(popular_rows(catalogue.popular), _POPULARITY, ceiling))
        if shelf.count < shelf.wanted and catalogue.static:
            said[_STATIC] = in_words("chosen by the shop")
            self.rung("static", shelf.climb_popular(popular_rows(catalogue.static), _STATIC, ceiling))
        return 0

    cdef int put_shelved(self, Shelving shelf, dict said, str own, object why_not, bytes more) except -1:
        """`list_slate` as it is written; `said`: source -> its reason; of what is new, the person's interests."""
        cdef Work work = shelf.work
        cdef Py_ssize_t at, count
        cdef Entry* entry
        cdef Written* written
        cdef object filtered = None
        cdef bytes because
        if shelf.count < shelf.wanted:
            if shelf.refused is None:
                raise Declined
            filtered = self.counts_of(shelf)
        count = shelf.order()
        self.level = self.level or "none"
        self.why_not = None if self.level == own else why_not or NOTHING_ELIGIBLE
        open_answer(self.content, self.answer_id, self.placement)
        for at in range(count):
            self.prepared.soon_item(work.entries[work.order[at]].number)
        for at in range(count):
            entry = &work.entries[work.order[at]]
            self.placed.numbers[at], self.placed.sources[at] = entry.number, entry.source
            self.scores.append(entry.base)
            if entry.source == _CONTINUED:
                because = in_words(begun_words()[entry.first])
            elif entry.source == _NEW:
                because = _new_in_words(entry.number, self.catalogue, said[_NEW])
            else:
                because = said[entry.source]
            written = self.prepared.of(entry.number)
            put_item(self.content, written, entry.base, at + 1, entry.source)
            self.content.put_bytes(because)
            self.content.put(written.text + written.head, written.size - written.head)
        self.placed.count = count
        if own == "trending":
            more += self.trend() + self.known(False)
        return self.close_place(None, None, filtered, more)

    cdef bytes trend(self):
        """`list_inputs.trend_inputs`, as a decision has it."""
        cdef Py_ssize_t at
        cdef list shown = []
        for at in range(self.placed.count):
            if self.placed.sources[at] == _TRENDING:
                shown.append(self.placed.numbers[at])
        return b',"trend":' + _dumps(trend_inputs(self.voted[1], self.voted[2], shown, needs_all=False))

    cdef dict counts_of(self, Shelving shelf):
        """Filter -> how many of the items it took out, by name."""
        cdef dict taken_out = {}
        cdef Entry* entry
        if not shelf.refused:
            return taken_out
        for number in shelf.refused:
            entry = shelf.work.find(<uint32_t>number)
            if entry.is_excluded:
                taken_out[number] = "dismissed" if entry.is_silenced and number not in self.numbers else "excluded"
        eligible = SlateFilter(self.catalogue, taken_out=taken_out, now_micros=self.now_micros)
        for number in shelf.refused:
            eligible.admits(number)
        return eligible.counts()

cdef bytes _new_in_words(uint32_t number, object catalogue, dict interests):
    """The reason of an item that is new."""
    cdef Shelves shelves = shelves_of(catalogue)
    is_liked = interest(shelves, shelves.category(number), interests) > 0
    remembered = catalogue.remember("native words of new items")
    found = remembered.get((number, is_liked))
    if found is None:
        if len(remembered) >= MAX_REMEMBERED:
            remembered.clear()
        found = remembered[number, is_liked] = in_words(new_in_words(number, catalogue, is_liked=is_liked))
    return found


def _best_first(row):
    return -row[1], row[0]


cdef tuple _trend_rows(object votes, object catalogue, object window, object category, object region):
    """The rows of `trending_slate`, as they are and as `voted_rows` has them, and the error of their votes; worked out
    once for each reading of votes."""
    cdef dict remembered = catalogue.remember("native trends"), of_votes
    cdef tuple key = (category, region), place
    if votes is None:
        raise Declined
    place = (window, None if votes.regional is None else region)
    found = remembered.get(place)
    if found is None or (<tuple>found)[0] is not votes:
        if len(remembered) >= _MOST_TRENDS:
            remembered.clear()
        found = remembered[place] = (votes, {})  # nobody keeps votes that are not read any more
    of_votes = (<tuple>found)[1]
    rows = of_votes.get(key)
    if rows is None:
        if len(of_votes) >= _MOST_TRENDS:
            of_votes.clear()
        voted = voted_rows(votes, catalogue, category, region)
        error = votes.regional.error if voted.scope is Scope.REGION else votes.error
        rows = of_votes[key] = (PopularRows(voted.rows), voted, error)
    return rows
