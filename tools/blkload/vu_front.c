/* SPDX-License-Identifier: MIT */
/*
 * vu_front.c - one session with a vhost-user back end
 *
 * Owns:    what vu_front.h says.
 * Assumes: memory and rings outlive the connection, so that a test can connect again.
 * Never:   waits longer than opts.timeout_ms for an answer.
 */
#include "vu_front.h"
#include "vu_raw.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BIT(n)	(UINT64_C(1) << (n))

static_assert(offsetof(struct virtio_blk_config, max_secure_erase_sectors) == VU_BLK_CONFIG,
	      "the fields before secure erase are what we fetch");

struct vu_front_opts vu_front_defaults(const char *path)
{
	struct vu_front_opts o = {
		.path = path,
		.nr_queues = 1,
		.queue_len = 128,
		.table_len = 130,
		.mem_len = 16u << 20,
		.nr_regions = 1,
		.features = BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_RING_F_INDIRECT_DESC) |
			    BIT(VIRTIO_RING_F_EVENT_IDX) | BIT(VIRTIO_BLK_F_SIZE_MAX) |
			    BIT(VIRTIO_BLK_F_SEG_MAX) | BIT(VIRTIO_BLK_F_GEOMETRY) |
			    BIT(VIRTIO_BLK_F_RO) | BIT(VIRTIO_BLK_F_BLK_SIZE) |
			    BIT(VIRTIO_BLK_F_FLUSH) | BIT(VIRTIO_BLK_F_TOPOLOGY) |
			    BIT(VIRTIO_BLK_F_CONFIG_WCE) | BIT(VIRTIO_BLK_F_MQ) |
			    BIT(VIRTIO_BLK_F_DISCARD) | BIT(VIRTIO_BLK_F_WRITE_ZEROES),
		.protocol_features = BIT(VU_PROTOCOL_F_MQ) | BIT(VU_PROTOCOL_F_CONFIG) |
				     BIT(VU_PROTOCOL_F_REPLY_ACK),
		.timeout_ms = 10000,
		.indirect = VU_INDIRECT,
	};

	return o;
}

int vu_front_init(struct vu_front *f, const struct vu_front_opts *opts)
{
	uint64_t len;
	unsigned q;
	int ret;

	memset(f, 0, sizeof(*f));
	f->opts = *opts;
	f->sock = -1;
	f->inflight_fd = -1;
	f->mem.fd = -1;
	if (opts->nr_queues < 1 || opts->nr_queues > VU_MAX_QUEUES)
		return vu_fail(&f->err, -EINVAL, "%u queues asked for, 1 to %u can be had",
			       opts->nr_queues, VU_MAX_QUEUES);
	if (opts->queue_len == 0 || opts->queue_len > 32768 ||
	    (opts->queue_len & (opts->queue_len - 1)) != 0)
		return vu_fail(&f->err, -EINVAL,
			       "a queue of %u descriptors: it must be a power of two up to 32768",
			       opts->queue_len);

	/* Every region must have room for the longest part of a ring, wherever the turn falls. */
	len = opts->mem_len + opts->nr_queues * vu_ring_mem_len(opts->queue_len, opts->table_len);
	if (opts->nr_regions > 1)
		len += opts->nr_regions * vu_ring_mem_len(opts->queue_len, opts->table_len);
	ret = vu_mem_create(&f->mem, len, opts->nr_regions, &f->err);
	if (ret < 0)
		return ret;

	f->ring = calloc(opts->nr_queues, sizeof(*f->ring));
	if (!f->ring)
		return vu_fail(&f->err, -ENOMEM, "no memory for %u rings", opts->nr_queues);
	for (q = 0; q < opts->nr_queues; q++) {
		struct vu_ring *r = &f->ring[q];

		ret = vu_ring_init(r, &f->mem, q, opts->queue_len, opts->table_len);
		if (ret < 0)
			return vu_fail(&f->err, ret, "queue %u: %s", q, r->err.text);
		r->spin = opts->spin;
	}
	return 0;
}

