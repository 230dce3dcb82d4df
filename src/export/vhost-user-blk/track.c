/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/track.c - recording requests, and finding those of a process that is no more
 *
 * Owns:    see track.h.
 * Assumes: see track.h.
 * Never:   uses an index from the region before it is compared with the ring's size, or walks a list for more
 *          steps than the ring has places.
 */
#include "export/vhost-user-blk/track.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "export/vhost-user-blk/vring.h"

static int damaged(struct varve_error *err, const char *what, unsigned value)
{
	return varve_error_set(err, -EINVAL, "the in-flight area is damaged, or not this ring's: %s %u", what,
			       value);
}

/* version and desc_num as they were read, once. */
static int check_head(uint16_t version, uint16_t desc_num, unsigned num, struct varve_error *err)
{
	if (version != INFLIGHT_VERSION)
		return varve_error_set(err, -EINVAL, "the in-flight area has version %u, %d is supported",
				       version, INFLIGHT_VERSION);
	if (desc_num != num)
		return varve_error_set(err, -EINVAL,
				       "the in-flight area was used with a ring of %u, this one has %u",
				       desc_num, num);
	return 0;
}

/* ---- requests in the order in which they were taken ---- */

struct taken {
	uint64_t counter;
	uint16_t slot;
};

static int by_counter(const void *a, const void *b)
{
	const struct taken *x = a, *y = b;

	return x->counter < y->counter ? -1 : x->counter > y->counter;
}

static void sort_redo(struct track *t, struct taken *taken, unsigned nr)
{
	qsort(taken, nr, sizeof(*taken), by_counter);
	for (unsigned i = 0; i < nr; i++)
		t->redo[i] = taken[i].slot;
	t->nr_redo = (uint16_t)nr;
	t->counter = nr ? taken[nr - 1].counter + 1 : 0;
}

/* ---- split ---- */

static void make_fresh_split(struct track *t, unsigned num, uint16_t used_idx)
{
	struct inflight_split_region *r = t->split;

	memset(r->desc, 0, num * sizeof(r->desc[0]));
	r->features = 0;
	r->desc_num = (uint16_t)num;
	r->last_batch_head = 0;
	r->used_idx = used_idx;
	track_order();
	r->version = INFLIGHT_VERSION;
}

/* The last batch was shown to the driver, but not all of it cleared here. */
static int finish_batch_split(struct inflight_split_region *r, unsigned num, uint16_t used_idx, uint16_t last,
			      struct varve_error *err)
{
	uint16_t nr = (uint16_t)(used_idx - r->used_idx), head = last;

	if (nr > num)
		return damaged(err, "the last batch would have", nr);
	for (; nr; nr--) {
		if (head >= num)
			return damaged(err, "the list of the last batch names descriptor", head);
		r->desc[head].inflight = 0;
		head = *(volatile uint16_t *)&r->desc[head].next;
	}
	track_order();
	r->used_idx = used_idx;
	return 0;
}

int track_open_split(struct track *t, void *region, unsigned num, uint16_t ring_used_idx,
		     uint16_t *next_avail, struct varve_error *err)
{
	struct inflight_split_region *r = region;
	struct taken taken[VRING_NUM_MAX];
	uint16_t version = *(volatile uint16_t *)&r->version, desc_num = *(volatile uint16_t *)&r->desc_num;
	unsigned nr = 0;
	int ret;

	t->split = r;
	if (version == INFLIGHT_FRESH) {
		make_fresh_split(t, num, ring_used_idx);
		return 0;
	}
	ret = check_head(version, desc_num, num, err);
	if (ret < 0)
		return ret;
	t->last_batch_head = *(volatile uint16_t *)&r->last_batch_head;
	ret = finish_batch_split(r, num, ring_used_idx, t->last_batch_head, err);
	if (ret < 0)
		return ret;
	for (unsigned i = 0; i < num; i++) {
		if (r->desc[i].inflight)
			taken[nr++] = (struct taken){ r->desc[i].counter, (uint16_t)i };
	}
	sort_redo(t, taken, nr);
	t->resumed = true;
	/* Every entry that was taken is either used or in flight. */
	*next_avail = (uint16_t)(ring_used_idx + nr);
	return 0;
}

