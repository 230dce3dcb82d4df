/* SPDX-License-Identifier: MIT */
/*
 * tools/crashtest_shrink.c - a failure of varve crashtest made small
 *
 * A write that need not be kept for the state to fail is dropped, a torn one that fails as a whole is whole.
 * What is left over is what somebody has to understand.
 */
#include "crashtest.h"

#include <string.h>

static bool still_fails(struct ct_lab *lab, const struct ct_state *s, struct ct_result *r)
{
	struct ct_result mine = { 0 };

	if (ct_lab_try(lab, s, &mine) != 1)
		return false;
	memcpy(r->why, mine.why, sizeof(r->why));
	return true;
}

static void fewer_writes(struct ct_lab *lab, const struct ct_log *l, struct ct_state *s, struct ct_result *r)
{
	/* Halves first, then quarters, at last one by one. */
	for (unsigned step = s->cut - s->first; step; step /= 2) {
		for (unsigned at = 0; at < s->cut - s->first; at += step) {
			unsigned nr = MIN(step, s->cut - s->first - at);
			uint8_t old[4096];

			if (nr > sizeof(old))
				continue;
			memcpy(old, s->keep + at, nr);
			for (unsigned i = 0; i < nr; i++)
				s->keep[at + i] = l->entries[s->first + at + i].flags & CT_FUA ? 1 : 0;
			if (!memcmp(old, s->keep + at, nr))
				continue;
			if (!still_fails(lab, s, r))
				memcpy(s->keep + at, old, nr);
		}
	}
}

void ct_shrink_state(struct ct_lab *lab, const struct ct_log *l, struct ct_state *s, struct ct_result *r)
{
	fewer_writes(lab, l, s, r);
	for (unsigned i = 0; i < s->cut - s->first; i++) {
		if (s->keep[i] != 2)
			continue;
		s->keep[i] = 1;
		if (!still_fails(lab, s, r))
			s->keep[i] = 2;
	}
}