int vu_front_connect(struct vu_front *f)
{
	assert(f->sock < 0);
	f->sock = vu_sock_connect(f->opts.path, &f->err);
	return f->sock < 0 ? f->sock : 0;
}

void vu_front_disconnect(struct vu_front *f)
{
	unsigned q;

	if (f->sock >= 0)
		close(f->sock);
	f->sock = -1;
	f->protocol_features = 0;
	for (q = 0; f->ring && q < f->opts.nr_queues; q++)
		f->ring[q].peer_fd = -1;
}

void vu_front_close(struct vu_front *f)
{
	unsigned q;

	vu_front_disconnect(f);
	if (f->inflight_fd >= 0)
		close(f->inflight_fd);
	f->inflight_fd = -1;
	for (q = 0; f->ring && q < f->opts.nr_queues; q++)
		vu_ring_free(&f->ring[q]);
	free(f->ring);
	f->ring = NULL;
	vu_mem_free(&f->mem);
}

int vu_front_open(struct vu_front *f, const struct vu_front_opts *opts)
{
	unsigned q;
	int ret;

	ret = vu_front_init(f, opts);
	if (ret == 0)
		ret = vu_front_connect(f);
	if (ret == 0)
		ret = vu_front_negotiate(f);
	if (ret == 0)
		ret = vu_front_share_memory(f);
	if (ret == 0)
		ret = vu_front_share_inflight(f);
	for (q = 0; ret == 0 && q < opts->nr_queues; q++)
		ret = vu_front_start_queue(f, q);
	return ret;
}

/* Put the request's name before what the socket code said. */
static int name_request(struct vu_front *f, uint32_t request, int ret)
{
	struct vu_err inner = f->err;

	return vu_fail(&f->err, ret, "%s: %.280s", vu_request_name(request), inner.text);
}

/* Receive the answer to request and check its head. */
static int await_reply(struct vu_front *f, uint32_t request, struct vu_msg *reply)
{
	int ret = vu_recv(f->sock, reply, vu_deadline_ns(f->opts.timeout_ms), &f->err);

	if (ret < 0)
		return name_request(f, request, ret);
	if (reply->hdr.request != request ||
	    (reply->hdr.flags & VU_FLAG_VERSION_MASK) != VU_FLAG_VERSION ||
	    !(reply->hdr.flags & VU_FLAG_REPLY)) {
		vu_msg_close_fds(reply);
		return vu_fail(&f->err, -EPROTO,
			       "%s: answered by request %" PRIu32 " with flags 0x%" PRIx32
			       " (expected %" PRIu32 ", version 1, the reply flag)",
			       vu_request_name(request), reply->hdr.request, reply->hdr.flags,
			       request);
	}
	return 0;
}

int vu_front_request(struct vu_front *f, uint32_t request, const void *payload, uint32_t len,
		     const int *fds, unsigned nr_fds)
{
	bool ack = vu_has(f->protocol_features, VU_PROTOCOL_F_REPLY_ACK);
	uint32_t flags = VU_FLAG_VERSION | (ack ? VU_FLAG_NEED_REPLY : 0);
	struct vu_msg reply;
	int ret;

	ret = vu_send(f->sock, request, flags, payload, len, fds, nr_fds,
		      vu_deadline_ns(f->opts.timeout_ms), &f->err);
	if (ret < 0)
		return name_request(f, request, ret);
	if (!ack)
		return 0;

	ret = await_reply(f, request, &reply);
	if (ret < 0)
		return ret;
	vu_msg_close_fds(&reply);
	if (reply.hdr.size != sizeof(reply.u64))
		return vu_fail(&f->err, -EPROTO, "%s: acknowledged with %" PRIu32 " bytes, not 8",
			       vu_request_name(request), reply.hdr.size);
	if (reply.u64 != 0)
		return vu_fail(&f->err, -EREMOTEIO,
			       "%s: refused by the back end with code %" PRIu64,
			       vu_request_name(request), reply.u64);
	return 0;
}

