/* SPDX-License-Identifier: MIT */
/*
 * order/order.c - the block queue: what is queued, in which section, and who may read it
 *
 * Owns:    the sections, their entries, and the rule that decides the section of a put.
 * Assumes: the home queue of the file's graph; only this queue writes the places that are put here.
 * Never:   knows what the bytes mean, or gives up an entry before the sync that covers it succeeded.
 *
 * writeout.c brings sections to the disk.
 */
#include "aio/perturb.h"
#include "base/trace.h"
#include "order/queue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int order_new(struct order **ret, struct node *file, uint64_t limit)
{
	struct order *o = calloc(1, sizeof(*o));
	int err;

	if (!o)
		return -ENOMEM;
	err = sector_table_init(&o->table);
	if (err < 0) {
		free(o);
		return err;
	}
	o->file = file;
	o->limit = limit ? limit : ORDER_LIMIT_DEFAULT;
	o->durable = ORDER_NONE;
	o->open = ORDER_NONE + 1;
	TAILQ_INIT(&o->sections);
	atomic_init(&o->clean, true);
	order_background_init(o);
	*ret = o;
	return 0;
}

void order_sync_too(struct order *o, struct node *data)
{
	o->data = data;
}

void order_free(struct fiber *f, struct order *o)
{
	struct section *sec;

	if (!o)
		return;
	order_background_end(f, o);
	assert(!o->writing);
	order_keep_end(f, o);
	while ((sec = TAILQ_FIRST(&o->sections))) {
		TAILQ_REMOVE(&o->sections, sec, link);
		free(sec);
	}
	sector_table_free(&o->table);
	free(o);
}

void order_update_clean(struct order *o)
{
	/* pairs with the acquire in order_clean() */
	atomic_store_explicit(&o->clean, TAILQ_EMPTY(&o->sections) && !o->failed, memory_order_release);
}

bool order_clean(const struct order *o)
{
	/*
	 * A guest that was told its write is done and now flushes on another queue: its write's puts came
	 * before the answer, and the answer came to it by a message, so it cannot see the older "clean".
	 */
	return atomic_load_explicit(&o->clean, memory_order_acquire);
}

order_mark order_now(struct order *o)
{
	return o->open;
}

order_mark order_all(struct order *o)
{
	struct section *last = TAILQ_LAST(&o->sections, section_list);

	return last ? order_max(last->nr, o->open) : o->open;
}

order_mark order_durable(const struct order *o)
{
	return o->durable;
}

void order_stats(const struct order *o, struct order_stats *ret)
{
	struct section *sec;

	*ret = o->stats;
	ret->queued_bytes = order_queued(o);
	ret->queued_sections = 0;
	TAILQ_FOREACH(sec, &o->sections, link)
		ret->queued_sections++;
}

/* ---- put ---- */

/* A stretch of a put or read that lies within one sector. */
struct piece {
	uint64_t nr;
	unsigned from, len;
};

static struct piece piece_at(uint64_t off, size_t len)
{
	struct piece p = { .nr = off / SECTOR_LEN, .from = (unsigned)(off % SECTOR_LEN) };

	p.len = (unsigned)MIN(len, (size_t)(SECTOR_LEN - p.from));
	return p;
}

/*
 * The section for a put: open, behind `after`, and not before a section that holds older bytes of the same
 * place. Were it earlier than that one, the older bytes would be written later and win.
 */
static uint64_t choose_section(const struct order *o, uint64_t off, size_t len, order_mark after)
{
	uint64_t nr = order_max(o->open, after + 1);
	struct piece p;

	for (; len; off += p.len, len -= p.len) {
		struct sector *s;

		p = piece_at(off, len);
		for (s = sector_newest(&o->table, p.nr); s && s->section > nr; s = sector_older(s)) {
			if (sector_has(s, p.from, p.len)) {
				nr = s->section;
				break;
			}
		}
	}
	return nr;
}

/* Sections are few and new ones are late: search from the end. *ret_prev: the one before it (NULL: none). */
static struct section *section_find(struct order *o, uint64_t nr, struct section **ret_prev)
{
	struct section *sec;

	TAILQ_FOREACH_REVERSE(sec, &o->sections, section_list, link) {
		if (sec->nr <= nr)
			break;
	}
	*ret_prev = sec;
	return sec && sec->nr == nr ? sec : NULL;
}

static void free_list(struct sector *s)
{
	while (s) {
		struct sector *next = s->next;

		free(s);
		s = next;
	}
}

/* Empty sectors for all places of the put that the section does not hold yet. */
static int prepare_sectors(struct order *o, uint64_t section, uint64_t off, size_t len,
			   struct sector **ret_list, bool *ret_merges)
{
	struct sector *list = NULL;
	struct piece p;

	*ret_merges = false;
	for (; len; off += p.len, len -= p.len) {
		struct sector *s;

		p = piece_at(off, len);
		if (sector_find(&o->table, p.nr, section)) {
			*ret_merges = true;
			continue;
		}
		s = calloc(1, sizeof(*s));
		if (!s) {
			free_list(list);
			return -ENOMEM;
		}
		s->nr = p.nr;
		s->section = section;
		s->next = list;
		list = s;
	}
	*ret_list = list;
	return 0;
}

