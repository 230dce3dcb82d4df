/* SPDX-License-Identifier: MIT */
/*
 * proto/null.c - a disk that keeps nothing: what the layers above cost by themselves
 *
 * Every request is done at once, inside submit. Reads give zeroes with read-zeroes=on; without it they leave
 * the memory as it was, so that a measurement does not measure memset().
 *
 * Never:   reads or changes the memory of a write.
 */
#include "base/error.h"
#include "base/iov.h"
#include "base/opts.h"
#include "proto/proto.h"

#include <string.h>

struct null_disk {
	bool read_zeroes;
};

/* "null-co://" or "null-co:"; everything else is an option. */
static int null_parse_name(const char *name, struct opts *o, struct varve_error *err)
{
	(void)o;
	if (*name && strcmp(name, "//"))
		return varve_error_set(err, -EINVAL, "null-co:%.200s is not understood; write null-co://",
				       name);
	return 0;
}

static int null_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct null_disk *d = node_state(n);
	uint64_t len = GiB(1);
	int ret;

	(void)f;
	ret = opts_get_size(o, "size", &len, err);
	if (!ret)
		ret = opts_get_bool(o, "read-zeroes", &d->read_zeroes, err);
	if (ret < 0)
		return ret;
	if (len > VARVE_LEN_MAX)
		return varve_error_set(err, -EFBIG, "a size of %llu bytes is too large",
				       (unsigned long long)len);
	n->align = n->mem_align = 1;
	atomic_store_explicit(&n->len, len, memory_order_relaxed);
	return 0;
}

static void null_close(struct fiber *f, struct node *n)
{
	(void)f;
	(void)n;
}

static void null_submit(struct node *n, struct req *r)
{
	const struct null_disk *d = node_state(n);

	if (r->op == REQ_READ && d->read_zeroes)
		iov_fill(r->iov, r->nr_iov, 0, 0, r->len);
	req_done(r, 0);
}

static int64_t null_get_len(struct fiber *f, struct node *n)
{
	(void)f;
	return (int64_t)node_len(n);
}

static int null_status(struct fiber *f, struct node *n, uint64_t off, uint64_t len, bool *ret_hole,
		       uint64_t *ret_len)
{
	const struct null_disk *d = node_state(n);

	(void)f;
	(void)off;
	*ret_hole = d->read_zeroes;
	*ret_len = len;
	return 0;
}

static int null_truncate(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc,
			 struct varve_error *err)
{
	(void)f;
	(void)prealloc; /* there is nothing to reserve */
	if (len > VARVE_LEN_MAX)
		return varve_error_set(err, -EFBIG, "a size of %llu bytes is too large",
				       (unsigned long long)len);
	atomic_store_explicit(&n->len, len, memory_order_relaxed);
	return 0;
}

static const struct varve_option_info open_options[] = {
	{ "size", "size", "of the disk (1G)", false },
	{ "read-zeroes", "bool", "what is read is zeroes, not left as it was (off)", false },
	{ NULL, NULL, NULL, false },
};

const struct driver driver_null = {
	.name = "null-co",
	.kind = DRIVER_LEAF,
	.state_len = sizeof(struct null_disk),
	.prefix = "null-co:",
	.parse_name = null_parse_name,
	.open_options = open_options,
	.open = null_open,
	.close = null_close,
	.submit = null_submit,
	.get_len = null_get_len,
	.status = null_status,
	.truncate = null_truncate,
};
