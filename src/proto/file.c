/* SPDX-License-Identifier: MIT */
/*
 * proto/file.c - regular files and block devices: the hot path, and the drivers' tables
 *
 * One request is one operation of the engine. Whatever does not fit (very long, short transfers, what the
 * file system cannot do) goes to file_slow.c, which ends the request on a fiber.
 *
 * Owns:    the state of one open file (struct file).
 * Assumes: requests are in bounds of the disk and aligned to n->align; the queue was attached.
 * Never:   forgets that a sync failed, or completes a request inside submit.
 */
#include "proto/file.h"

#include "base/iov.h"
#include "proto/proto.h"

/* Requests end at most here, so that engines can add any length of an operation to its offset. */
#define FILE_END_MAX (VARVE_LEN_MAX - AIO_LEN_MAX)

/*
 * The range of a write or zeroing has been written; fua: and synced. From here on a sync that fails speaks of
 * it too; a FUA write has no more to promise than a flush has, and fails while older data is in doubt.
 */
int file_wrote(struct file *fl, struct req *r, bool fua)
{
	if (unlikely(!fl->doubt))
		return 0;
	doubt_note(fl->doubt, r->q, r->off, r->len, r->leaf_state);
	return unlikely(fua) ? doubt_stable(fl->doubt, r->off, r->len, r->leaf_state) : 0;
}

/* The file system or device does not know the operation: other ways may work. */
bool file_is_unsupported(int64_t error)
{
	return error == -EOPNOTSUPP || error == -ENOSYS || error == -ENOTTY || error == -ENODEV;
}

/* A write ended at end: the file is at least that long now. */
void file_grow(struct node *n, uint64_t end)
{
	uint64_t len = node_len(n);

	while (unlikely(end > len)) {
		if (atomic_compare_exchange_weak_explicit(&n->len, &len, end, memory_order_relaxed,
							  memory_order_relaxed))
			return;
	}
}

/* ---- completions ---- */

static struct req *op_req(struct aio_op *op)
{
	return container_of(op, struct req, aio);
}

static void read_done(struct aio_op *op, int64_t res)
{
	struct req *r = op_req(op);
	struct node *n = r->at;

	if (likely(res == (int64_t)r->len)) {
		req_done(r, 0);
	} else if (res < 0) {
		req_done(r, (int)res);
	} else if (r->off + (uint64_t)res >= node_len(n)) { /* the end of the file: zeroes follow */
		iov_fill(r->iov, r->nr_iov, (size_t)res, 0, r->len - (uint64_t)res);
		req_done(r, 0);
	} else {
		file_slow_rest(n, r, (uint64_t)res);
	}
}

static void write_done(struct aio_op *op, int64_t res)
{
	struct req *r = op_req(op);
	struct node *n = r->at;

	if (likely(res == (int64_t)r->len)) {
		file_grow(n, r->off + r->len);
		req_done(r, file_wrote(node_state(n), r, op->flags & AIO_FUA));
	} else if (res >= 0) {
		file_slow_rest(n, r, (uint64_t)res);
	} else if (op->flags & AIO_FUA) {
		file_slow_fua(n, r, (int)res);
	} else {
		req_done(r, (int)res);
	}
}

static void flush_done(struct aio_op *op, int64_t res)
{
	struct req *r = op_req(op);
	struct file *fl = node_state(r->at);

	/* Success counts only if no other flush learned of lost writes meanwhile: they may have been ours. */
	req_done(r,
		 res < 0 ? doubt_sync_failed(fl->doubt, (int)res) : doubt_sync_ok(fl->doubt, r->leaf_state));
}

static void discard_done(struct aio_op *op, int64_t res)
{
	struct req *r = op_req(op);
	struct file *fl = node_state(r->at);

	if (file_is_unsupported(res)) { /* a discard is advice; not to follow it is allowed */
		atomic_store_explicit(&fl->no_discard, true, memory_order_relaxed);
		res = 0;
	}
	req_done(r, (int)res);
}

static void zero_done(struct aio_op *op, int64_t res)
{
	struct req *r = op_req(op);
	struct node *n = r->at;
	struct file *fl = node_state(n);

	if (!file_is_unsupported(res)) {
		req_done(r, res < 0 ? (int)res : file_wrote(fl, r, false));
		return;
	}
	atomic_store_explicit(&fl->no_zero[!!(op->flags & AIO_MAY_UNMAP)], true, memory_order_relaxed);
	file_slow(n, r);
}

static void answer_run(struct msg *m)
{
	struct req *r = container_of(m, struct req, msg);

	req_done(r, (int)r->aio.res);
}

/* For what needs no operation: the answer comes after submit has returned, as with every other request. */
static void answer_later(struct req *r, int ret)
{
	r->aio.res = ret;
	r->msg.run = answer_run;
	queue_later(r->q, &r->msg);
}

/* ---- submission ---- */

static void op_submit(struct file *fl, struct req *r, enum aio_opcode opcode, uint32_t flags,
		      void (*done)(struct aio_op *op, int64_t res))
{
	struct aio_op *op = &r->aio;

	op->file = &fl->af;
	op->opcode = (uint8_t)opcode;
	op->flags = flags;
	op->iov = r->iov;
	op->nr_iov = r->nr_iov;
	op->off = r->off;
	op->len = r->len;
	op->done = done;
	aio_submit(r->q, op);
}