int vu_front_query(struct vu_front *f, uint32_t request, const void *payload, uint32_t len,
		   struct vu_msg *reply)
{
	int ret = vu_send(f->sock, request, VU_FLAG_VERSION, payload, len, NULL, 0,
			  vu_deadline_ns(f->opts.timeout_ms), &f->err);

	if (ret < 0)
		return name_request(f, request, ret);
	return await_reply(f, request, reply);
}

int vu_front_query_u64(struct vu_front *f, uint32_t request, const void *payload, uint32_t len, int fd,
		       uint64_t *ret_value)
{
	struct vu_msg reply;
	int ret = vu_send(f->sock, request, VU_FLAG_VERSION, payload, len, &fd, fd >= 0,
			  vu_deadline_ns(f->opts.timeout_ms), &f->err);

	ret = ret < 0 ? name_request(f, request, ret) : await_reply(f, request, &reply);
	if (ret < 0)
		return ret;
	vu_msg_close_fds(&reply);
	if (reply.hdr.size != sizeof(reply.u64))
		return vu_fail(&f->err, -EPROTO, "%s: answered with %" PRIu32 " bytes, not 8",
			       vu_request_name(request), reply.hdr.size);
	*ret_value = reply.u64;
	return 0;
}

static int query_u64(struct vu_front *f, uint32_t request, uint64_t *ret_value)
{
	return vu_front_query_u64(f, request, NULL, 0, -1, ret_value);
}

static int negotiate_protocol(struct vu_front *f)
{
	uint64_t take;
	int ret;

	f->dev_protocol_features = f->protocol_features = 0;
	f->dev_queues = 1;
	if (!vu_has(f->dev_features, VU_F_PROTOCOL_FEATURES))
		return 0;
	ret = query_u64(f, VU_GET_PROTOCOL_FEATURES, &f->dev_protocol_features);
	if (ret < 0)
		return ret;
	take = f->dev_protocol_features & f->opts.protocol_features;
	ret = vu_front_request(f, VU_SET_PROTOCOL_FEATURES, &take, sizeof(take), NULL, 0);
	if (ret < 0)
		return ret;
	f->protocol_features = take;	/* acknowledgements begin with the next message */

	if (vu_has(take, VU_PROTOCOL_F_MQ))
		return query_u64(f, VU_GET_QUEUE_NUM, &f->dev_queues);
	return 0;
}

int vu_front_negotiate(struct vu_front *f)
{
	uint64_t set;
	unsigned q;
	int ret;

	ret = query_u64(f, VU_GET_FEATURES, &f->dev_features);
	if (ret < 0)
		return ret;
	if (!vu_has(f->dev_features, VIRTIO_F_VERSION_1))
		return vu_fail(&f->err, -ENOTSUP,
			       "the back end offers features 0x%" PRIx64
			       " without VIRTIO_F_VERSION_1; legacy devices are not supported",
			       f->dev_features);
	ret = negotiate_protocol(f);
	if (ret < 0)
		return ret;
	if (f->opts.nr_queues > f->dev_queues)
		return vu_fail(&f->err, -EINVAL, "%u queues asked for, the back end has %" PRIu64,
			       f->opts.nr_queues, f->dev_queues);

	ret = vu_front_request(f, VU_SET_OWNER, NULL, 0, NULL, 0);
	if (ret < 0)
		return ret;
	if (vu_has(f->protocol_features, VU_PROTOCOL_F_CONFIG)) {
		ret = vu_front_get_config(f, 0, f->config, sizeof(f->config));
		if (ret < 0)
			return ret;
	}

	f->features = f->dev_features & f->opts.features;
	set = f->features | (f->dev_features & BIT(VU_F_PROTOCOL_FEATURES));
	ret = vu_front_request(f, VU_SET_FEATURES, &set, sizeof(set), NULL, 0);
	if (ret < 0)
		return ret;
	for (q = 0; q < f->opts.nr_queues; q++) {
		struct vu_ring *r = &f->ring[q];

		r->event_idx = vu_has(f->features, VIRTIO_RING_F_EVENT_IDX);
		r->in_order = vu_has(f->features, VIRTIO_F_IN_ORDER);
		/* Connecting again leaves the ring as it was; another kind of ring begins anew. */
		if (r->packed != vu_has(f->features, VIRTIO_F_RING_PACKED))
			vu_ring_set_packed(r, !r->packed);
		r->indirect = VU_DIRECT;
		if (vu_has(f->features, VIRTIO_RING_F_INDIRECT_DESC) && r->table_len > 0)
			r->indirect = f->opts.indirect;
	}
	return 0;
}

