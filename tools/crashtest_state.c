/* SPDX-License-Identifier: MIT */
/*
 * tools/crashtest_state.c - one state of varve crashtest: made, opened, checked, read, written again
 *
 * Two files of the same length: `durable` in memory, what is surely there at the start of an epoch, and the
 * state's own file, mapped. A state differs from durable by the writes it keeps; only those stretches are put
 * back afterwards. What is tried is a copy in memory (driver memory), so trying a state changes nothing and
 * makes no I/O.
 */
#include "crashtest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define AFTER_OPS (1u << 24)
#define AFTER_WRITES 4u
#define AFTER_LEN 16384u

struct ct_lab {
	const struct ct_work *w;
	const struct ct_log *l;
	struct varve_queue *queue;
	char path[4096], base_path[4096];
	int fd;
	uint8_t *map, *durable, *base;
	uint64_t room; /* of both */
	uint64_t base_len, durable_len;
	unsigned at; /* durable holds the entries before this one */
	uint8_t *seen, *again, buf[AFTER_LEN];
};

/* ---- making a state ---- */

static uint64_t resize(const struct ct_entry *e, uint8_t *disk, uint64_t len)
{
	if (e->resize == CT_LEN_AT_LEAST)
		return MAX(len, e->off);
	if (e->off < len)
		memset(disk + e->off, 0, len - e->off); /* must not come back when it grows again */
	return e->off;
}

/* What one entry does to a disk of length len. s NULL: all of it. Returns the length afterwards. */
static uint64_t apply(const struct ct_entry *e, uint8_t *disk, uint64_t len, const struct ct_state *s,
		      unsigned index)
{
	uint64_t end = len;

	if (e->resize)
		return resize(e, disk, len);
	if (!e->data) {
		memset(disk + e->off, 0, e->len);
		return len; /* a discard makes no file longer */
	}
	if (!s) {
		memcpy(disk + e->off, e->data, e->len);
		return MAX(len, e->off + e->len);
	}
	for (uint64_t at = 0; at < e->len; at += CT_SECTOR) {
		if (!ct_torn_keeps(s, index, at / CT_SECTOR))
			continue;
		memcpy(disk + e->off + at, e->data + at, CT_SECTOR);
		end = MAX(len, e->off + at + CT_SECTOR);
	}
	return end;
}

/* [off, off + len) of the state's file is what durable is. */
static void put_back(struct ct_lab *lab, uint64_t off, uint64_t len)
{
	if (off < lab->room)
		memcpy(lab->map + off, lab->durable + off, MIN(len, lab->room - off));
}

static void put_back_entry(struct ct_lab *lab, const struct ct_entry *e, uint64_t len)
{
	if (!e->resize)
		put_back(lab, e->off, e->len);
	else if (e->resize == CT_LEN && e->off < len)
		put_back(lab, e->off, len - e->off);
}

static void advance(struct ct_lab *lab, unsigned first)
{
	for (; lab->at < first; lab->at++) {
		const struct ct_entry *e = &lab->l->entries[lab->at];
		uint64_t len = lab->durable_len;

		lab->durable_len = apply(e, lab->durable, len, NULL, 0);
		put_back_entry(lab, e, len);
	}
}

/* To the start of the log. */
static int rewind_lab(struct ct_lab *lab)
{
	if (lab->at)
		madvise(lab->durable, lab->room, MADV_DONTNEED);
	memcpy(lab->durable, lab->base, lab->base_len);
	/* By way of length 0: what was there reads as zeroes, and takes no memory. */
	if (ftruncate(lab->fd, 0) < 0 || ftruncate(lab->fd, (off_t)lab->room) < 0)
		return complain("%s: %s", lab->path, strerror(errno)), -1;
	memcpy(lab->map, lab->base, lab->base_len);
	lab->durable_len = lab->base_len;
	lab->at = 0;
	return 0;
}

static int make_state(struct ct_lab *lab, const struct ct_state *s)
{
	uint64_t len;

	if (s->first < lab->at && rewind_lab(lab) < 0)
		return -1;
	advance(lab, s->first);
	len = lab->durable_len;
	for (unsigned i = s->first; i < s->cut; i++) {
		uint8_t keep = s->keep[i - s->first];

		if (keep)
			len = apply(&lab->l->entries[i], lab->map, len, keep == 2 ? s : NULL, i);
	}
	if (ftruncate(lab->fd, (off_t)len) < 0)
		return complain("%s: %s", lab->path, strerror(errno)), -1;
	return 0;
}

