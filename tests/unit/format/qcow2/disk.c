/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/disk.c - see disk.h
 */
#include "disk.h"

#include "format/qcow2/driver.h"

struct call {
	struct disk *d;
	uint32_t flags;
	uint64_t off, len;
	uint8_t *buf;
	struct extent *extent;
	struct disk_op *ops;
	unsigned nr_ops;
	enum req_op op;
	enum prealloc prealloc;
	int (*fn)(struct fiber *f, struct disk *d);
};

/* ---- open, close ---- */

/* Memory full of 0xba below the disk. */
static void attach_backing(struct fiber *f, struct disk *d)
{
	struct opts *o = opts_new();
	struct node *memory, *raw;
	uint8_t *bytes = malloc(d->backing_len);
	char size[32];

	snprintf(size, sizeof(size), "%llu", (unsigned long long)d->backing_len);
	assert_int_equal(opts_set(o, "size", size, NULL), 0);
	assert_int_equal(graph_stack(f, &driver_memory, NULL, o, NODE_WRITABLE, &memory, NULL), 0);
	opts_free(o);
	memset(bytes, 0xba, d->backing_len);
	assert_int_equal(node_write(f, memory, 0, bytes, d->backing_len), 0);
	free(bytes);
	o = opts_new();
	assert_int_equal(graph_stack(f, driver_find("raw"), memory, o, 0, &raw, NULL), 0);
	opts_free(o);
	d->n->backing = raw;
}

static int open_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct disk *d = c->d;
	struct opts *o = opts_new();
	struct node *leaf;
	int ret = sim_node_new(f, d->im->sim, &d->im->af, c->flags & NODE_WRITABLE, &leaf, &d->err);

	if (ret == 0) {
		leaf->fixed_len = d->device;
		leaf->flags |= c->flags & NODE_NO_FLUSH;
	}
	if (ret == 0)
		ret = image_add_data(f, d->im, leaf, &d->err);
	if (ret == 0 && d->options)
		ret = opts_parse(o, d->options, &d->err);
	if (ret == 0)
		ret = graph_stack(f, &driver_qcow2, leaf, o, c->flags, &d->n, &d->err);
	opts_free(o);
	if (ret < 0) {
		d->n = NULL;
		graph_close(f, leaf, NULL);
	} else if (d->backing_len) {
		attach_backing(f, d);
	}
	return ret;
}

int disk_open(struct disk *d, uint32_t flags)
{
	struct call c = { .d = d, .flags = flags };

	d->err = (struct varve_error){ 0, "" };
	return fiber_call(d->im->q, open_fiber, &c);
}

static int close_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;

	return graph_close(f, c->d->n, &c->d->err);
}

int disk_close(struct disk *d)
{
	struct call c = { .d = d };
	int ret = fiber_call(d->im->q, close_fiber, &c);

	d->n = NULL;
	return ret;
}

void disk_reopen(struct disk *d)
{
	if (d->n && disk_close(d) < 0)
		fail_msg("close: %s", d->err.message);
	if (disk_open(d, NODE_WRITABLE) < 0)
		fail_msg("open: %s", d->err.message);
}

struct disk *disk_made(uint64_t len, const char *create_options)
{
	struct disk *d = calloc(1, sizeof(*d));

	d->im = image_made(len, create_options);
	disk_reopen(d);
	return d;
}

void disk_free(struct disk *d)
{
	if (d->n)
		disk_close(d);
	image_free(d->im);
	free(d);
}

void disk_free_clean(struct disk *d)
{
	if (d->n && disk_close(d) < 0)
		fail_msg("close: %s", d->err.message);
	expect_found(d->im, 0, 0, 0);
	disk_free(d);
}

/* ---- requests ---- */

struct one {
	struct req r;
	struct iovec iov;
	unsigned *pending;
	struct fiber *f;
	int *ret;
};

static void one_done(struct req *r, int ret)
{
	struct one *o = container_of(r, struct one, r);

	*o->ret = ret;
	if (!--*o->pending)
		fiber_wake(o->f);
}

static int run_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct one *all = calloc(c->nr_ops, sizeof(*all));
	unsigned pending = c->nr_ops + 1;

	for (unsigned i = 0; i < c->nr_ops; i++) {
		struct disk_op *op = &c->ops[i];
		bool data = op->op == REQ_READ || op->op == REQ_WRITE;

		all[i] = (struct one){ .pending = &pending, .f = f, .ret = &op->ret };
		if (data) {
			all[i].iov = (struct iovec){ malloc(op->len ? op->len : 1), op->len };
			memset(all[i].iov.iov_base, op->byte, op->len);
		}
		req_init(&all[i].r, fiber_queue(f), op->op, op->off, op->len, data ? &all[i].iov : NULL, data,
			 op->flags, one_done);
		node_submit(c->d->n, &all[i].r);
	}
	pending--;
	while (pending)
		fiber_wait(f);
	for (unsigned i = 0; i < c->nr_ops; i++) {
		if (c->buf && c->nr_ops == 1 && c->ops[i].op == REQ_READ)
			memcpy(c->buf, all[i].iov.iov_base, c->ops[i].len);
		free(all[i].iov.iov_base);
	}
	free(all);
	return 0;
}

void disk_run(struct disk *d, struct disk_op *ops, unsigned nr)
{
	struct call c = { .d = d, .ops = ops, .nr_ops = nr };

	fiber_call(d->im->q, run_fiber, &c);
}

