"""The first 64 bits of BLAKE2b with a digest of eight bytes (RFC 7693), as a little-endian number: what `session_hash` and
`session_digest` take. In C, and written out, so that the words stay in registers."""

from libc.stdint cimport uint64_t


cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t nightjar_turned(uint64_t word, int by) { return word >> by | word << (64 - by); }

    #define NIGHTJAR_MIX(a, b, c, d, x, y) \\
        v[a] += v[b] + block[x]; v[d] = nightjar_turned(v[d] ^ v[a], 32); \\
        v[c] += v[d]; v[b] = nightjar_turned(v[b] ^ v[c], 24); \\
        v[a] += v[b] + block[y]; v[d] = nightjar_turned(v[d] ^ v[a], 16); \\
        v[c] += v[d]; v[b] = nightjar_turned(v[b] ^ v[c], 63)
    #define NIGHTJAR_ROUND(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p) \\
        NIGHTJAR_MIX(0, 4, 8, 12, a, b); NIGHTJAR_MIX(1, 5, 9, 13, c, d); \\
        NIGHTJAR_MIX(2, 6, 10, 14, e, f); NIGHTJAR_MIX(3, 7, 11, 15, g, h); \\
        NIGHTJAR_MIX(0, 5, 10, 15, i, j); NIGHTJAR_MIX(1, 6, 11, 12, k, l); \\
        NIGHTJAR_MIX(2, 7, 8, 13, m, n); NIGHTJAR_MIX(3, 4, 9, 14, o, p)

    static uint64_t nightjar_blake2b_8(const void *data, size_t size) {
        static const uint64_t start[8] = {
            0x6A09E667F3BCC908ULL, 0xBB67AE8584CAA73BULL, 0x3C6EF372FE94F82BULL, 0xA54FF53A5F1D36F1ULL,
            0x510E527FADE682D1ULL, 0x9B05688C2B3E6C1FULL, 0x1F83D9ABFB41BD6BULL, 0x5BE0CD19137E2179ULL
        };
        uint64_t state[8], block[16], v[16];
        size_t done = 0;
        memcpy(state, start, sizeof state);
        state[0] ^= 0x01010008;
        do {
            size_t part = size - done < 128 ? size - done : 128;
            memset(block, 0, sizeof block);
            memcpy(block, (const char *)data + done, part);
            done += part;
            memcpy(v, state, sizeof state);
            memcpy(v + 8, start, sizeof start);
            v[12] ^= done;
            if (done == size) v[14] = ~v[14];
            NIGHTJAR_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            NIGHTJAR_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3);
            NIGHTJAR_ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4);
            NIGHTJAR_ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8);
            NIGHTJAR_ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13);
            NIGHTJAR_ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9);
            NIGHTJAR_ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11);
            NIGHTJAR_ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10);
            NIGHTJAR_ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5);
            NIGHTJAR_ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0);
            NIGHTJAR_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            NIGHTJAR_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3);
            for (int at = 0; at < 8; at++) state[at] ^= v[at] ^ v[at + 8];
        } while (done < size);
        return state[0];
    }
    """
    uint64_t blake2b_8 "nightjar_blake2b_8"(const void* data, size_t size) nogil