int vu_front_share_memory(struct vu_front *f)
{
	struct vu_mem_table_msg t = { .nr_regions = f->mem.nr_regions };
	int fds[VU_MAX_REGIONS];
	unsigned i;

	for (i = 0; i < f->mem.nr_regions; i++) {
		const struct vu_region *r = &f->mem.region[i];

		t.region[i].guest_addr = r->guest_addr;
		t.region[i].len = r->len;
		t.region[i].user_addr = (uintptr_t)f->mem.base + r->file_off;
		t.region[i].mmap_off = r->file_off;
		fds[i] = f->mem.fd;
	}
	return vu_front_request(f, VU_SET_MEM_TABLE, &t,
				(uint32_t)offsetof(struct vu_mem_table_msg, region[t.nr_regions]),
				fds, f->mem.nr_regions);
}

int vu_front_add_region(struct vu_front *f, const struct vu_region_msg *region, int fd)
{
	struct vu_mem_reg_msg m = { .region = *region };

	return vu_front_request(f, VU_ADD_MEM_REG, &m, sizeof(m), &fd, 1);
}

int vu_front_remove_region(struct vu_front *f, const struct vu_region_msg *region)
{
	struct vu_mem_reg_msg m = { .region = *region };

	return vu_front_request(f, VU_REM_MEM_REG, &m, sizeof(m), NULL, 0);
}

static int get_inflight(struct vu_front *f)
{
	struct vu_inflight_msg ask = { .nr_queues = (uint16_t)f->opts.nr_queues,
				       .queue_size = f->opts.queue_len };
	struct vu_msg reply;
	int ret = vu_front_query(f, VU_GET_INFLIGHT_FD, &ask, VU_INFLIGHT_LEN, &reply);

	if (ret < 0)
		return ret;
	if (reply.hdr.size < VU_INFLIGHT_LEN || reply.nr_fds != 1) {
		vu_msg_close_fds(&reply);
		return vu_fail(&f->err, -EPROTO,
			       "GET_INFLIGHT_FD: answered with %" PRIu32 " bytes and %u descriptors,"
			       " %u and 1 expected",
			       reply.hdr.size, reply.nr_fds, VU_INFLIGHT_LEN);
	}
	f->inflight = reply.inflight;
	f->inflight_fd = reply.fds[0];
	return 0;
}

int vu_front_share_inflight(struct vu_front *f)
{
	int ret;

	if (!vu_has(f->protocol_features, VU_PROTOCOL_F_INFLIGHT_SHMFD))
		return 0;
	if (f->inflight_fd < 0) {
		ret = get_inflight(f);
		if (ret < 0)
			return ret;
	}
	return vu_front_request(f, VU_SET_INFLIGHT_FD, &f->inflight, VU_INFLIGHT_LEN, &f->inflight_fd, 1);
}

static int give_eventfd(struct vu_front *f, uint32_t request, unsigned q, int fd)
{
	uint64_t which = q;

	return vu_front_request(f, request, &which, sizeof(which), &fd, 1);
}

