/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/leaf.h - one node, its queue, and plain calls on it, for unit tests of leaves, filters and raw
 *
 * The queue has no thread: each call runs it until it is done.
 */
#ifndef VARVE_TEST_LEAF_H
#define VARVE_TEST_LEAF_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/error.h"
#include "block/graph.h"
#include "proto/proto.h"

struct leaf {
	struct queue *q;
	struct node *n;
	struct varve_error err; /* of the last call that can say more than a number */
};

struct leaf_call {
	struct leaf *l;
	const struct driver *drv;
	struct node *file;
	const char *options;
	uint32_t flags;
	struct sim_file *sim;
	const struct aio_file *af;

	enum req_op op;
	uint64_t off, len;
	const struct iovec *iov;
	unsigned nr_iov;
	bool preallocate;
	bool *hole;
	uint64_t *hole_len;
	void *json;
};

static inline struct queue *leaf_queue(void)
{
	struct varve_error err = { 0, "" };
	struct queue *q;

	if (queue_new(&q, &(struct queue_opts){ .name = "test" }, &err) < 0)
		fail_msg("queue: %s", err.message);
	return q;
}

static inline int leaf_open_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;
	struct opts *o = opts_new();
	int ret = opts_parse(o, c->options, &c->l->err);

	if (!ret && c->file) {
		ret = graph_stack(f, c->drv, c->file, o, c->flags, &c->l->n, &c->l->err);
	} else if (!ret) {
		if (c->drv)
			ret = opts_set(o, "driver", c->drv->name, &c->l->err);
		if (!ret)
			ret = graph_open(f, o, c->flags, &c->l->n, &c->l->err);
	}
	opts_free(o);
	return ret;
}

/* l->q must be there. file: a node to stack drv upon, or NULL. drv NULL: as the options say. l->n is NULL on failure. */
static inline int leaf_try(struct leaf *l, const struct driver *drv, struct node *file, const char *options,
			   uint32_t flags)
{
	struct leaf_call c = { .l = l, .drv = drv, .file = file, .options = options, .flags = flags };

	l->n = NULL;
	l->err = (struct varve_error){ 0, "" };
	return fiber_call(l->q, leaf_open_fiber, &c);
}

/* A leaf with a queue of its own; the test fails if it cannot be opened. */
static inline void leaf_open(struct leaf *l, const struct driver *drv, const char *options, uint32_t flags)
{
	l->q = leaf_queue();
	if (leaf_try(l, drv, NULL, options, flags) < 0)
		fail_msg("%s %s: %s", drv->name, options, l->err.message);
}

/* Expects that opening fails with code, and a message that contains words. */
static inline void leaf_expect_refused(const struct driver *drv, const char *options, uint32_t flags, int code,
				       const char *words)
{
	struct leaf l = { .q = leaf_queue() };
	int ret = leaf_try(&l, drv, NULL, options, flags);

	if (ret != code || !strstr(l.err.message, words))
		fail_msg("%s: expected %d and '%s', got %d and '%s'", options, code, words, ret, l.err.message);
	queue_free(l.q);
}

static inline int leaf_sim_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;

	return sim_node_new(f, c->sim, c->af, c->flags, &c->l->n, &c->l->err);
}

static inline void leaf_open_sim(struct leaf *l, struct sim_file *sim, const struct aio_file *af, uint32_t flags)
{
	struct leaf_call c = { .l = l, .sim = sim, .af = af, .flags = flags };

	l->q = leaf_queue();
	if (fiber_call(l->q, leaf_sim_fiber, &c) < 0)
		fail_msg("sim: %s", l->err.message);
}

static inline int leaf_close_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;

	return graph_close(f, c->l->n, &c->l->err);
}

static inline int leaf_close_node(struct leaf *l)
{
	struct leaf_call c = { .l = l };
	int ret = fiber_call(l->q, leaf_close_fiber, &c);

	l->n = NULL;
	return ret;
}

static inline int leaf_close(struct leaf *l)
{
	int ret = leaf_close_node(l);

	queue_free(l->q);
	return ret;
}

static inline int leaf_io_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;
	struct req r;

	req_init(&r, fiber_queue(f), c->op, c->off, c->len, c->iov, c->nr_iov, c->flags, NULL);
	return node_submit_wait(f, c->l->n, &r);
}

static inline int leaf_iov(struct leaf *l, enum req_op op, uint64_t off, uint64_t len, const struct iovec *iov,
			   unsigned nr_iov, uint32_t flags)
{
	struct leaf_call c = { .l = l, .op = op, .off = off, .len = len, .iov = iov, .nr_iov = nr_iov, .flags = flags };

	return fiber_call(l->q, leaf_io_fiber, &c);
}

static inline int leaf_read(struct leaf *l, uint64_t off, void *buf, size_t len)
{
	return leaf_iov(l, REQ_READ, off, len, &(struct iovec){ buf, len }, 1, 0);
}

