/* SPDX-License-Identifier: MIT */
/*
 * aio/spin.h - is it better to spin before sleeping, or to sleep at once? Found out by trying both
 *
 * Whether a sleep costs more than spinning cannot be told from how long the sleeps are: where processors are scarce, the one that
 * spins takes the time that his client needs, and sleeps that end soon after a spin in vain show just that. And a client that
 * would have to be woken anyway gains nothing from a server that is awake. So both ways are tried in turns, for a few pauses each,
 * and what is compared is the time that passed for each thing done. Spinning has to be better by a quarter, for it
 * costs a processor. The answer is used for a while, a longer one each time it comes out the same.
 *
 *	USE ──used long enough──▶ SETTLE ──a few pauses──▶ MEASURE      a *pause*: nothing is ready
 *	 ▲                          ▲                       │  │
 *	 │                          └───the other way───────┘  │
 *	 └──────────all rounds measured, or nobody there───────┘
 *
 * Owns:    what was measured.
 * Assumes: one thread.
 * Never:   lets a queue spin for a client that is not there: spinning in vain a few times in a row ends it, and pauses
 *          that are long do not count towards the next try.
 */
#ifndef VARVE_AIO_SPIN_H
#define VARVE_AIO_SPIN_H

#include <stdbool.h>
#include <stdint.h>

#define SPIN_ROUNDS 5u

enum spin_phase { SPIN_USE, SPIN_SETTLE, SPIN_MEASURE };

struct spin {
	uint64_t max_ns; /* the longest spin */
	bool spins;	 /* until the next pause that is not counted out */
	bool best;	 /* the answer in use */
	enum spin_phase phase;
	unsigned left;	/* pauses in this phase */
	unsigned again; /* pauses for which the answer is used */
	unsigned nr_vain, nr_long;
	unsigned round; /* two for each of SPIN_ROUNDS */
	uint64_t begin_ns, begin_done;
	uint64_t cost[2][SPIN_ROUNDS]; /* time for each thing done: sleeping at once, spinning */
	unsigned nr_contests;
};

/* Sleeps at once for a start. */
void spin_init(struct spin *s, uint64_t max_ns);

/* At every pause. True: spin_next() wants the time, and what was done since the queue began. */
static inline bool spin_pause(struct spin *s)
{
	return --s->left == 0;
}

void spin_next(struct spin *s, uint64_t now_ns, uint64_t done);

/* Spinning found something, or not. */
static inline void spin_paid(struct spin *s)
{
	s->nr_vain = 0;
}

void spin_in_vain(struct spin *s);

/* It slept that long. */
void spin_slept(struct spin *s, uint64_t ns);

#endif
