/* SPDX-License-Identifier: MIT */
/*
 * order/writeout.c - the block queue: sections reach the disk, one after the other
 *
 * Owns:    the way of a section: closed, written, synced, gone; and the one fiber that does it at a time.
 * Assumes: node_flush() on the file returns 0 only when the kernel made all writes stable that had completed
 *          before.
 * Never:   writes an entry of a section before the sync of the section before it succeeded.
 */
#include "aio/perturb.h"
#include "base/trace.h"
#include "block/event.h"
#include "order/queue.h"

#include <errno.h>
#include <stdlib.h>

/*
 * The writes of one section have no order between them: a wave of them is in flight together. It goes out
 * when its requests or its vector are used up.
 */
struct wave {
	uint64_t len; /* bytes */
	unsigned nr, nr_iov;
};

/* New bytes that were changed before they were written are both. */
static uint32_t sector_flags(const struct sector *s)
{
	return req_flags_of(s->first_event, s->event != s->first_event ? s->event : EVENT_UNNAMED);
}

static int wave_write(struct fiber *f, struct order *o, struct wave *w)
{
	int err = w->nr ? node_write_all(f, o->file, o->writes, w->nr) : 0;

	if (err < 0)
		return err;
	TRACE2(order_write, w->nr, w->len);
	o->stats.writes += w->nr;
	o->stats.bytes += w->len;
	*w = (struct wave){ 0 };
	return 0;
}

/* Neighbours of different events are written as one, unless somebody below listens. */
static bool same_event(const struct order *o, const struct node_write *last, uint32_t flags)
{
	return last->flags == flags || !(o->file->flags & NODE_EVENTS);
}

static int wave_add(struct fiber *f, struct order *o, struct wave *w, uint64_t off, uint8_t *bytes,
		    unsigned len, uint32_t flags)
{
	struct node_write *last = w->nr ? &o->writes[w->nr - 1] : NULL;
	bool joins = last && last->off + last->len == off && same_event(o, last, flags);

	if (w->nr_iov == ORDER_IOV || (w->nr == ORDER_WRITES && !joins)) {
		int err = wave_write(f, o, w);

		if (err < 0)
			return err;
		joins = false;
	}
	o->iov[w->nr_iov] = (struct iovec){ bytes, len };
	if (joins) {
		last->len += len;
		last->nr_iov++;
	} else {
		last = &o->writes[w->nr++];
		last->off = off;
		last->len = len;
		last->flags = flags;
		last->iov = &o->iov[w->nr_iov];
		last->nr_iov = 1;
	}
	w->nr_iov++;
	w->len += len;
	return 0;
}

/* The section is closed: its list and bytes stand still while we wait for the disk. */
static int section_write(struct fiber *f, struct order *o, struct section *sec)
{
	struct wave w = { 0 };
	int err = 0;

	sec->list = sector_sort(sec->list);
	for (struct sector *s = sec->list; s && err == 0; s = s->next) {
		unsigned from = 0, len;

		for (; err == 0 && sector_run(s, &from, &len); from += len)
			err = wave_add(f, o, &w, s->nr * SECTOR_LEN + from, s->bytes + from, len,
				       sector_flags(s));
	}
	return err < 0 ? err : wave_write(f, o, &w);
}

static void section_retire(struct order *o, struct section *sec)
{
	while (sec->list) {
		struct sector *s = sec->list;

		sec->list = s->next;
		sector_remove(&o->table, s);
		free(s);
	}
	TAILQ_REMOVE(&o->sections, sec, link);
	free(sec);
	o->stats.sections++;
}

/*
 * The mark that a sync beginning now makes durable: all sections without entries that follow are covered by
 * it too, which lets it serve everybody whose data completed while the section was being written.
 */
static uint64_t sync_covers(const struct order *o, const struct section *written)
{
	const struct section *next = written ? TAILQ_NEXT(written, link) : TAILQ_FIRST(&o->sections);

	return next ? next->nr - 1 : o->open;
}

/*
 * "Every write that had completed" is true of both files when both syncs, which begin later, have succeeded; in which order they do
 * says nothing. What the data file's sync lost the leaf remembers: it fails until the bytes have been written again, and so no
 * entry that leads there is ever written behind it.
 */
static int sync_files(struct fiber *f, struct order *o)
{
	int err = o->data ? node_flush(f, o->data) : 0;

	return err < 0 ? err : node_flush(f, o->file);
}

/*
 * One section with its sync; or, where no entries come next, only a sync.
 *
 * Power lost before the sync is done leaves any part of this section's writes on disk, and nothing of the
 * later ones: what the entries of a section point at was made durable by the syncs before.
 *
 * A failed write or sync leaves the section as it is. The kernel may have dropped the pages it could not
 * write and report success the next time, so all of the section is written again, also what seemed to be
 * written.
 */
static int write_step(struct fiber *f, struct order *o, uint64_t target)
{
	struct section *sec = TAILQ_FIRST(&o->sections);
	uint64_t covers;
	int err;

	/*
	 * The number before this section's is not durable, although it has no entries: it stands for data
	 * that this section's entries point at. Without a sync of their own the entries could be there and
	 * the data not.
	 */
	if (sec && (sec->nr > target || o->durable < sec->nr - 1))
		sec = NULL;
	if (sec) {
		o->open = order_max(o->open, sec->nr + 1);
		err = section_write(f, o, sec);
		if (err < 0)
			return err;
	}
	covers = sync_covers(o, sec);
	o->open = order_max(o->open, covers + 1);
	err = sync_files(f, o);
	TRACE2(order_sync, covers, err);
	if (err < 0)
		return err;
	o->stats.syncs++;
	o->durable = covers;
	if (o->journal)
		journal_retire(o->journal, covers);
	if (sec)
		section_retire(o, sec);
	return 0;
}

int order_write_out(struct fiber *f, struct order *o, uint64_t target, enum order_cause cause)
{
	int err = 0;

	o->writing = true;
	TRACE3(order_write_out_begin, cause, target, order_queued(o));
	o->stats.write_outs[cause]++;
	while (o->durable < target && err == 0) {
		err = write_step(f, o, target);
		o->failed = err < 0;
		order_update_clean(o);
		waitlist_wake_all(&o->waiting);
	}
	if (err < 0) {
		o->error = err;
		o->stats.errors++;
	}
	TRACE2(order_write_out_end, target, err);
	o->writing = false;
	return err;
}

int order_wait(struct fiber *f, struct order *o, order_mark mark)
{
	bool served = false;

	assert(mark <= order_all(o));
	perturb(f);
	while (o->durable < mark) {
		uint64_t errors = o->stats.errors;

		if (!o->writing)
			return order_write_out(f, o, mark, ORDER_FLUSH);
		waitlist_wait(f, &o->waiting);
		/*
		 * Sections go in order: what failed lies at or before our mark. Trying again at once, once
		 * for each fiber that waited, would only repeat the error; the next flush or wait tries.
		 */
		if (o->durable < mark && o->stats.errors != errors)
			return o->error;
		served = true;
	}
	o->stats.shared += served;
	return 0;
}

int order_flush(struct fiber *f, struct order *o)
{
	return order_wait(f, o, order_all(o));
}