static void submit_rw(struct node *n, struct req *r)
{
	struct file *fl = node_state(n);
	bool fua = file_is_fua(fl, r);

	if (unlikely(r->nr_iov > AIO_IOV_MAX || r->len > AIO_LEN_MAX))
		file_slow(n, r);
	else if (r->op == REQ_READ)
		op_submit(fl, r, AIO_READ, 0, read_done);
	else
		op_submit(fl, r, AIO_WRITE, fua ? AIO_FUA : 0, write_done);
}

static void submit_flush(struct node *n, struct req *r)
{
	struct file *fl = node_state(n);

	if (!fl->doubt) {
		answer_later(r, 0);
		return;
	}
	/* Also while data is in doubt: what was written again becomes stable by this sync. */
	r->leaf_state = doubt_sync_begin(fl->doubt);
	/* r may have been a write, zeroing or discard of any length, which this makes stable (block/node.c). */
	r->aio = (struct aio_op){ .file = &fl->af, .opcode = AIO_FLUSH, .done = flush_done };
	aio_submit(r->q, &r->aio);
}

static void submit_discard(struct node *n, struct req *r)
{
	struct file *fl = node_state(n);

	if (atomic_load_explicit(&fl->no_discard, memory_order_relaxed))
		answer_later(r, 0);
	else if (r->len > AIO_LEN_MAX || !is_aligned(r->off | r->len, fl->block_len))
		file_slow(n, r);
	else
		op_submit(fl, r, AIO_DISCARD, 0, discard_done);
}

static void submit_zero(struct node *n, struct req *r)
{
	struct file *fl = node_state(n);
	uint32_t flags = r->flags & REQ_MAY_UNMAP ? AIO_MAY_UNMAP : 0;

	if (r->len > AIO_LEN_MAX || !is_aligned(r->off | r->len, fl->block_len) ||
	    r->off + r->len > node_len(n) || file_is_fua(fl, r) ||
	    atomic_load_explicit(&fl->no_zero[!!flags], memory_order_relaxed))
		file_slow(n, r);
	else
		op_submit(fl, r, AIO_ZERO, flags, zero_done);
}

void file_submit(struct node *n, struct req *r)
{
	const struct file *fl = node_state(n);

	if (r->op != REQ_FLUSH &&
	    unlikely(!r->len || r->len > FILE_END_MAX || r->off > FILE_END_MAX - r->len)) {
		answer_later(r, r->len ? -EFBIG : 0);
		return;
	}
	if (fl->doubt && (r->op == REQ_WRITE || r->op == REQ_ZERO))
		r->leaf_state = doubt_gen(fl->doubt);
	switch (r->op) {
	case REQ_READ:
	case REQ_WRITE:
		submit_rw(n, r);
		return;
	case REQ_FLUSH:
		submit_flush(n, r);
		return;
	case REQ_DISCARD:
		submit_discard(n, r);
		return;
	case REQ_ZERO:
		submit_zero(n, r);
		return;
	case REQ_OPS:
		break;
	}
	answer_later(r, -ENOTSUP);
}

int file_attach(struct node *n, struct queue *q, struct varve_error *err)
{
	struct file *fl = node_state(n);
	int ret = aio_attach(q, fl->af.engine, err);

	if (!ret && fl->doubt) {
		ret = doubt_attach(fl->doubt, q, node_len(n));
		if (ret < 0)
			varve_error_errno(err, ret, "a queue cannot be attached");
	}
	return ret;
}

/* ---- drivers ---- */

static int file_parse_name(const char *name, struct opts *o, struct varve_error *err)
{
	return opts_set(o, "filename", name, err);
}

const struct driver driver_file = {
	.name = "file",
	.kind = DRIVER_LEAF,
	.state_len = sizeof(struct file),
	.has_engine = true,
	.prefix = "file:",
	.parse_name = file_parse_name,
	.open = file_open,
	.close = file_close,
	.submit = file_submit,
	.attach = file_attach,
	.acknowledge = file_acknowledge,
	.inherit_error = file_inherit_error,
	.publish_error = file_publish_error,
	.stats = file_stats,
	.get_len = file_get_len,
	.status = file_status,
	.taken = file_taken,
	.truncate = file_truncate,
	.extend = file_extend,
	.allocate = file_allocate,
	.options = file_options,
	.open_options = file_open_options,
	.hint = file_hint,
	.copy_range = file_copy_range,
	.info = file_info,
};

const struct driver driver_host_device = {
	.name = "host_device",
	.kind = DRIVER_LEAF,
	.state_len = sizeof(struct file),
	.has_engine = true,
	.prefix = "host_device:",
	.parse_name = file_parse_name,
	.open = file_open_device,
	.close = file_close,
	.submit = file_submit,
	.attach = file_attach,
	.acknowledge = file_acknowledge,
	.inherit_error = file_inherit_error,
	.publish_error = file_publish_error,
	.stats = file_stats,
	.get_len = file_get_len,
	.status = file_status,
	.taken = file_taken,
	.truncate = file_truncate,
	.extend = file_extend,
	.allocate = file_allocate,
	.options = file_options,
	.open_options = file_open_options,
	.hint = file_hint,
	.copy_range = file_copy_range,
	.info = file_info,
};
