/* SPDX-License-Identifier: MIT */
/*
 * order/recover.c - what a dead process had queued is written out; a queue begins to keep a journal, and ends it
 *
 * The state of a dead process is: the file as the kernel has it, and the records of its journal. Writing these out in
 * their sections, with a sync before the first and after each, is what the dead queue would have done. Power lost in the
 * middle leaves what it may always leave: some of one section, all of those before, none of those behind. Nothing of the
 * image's metadata is read before it is done, so that whoever opens it finds a plain image.
 *
 * Data may be in another file than the image (order_sync_too()). What the dead process was told of both files' writes holds for the
 * kernel only, so both are synced wherever one is: before the first section, whose entries lead to that data, and after each.
 * Entries that were written out without that could be durable and lead to data that never became so.
 *
 * The journal is good only as long as nobody else changes the image. The format sees to that: while a journal is kept,
 * the image's header has a mark (autoclear feature bits) that everybody else has to remove before he writes, and that is another one
 * for every journal.
 *
 * Owns:    the steps from the dead process's journal to ours.
 * Assumes: fibers of the home queue; the image's file is locked, so nothing of the dead process is on its way to it.
 * Never:   removes a journal with records that are not durable.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "order/journal.h"
#include "order/queue.h"

#define SECTION_MAX (1ull << 62)

/* ---- what was left behind ---- */

static int find_work(void *arg)
{
	return journal_find(arg);
}

static struct node *leaf_of(struct node *n)
{
	while (n->file)
		n = n->file;
	return n;
}

struct tally {
	uint64_t nr, bytes;
};

static int count_record(void *arg, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	struct tally *t = arg;

	(void)off;
	(void)bytes;
	if (section > SECTION_MAX)
		return -EUCLEAN;
	t->nr++;
	t->bytes += len;
	return 0;
}

static int restore_record(void *arg, uint64_t section, uint64_t off, const void *bytes, size_t len)
{
	return order_restore(arg, section, off, bytes, len);
}

/*
 * A file only becomes longer while it is served, or says so (node_note_len()): one that is shorter than it was is an older copy of itself,
 * put back over it with cp or dd. Same inode, same mark; but tables that the records lead to, and the data, are not there.
 */
static int check_len(const struct journal_search *s, const struct node *leaf, uint64_t had)
{
	if (!leaf || node_len(leaf) >= had)
		return 0;
	return varve_error_set(s->err, -ESTALE,
			       "the image is older than its journal: %.500s has %llu bytes, and had %llu when the process that served it died. "
			       "Put the newer one back; or remove state file %s, and with it what was queued, to open the image as it is",
			       node_name(leaf), (unsigned long long)node_len(leaf), (unsigned long long)had, s->path);
}

static int check_lengths(const struct journal_search *s, struct node *file, struct node *data)
{
	const struct journal_header *h = s->map;
	int ret = check_len(s, leaf_of(file), atomic_load_explicit(&h->file_len, memory_order_acquire));

	return ret < 0 || !data ? ret : check_len(s, leaf_of(data), atomic_load_explicit(&h->data_len, memory_order_acquire));
}

/* All of it is looked at before any of it is believed. */
static int examine(const struct journal_search *s, struct tally *ret, struct varve_error *err)
{
	const char *fault = "a record has an impossible section";
	int result = journal_replay(s->map, count_record, ret, &fault);

	if (result < 0)
		return varve_error_set(err, -EUCLEAN,
				       "state file %s is damaged: %s. Remove it to open the image as it is on disk",
				       s->path, fault);
	return 0;
}

/* The header speaks of this journal: nobody has written to the image since its process died. */
static bool is_marked(const struct journal_search *s, uint64_t header_bits)
{
	const struct journal_header *h = s->map;

	return s->map && (header_bits & ORDER_MARKED) && (header_bits & ORDER_MARK_BITS) == h->owner.mark;
}

