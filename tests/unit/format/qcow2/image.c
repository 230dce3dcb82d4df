/* SPDX-License-Identifier: MIT */
/*
 * unit/format/qcow2/image.c - a qcow2 image in a simulated file: made, damaged byte by byte, examined
 */
#include "image.h"

#include "block/graph.h"
#include "format/qcow2/driver.h"

static int64_t image_fault(void *arg, uint64_t nr, const struct aio_op *op)
{
	struct image *im = arg;

	im->nr_writes += op->opcode != AIO_READ && op->opcode != AIO_FLUSH;
	im->nr_reads += op->opcode == AIO_READ;
	return nr >= im->fail_nr ? -EIO : 0;
}

struct image *image_new(void)
{
	struct sim_opts so = { .seed = 1 };
	struct image *im = calloc(1, sizeof(*im));

	assert_non_null(im);
	im->fail_nr = UINT64_MAX;
	assert_int_equal(queue_new(&im->q, &(struct queue_opts){ .name = "test" }, NULL), 0);
	assert_int_equal(sim_file_new(&im->sim, &im->af, &so), 0);
	im->af.name = "image";
	sim_set_fault(im->sim, image_fault, im);
	return im;
}

void image_free(struct image *im)
{
	sim_file_free(im->sim);
	if (im->data)
		sim_file_free(im->data);
	queue_free(im->q);
	free(im->lines);
	free(im);
}

struct image *image_of(const uint8_t *bytes, uint64_t len)
{
	struct image *im = image_new();

	assert_int_equal(sim_truncate(im->sim, len), 0);
	sim_poke(im->sim, 0, bytes, len);
	return im;
}

struct image *image_copy(const struct image *im)
{
	size_t len = sim_len(im->sim);
	uint8_t *bytes = malloc(len + 1);
	struct image *copy;

	sim_peek(im->sim, 0, bytes, len);
	copy = image_of(bytes, len);
	free(bytes);
	return copy;
}

/* ---- calls on a fiber ---- */

struct call {
	struct image *im;
	unsigned cluster_bits;
	enum prealloc prealloc;
	uint64_t len;
	const char *options;
	size_t max_pages;
	json_t *json;
	const struct qcow2_header *h;
	struct qcow2_snapshot **snapshots;
	uint64_t *table_len;
};

static void count_progress(void *user_data, uint64_t done, uint64_t total)
{
	struct image *im = user_data;

	assert_true(done <= total);
	im->progress_calls++;
}

static void keep_line(void *user_data, const char *line)
{
	struct image *im = user_data;
	size_t len = strlen(line);

	assert_null(strchr(line, '\n'));
	im->lines = realloc(im->lines, im->lines_len + len + 2);
	assert_non_null(im->lines);
	memcpy(im->lines + im->lines_len, line, len);
	memcpy(im->lines + im->lines_len + len, "\n", 2);
	im->lines_len += len + 1;
}

int image_add_data(struct fiber *f, struct image *im, struct node *leaf, struct varve_error *err)
{
	return im->data ? sim_node_new(f, im->data, &im->data_af, leaf->flags, &leaf->data, err) : 0;
}

static struct node *leaf_of(struct fiber *f, struct image *im, uint32_t flags)
{
	struct node *leaf;
	int ret = sim_node_new(f, im->sim, &im->af, flags, &leaf, &im->err);

	if (ret == 0)
		ret = image_add_data(f, im, leaf, &im->err);
	if (ret < 0)
		fail_msg("leaf: %s", im->err.message);
	return leaf;
}

static int create_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct node *leaf = leaf_of(f, c->im, NODE_WRITABLE);
	struct opts *o = opts_new();
	int ret = opts_parse(o, c->options, &c->im->err);

	if (ret == 0)
		ret = qcow2_create(f, leaf, c->len, o, count_progress, c->im, &c->im->err);
	opts_free(o);
	graph_close(f, leaf, NULL); /* an image that failed is judged by its bytes */
	return ret;
}