/* All or nothing, and without waiting. */
static int queue_bytes(struct order *o, uint64_t nr, uint64_t off, const uint8_t *bytes, size_t len, unsigned event)
{
	struct section *prev, *sec = section_find(o, nr, &prev);
	struct sector *fresh, *s;
	struct piece p;
	bool merges, was_empty = TAILQ_EMPTY(&o->sections);

	if (prepare_sectors(o, nr, off, len, &fresh, &merges) < 0)
		return -ENOMEM;
	if (!sec) {
		sec = calloc(1, sizeof(*sec));
		if (!sec) {
			free_list(fresh);
			return -ENOMEM;
		}
		sec->nr = nr;
		if (prev)
			TAILQ_INSERT_AFTER(&o->sections, prev, sec, link);
		else
			TAILQ_INSERT_HEAD(&o->sections, sec, link);
	}
	while ((s = fresh)) {
		fresh = s->next;
		s->next = sec->list;
		sec->list = s;
		sector_insert(&o->table, s);
	}
	for (; len; off += p.len, bytes += p.len, len -= p.len) {
		p = piece_at(off, len);
		s = sector_find(&o->table, p.nr, nr);
		s->event = (uint8_t)event;
		if (!s->first_event)
			s->first_event = (uint8_t)event;
		sector_fill(s, p.from, bytes, p.len);
	}
	o->stats.merges += merges;
	order_grew(o, was_empty);
	order_update_clean(o);
	return 0;
}

struct order *order_as(struct order *o, unsigned event)
{
	o->next_event = event;
	return o;
}

int order_put(struct fiber *f, struct order *o, uint64_t off, const void *bytes, size_t len, order_mark after,
	      order_mark *ret_mark)
{
	unsigned event = o->next_event;
	uint64_t nr;

	o->next_event = 0;
	assert(after <= order_all(o));
	assert(len > 0 && off <= VARVE_LEN_MAX && len <= VARVE_LEN_MAX - off);
	if (o->failed && order_queued(o) > 2 * o->limit) {
		/*
		 * Memory must have an end. Nothing was taken, whoever calls can undo; the disk gets one
		 * more chance.
		 */
		(void)order_wait(f, o,
				 order_all(o)); /* its error is counted, and comes back at the next flush */
		return -ENOMEM;
	}
	if (o->journal && journal_reserve(o->journal, len) < 0) {
		(void)order_wait(f, o, order_all(o)); /* as above: makes room for the next */
		return -ENOMEM;
	}
	nr = choose_section(o, off, len, after);
	if (queue_bytes(o, nr, off, bytes, len, event) < 0)
		return -ENOMEM;
	if (o->journal) {
		for (unsigned i = 0; i < ARRAY_LEN(o->noted) && o->noted[i]; i++)
			node_note_len(o->noted[i]); /* what is put leads there */
		journal_put(o->journal, nr, off, bytes, len);
	}
	o->stats.puts++;
	if (after > o->durable)
		o->stats.barriers_asked++;
	TRACE3(order_put, off, len, nr);
	if (ret_mark)
		*ret_mark = nr;
	order_relieve(f, o);
	perturb(f);
	return 0;
}

int order_restore(struct order *o, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	assert(!o->journal && section >= o->open);
	return queue_bytes(o, section, off, bytes, len, 0);
}

/* ---- read ---- */

static void overlay(const struct order *o, uint64_t off, uint8_t *buf, size_t len)
{
	struct piece p;

	for (; len; off += p.len, buf += p.len, len -= p.len) {
		struct sector *s;

		p = piece_at(off, len);
		s = sector_newest(&o->table, p.nr);
		if (s)
			sector_overlay(s, p.from, buf, p.len);
	}
}

static int read_file(struct fiber *f, struct order *o, uint64_t off, uint8_t *buf, size_t len)
{
	int64_t file_len = node_file_len(f, o->file);
	size_t there = 0;
	int err = 0;

	if (file_len < 0)
		return (int)file_len;
	if (off < (uint64_t)file_len)
		there = (size_t)MIN((uint64_t)len, (uint64_t)file_len - off);
	if (there)
		err = node_read(f, o->file, off, buf, there);
	if (err == 0)
		memset(buf + there, 0, len - there);
	return err;
}

int order_read(struct fiber *f, struct order *o, uint64_t off, void *buf, size_t len)
{
	uint64_t retired;
	int err;

	/*
	 * Bytes that were queued when the read of the file began may have been written and have left the
	 * queue when it ends: the file's old bytes are in buf then, and nothing lies over them. Read again in
	 * that case.
	 */
	do {
		retired = o->stats.sections;
		err = read_file(f, o, off, buf, len);
		if (err < 0)
			return err;
	} while (retired != o->stats.sections);
	overlay(o, off, buf, len);
	return 0;
}
