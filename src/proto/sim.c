/* SPDX-License-Identifier: MIT */
/*
 * proto/sim.c - a leaf over a simulated file: driver_file's request path, for tests
 *
 * Owns:    nothing: the simulated file is the test's.
 */
#include "base/error.h"
#include "block/graph.h"
#include "proto/file.h"
#include "proto/proto.h"

struct sim_leaf {
	struct file file; /* first: the request path of driver_file finds its state here */
	struct sim_file *sim;
};

/* What sim_node_new() hands to sim_open(), which it reaches through graph_stack() on the same thread. */
static _Thread_local struct {
	struct sim_file *sim;
	const struct aio_file *af;
} handed;

static int sim_open(struct fiber *f, struct node *n, struct opts *o, struct varve_error *err)
{
	struct sim_leaf *s = node_state(n);

	(void)f;
	(void)o;
	if (!handed.sim)
		return varve_error_set(err, -EINVAL, "driver sim is made by tests, not opened by name");
	s->sim = handed.sim;
	s->file.af = *handed.af;
	s->file.block_len = 1;
	s->file.writable = n->flags & NODE_WRITABLE;
	s->file.no_flush = n->flags & NODE_NO_FLUSH;
	s->file.sync = n->flags & NODE_SYNC;
	if (s->file.writable && !s->file.no_flush && !(s->file.doubt = doubt_new(node_name(n))))
		return varve_error_errno(err, -ENOMEM, "sim");
	/* A file that pretends O_DIRECT minds its alignment as a disk with sectors of 512 bytes would. */
	n->align = n->mem_align = s->file.af.direct ? 512 : 1;
	atomic_store_explicit(&n->len, sim_len(s->sim), memory_order_relaxed);
	return 0;
}

static void sim_close(struct fiber *f, struct node *n)
{
	struct sim_leaf *s = node_state(n);

	(void)f;
	doubt_free(s->file.doubt);
}

static int64_t sim_get_len(struct fiber *f, struct node *n)
{
	struct sim_leaf *s = node_state(n);

	(void)f;
	file_grow(n, sim_len(s->sim));
	return (int64_t)sim_len(s->sim);
}

static int sim_set_len(struct fiber *f, struct node *n, uint64_t len, enum prealloc prealloc,
		       struct varve_error *err)
{
	struct sim_leaf *s = node_state(n);
	int ret = sim_truncate(s->sim, len);

	(void)f;
	(void)prealloc; /* a simulated file has no holes */
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot set the length to %llu bytes",
					 (unsigned long long)len);
	atomic_store_explicit(&n->len, len, memory_order_relaxed);
	return 0;
}

static int sim_extend(struct fiber *f, struct node *n, uint64_t len)
{
	struct sim_leaf *s = node_state(n);
	int ret = len > sim_len(s->sim) ? sim_truncate(s->sim, len) : 0;

	(void)f;
	if (ret == 0)
		file_grow(n, len);
	return ret;
}

static const struct driver driver_sim = {
	.name = "sim",
	.kind = DRIVER_LEAF,
	.state_len = sizeof(struct sim_leaf),
	.open = sim_open,
	.close = sim_close,
	.submit = file_submit,
	.attach = file_attach,
	.acknowledge = file_acknowledge,
	.inherit_error = file_inherit_error,
	.publish_error = file_publish_error,
	.stats = file_stats,
	.get_len = sim_get_len,
	.truncate = sim_set_len,
	.extend = sim_extend,
};

int sim_node_new(struct fiber *f, struct sim_file *s, const struct aio_file *af, uint32_t flags,
		 struct node **ret_leaf, struct varve_error *err)
{
	struct opts *o = opts_new();
	int ret;

	if (!o)
		return varve_error_set(err, -ENOMEM, "sim: out of memory");
	handed.sim = s;
	handed.af = af;
	ret = graph_stack(f, &driver_sim, NULL, o, flags, ret_leaf, err);
	handed.sim = NULL;
	opts_free(o);
	return ret;
}