static int device_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct node *leaf = leaf_of(f, c->im, NODE_WRITABLE);
	struct qcow2_header *h = calloc(1, sizeof(*h));
	uint8_t *cluster = malloc(1ull << c->cluster_bits);
	struct layout l = { .disk_len = c->len, .cluster_bits = c->cluster_bits, .refcount_order = 4, .entry_words = 1 };
	int ret;

	assert_int_equal(layout_plan(&l, c->prealloc, NULL), 0);
	h->version = 3;
	h->cluster_bits = c->cluster_bits;
	h->disk_len = c->len;
	h->l1_off = layout_l1_off(&l);
	h->l1_entries = (uint32_t)l.l1_entries;
	h->refcount_table_off = layout_table_off(&l);
	h->refcount_table_clusters = (uint32_t)l.table;
	h->refcount_order = 4;
	h->header_len = sizeof(struct qcow2_header_disk);
	assert_int_equal(qcow2_header_build(h, cluster, NULL), 0);
	ret = layout_write(f, leaf, &l, c->prealloc, cluster, count_progress, c->im, &c->im->err);
	free(cluster);
	free(h);
	graph_close(f, leaf, NULL); /* an image that failed is judged by its bytes */
	return ret;
}

static int open_top(struct fiber *f, struct image *im, struct node **ret)
{
	struct node *leaf = leaf_of(f, im, 0);
	struct opts *o = opts_new();
	int err = graph_stack(f, &driver_qcow2, leaf, o, NODE_CHECK | NODE_NO_BACKING, ret, &im->err);

	opts_free(o);
	if (err < 0)
		graph_close(f, leaf, NULL); /* nothing was written */
	return err;
}

static int check_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct check k = { .result = &c->im->found, .report = keep_line, .progress = count_progress, .user_data = c->im };
	struct node *top;
	int ret = open_top(f, c->im, &top);

	if (ret < 0)
		return ret;
	if (c->max_pages)
		ret = qcow2_check_bounded(f, top, &k, c->max_pages, &c->im->err);
	else
		ret = qcow2_check(f, top, &k, &c->im->err);
	assert_int_equal(graph_close(f, top, NULL), 0);
	return ret;
}

static int info_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct node *top;
	int ret = open_top(f, c->im, &top);

	if (ret < 0)
		return ret;
	c->json = json_object();
	ret = qcow2_info(f, top, c->json, &c->im->err);
	assert_int_equal(graph_close(f, top, NULL), 0);
	return ret;
}

static int snapshots_fiber(struct fiber *f, void *arg)
{
	struct call *c = arg;
	struct node *leaf = leaf_of(f, c->im, 0);
	int ret = snapshots_read(f, leaf, c->h, c->snapshots, c->table_len, &c->im->err);

	graph_close(f, leaf, NULL); /* nothing was written */
	return ret;
}

int image_create(struct image *im, uint64_t len, const char *options)
{
	struct call c = { .im = im, .len = len, .options = options };

	return fiber_call(im->q, create_fiber, &c);
}

int image_create_on_device(struct image *im, uint64_t len, unsigned cluster_bits, enum prealloc prealloc)
{
	struct call c = { .im = im, .len = len, .cluster_bits = cluster_bits, .prealloc = prealloc };

	return fiber_call(im->q, device_fiber, &c);
}

int image_check(struct image *im, size_t max_pages)
{
	struct call c = { .im = im, .max_pages = max_pages };

	im->lines_len = 0;
	if (im->lines)
		im->lines[0] = 0;
	return fiber_call(im->q, check_fiber, &c);
}

int image_info(struct image *im, json_t **ret)
{
	struct call c = { .im = im };
	int err = fiber_call(im->q, info_fiber, &c);

	if (err < 0)
		json_decref(c.json);
	else
		*ret = c.json;
	return err;
}

int image_snapshots(struct image *im, const struct qcow2_header *h, struct qcow2_snapshot **ret,
		    uint64_t *ret_len)
{
	struct call c = { .im = im, .h = h, .snapshots = ret, .table_len = ret_len };

	return fiber_call(im->q, snapshots_fiber, &c);
}

struct image *image_made(uint64_t len, const char *options)
{
	struct image *im = image_new();
	struct sim_opts so = { .seed = 2 };

	if (strstr(options, "data_file="))
		assert_int_equal(sim_file_new(&im->data, &im->data_af, &so), 0);
	if (image_create(im, len, options) < 0)
		fail_msg("create %s: %s", options, im->err.message);
	return im;
}

/* ---- bytes ---- */