/*
 * A guest that offers descriptors anew which it was not shown as used makes a batch longer than its ring is. Of what then has
 * no place in the list some stays "in flight", and a process after us will do it again: the guest asked for worse.
 */
void track_published_split(struct track *t, uint16_t used_idx)
{
	unsigned nr = MIN(t->nr_batch, (unsigned)VRING_NUM_MAX);

	track_order();
	for (unsigned i = 0; i < nr; i++)
		t->split->desc[t->batch[i]].inflight = 0;
	track_order();
	t->split->used_idx = used_idx;
	t->nr_batch = 0;
}

/* ---- packed ---- */

void track_take_packed(struct track *t, const struct vring *v, uint16_t slot)
{
	struct inflight_packed_desc *d = &t->packed->desc[slot];

	d->num = v->slot[slot].nr;
	d->last = v->slot[slot].last;
	d->counter = t->counter++;
	d->inflight = 1;
	track_order();
	/* Until here the free list that counts still has these descriptors, so that nothing was taken. */
	t->packed->free_head = v->free_head;
	t->packed->old_free_head = v->free_head;
	track_order();
}

void track_publish_packed(struct track *t, struct vring *v)
{
	struct inflight_packed_region *r = t->packed;

	for (unsigned i = 0; i < t->nr_batch; i++) {
		const struct vring_packed_slot *s = &v->slot[t->batch[i]];

		r->desc[s->last].next = v->next[s->last] = v->free_head;
		r->free_head = v->free_head = t->batch[i];
		v->nr_out -= s->nr;
	}
	r->used_idx = v->used_idx;
	r->used_wrap_counter = v->used_wrap;
	track_order();
}

void track_published_packed(struct track *t, const struct vring *v)
{
	struct inflight_packed_region *r = t->packed;

	track_order();
	for (unsigned i = 0; i < t->nr_batch; i++)
		r->desc[t->batch[i]].inflight = 0;
	track_order();
	r->old_free_head = v->free_head;
	r->old_used_idx = v->used_idx;
	r->old_used_wrap_counter = v->used_wrap;
	t->nr_batch = 0;
}

static void make_fresh_packed(struct track *t, const struct vring *v)
{
	struct inflight_packed_region *r = t->packed;

	memset(r->desc, 0, v->num * sizeof(r->desc[0]));
	for (unsigned i = 0; i < v->num; i++)
		r->desc[i].next = v->next[i];
	r->features = 0;
	r->desc_num = v->num;
	r->free_head = r->old_free_head = v->free_head;
	r->used_idx = r->old_used_idx = v->used_idx;
	r->used_wrap_counter = r->old_used_wrap_counter = v->used_wrap;
	track_order();
	r->version = INFLIGHT_VERSION;
}

/* Which of the two states the driver has seen: the one before the last batch, or the one after it. */
static bool was_shown(const struct vring *v, const struct inflight_packed_region *old)
{
	uint16_t flags =
		load16((const uint16_t *)(v->desc + old->old_used_idx * DESC_LEN + 14), __ATOMIC_ACQUIRE);

	return (flags & (DESC_AVAIL | DESC_USED)) != (old->old_used_wrap_counter ? DESC_AVAIL : DESC_USED);
}

/* What each place of the region is. */
enum place { PLACE_UNKNOWN, PLACE_FREE, PLACE_TAKEN };

static void clear_free(struct inflight_packed_region *r, unsigned num, uint16_t at, uint8_t *place)
{
	for (unsigned i = 0; i < num && at < num && place[at] == PLACE_UNKNOWN; i++) {
		place[at] = PLACE_FREE;
		r->desc[at].inflight = 0;
		at = *(volatile uint16_t *)&r->desc[at].next;
	}
}

/* Adopts the request whose record begins at slot; the ring's own list takes its links over. */
static int adopt(struct vring *v, struct inflight_packed_region *r, uint16_t slot, uint8_t *place,
		 struct varve_error *err)
{
	uint16_t nr = *(volatile uint16_t *)&r->desc[slot].num, at = slot, last = slot;

