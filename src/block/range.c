/* SPDX-License-Identifier: MIT */
/*
 * block/range.c - overlap serialisation: who changes a range first, who waits
 *
 * Owns:    the list of locked ranges of one node; the locks themselves lie on fiber stacks.
 * Assumes: home queue only. The list is short (at most one lock per fiber), a walk is cheap.
 * Never:   lets a later locker overtake an earlier one that it overlaps, so nobody starves.
 */
#include "block/range.h"
#include "aio/perturb.h"

void ranges_init(struct ranges *rs)
{
	TAILQ_INIT(&rs->list);
}

/* The first range before `until` (NULL: of all) that overlaps [off, end). */
static struct range *range_find(const struct ranges *rs, const struct range *until, uint64_t off, uint64_t end)
{
	struct range *r;

	TAILQ_FOREACH (r, &rs->list, link) {
		if (r == until)
			return NULL;
		if (r->off < end && off < r->end)
			return r;
	}
	return NULL;
}

/*
 * A range joins the list at once, at the end, and then waits until nothing before it overlaps. A range that waits
 * therefore already holds back those that come after it: first come, first served.
 */
void range_lock(struct fiber *f, struct ranges *rs, struct range *r, uint64_t off, uint64_t len)
{
	struct range *other;

	r->off = off;
	r->end = off + len;
	r->waiting = (struct waitlist){ 0 };
	TAILQ_INSERT_TAIL(&rs->list, r, link);
	while ((other = range_find(rs, r, r->off, r->end)))
		waitlist_wait(f, &other->waiting);
	perturb(f);
}

void range_unlock(struct ranges *rs, struct range *r)
{
	TAILQ_REMOVE(&rs->list, r, link);
	waitlist_wake_all(&r->waiting);
}

bool ranges_overlap(const struct ranges *rs, uint64_t off, uint64_t len)
{
	return range_find(rs, NULL, off, off + len) != NULL;
}
