# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Decisions on their way into a worker's file, in native code. The twin is `adapters.decision_frames`; it says what is
right.

Whoever writes needs the interpreter only to open a file, and to say what went wrong: a thread that waits for it is
woken whenever the event loop lets go of it, some eight hundred times for each flush under load, and the loop pays too.

Two threads share the blocks in which frames lie, without a lock, so neither ever waits for the other. The one that
appends fills the last block and hangs the next one behind it; the one that writes takes what is filled from the first.
Each word below is changed by one of them only.
"""

import os
import zlib

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from feature_repo.contracts.decisions import FRAME_MARK, MAX_PAYLOAD_BYTES


cdef extern from * nogil:
    """
    #include <poll.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #define nj_get(from) __atomic_load_n(from, __ATOMIC_ACQUIRE)
    #define nj_put(into, value) __atomic_store_n(into, value, __ATOMIC_RELEASE)
    #define nj_add(to, value) __atomic_fetch_add(to, value, __ATOMIC_ACQ_REL)
    #define nj_swap(in, value) __atomic_exchange_n(in, value, __ATOMIC_ACQ_REL)

    static double nj_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
    }

    /* Whether a byte came within so many seconds. */
    static int nj_hears(int pipe, double seconds) {
        double until = nj_now() + seconds;
        for (;;) {
            struct pollfd asked = {pipe, POLLIN, 0};
            double left = until - nj_now();
            int wait = left <= 0 ? 0 : left > 1e6 ? 1000000000 : (int)(left * 1000.0 + 0.999);
            if (poll(&asked, 1, wait) > 0) return 1;
            if (left <= 0) return 0;
        }
    }
    """
    struct iovec:
        void* iov_base
        size_t iov_len

    Block* get_block "nj_get"(Block** place)
    void put_block "nj_put"(Block** place, Block* block)
    Block* swap_block "nj_swap"(Block** place, Block* block)
    uint64_t get_number "nj_get"(uint64_t* place)
    void put_number "nj_put"(uint64_t* place, uint64_t number)
    uint64_t add_number "nj_add"(uint64_t* place, uint64_t number)
    double now "nj_now"()
    bint hears "nj_hears"(int pipe, double seconds)
    Py_ssize_t writev(int file, const iovec* pieces, int count)
    int fsync(int file)
    int close(int file)
    int getpid()


cdef struct Block:
    Block* next
    uint64_t filled     # by who appends: bytes, and frames in the upper half
    uint64_t taken      # by who writes: the same of what batches took
    uint64_t capacity


cdef struct Batch:
    uint64_t frames
    double seconds


cdef enum:
    BLOCK = 1 << 16           # bytes of frames; a frame that is larger has a block of its own
    KEPT = 32                 # blocks that are not given back to the system
    PIECES = 65               # of one write
    LARGEST_WRITE = 4 << 20   # bytes
    TOLD = 64                 # batches of which nothing was said yet, at most
    HEAD = 12                 # bytes of a frame before its payload

cdef enum Outcome:
    ALL, NO_FILE, UNTOLD, WRITE_FAILED, FSYNC_FAILED

cdef bytes _MARK = FRAME_MARK
cdef Py_ssize_t _MOST = MAX_PAYLOAD_BYTES
cdef object _crc32 = zlib.crc32


cdef inline uint64_t bytes_of(uint64_t both) noexcept nogil:
    return <uint32_t>both


cdef inline uint64_t frames_of(uint64_t both) noexcept nogil:
    return both >> 32


cdef class DecisionFrames:
    """`append` is for one thread, `flush` and `follow` for another one."""

    cdef object on_lost, on_written
    cdef uint64_t max_queued_bytes, max_file_bytes
    cdef double max_file_seconds
    cdef int hears_end, says_end, made_in
    # Of who appends.
    cdef Block* last
    cdef Block* ours
    cdef uint64_t appended_bytes, appended
    # Shared: each is changed by one, but for the number of blocks.
    cdef Block* spare
    cdef uint64_t blocks, written_bytes, settled, batches
    # Of who writes.
    cdef Block* first
    cdef Block* reached
    cdef iovec pieces[PIECES]
    cdef int piece, piece_count
    cdef uint64_t batch_frames, file_bytes
    cdef double opened_at
    cdef int error
    cdef Batch done[TOLD]
    # Under the interpreter's lock.
    cdef uint64_t told
    cdef readonly int file

    def __cinit__(self):
        self.file = self.hears_end = self.says_end = -1

    def __init__(self, *, max_queued_bytes, max_file_bytes, max_file_seconds, on_lost, on_written):
        if self.last != NULL:
            raise TypeError("it was begun already")
        self.max_queued_bytes, self.max_file_bytes = max_queued_bytes, max_file_bytes
        self.max_file_seconds = max_file_seconds
        self.on_lost, self.on_written = on_lost, on_written
        self.made_in = getpid()
        self.hears_end, self.says_end = os.pipe()
        self.first = self.last = self.reached = self.new_block(BLOCK)

    def __dealloc__(self):
        cdef int each
        for each in (self.hears_end, self.says_end):
            if each >= 0:
                close(each)
        free_all(self.first)
        free_all(self.ours)
        free_all(self.spare)

    def append(self, bytes payload not None):
        """Take one payload, or say that it is lost. Never waits."""
        cdef uint64_t size = PyBytes_GET_SIZE(payload)
        cdef uint32_t head[2]
        cdef Block* block = self.last
        cdef char* at
        if size > <uint64_t>_MOST or (
            self.appended_bytes - get_number(&self.written_bytes) + size > self.max_queued_bytes
        ):
            self.on_lost(1)
            return
        head[0], head[1] = <uint32_t>size, <uint32_t>_crc32(payload)
        size += HEAD
        if bytes_of(block.filled) + size > block.capacity:
            block = self.new_block(max(size, <uint64_t>BLOCK))
            put_block(&self.last.next, block)
            self.last = block
        at = <char*>(block + 1) + bytes_of(block.filled)
        memcpy(at, PyBytes_AS_STRING(_MARK), 4)
        memcpy(at + 4, head, 8)
        memcpy(at + HEAD, PyBytes_AS_STRING(payload), size - HEAD)
        put_number(&block.filled, block.filled + size + (<uint64_t>1 << 32))
        self.appended_bytes += size
        self.appended += 1
        if get_number(&self.batches) != self.told:
            self.tell()

    @property
    def waiting(self):
        """Frames that are neither on disk nor lost."""
        return self.appended - get_number(&self.settled)

    def begin(self, int file, uint64_t file_bytes):
        """Write into this file from now on, which has so many bytes."""
        self.file, self.file_bytes, self.opened_at = file, file_bytes, now()

    def end(self):
        """Give the file up."""
        self.shut()

    def flush(self):
        """Write and fsync what waits, and give a full or old file up. False when there is no file. Raises OSError."""
        cdef Outcome outcome
        while True:
            with nogil:
                outcome = self.write_all()
            self.tell()
            if outcome == UNTOLD:
                continue
            if outcome >= WRITE_FAILED:
                self.fail(outcome)
            return outcome == ALL

    def follow(self, double seconds, bint once):
        """Flush every so many seconds, until there is no file for what waits, or after the first time (`once`). False
        when the end was asked for. Raises OSError."""
        cdef Outcome outcome = ALL
        cdef bint goes_on
        while True:
            with nogil:
                while True:
                    goes_on = not hears(self.hears_end, seconds)
                    if not goes_on:
                        break
                    if not self.has_more():
                        if self.batches != get_number(&self.told):
                            break  # nobody appends any more, so nobody tells
                    outcome = self.write_all()
                    if outcome != ALL or once:
                        break
            self.tell()
            if outcome >= WRITE_FAILED:
                self.fail(outcome)
            if not goes_on or outcome == NO_FILE or once:
                return goes_on

    def stop(self):
        """`follow` ends."""
        if getpid() == self.made_in:  # a forked process has the pipe, but not the thread
            os.write(self.says_end, b".")

    cdef int tell(self) except -1:
        """What became of the batches since the last time."""
        cdef uint64_t frames = 0, upto = get_number(&self.batches)
        if self.told == upto:
            return 0
        seconds = []
        while self.told != upto:
            frames += self.done[self.told % TOLD].frames
            seconds.append(self.done[self.told % TOLD].seconds)
            put_number(&self.told, self.told + 1)
        self.on_written(frames, seconds)
        return 0

    cdef int fail(self, Outcome outcome) except -1:
        cdef uint64_t lost = self.batch_frames
        if outcome == FSYNC_FAILED:
            self.batch_frames = 0
            self.on_lost(lost)
        raise OSError(self.error, os.strerror(self.error))

    cdef Block* new_block(self, uint64_t capacity) except NULL:
        cdef Block* block = NULL
        if capacity == BLOCK:
            if self.ours == NULL:
                self.ours = swap_block(&self.spare, NULL)
            block = self.ours
        if block != NULL:
            self.ours = block.next
        else:
            block = <Block*>malloc(sizeof(Block) + capacity)
            if block == NULL:
                raise MemoryError()
            add_number(&self.blocks, 1)
        block.next, block.filled, block.taken, block.capacity = NULL, 0, 0, capacity
        return block

    cdef void give_back(self, Block* block) noexcept nogil:
        cdef Block* head
        if block.capacity != BLOCK or get_number(&self.blocks) > KEPT:
            add_number(&self.blocks, <uint64_t>-1)
            free(block)
            return
        head = swap_block(&self.spare, NULL)  # who appends may take all of them, but hangs none in
        block.next = head
        put_block(&self.spare, block)

    cdef bint has_more(self) noexcept nogil:
        """Whether there is a batch that was not written whole, or frames that no batch has."""
        if self.piece < self.piece_count:
            return True
        return get_block(&self.first.next) != NULL or get_number(&self.first.filled) != self.first.taken

    cdef Outcome write_all(self) noexcept nogil:
        cdef Outcome outcome
        while self.has_more():
            outcome = self.write_batch()
            if outcome != ALL:
                return outcome
        if self.file >= 0 and (
            self.file_bytes >= self.max_file_bytes or now() - self.opened_at >= self.max_file_seconds
        ):
            self.shut()
        return ALL

    cdef void take_batch(self) noexcept nogil:
        """Whole frames, so many as one write takes."""
        cdef Block* block = self.first
        cdef Block* behind
        cdef uint64_t filled, size = 0
        self.piece = self.piece_count = 0
        while self.piece_count < PIECES and size < LARGEST_WRITE:
            behind = get_block(&block.next)  # first: once it is there, nothing is filled in here any more
            filled = get_number(&block.filled)
            if filled != block.taken:
                self.pieces[self.piece_count].iov_base = <char*>(block + 1) + bytes_of(block.taken)
                self.pieces[self.piece_count].iov_len = bytes_of(filled) - bytes_of(block.taken)
                size += bytes_of(filled) - bytes_of(block.taken)
                self.batch_frames += frames_of(filled) - frames_of(block.taken)
                self.piece_count += 1
                block.taken = filled
            if behind == NULL:
                break
            block = behind
        self.reached = block

    cdef Outcome write_batch(self) noexcept nogil:
        cdef double began = now()
        cdef uint64_t batches = self.batches
        cdef Py_ssize_t written
        if self.file < 0:
            return NO_FILE
        if batches - get_number(&self.told) >= TOLD:
            return UNTOLD
        if self.piece == self.piece_count:
            self.take_batch()
        while self.piece < self.piece_count:
            # After a short write the file goes on exactly where it stopped: whole frames may be in Delta already.
            written = writev(self.file, &self.pieces[self.piece], self.piece_count - self.piece)
            if written < 0:
                if errno == EINTR:
                    continue
                self.error = errno
                return WRITE_FAILED
            self.count_written(written)
        if not self.has_synced():
            # What the kernel kept of these pages is unknown; a second fsync would only seem to succeed.
            self.shut()
            self.settle()
            return FSYNC_FAILED
        self.settle()
        self.done[batches % TOLD].frames = self.batch_frames
        self.done[batches % TOLD].seconds = now() - began
        self.batch_frames = 0
        put_number(&self.batches, batches + 1)
        return ALL

    cdef void count_written(self, uint64_t written) noexcept nogil:
        cdef iovec* piece
        self.file_bytes += written
        add_number(&self.written_bytes, written)
        while self.piece < self.piece_count and written >= self.pieces[self.piece].iov_len:
            written -= self.pieces[self.piece].iov_len
            self.piece += 1
        if written:
            piece = &self.pieces[self.piece]
            piece.iov_base = <char*>piece.iov_base + written
            piece.iov_len -= written

    cdef bint has_synced(self) noexcept nogil:
        while fsync(self.file) != 0:
            if errno != EINTR:
                self.error = errno
                return False
        return True

    cdef void settle(self) noexcept nogil:
        """The batch is on disk, or lost: its blocks are free."""
        cdef Block* block
        add_number(&self.settled, self.batch_frames)
        while self.first != self.reached:
            block = self.first
            self.first = get_block(&block.next)
            self.give_back(block)

    cdef void shut(self) noexcept nogil:
        if self.file >= 0:
            close(self.file)
        self.file = -1


cdef void free_all(Block* block) noexcept:
    cdef Block* behind
    while block != NULL:
        behind = block.next
        free(block)
        block = behind