	if (!nr || nr > v->num - v->nr_out)
		return damaged(err, "a request has a number of descriptors of", nr);
	for (uint16_t i = 0; i < nr; i++) {
		if (at >= v->num || place[at] != PLACE_UNKNOWN)
			return damaged(err, "a request goes on at place", at);
		place[at] = PLACE_TAKEN;
		v->slot[slot].id = *(volatile uint16_t *)&r->desc[at].id;
		last = at;
		at = *(volatile uint16_t *)&r->desc[at].next;
		v->next[last] = at;
	}
	v->slot[slot].nr = nr;
	v->slot[slot].last = last;
	v->nr_out += nr;
	return 0;
}

/* Everything that no request holds becomes the free list, here and in the region. */
static void rebuild_free(struct vring *v, struct inflight_packed_region *r, const uint8_t *place)
{
	uint16_t head = v->num;

	for (unsigned i = v->num; i-- > 0;) {
		if (place[i] == PLACE_TAKEN)
			continue;
		v->next[i] = r->desc[i].next = head;
		head = (uint16_t)i;
	}
	v->free_head = head;
	track_order();
	r->free_head = r->old_free_head = head;
	r->used_idx = r->old_used_idx = v->used_idx;
	r->used_wrap_counter = r->old_used_wrap_counter = v->used_wrap;
}

/*
 * A batch that was not shown may have left its marks behind its first descriptor, where the driver will look
 * when that one is shown at last, perhaps with other requests behind it. So everything between the next used
 * and the next available place looks like taken again.
 */
static void erase_marks(struct vring *v)
{
	uint16_t pos = v->used_idx;
	bool wrap = v->used_wrap;

	for (unsigned i = 0; i < v->nr_out; i++) {
		uint16_t *flags = (uint16_t *)(v->desc + pos * DESC_LEN + 14);

		store16(flags, wrap ? DESC_AVAIL : DESC_USED, __ATOMIC_RELAXED);
		if (++pos == v->num) {
			pos = 0;
			wrap = !wrap;
		}
	}
	v->next_avail = pos;
	v->avail_wrap = wrap;
}

static int resume_packed(struct track *t, struct vring *v, const struct inflight_packed_region *head,
			 struct varve_error *err)
{
	struct inflight_packed_region *r = t->packed;
	struct taken taken[VRING_NUM_MAX];
	uint8_t place[VRING_NUM_MAX] = { PLACE_UNKNOWN };
	bool in_between = head->used_idx != head->old_used_idx ||
			  head->used_wrap_counter != head->old_used_wrap_counter;
	bool shown = in_between && was_shown(v, head);
	unsigned nr = 0;

	v->used_idx = shown ? head->used_idx : head->old_used_idx;
	v->used_wrap = shown ? head->used_wrap_counter : head->old_used_wrap_counter;
	clear_free(r, v->num, shown ? head->free_head : head->old_free_head, place);
	for (uint16_t i = 0; i < v->num; i++) {
		if (place[i] != PLACE_UNKNOWN || !r->desc[i].inflight)
			continue;
		if (adopt(v, r, i, place, err) < 0)
			return -EINVAL;
		taken[nr++] = (struct taken){ r->desc[i].counter, i };
	}
	sort_redo(t, taken, nr);
	rebuild_free(v, r, place);
	/* Every descriptor that was taken is either used or in flight: behind those is the next one. */
	erase_marks(v);
	t->resumed = true;
	return 0;
}

int track_open_packed(struct track *t, void *region, struct vring *v, struct varve_error *err)
{
	struct inflight_packed_region head;
	int ret;

	t->packed = region;
	memcpy(&head, region, sizeof(head));
	__asm__ volatile("" : : "r"(&head) : "memory");
	if (head.version == INFLIGHT_FRESH) {
		make_fresh_packed(t, v);
		return 0;
	}
	ret = check_head(head.version, head.desc_num, v->num, err);
	if (ret < 0)
		return ret;
	if (head.used_idx >= v->num || head.old_used_idx >= v->num)
		return damaged(err, "its used position is", MAX(head.used_idx, head.old_used_idx));
	return resume_packed(t, v, &head, err);
}