/* May what was queued, of so many records, be written to the image as it is now? */
static int check_state(const struct journal_search *s, struct node *file, struct node *data, uint64_t header_bits, const struct tally *t)
{
	bool marked = is_marked(s, header_bits);
	int ret = 0;

	/* Before the mark is compared: an older copy may have an older one, and this says what has happened. */
	if ((t->nr && (header_bits & ORDER_MARKED)) || (marked && journal_nr_todo(s->map)))
		ret = check_lengths(s, file, data);
	if (ret < 0 || !t->nr || marked)
		return ret;
	if (header_bits & ORDER_MARKED)
		return varve_error_set(s->err, -ESTALE,
				       "state file %s holds %llu bytes of metadata that were not written before the process that served the "
				       "image died, but the image is in another state: a server with another state directory has changed the "
				       "image since, or an older copy was put back. Start that server again, or put the newer one back; or "
				       "remove the state file to give up what is in it",
				       s->path, (unsigned long long)t->bytes);
	return varve_error_set(s->err, -ESTALE,
			       "state file %s holds %llu bytes of metadata that were not written before the process "
			       "that served the image died, but another program has changed the image since. "
			       "Remove the state file to open the image as it is",
			       s->path, (unsigned long long)t->bytes);
}

/* ---- errors of syncs ---- */

/* NULL: no more. */
static void publish_errors(struct node *file, struct node *data, struct journal_header *h)
{
	file = leaf_of(file);
	if (file->drv->publish_error)
		file->drv->publish_error(file, h ? &h->error : NULL);
	data = data ? leaf_of(data) : NULL;
	if (data && data->drv->publish_error)
		data->drv->publish_error(data, h ? &h->data_error : NULL);
}

/*
 * The process died while its syncs failed, and perhaps before it told the guest. The kernel reports such an error once:
 * without this, the next flush would be called a success about data that is gone.
 */
static void inherit_error(struct node *n, _Atomic uint64_t *where)
{
	int error = (int)(atomic_load_explicit(where, memory_order_acquire) & 4095);
	struct node *leaf = n ? leaf_of(n) : NULL;

	if (error && leaf && leaf->drv->inherit_error)
		leaf->drv->inherit_error(leaf, -error);
}

/* What stands in the journal is inherited by order_keep(); until then the image's header is changed, and perhaps repaired. */
static void put_error_aside(struct node *n, _Atomic uint64_t *where)
{
	struct node *leaf = n ? leaf_of(n) : NULL;

	if (leaf && leaf->drv->inherit_error && atomic_load_explicit(where, memory_order_acquire))
		leaf->drv->inherit_error(leaf, 0);
}

/* ---- writing out ---- */

/* Each of them, whatever becomes of the other: what is not asked for here is heard by nobody who notes it. */
static int sync_both(struct fiber *f, struct node *file, struct node *data)
{
	int ret = data ? node_flush(f, data) : 0, of_file = node_flush(f, file);

	return ret < 0 ? ret : of_file;
}

/*
 * Writes out what is queued in o; o NULL: nothing is, and the files are only synced.
 *
 * A sync that fails here is told to this process, and to none that comes after it: so it is noted in the journal, which stays. What
 * the dead one had noted stays noted as well.
 */
static int noting_errors(struct fiber *f, struct node *file, struct node *data, struct order *o, struct journal_header *h)
{
	uint64_t error = atomic_load_explicit(&h->error, memory_order_acquire);
	uint64_t data_error = atomic_load_explicit(&h->data_error, memory_order_acquire);
	int ret;

	publish_errors(file, data, h);
	ret = o ? order_flush(f, o) : sync_both(f, file, data);
	publish_errors(file, data, NULL);
	if (!atomic_load_explicit(&h->error, memory_order_acquire))
		atomic_store_explicit(&h->error, error, memory_order_release);
	if (!atomic_load_explicit(&h->data_error, memory_order_acquire))
		atomic_store_explicit(&h->data_error, data_error, memory_order_release);
	return ret;
}

static int write_out(struct fiber *f, struct node *file, struct node *data, const struct journal_search *s, struct varve_error *err)
{
	const char *fault = "it changes while it is read";
	struct order *o;
	int ret = order_new(&o, file, 0);

	if (ret < 0)
		return varve_error_errno(err, ret, "state file %s", s->path);
	if (data)
		order_sync_too(o, data);
	ret = journal_replay(s->map, restore_record, o, &fault);
	if (ret == 0)
		ret = noting_errors(f, file, data, o, s->map);
	order_free(f, o);
	return ret < 0 ? varve_error_errno(err, ret,
					   "state file %s: the metadata in it could not be written to the image; it is kept there",
					   s->path)
		       : 1;
}

