/* SPDX-License-Identifier: MIT */
/*
 * tools/img_convert_stdin.c - `varve img convert -f raw - TARGET`: out of a pipe
 *
 * Raw bytes can be read forward only. How many there are shows when they end: until then the target is made longer in growing
 * steps, and cut at last. Reading goes on while writes are under way.
 *
 * Owns:    the blocks that are filled and written, the requests.
 * Assumes: nobody else runs the queue.
 * Never:   probes: what came out of a pipe cannot be read again.
 */
#include "img_convert.h"
#include "stop.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_LEN ((uint64_t)1 << 20)
#define NR_BLOCKS 8u
#define NR_WRITES 64u
#define GRANULE_MAX (64u << 10)
#define STEP_MAX ((uint64_t)64 << 30)
#define SECTOR 512u

struct block {
	uint8_t *data;
	unsigned pending; /* writes of it under way */
};

struct write {
	struct iovec iov;
	struct block *block;
	struct write *next; /* while free */
};

struct intake {
	const struct convert_args *a;
	struct varve_image *image;
	struct varve_queue *queue;
	int fd;
	bool fixed;	   /* the target keeps its length */
	bool skip_zeroes;  /* it reads as zeroes already */
	uint64_t cluster, granule, block_len;

	struct block blocks[NR_BLOCKS];
	unsigned nr_blocks;
	struct write writes[NR_WRITES], *free;
	unsigned nr_pending;
	uint64_t len; /* bytes read */
	int error;    /* of the first write that failed */
};

/* ---- what is asked for ---- */

bool convert_from_pipe(const char *name)
{
	struct stat st;

	return strcmp(name, "-") == 0 || (stat(name, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)));
}

int convert_stdin_check(const struct convert_args *a)
{
	const char *name = a->names[0];

	if (a->nr_sources > 1)
		return complain_usage("convert: a source that is a pipe is the only one, but there are %u", a->nr_sources);
	if (!a->source.format)
		return complain_usage("convert: %s: what comes out of a pipe cannot be probed: -f raw is needed", name);
	if (strcmp(a->source.format, "raw") != 0)
		return complain_usage("convert: %s: a %s image is read here and there, not forward only: store it in a file first", name,
				      a->source.format);
	if (convert_is_pipe(a->names[1]))
		return complain_usage("convert: %s and %s: one of them must be a file", name, a->names[1]);
	if (a->snapshot || a->source.image_opts || a->source.force_share || a->source.cache || a->has_backing || a->progress ||
	    a->convert.rate || (a->convert.flags & (VARVE_CONVERT_OFFLOAD | VARVE_CONVERT_SALVAGE)))
		return complain_usage("convert: %s: a pipe is not an image file: -l, --image-opts, -U, -T, -b, -p, -r, -C and --salvage "
				      "do not go with it", name);
	if (!a->no_create && !options_have(a->options, "size") && options_have(a->options, "preallocation"))
		return complain_usage("convert: %s: space can be reserved for a length that is known: -o size= is needed", name);
	if (!a->no_create && !options_have(a->options, "size") && strcmp(a->target.format, "qed") == 0)
		return complain_usage("convert: %s: how long the disk will be is not known, and a qed image cannot be cut: "
				      "-o size= is needed", name);
	return strcmp(name, "-") == 0 ? img_check_stdin("convert", a->target.image_opts ? NULL : a->names[1]) : 0;
}

/* ---- writes under way ---- */

static void reap(struct intake *in, int timeout_ms)
{
	struct varve_completion done[NR_WRITES];
	int n = varve_queue_reap(in->queue, done, NR_WRITES, timeout_ms);

	if (n < 0 && !in->error)
		in->error = n;
	for (int i = 0; i < n; i++) {
		struct write *w = done[i].user_data;

		if (done[i].result < 0 && !in->error)
			in->error = done[i].result;
		w->block->pending--;
		in->nr_pending--;
		w->next = in->free;
		in->free = w;
	}
}

static void drain(struct intake *in)
{
	while (in->nr_pending)
		reap(in, -1);
}