/* The file is what durable is again. Trying the state changed a copy. */
static int undo_state(struct ct_lab *lab, const struct ct_state *s)
{
	if (ftruncate(lab->fd, (off_t)lab->room) < 0)
		return complain("%s: %s", lab->path, strerror(errno)), -1;
	for (unsigned i = s->first; i < s->cut; i++) {
		if (s->keep[i - s->first])
			put_back_entry(lab, &lab->l->entries[i], lab->room);
	}
	return 0;
}

/* ---- trying it ---- */

struct notes {
	char text[400];
};

static void note(void *user_data, const char *line)
{
	struct notes *n = user_data;

	if (!n->text[0])
		snprintf(n->text, sizeof(n->text), "%s", line);
}

static bool fails(struct ct_result *r, const char *when, const struct varve_error *err)
{
	snprintf(r->why, sizeof(r->why), "%s: %.900s", when, err->message);
	return true;
}

static bool check_fails(struct ct_lab *lab, struct varve_image *image, const char *when, struct ct_result *r)
{
	struct varve_check_result c;
	struct notes n = { "" };
	struct varve_error err;
	int ret = varve_image_check(image, &c, note, NULL, &n, &err);

	if (ret == -ENOTSUP) /* raw: nothing to check but data */
		return false;
	if (ret < 0)
		return fails(r, when, &err);
	if (c.leaks) {
		r->leaky++;
		r->max_leaks = MAX(r->max_leaks, c.leaks);
	}
	if (c.corruptions || c.check_errors || (c.leaks && lab->w->o->leaks_fail)) {
		snprintf(r->why, sizeof(r->why), "%s: %llu corruptions, %llu check errors, %llu leaks: %s",
			 when, (unsigned long long)c.corruptions, (unsigned long long)c.check_errors,
			 (unsigned long long)c.leaks, n.text);
		return true;
	}
	return false;
}

static bool reading_fails(struct ct_lab *lab, struct varve_image *image, uint64_t log_len,
			  struct ct_result *r)
{
	struct varve_error err;
	char why[400];

	if (varve_image_read(image, 0, lab->seen, lab->w->len, &err) < 0)
		return fails(r, "reading after the cut", &err);
	for (uint64_t i = 0; i < lab->w->len / CT_SECTOR; i++) {
		if (ct_sector_allowed(lab->w, i, lab->seen + i * CT_SECTOR, log_len, why, sizeof(why)))
			continue;
		snprintf(r->why, sizeof(r->why), "%s", why);
		return true;
	}
	return false;
}

/* New writes must go where nothing else lives: all that was read before is still there. */
static bool writing_fails(struct ct_lab *lab, struct varve_image *image, const struct ct_state *s,
			  struct ct_result *r)
{
	uint64_t rng = s->nr ^ 0x5bd1e995, len = MIN((uint64_t)AFTER_LEN, lab->w->len);
	struct varve_error err;

	for (unsigned i = 0; i < AFTER_WRITES; i++) {
		uint64_t sector = ct_random(&rng) % ((lab->w->len - len) / CT_SECTOR + 1);

		for (uint64_t k = 0; k < len / CT_SECTOR; k++)
			ct_fill(lab->buf + k * CT_SECTOR, lab->w->o->seed, AFTER_OPS + i, sector + k);
		memcpy(lab->seen + sector * CT_SECTOR, lab->buf, len);
		if (varve_image_write(image, sector * CT_SECTOR, lab->buf, len, 0, &err) < 0)
			return fails(r, "writing after the cut", &err);
	}
	if (varve_image_flush(image, &err) < 0)
		return fails(r, "flushing after the cut", &err);
	if (varve_image_read(image, 0, lab->again, lab->w->len, &err) < 0)
		return fails(r, "reading what was written after the cut", &err);
	for (uint64_t i = 0; i < lab->w->len; i += CT_SECTOR) {
		if (!memcmp(lab->seen + i, lab->again + i, CT_SECTOR))
			continue;
		snprintf(r->why, sizeof(r->why), "sector %llu changed when others were written after the cut",
			 (unsigned long long)(i / CT_SECTOR));
		return true;
	}
	return false;
}

static int try_open(struct ct_lab *lab, struct varve_image **ret, struct ct_result *r)
{
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE | VARVE_OPEN_IMAGE_OPTS,
					 .home = lab->queue };
	struct varve_error err;
	char text[4 * 4096];

	snprintf(text, sizeof(text), "driver=%s,file.driver=memory,file.contents=%s", lab->w->o->format,
		 lab->path);
	if (varve_image_open(ret, text, &oo, &err) == 0)
		return 0;
	fails(r, "opening after the cut", &err);
	return 1;
}

