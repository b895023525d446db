"""A session record as tables of fixed size. Declarations; `rows.pyx` says what each does."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum:
    NAMES = 2048         # of a record with its new events
    SLOTS = 4096         # where names are looked up; a power of two
    ROOM = 512           # of these for what new events name
    # room for rows: the bound of each list, and one that comes before the oldest goes
    EVENTS = 51
    STEPS = 31
    CARTS = 64
    MARKS = 200
    SEEN = 101
    INTERESTS = 101
    SHOWN = 201
    VOTES = 64
    KINDS = 64
    WORDS = 5
    NOWHERE = 65535

cdef struct Name:
    const char* at
    Py_ssize_t size
    uint16_t place       # in the record that is written

cdef struct Deed:        # an event, or a step, which has no name
    int64_t micros
    uint64_t session
    uint32_t mark
    uint16_t name
    uint8_t kind

cdef struct Change:
    int64_t micros
    uint32_t mark
    uint16_t quantity, name
    uint8_t is_removal

cdef struct Mark:
    int64_t micros
    uint16_t name

cdef struct ByDay:
    uint16_t day, name, number

cdef struct Vote:
    uint32_t period
    uint32_t number      # the how many-th to come
    uint16_t name
    uint8_t window, bucket

cdef struct Count:
    uint32_t number
    uint8_t kind

cdef struct Word:
    int64_t micros
    uint16_t name
    uint8_t which

cdef struct Record:
    int64_t consent, first, last
    uint8_t flags
    Py_ssize_t names, events, steps, carts, bought, dismissed, seen, interests, shown, votes, old_votes, counts, words
    Name name[NAMES]
    Deed event[EVENTS]
    Deed step[STEPS]
    Change cart[CARTS]
    Mark bought_at[MARKS]
    Mark dismissed_at[MARKS]
    Mark seen_at[SEEN]
    ByDay interest[INTERESTS]
    ByDay showing[SHOWN]
    Vote vote[VOTES]
    Vote old_vote[VOTES]
    Count count[KINDS]
    Word word[WORDS]


cdef Record* opened(bytes record) except? NULL
cdef bytes packed()
cdef uint16_t name_of(const char* text, Py_ssize_t size) noexcept
cdef int compare(uint16_t one, uint16_t other) noexcept
cdef bint marks_in_order(Mark* one, Mark* other) noexcept
cdef int day_order(ByDay* one, ByDay* other) noexcept
cdef int vote_order(Vote* one, Vote* other) noexcept