/* Without memory for it, what was to be done is not: it is no loss that anybody was promised not to have. */
static void read_left(const struct journal_search *s, struct order_left *ret)
{
	const struct journal_header *h = s->map;
	size_t nr = journal_nr_todo(s->map);

	for (unsigned i = 0; i < ORDER_NOTES; i++)
		ret->notes[i] = atomic_load_explicit(&h->notes[i], memory_order_acquire);
	ret->todo = nr ? calloc(nr, sizeof(ret->todo[0])) : NULL;
	for (size_t i = 0; ret->todo && i < nr; i++)
		ret->nr_todo += journal_todo_read(s->map, i, &ret->todo[ret->nr_todo]);
}

/*
 * A warning and no error: after a power cut the mark is all that is left, and nobody is there who could say so. One kind of line, which
 * programs look for (tools/common.c).
 */
void order_tell_lost(const struct node *n, const char *dir, bool writable)
{
	if (!writable)
		log_warning("%s: its server ended without closing it, and kept a journal that is not in use here: writes that were acknowledged "
			    "and not flushed may be missing in what is read. Normal after a power cut; else start the server with its state "
			    "directory first",
			    node_name(n));
	else
		log_warning("%s: its server ended without closing it, and kept a journal that %s%s: writes that were acknowledged and not "
			    "flushed may be lost now. Normal after a power cut; else start the server with its state directory before "
			    "anything else changes the image",
			    node_name(n), dir ? "is not in state directory " : "is given up, as no state directory is named", dir ? dir : "");
}

int order_recover(struct fiber *f, struct node *file, struct node *data, const char *dir, uint64_t header_bits,
		  struct order_left *ret_left, struct varve_error *err)
{
	struct journal_search s = { .dir = dir, .err = err };
	struct tally tally = { 0 };
	bool marked = false;
	int ret = journal_owner_init(&s.owner, file, data, err);

	memset(ret_left, 0, sizeof(*ret_left));
	if (ret == 0)
		ret = fiber_work(f, find_work, &s);
	if (ret == 0 && s.map) {
		marked = is_marked(&s, header_bits);
		ret = examine(&s, &tally, err);
		if (ret == 0)
			ret = check_state(&s, file, data, header_bits, &tally);
	}
	/* One that is here for its errors only may be of another process than the one that wrote last. */
	if (ret == 0 && (header_bits & ORDER_MARKED) && !marked && !s.outdated)
		order_tell_lost(file, dir, true);
	if (!s.map)
		return ret;
	if (ret == 0 && tally.nr) {
		ret = write_out(f, file, data, &s, err);
	} else if (ret == 0) {
		struct journal_header *h = s.map;

		/*
		 * Not stable may be the guest's own bytes still. An image that is repaired is synced next, and nobody would note an
		 * error then. One that is noted here does not keep it from being opened: its flushes fail (order_keep()).
		 */
		(void)noting_errors(f, file, data, NULL, h);
		put_error_aside(file, &h->error);
		put_error_aside(data, &h->data_error);
	}
	if (ret >= 0) {
		if (tally.nr)
			log_warning("%s: a process that served it died; %llu bytes of metadata that it had queued were "
				    "written out from state file %s",
				    node_name(file), (unsigned long long)tally.bytes, s.path);
		if (marked)
			read_left(&s, ret_left);
	}
	/*
	 * Removed when all of it is durable in the image. Killed before that, the next one does the same again. An error stays
	 * where it is until it stands in the journal that replaces this one (order_keep()): the kernel tells nobody again.
	 */
	journal_unmap(s.map, s.fd, s.path, ret >= 0 && !journal_settle(s.map));
	return ret;
}

/* ---- a queue keeps a journal ---- */

/*
 * Another one than in the header: a journal that has been written out, or given up, is not taken for the image's again by what is written
 * from now on. All bits zero below ORDER_MARKED is no mark: versions that knew one bit wrote that.
 */