static uint64_t cut_log_len(const struct ct_lab *lab, const struct ct_state *s)
{
	return s->cut ? lab->l->entries[s->cut - 1].log_end : CT_SECTOR;
}

int ct_lab_try(struct ct_lab *lab, const struct ct_state *s, struct ct_result *r)
{
	struct varve_image *image;
	struct varve_error err;
	bool bad;

	if (make_state(lab, s) < 0)
		return -1;
	r->states++;
	bad = try_open(lab, &image, r);
	if (!bad) {
		bad = check_fails(lab, image, "check after the cut", r) ||
		      reading_fails(lab, image, cut_log_len(lab, s), r) || writing_fails(lab, image, s, r) ||
		      check_fails(lab, image, "check after writing again", r);
		if (varve_image_close(image, &err) < 0 && !bad)
			bad = fails(r, "closing after the cut", &err);
	}
	return undo_state(lab, s) < 0 ? -1 : bad;
}

int ct_lab_keep(struct ct_lab *lab, const struct ct_state *s, const char *name)
{
	struct stat st;
	int fd, ret = -1;

	if (make_state(lab, s) < 0 || fstat(lab->fd, &st) < 0)
		return -1;
	fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd >= 0 && write(fd, lab->map, (size_t)st.st_size) == st.st_size)
		ret = 0;
	if (ret < 0)
		complain("%s: %s", name, strerror(errno));
	if (fd >= 0)
		close(fd);
	return undo_state(lab, s) < 0 ? -1 : ret;
}

/* ---- the lab ---- */

static int lab_room(struct ct_lab *lab)
{
	int fd = open(lab->base_path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return complain("%s: %s", lab->base_path, strerror(errno)), 1;
	lab->room = lab->base_len = (uint64_t)st.st_size;
	lab->base = mmap(NULL, MAX(lab->base_len, 1u), PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (lab->base == MAP_FAILED)
		return complain("%s: %s", lab->base_path, strerror(errno)), 1;
	for (unsigned i = 0; i < lab->l->nr; i++) {
		const struct ct_entry *e = &lab->l->entries[i];

		if (e->off + e->len > 4 * CT_IMAGE_MAX)
			return complain("the image file grew past 1 GiB: too large to be tried in memory"), 1;
		lab->room = MAX(lab->room, e->off + e->len);
	}
	lab->room = (lab->room + 4095) & ~4095ull;
	return 0;
}

int ct_lab_new(struct ct_lab **ret, const struct ct_work *w, const struct ct_log *l, const char *dir)
{
	struct varve_queue_options qo = { .depth = 16 };
	struct ct_lab *lab = calloc(1, sizeof(*lab));
	struct varve_error err;

	*ret = lab;
	if (!lab)
		return complain("out of memory"), 1;
	lab->w = w;
	lab->l = l;
	lab->fd = -1;
	lab->map = MAP_FAILED;
	snprintf(lab->path, sizeof(lab->path), "%s/state", dir);
	snprintf(lab->base_path, sizeof(lab->base_path), "%s/base", dir);
	if (lab_room(lab))
		return 1;
	if (varve_queue_new(&lab->queue, &qo, &err) < 0)
		return complain("%s", err.message), 1;
	lab->fd = open(lab->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (lab->fd < 0 || ftruncate(lab->fd, (off_t)lab->room) < 0)
		return complain("%s: %s", lab->path, strerror(errno)), 1;
	lab->map = mmap(NULL, lab->room, PROT_READ | PROT_WRITE, MAP_SHARED, lab->fd, 0);
	lab->durable = mmap(NULL, lab->room, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	lab->seen = malloc(w->len);
	lab->again = malloc(w->len);
	if (lab->map == MAP_FAILED || lab->durable == MAP_FAILED || !lab->seen || !lab->again)
		return complain("out of memory"), 1;
	return rewind_lab(lab) < 0;
}

void ct_lab_free(struct ct_lab *lab)
{
	if (!lab)
		return;
	if (lab->map != MAP_FAILED)
		munmap(lab->map, lab->room);
	if (lab->durable && lab->durable != MAP_FAILED)
		munmap(lab->durable, lab->room);
	if (lab->base && lab->base != MAP_FAILED)
		munmap(lab->base, MAX(lab->base_len, 1u));
	if (lab->fd >= 0)
		close(lab->fd);
	varve_queue_free(lab->queue);
	free(lab->seen);
	free(lab->again);
	free(lab);
}
