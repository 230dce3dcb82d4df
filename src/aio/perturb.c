/* SPDX-License-Identifier: MIT */
/*
 * aio/perturb.c - what happens in places that may wait, in a build for tests (see perturb.h)
 *
 * Never:   the same twice, where several threads draw from the seed, or time passes; queues without a thread do not sleep, so that
 *          varve crashtest, whose time stands still, does the same for the same seeds.
 */
#include "aio/perturb.h"

#ifdef VARVE_PERTURB

#include "aio/loop.h"
#include "base/math.h"

#include <stdatomic.h>
#include <stdlib.h>

#define ONE_IN 5
#define YIELDS_MAX 20
#define SLEEP_MAX_NS 1000000

static _Atomic uint64_t state; /* 0: not asked for */

__attribute__((constructor)) static void read_seed(void)
{
	const char *seed = getenv("VARVE_PERTURB");

	atomic_init(&state, seed ? strtoull(seed, NULL, 10) << 1 | 1 : 0);
}

/* splitmix64 */
static uint64_t draw(void)
{
	uint64_t z = atomic_fetch_add(&state, 0x9e3779b97f4a7c16u) + 0x9e3779b97f4a7c16u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

void perturb(struct fiber *f)
{
	if (!atomic_load_explicit(&state, memory_order_relaxed) || draw() % ONE_IN)
		return;
	/* As long as a request takes; as long as it takes others to get somewhere; or only until they have had a turn. */
	if (draw() % 4 == 0 && fiber_queue(f)->own_thread)
		fiber_sleep_until(f, queue_now(fiber_queue(f)) + draw() % SLEEP_MAX_NS);
	else if (draw() % 2)
		for (uint64_t i = draw() % YIELDS_MAX; i; i--)
			fiber_yield(f);
	else
		fiber_yield(f);
}

#endif