int vu_front_start_queue(struct vu_front *f, unsigned q)
{
	struct vu_ring *r = &f->ring[q];
	struct vu_vring_state num = { q, r->len }, base = { q, vu_ring_base(r) };
	struct vu_vring_addr addr = {
		.index = q,
		.desc = (uintptr_t)r->desc,
		.avail = (uintptr_t)r->avail,
		.used = (uintptr_t)r->used,
	};
	int ret;

	/* The back end may have shown more than was reaped; its record of the rest begins there. */
	if (f->inflight_fd >= 0 && !r->packed)
		base.num = vu_raw_used_idx(r);
	ret = vu_front_request(f, VU_SET_VRING_NUM, &num, sizeof(num), NULL, 0);
	if (ret == 0)
		ret = vu_front_request(f, VU_SET_VRING_BASE, &base, sizeof(base), NULL, 0);
	if (ret == 0)
		ret = vu_front_request(f, VU_SET_VRING_ADDR, &addr, sizeof(addr), NULL, 0);
	if (ret == 0)
		ret = give_eventfd(f, VU_SET_VRING_ERR, q, r->err_fd);
	if (ret == 0)
		ret = give_eventfd(f, VU_SET_VRING_CALL, q, r->call_fd);
	if (ret == 0)
		ret = give_eventfd(f, VU_SET_VRING_KICK, q, r->kick_fd);
	if (ret == 0 && vu_has(f->dev_features, VU_F_PROTOCOL_FEATURES))
		ret = vu_front_enable_queue(f, q, true);
	if (ret < 0) {
		struct vu_err inner = f->err;

		return vu_fail(&f->err, ret, "queue %u: %.290s", q, inner.text);
	}
	r->peer_fd = f->sock;
	return 0;
}

int vu_front_enable_queue(struct vu_front *f, unsigned q, bool enable)
{
	struct vu_vring_state state = { q, enable };

	return vu_front_request(f, VU_SET_VRING_ENABLE, &state, sizeof(state), NULL, 0);
}

int vu_front_stop_queue(struct vu_front *f, unsigned q, uint32_t *ret_base)
{
	struct vu_vring_state state = { .index = q };
	struct vu_msg reply;
	int ret = vu_front_query(f, VU_GET_VRING_BASE, &state, sizeof(state), &reply);

	if (ret < 0)
		return ret;
	vu_msg_close_fds(&reply);
	if (reply.hdr.size != sizeof(reply.state) || reply.state.index != q ||
	    (reply.state.num > UINT16_MAX && !f->ring[q].packed))
		return vu_fail(&f->err, -EPROTO,
			       "GET_VRING_BASE of queue %u: answered with %" PRIu32
			       " bytes, queue %" PRIu32 ", index %" PRIu32,
			       q, reply.hdr.size, reply.state.index, reply.state.num);
	if (ret_base)
		*ret_base = reply.state.num;
	return 0;
}

int vu_front_get_config(struct vu_front *f, uint32_t off, void *buf, uint32_t len)
{
	struct vu_config_msg c = { .off = off, .len = len };
	struct vu_msg reply;
	int ret;

	assert(len <= VU_CONFIG_LEN);
	ret = vu_front_query(f, VU_GET_CONFIG, &c, VU_CONFIG_HDR_LEN + len, &reply);
	if (ret < 0)
		return ret;
	vu_msg_close_fds(&reply);
	if (reply.hdr.size != VU_CONFIG_HDR_LEN + len)
		return vu_fail(&f->err, -EPROTO,
			       "GET_CONFIG of %" PRIu32 " bytes at %" PRIu32 ": answered with"
			       " %" PRIu32 " bytes, expected %" PRIu32 " (none is a refusal)",
			       len, off, reply.hdr.size, VU_CONFIG_HDR_LEN + len);
	memcpy(buf, reply.config.data, len);
	return 0;
}

int vu_front_set_config(struct vu_front *f, uint32_t off, const void *buf, uint32_t len,
			uint32_t flags)
{
	struct vu_config_msg c = { .off = off, .len = len, .flags = flags };

	assert(len <= VU_CONFIG_LEN);
	memcpy(c.data, buf, len);
	return vu_front_request(f, VU_SET_CONFIG, &c, VU_CONFIG_HDR_LEN + len, NULL, 0);
}