int order_new_mark(uint64_t header_bits, uint64_t *ret_mark, struct varve_error *err)
{
	uint16_t random;

	do {
		if (getrandom(&random, sizeof(random), 0) != sizeof(random))
			return varve_error_errno(err, -errno, "state directory: random bytes for the mark of a journal");
		*ret_mark = ORDER_MARKED | (uint64_t)random << 48;
	} while (*ret_mark == ORDER_MARKED || *ret_mark == (header_bits & ORDER_MARK_BITS));
	return 0;
}

static void note_lengths(struct order *o)
{
	o->noted[0] = leaf_of(o->file);
	o->noted[0]->noted_len = &o->journal->h->file_len;
	if (o->data) {
		o->noted[1] = leaf_of(o->data);
		o->noted[1]->noted_len = &o->journal->h->data_len;
	}
	for (unsigned i = 0; i < ARRAY_LEN(o->noted) && o->noted[i]; i++)
		node_note_len(o->noted[i]);
}

static void note_lengths_end(struct order *o)
{
	for (unsigned i = 0; i < ARRAY_LEN(o->noted) && o->noted[i]; i++) {
		o->noted[i]->noted_len = NULL;
		o->noted[i] = NULL;
	}
}

struct create_work {
	struct journal_search s;
	struct journal *j;
};

static int create_work(void *arg)
{
	struct create_work *w = arg;

	return journal_create(&w->s, w->j);
}

int order_keep(struct fiber *f, struct order *o, const char *dir, uint64_t mark, struct varve_error *err)
{
	struct create_work w = { .s = { .dir = dir, .err = err } };
	int ret = journal_owner_init(&w.s.owner, o->file, o->data, err);

	if (ret < 0)
		return ret;
	w.s.owner.mark = mark;
	assert(!o->journal);
	/* What is queued already is in no journal. */
	ret = TAILQ_EMPTY(&o->sections) ? 0 : order_flush(f, o);
	if (ret < 0)
		return varve_error_errno(err, ret, "%s: flush", node_name(o->file));
	w.j = calloc(1, sizeof(*w.j));
	if (!w.j)
		return varve_error_errno(err, -ENOMEM, "state directory");
	ret = fiber_work(f, create_work, &w);
	if (ret < 0) {
		free(w.j);
		return ret;
	}
	if (!TAILQ_EMPTY(&o->sections)) { /* somebody put while we waited: again */
		/* What it inherited goes on to the next, which takes its place. */
		journal_unmap(w.j->h, w.j->fd, w.j->path, false);
		free(w.j);
		return order_keep(f, o, dir, mark, err);
	}
	o->journal = w.j;
	/* From here on flushes fail. Not before: an image that is repaired when it is opened needs syncs that tell the truth. */
	inherit_error(o->file, &w.j->h->error);
	inherit_error(o->data, &w.j->h->data_error);
	publish_errors(o->file, o->data, w.j->h);
	note_lengths(o);
	journal_retire(o->journal, o->durable);
	return 0;
}

struct end_work {
	struct journal *j;
	bool remove;
};

static int end_work(void *arg)
{
	struct end_work *w = arg;

	journal_unmap(w->j->h, w->j->fd, w->j->path, w->remove);
	return 0;
}

/*
 * Whoever closes an image in order is told that its last flush failed: that is not inherited. Whoever could not open it, or gives up
 * before it was served, has told nobody who wrote what is lost.
 */
void order_keep_end(struct fiber *f, struct order *o)
{
	struct end_work w = { .j = o->journal };
	bool empty = TAILQ_EMPTY(&o->sections);

	if (!o->journal)
		return;
	o->journal = NULL;
	publish_errors(o->file, o->data, NULL);
	note_lengths_end(o);
	if (o->file->accounted) {
		atomic_store_explicit(&w.j->h->error, 0, memory_order_release);
		atomic_store_explicit(&w.j->h->data_error, 0, memory_order_release);
	}
	if (empty) {
		w.remove = !journal_settle(w.j->h);
	} else {
		log_warning("%s: metadata that could not be written is kept in state file %s", node_name(o->file),
			    w.j->path);
	}
	(void)fiber_work(f, end_work, &w);
	free(w.j);
}

void order_note(struct order *o, unsigned i, uint64_t value)
{
	assert(i < ORDER_NOTES);
	if (o->journal)
		atomic_store_explicit(&o->journal->h->notes[i], value, memory_order_release);
}