static void submit(struct intake *in, struct block *b, uint64_t off, uint8_t *buf, uint64_t len, bool zero)
{
	bool compress = in->a->convert.flags & VARVE_CONVERT_COMPRESS;
	struct write *w;
	int ret;

	while (!in->free)
		reap(in, -1);
	w = in->free;
	in->free = w->next;
	w->block = b;
	w->iov = (struct iovec){ buf, len };
	if (zero)
		ret = varve_submit_write_zeroes(in->queue, in->image, off, len, VARVE_REQ_MAY_UNMAP, w);
	else
		ret = varve_submit_writev(in->queue, in->image, &w->iov, 1, off, compress ? VARVE_REQ_COMPRESS : 0, w);
	if (ret < 0) {
		in->error = ret;
		w->next = in->free;
		in->free = w;
		return;
	}
	b->pending++;
	in->nr_pending++;
	if (in->a->convert.flags & VARVE_CONVERT_CANONICAL) /* side by side, which gets its space first is chance */
		drain(in);
}

static bool all_zero(const uint8_t *buf, uint64_t len)
{
	return !buf[0] && memcmp(buf, buf + 1, len - 1) == 0;
}

/* In runs of one kind; what is compressed, cluster by cluster, so that all processors have some. */
static void write_block(struct intake *in, struct block *b, uint64_t off, uint64_t len)
{
	bool all_data = in->a->convert.flags & VARVE_CONVERT_ALL_DATA, compress = in->a->convert.flags & VARVE_CONVERT_COMPRESS;

	for (uint64_t pos = 0, end; pos < len && !in->error; pos = end) {
		uint64_t step = MIN(in->granule, len - pos);
		bool zero = !all_data && all_zero(b->data + pos, step);

		end = pos + step;
		while (end < len && (zero || !compress)) {
			step = MIN(in->granule, len - end);
			if (!all_data && all_zero(b->data + end, step) != zero)
				break;
			end += step;
		}
		if (!zero || !in->skip_zeroes)
			submit(in, b, off + pos, b->data + pos, end - pos, zero);
	}
	reap(in, 0); /* which sends them */
}

/* ---- reading ---- */

/* Returns the number of bytes, 0 at the end, or a negative errno. Writes go on meanwhile. */
static ssize_t read_some(struct intake *in, uint8_t *buf, size_t len)
{
	while (!in->error && !stop_asked()) {
		struct pollfd p[2] = { { .fd = in->fd, .events = POLLIN },
				       { .fd = varve_queue_fd(in->queue), .events = POLLIN } };
		ssize_t n;

		/* Now and then a look at signals: one may come between that and poll(). */
		if (poll(p, in->nr_pending ? 2 : 1, 500) < 0 && errno != EINTR)
			return -errno;
		if (in->nr_pending && p[1].revents)
			reap(in, 0);
		if (!p[0].revents)
			continue;
		n = read(in->fd, buf, len);
		if (n >= 0 || (errno != EINTR && errno != EAGAIN))
			return n < 0 ? -errno : n;
	}
	return in->error ? in->error : -ECANCELED;
}

/* A block's worth, less only at the end. 0, or 1 after a message. */
static int fill(struct intake *in, uint8_t *buf, uint64_t *ret_len)
{
	uint64_t len = 0;
	ssize_t n = 1;

	while (len < in->block_len && n > 0) {
		n = read_some(in, buf + len, in->block_len - len);
		if (n > 0)
			len += (uint64_t)n;
	}
	if (n == -ECANCELED && stop_asked())
		convert_ended(in->a);
	else if (n < 0 && !in->error)
		complain("convert: %s: %s", in->a->names[0], strerror((int)-n));
	*ret_len = len;
	return n < 0;
}

/* ---- the target's length ---- */

static int resize(struct intake *in, uint64_t len)
{
	struct varve_error err;

	drain(in);
	if (in->error)
		return 1;
	if (varve_image_resize(in->image, len, VARVE_PREALLOC_OFF, VARVE_RESIZE_SHRINK, &err) == 0)
		return 0;
	complain("convert: %s", err.message);
	return 1;
}