static int run_one(struct disk *d, struct disk_op op)
{
	disk_run(d, &op, 1);
	return op.ret;
}

int disk_write(struct disk *d, uint64_t off, uint64_t len, uint8_t byte)
{
	return run_one(d, (struct disk_op){ .op = REQ_WRITE, .off = off, .len = len, .byte = byte });
}

int disk_zero(struct disk *d, uint64_t off, uint64_t len, bool unmap)
{
	return run_one(d,
		       (struct disk_op){
			       .op = REQ_ZERO, .flags = unmap ? REQ_MAY_UNMAP : 0, .off = off, .len = len });
}

int disk_discard(struct disk *d, uint64_t off, uint64_t len)
{
	return run_one(d, (struct disk_op){ .op = REQ_DISCARD, .off = off, .len = len });
}

int disk_flush(struct disk *d)
{
	return run_one(d, (struct disk_op){ .op = REQ_FLUSH });
}

int disk_read(struct disk *d, uint64_t off, uint64_t len, uint8_t *buf)
{
	struct disk_op op = { .op = REQ_READ, .off = off, .len = len, .byte = 0xee };
	struct call c = { .d = d, .ops = &op, .nr_ops = 1, .buf = buf };

	fiber_call(d->im->q, run_fiber, &c);
	return op.ret;
}

void disk_expect(struct disk *d, uint64_t off, uint64_t len, uint8_t byte)
{
	uint8_t *buf = malloc(len);
	int ret = disk_read(d, off, len, buf);

	if (ret < 0)
		fail_msg("read of %llu bytes at %llu: %d", (unsigned long long)len, (unsigned long long)off,
			 ret);
	for (uint64_t i = 0; i < len; i++) {
		if (buf[i] != byte)
			fail_msg("byte %llu is 0x%02x, not 0x%02x", (unsigned long long)(off + i), buf[i],
				 byte);
	}
	free(buf);
}

static int truncate_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;

	return node_truncate(f, c->d->n, c->len, c->prealloc, &c->d->err);
}

int disk_truncate(struct disk *d, uint64_t len)
{
	return disk_truncate_prealloc(d, len, PREALLOC_OFF);
}

int disk_truncate_prealloc(struct disk *d, uint64_t len, enum prealloc prealloc)
{
	struct call c = { .d = d, .len = len, .prealloc = prealloc };

	d->err = (struct varve_error){ 0, "" };
	return fiber_call(d->im->q, truncate_fiber, &c);
}

static int map_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct node *n = c->d->n;

	for (;;) {
		int ret;

		n->drv->map(n, c->off, c->len, c->extent);
		if (c->extent->kind != EXTENT_UNLOADED)
			return 0;
		ret = n->drv->load(f, n, c->off);
		if (ret < 0) {
			*c->extent =
				(struct extent){ .kind = EXTENT_ERROR, .error = ret, .len = c->extent->len };
			return 0;
		}
	}
}

struct extent disk_map(struct disk *d, uint64_t off, uint64_t len)
{
	struct extent e;
	struct call c = { .d = d, .off = off, .len = len, .extent = &e };

	fiber_call(d->im->q, map_fiber, &c);
	return e;
}

/* ---- power cuts ---- */

static bool in_subset(void *subset, unsigned i)
{
	return *(const uint64_t *)subset >> (i % 64) & 1;
}

void cuts_add(struct cuts *c, uint64_t subset, uint64_t torn)
{
	struct cut *cut;

	if (!(c->nr & (c->nr - 1))) { /* room for twice as many */
		c->all = realloc(c->all, MAX(2 * c->nr, 1u) * sizeof(c->all[0]));
		assert_non_null(c->all);
	}
	cut = &c->all[c->nr++];
	cut->bytes = sim_power_cut(c->d->im->sim, in_subset, &subset, torn, &cut->len);
}

static int64_t cut_here(void *arg, uint64_t nr, const struct aio_op *op)
{
	struct cuts *c = arg;
	unsigned unstable = sim_nr_unstable(c->d->im->sim);
	uint64_t subsets = 1ull << MIN(unstable, 5u);

	(void)nr;
	(void)op;
	for (uint64_t i = 0; i < subsets; i++)
		cuts_add(c, unstable < 6 ? i : i * 0x9e3779b97f4a7c15ull ^ i << 7, i % 4 == 3 ? i : 0);
	return 0;
}

void cuts_begin(struct cuts *c, struct disk *d)
{
	*c = (struct cuts){ .d = d };
	sim_set_fault(d->im->sim, cut_here, c);
}

void cuts_end(struct cuts *c)
{
	sim_set_fault(c->d->im->sim, NULL, NULL);
}

void cuts_free(struct cuts *c)
{
	for (unsigned i = 0; i < c->nr; i++)
		free(c->all[i].bytes);
	free(c->all);
}

struct disk *disk_of_cut(const struct cut *cut)
{
	struct disk *d = calloc(1, sizeof(*d));

	d->im = image_of(cut->bytes, cut->len);
	return d;
}

/* ---- single functions ---- */

struct qcow2 *disk_state(struct disk *d)
{
	return node_state(d->n);
}

static int fn_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;

	return c->fn(f, c->d);
}

int disk_call(struct disk *d, int (*fn)(struct fiber *f, struct disk *d))
{
	struct call c = { .d = d, .fn = fn };

	return fiber_call(d->im->q, fn_fiber, &c);
}