uint64_t image_get(struct image *im, uint64_t off, unsigned bytes)
{
	uint8_t b[8];
	uint64_t v = 0;

	sim_peek(im->sim, off, b, bytes);
	for (unsigned i = 0; i < bytes; i++)
		v = v << 8 | b[i];
	return v;
}

void image_put(struct image *im, uint64_t off, unsigned bytes, uint64_t value)
{
	uint8_t b[8];

	for (unsigned i = bytes; i--; value >>= 8)
		b[i] = (uint8_t)value;
	sim_poke(im->sim, off, b, bytes);
}

uint32_t image_cluster_len(struct image *im)
{
	return 1u << image_get(im, offsetof(struct qcow2_header_disk, cluster_bits), 4);
}

uint64_t image_l1(struct image *im)
{
	return image_get(im, offsetof(struct qcow2_header_disk, l1_off), 8);
}

uint64_t image_l2_entry(struct image *im, unsigned cluster)
{
	return (image_get(im, image_l1(im), 8) & QCOW2_OFF_MASK) + cluster * 8;
}

/* Bit position of a count within the file. */
static uint64_t refcount_bit(struct image *im, uint64_t host_off, unsigned *ret_bits)
{
	uint32_t version = (uint32_t)image_get(im, 4, 4), cluster_len = image_cluster_len(im);
	unsigned order =
		version < 3 ? 4
			    : (unsigned)image_get(im, offsetof(struct qcow2_header_disk, refcount_order), 4);
	uint64_t table = image_get(im, offsetof(struct qcow2_header_disk, refcount_table_off), 8);
	uint64_t per_block = cluster_len * 8ull >> order, cluster = host_off / cluster_len;
	uint64_t block = image_get(im, table + cluster / per_block * 8, 8);

	assert_true(block != 0);
	*ret_bits = 1u << order;
	return block * 8 + (cluster % per_block << order);
}

uint64_t image_refcount(struct image *im, uint64_t host_off)
{
	unsigned bits;
	uint64_t bit = refcount_bit(im, host_off, &bits);

	if (bits >= 8)
		return image_get(im, bit / 8, bits / 8);
	return image_get(im, bit / 8, 1) >> bit % 8 & ((1u << bits) - 1);
}

void image_set_refcount(struct image *im, uint64_t host_off, uint64_t value)
{
	unsigned bits;
	uint64_t bit = refcount_bit(im, host_off, &bits), mask;

	if (bits >= 8) {
		image_put(im, bit / 8, bits / 8, value);
		return;
	}
	mask = ((1u << bits) - 1) << bit % 8;
	image_put(im, bit / 8, 1, (image_get(im, bit / 8, 1) & ~mask) | value << bit % 8);
}

uint64_t image_grow(struct image *im, unsigned n, uint64_t refcount)
{
	uint32_t cluster_len = image_cluster_len(im);
	uint64_t off = align_up(sim_len(im->sim), cluster_len);

	assert_int_equal(sim_truncate(im->sim, off + (uint64_t)n * cluster_len), 0);
	for (unsigned i = 0; i < n; i++)
		image_set_refcount(im, off + (uint64_t)i * cluster_len, refcount);
	return off;
}

/* ---- expectations ---- */

void expect_found(struct image *im, uint64_t corruptions, uint64_t leaks, uint64_t errors)
{
	struct varve_check_result whole;

	for (size_t max_pages = 0; max_pages < 2; max_pages++) {
		if (image_check(im, max_pages) < 0)
			fail_msg("check: %s", im->err.message);
		if (im->found.corruptions != corruptions || im->found.leaks != leaks ||
		    im->found.check_errors != errors)
			fail_msg("%llu corruptions, %llu leaks, %llu errors:\n%s",
				 (unsigned long long)im->found.corruptions,
				 (unsigned long long)im->found.leaks,
				 (unsigned long long)im->found.check_errors, im->lines ? im->lines : "");
		if (max_pages)
			assert_memory_equal(&whole, &im->found, sizeof(whole));
		whole = im->found;
	}
}

void expect_line(struct image *im, const char *part)
{
	if (!im->lines || !strstr(im->lines, part))
		fail_msg("'%s' is not in:\n%s", part, im->lines ? im->lines : "");
}