/* Room for the first end bytes: more, so that it need not be done for every block. */
static int make_room(struct intake *in, uint64_t end)
{
	uint64_t have = varve_image_length(in->image);

	if (end <= have)
		return 0;
	if (in->fixed) {
		complain("convert: %s: %s has more than its %" PRIu64 " bytes", in->a->names[1], in->a->names[0], have);
		return 1;
	}
	return resize(in, MAX(end, have + MIN(have, STEP_MAX)));
}

/* ---- the whole ---- */

static int copy(struct intake *in)
{
	for (unsigned i = 0;; i = (i + 1) % in->nr_blocks) {
		struct block *b = &in->blocks[i];
		uint64_t len, padded;

		while (b->pending)
			reap(in, -1);
		if (fill(in, b->data, &len))
			return 1;
		if (!len)
			return 0;
		/* The end of the last sector, or, as long as there is room behind it, of the last cluster: zeroes. */
		padded = (len + SECTOR - 1) / SECTOR * SECTOR;
		if (!in->fixed)
			padded = (len + in->cluster - 1) / in->cluster * in->cluster;
		memset(b->data + len, 0, padded - len);
		if (make_room(in, in->len + padded))
			return 1;
		write_block(in, b, in->len, padded);
		in->len += len;
		if (in->error)
			return 1;
	}
}

static int find_cluster(struct intake *in)
{
	struct varve_error err;
	json_t *info;
	char *text;

	if (varve_image_info(in->image, &text, &err) < 0) {
		complain("convert: %s", err.message);
		return 1;
	}
	info = json_loads(text, 0, NULL);
	free(text);
	in->cluster = (uint64_t)json_integer_value(json_object_get(info, "cluster-size"));
	json_decref(info);
	if (!in->cluster)
		in->cluster = SECTOR;
	return 0;
}

static int prepare(struct intake *in)
{
	const struct varve_convert_options *o = &in->a->convert;
	uint64_t sparse = MIN(o->sparse ? o->sparse : 4096, BLOCK_LEN);

	if (find_cluster(in))
		return 1;
	in->granule = MIN(in->cluster, GRANULE_MAX);
	while (in->granule < sparse)
		in->granule *= 2;
	if (o->flags & VARVE_CONVERT_COMPRESS)
		in->granule = MAX(in->granule, in->cluster);
	in->block_len = MAX(BLOCK_LEN, in->granule);
	in->nr_blocks = MIN(NR_BLOCKS, o->parallel ? MAX(o->parallel, 2) : NR_BLOCKS);
	for (unsigned i = 0; i < NR_WRITES; i++) {
		in->writes[i].next = in->free;
		in->free = &in->writes[i];
	}
	for (unsigned i = 0; i < in->nr_blocks; i++) {
		in->blocks[i].data = aligned_alloc(4096, in->block_len);
		if (!in->blocks[i].data) {
			complain("convert: out of memory");
			return 1;
		}
	}
	return 0;
}

static int run(struct intake *in)
{
	int ret = prepare(in);

	if (!ret)
		ret = copy(in);
	drain(in);
	if (!ret && !in->error && !in->fixed)
		ret = resize(in, (in->len + SECTOR - 1) / SECTOR * SECTOR);
	if (in->error) {
		complain("convert: %s: write: %s", in->a->names[1], strerror(-in->error));
		ret = 1;
	}
	for (unsigned i = 0; i < in->nr_blocks; i++)
		free(in->blocks[i].data);
	return ret;
}

int convert_stdin(const struct convert_args *a, struct varve_image *target, struct varve_queue *queue, bool reads_zero)
{
	bool own = strcmp(a->names[0], "-") != 0;
	struct intake *in = calloc(1, sizeof(*in));
	int ret = 1;

	if (!in) {
		complain("convert: out of memory");
		return 1;
	}
	in->a = a;
	in->image = target;
	in->queue = queue;
	in->fixed = a->no_create || options_have(a->options, "size");
	in->skip_zeroes = reads_zero;
	in->fd = own ? open(a->names[0], O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
	if (in->fd < 0)
		complain("convert: %s: %s", a->names[0], strerror(errno));
	else
		ret = run(in);
	if (own && in->fd >= 0)
		close(in->fd);
	free(in);
	return ret;
}
