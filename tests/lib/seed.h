/* SPDX-License-Identifier: MIT */
/*
 * seed.h - where test programs that draw lots begin
 *
 * The same seed in every run: a change is judged by what it does, not by luck. VARVE_SEED=N begins at another one, which a
 * failure prints; VARVE_SEED=new at one that nobody has tried.
 */
#ifndef VARVE_TEST_SEED_H
#define VARVE_TEST_SEED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline uint64_t seed_of_run(void)
{
	const char *given = getenv("VARVE_SEED");
	struct timespec now = { 0 };
	uint64_t seed = 1;

	if (given && !strcmp(given, "new")) {
		clock_gettime(CLOCK_REALTIME, &now);
		seed = (uint64_t)now.tv_nsec * 2654435761u + (uint64_t)now.tv_sec;
	} else if (given) {
		seed = strtoull(given, NULL, 0);
	}
	printf("# VARVE_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

#endif
