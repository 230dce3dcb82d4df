/* SPDX-License-Identifier: MIT */
/*
 * vu_util.h - what every part of the vhost-user front end needs: errors, time, random numbers
 *
 * Owns:    nothing.
 * Assumes: nothing; usable from any thread.
 * Never:   prints, exits, or includes anything of varve: this library proves the protocol
 *          from outside, so it shares no line with the code that it proves.
 */
#ifndef VU_UTIL_H
#define VU_UTIL_H

#include <stdint.h>

/*
 * Where a failing function explains itself, in one line without a newline. Every function of
 * this library that can fail returns 0 (or a count) on success and -errno on failure, and fills
 * one of these, which belongs to the object it worked on (`front->err`, `ring->err`, `blk->err`).
 */
struct vu_err {
	char text[320];
};

/* Write the text (err may be NULL) and return ret, so that `return vu_fail(...)` reads well. */
int vu_fail(struct vu_err *err, int ret, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t vu_now_ns(void);

/* The moment timeout_ms from now, as vu_now_ns() counts. */
uint64_t vu_deadline_ns(unsigned timeout_ms);

/* Milliseconds until deadline_ns, rounded up, 0 when it has passed: an argument for poll(). */
int vu_ms_left(uint64_t deadline_ns);

/*
 * The next number of a splitmix64 sequence. *state is the seed at first; two different seeds
 * give unrelated sequences, and the same seed always gives the same one.
 */
static inline uint64_t vu_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* A number below limit (limit > 0), with a bias too small to matter here. */
static inline uint64_t vu_random_below(uint64_t *state, uint64_t limit)
{
	return (uint64_t)(((unsigned __int128)vu_random(state) * limit) >> 64);
}

#endif
