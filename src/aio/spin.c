/* SPDX-License-Identifier: MIT */
/*
 * aio/spin.c - is it better to spin before sleeping, or to sleep at once?
 *
 * Owns:    see spin.h.
 * Assumes: see spin.h.
 * Never:   see spin.h.
 */
#include "aio/spin.h"

#include <string.h>

#include "base/math.h"

/* Pauses of a measurement, and before it, until the client has got used to the other way. */
#define MEASURE_PAUSES 16u
#define SETTLE_PAUSES 4u

/* Pauses for which an answer is used, at first and at last. */
#define USE_FIRST 256u
#define USE_LAST 65536u

/* Rounds after which it may be over. */
#define SPIN_EARLY 2u

/* So many spins in vain without one that pays, or long sleeps in a contest, show that nobody is there. */
#define NOBODY 4u

static void use(struct spin *s, bool best, unsigned again)
{
	s->best = s->spins = best;
	s->phase = SPIN_USE;
	s->left = s->again = again;
	s->nr_vain = s->nr_long = 0;
}

void spin_init(struct spin *s, uint64_t max_ns)
{
	memset(s, 0, sizeof(*s));
	s->max_ns = max_ns;
	use(s, false, USE_FIRST);
}

static void settle(struct spin *s, bool spins)
{
	s->spins = spins;
	s->phase = SPIN_SETTLE;
	s->left = SETTLE_PAUSES;
}

/* Five of them: the median is untouched by the one that another program has spoilt. */
static uint64_t median(const uint64_t cost[SPIN_ROUNDS])
{
	uint64_t sorted[SPIN_ROUNDS];

	for (unsigned i = 0; i < SPIN_ROUNDS; i++) {
		unsigned k = i;

		for (; k && sorted[k - 1] > cost[i]; k--)
			sorted[k] = sorted[k - 1];
		sorted[k] = cost[i];
	}
	return sorted[SPIN_ROUNDS / 2];
}

/* The contest has an answer. */
static void decide(struct spin *s, bool best)
{
	s->nr_contests++;
	use(s, best, best == s->best ? MIN(4 * s->again, USE_LAST) : USE_FIRST);
}

/* Every measurement of a way, so far, is below this part of every one of the other way. */
static bool always_below(const struct spin *s, bool way, unsigned mul, unsigned div)
{
	unsigned nr = s->round / 2;

	for (unsigned i = 0; i < nr; i++) {
		for (unsigned k = 0; k < nr; k++) {
			if (s->cost[way][i] * div >= s->cost[!way][k] * mul)
				return false;
		}
	}
	return true;
}

/* After two rounds what is plain, after all of them what is left. */
static void round_done(struct spin *s)
{
	if (s->round < 2 * SPIN_EARLY || s->round % 2)
		settle(s, !s->spins);
	else if (always_below(s, false, 1, 1))
		decide(s, false);
	else if (always_below(s, true, 1, 2))
		decide(s, true);
	else if (s->round == 2 * SPIN_ROUNDS)
		decide(s, 5 * median(s->cost[true]) < 4 * median(s->cost[false]));
	else
		settle(s, !s->spins);
}

void spin_next(struct spin *s, uint64_t now_ns, uint64_t done)
{
	switch (s->phase) {
	case SPIN_USE:
		s->round = 0;
		s->nr_long = s->nr_vain = 0;
		settle(s, !s->best);
		return;
	case SPIN_SETTLE:
		s->begin_ns = now_ns;
		s->begin_done = done;
		s->phase = SPIN_MEASURE;
		s->left = MEASURE_PAUSES;
		return;
	case SPIN_MEASURE:
		/* A queue that counts nothing is judged by its pauses, of which there were as many each time. */
		s->cost[s->spins][s->round / 2] = (now_ns - s->begin_ns) * 256 / MAX(done - s->begin_done, 1u);
		s->round++;
		round_done(s);
		return;
	}
}

void spin_in_vain(struct spin *s)
{
	if (++s->nr_vain < NOBODY)
		return;
	if (s->phase == SPIN_USE)
		use(s, false, USE_FIRST);
	else
		decide(s, false);
}

void spin_slept(struct spin *s, uint64_t ns)
{
	if (ns < 4 * s->max_ns)
		return;
	if (s->phase == SPIN_USE)
		s->left++;
	else if (++s->nr_long >= NOBODY)
		use(s, false, USE_FIRST);
}