static inline int leaf_write(struct leaf *l, uint64_t off, const void *buf, size_t len, uint32_t flags)
{
	return leaf_iov(l, REQ_WRITE, off, len, &(struct iovec){ (void *)buf, len }, 1, flags);
}

static inline int leaf_flush(struct leaf *l)
{
	return leaf_iov(l, REQ_FLUSH, 0, 0, NULL, 0, 0);
}

static inline int leaf_discard(struct leaf *l, uint64_t off, uint64_t len)
{
	return leaf_iov(l, REQ_DISCARD, off, len, NULL, 0, 0);
}

static inline int leaf_zero(struct leaf *l, uint64_t off, uint64_t len, uint32_t flags)
{
	return leaf_iov(l, REQ_ZERO, off, len, NULL, 0, flags);
}

static inline int leaf_truncate_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;

	return node_truncate(f, c->l->n, c->len, c->preallocate, &c->l->err);
}

static inline int leaf_truncate(struct leaf *l, uint64_t len, bool preallocate)
{
	struct leaf_call c = { .l = l, .len = len, .preallocate = preallocate };

	return fiber_call(l->q, leaf_truncate_fiber, &c);
}

static inline int leaf_status_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;

	return c->l->n->drv->status(f, c->l->n, c->off, c->len, c->hole, c->hole_len);
}

static inline int leaf_status(struct leaf *l, uint64_t off, uint64_t len, bool *hole, uint64_t *hole_len)
{
	struct leaf_call c = { .l = l, .off = off, .len = len, .hole = hole, .hole_len = hole_len };

	return fiber_call(l->q, leaf_status_fiber, &c);
}

static inline int leaf_info_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;

	return c->l->n->drv->info(f, c->l->n, c->json, &c->l->err);
}

static inline int leaf_info(struct leaf *l, void *json)
{
	struct leaf_call c = { .l = l, .json = json };

	return fiber_call(l->q, leaf_info_fiber, &c);
}

static inline int leaf_len_fiber(struct fiber *f, void *arg)
{
	struct leaf_call *c = arg;
	int64_t len = node_file_len(f, c->l->n);

	if (len >= 0)
		c->len = (uint64_t)len;
	return len < 0 ? (int)len : 0;
}

static inline uint64_t leaf_len(struct leaf *l)
{
	struct leaf_call c = { .l = l };

	assert_int_equal(fiber_call(l->q, leaf_len_fiber, &c), 0);
	return c.len;
}

/* Fails unless [off, off + len) reads as byte. */
static inline void leaf_expect(struct leaf *l, uint64_t off, size_t len, uint8_t byte)
{
	uint8_t *buf = malloc(len);

	memset(buf, 0xee, len);
	assert_int_equal(leaf_read(l, off, buf, len), 0);
	for (size_t i = 0; i < len; i++) {
		if (buf[i] != byte)
			fail_msg("byte %llu is 0x%02x, not 0x%02x", (unsigned long long)(off + i), buf[i], byte);
	}
	free(buf);
}

static inline void leaf_fill(struct leaf *l, uint64_t off, size_t len, uint8_t byte)
{
	uint8_t *buf = malloc(len);

	memset(buf, byte, len);
	assert_int_equal(leaf_write(l, off, buf, len, 0), 0);
	free(buf);
}

/* ---- files ---- */

static inline const char *leaf_dir(void)
{
	static char dir[256];
	const char *tmp = getenv("TMPDIR");

	if (!dir[0]) {
		snprintf(dir, sizeof(dir), "%s/varve-unit-XXXXXX", tmp ? tmp : "/tmp");
		assert_non_null(mkdtemp(dir));
	}
	return dir;
}

/* "filename=DIR/name" + more */
static inline const char *leaf_file_opts(const char *name, const char *more)
{
	static char text[4][600];
	static unsigned turn;
	char *to = text[turn++ % 4];

	snprintf(to, 600, "filename=%s/%s%s", leaf_dir(), name, more);
	return to;
}

static inline const char *leaf_path(const char *name)
{
	return leaf_file_opts(name, "") + strlen("filename=");
}

/* A file of len bytes; byte i is what leaf_pattern() says. */
static inline uint8_t leaf_pattern(uint64_t i)
{
	return (uint8_t)(i * 7 + i / 251 + 1);
}

static inline void leaf_make_file(const char *name, uint64_t len, bool fill)
{
	FILE *file = fopen(leaf_path(name), "w");

	assert_non_null(file);
	for (uint64_t i = 0; fill && i < len; i++)
		fputc(leaf_pattern(i), file);
	fflush(file);
	assert_int_equal(ftruncate(fileno(file), (off_t)len), 0);
	fclose(file);
}

/* To be the group's teardown: nothing stays behind. */
static inline int leaf_remove_dir(void **state)
{
	char command[300];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf '%s'", leaf_dir());
	return system(command);
}

#endif
