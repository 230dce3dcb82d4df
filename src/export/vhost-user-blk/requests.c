/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/requests.c - what each message does
 *
 * Owns:    nothing; works on the session.
 * Assumes: umsg_check() passed, and the rings of the message's scope are off.
 * Never:   keeps half of a message that it refuses.
 *
 * docs/spec/vhost-user.md.
 */
#include "export/vhost-user-blk/requests.h"

#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BIT(n) (UINT64_C(1) << (n))

#define PROTOCOL_FEATURES                                                                                    \
	(BIT(UMSG_PROTOCOL_F_MQ) | BIT(UMSG_PROTOCOL_F_LOG_SHMFD) | BIT(UMSG_PROTOCOL_F_REPLY_ACK) |         \
	 BIT(UMSG_PROTOCOL_F_BACKEND_REQ) | BIT(UMSG_PROTOCOL_F_CONFIG) |                                    \
	 BIT(UMSG_PROTOCOL_F_INFLIGHT_SHMFD) | BIT(UMSG_PROTOCOL_F_RESET_DEVICE) |                           \
	 BIT(UMSG_PROTOCOL_F_CONFIGURE_MEM_SLOTS) | BIT(UMSG_PROTOCOL_F_STATUS) |                            \
	 BIT(UMSG_PROTOCOL_F_DEVICE_STATE))

/* Of the device status. */
#define STATUS_FEATURES_OK 0x08u
#define STATUS_NEEDS_RESET 0x40u

/* ---- answers ---- */

void session_answer(struct session *s, const void *payload, uint32_t len)
{
	struct umsg_header h = {
		.request = s->msg.header.request,
		.flags = UMSG_VERSION | UMSG_REPLY,
		.size = len,
	};

	assert(sizeof(h) + len <= sizeof(s->answer));
	memcpy(s->answer, &h, sizeof(h));
	if (len)
		memcpy(s->answer + sizeof(h), payload, len);
	s->answer_len = sizeof(h) + len;
	s->answer_sent = 0;
}

void session_answer_u64(struct session *s, uint64_t value)
{
	session_answer(s, &value, sizeof(value));
}

static struct ring *ring_of(struct session *s)
{
	return &s->rings[umsg_ring(&s->msg)];
}

/* ---- features ---- */

static int get_features(struct session *s)
{
	session_answer_u64(s, blk_features(s->disk));
	return 0;
}

/* Logging begins and ends while the machine runs; its rings stop for a moment to see it. */
static bool only_logging_changes(const struct session *s)
{
	return s->has_features && (s->msg.payload.u64 ^ s->features) == BIT(UMSG_F_LOG_ALL);
}

static int set_features(struct session *s)
{
	uint64_t take = s->msg.payload.u64, offered = blk_features(s->disk);

	if (take & ~offered)
		return varve_error_set(&s->err, -EINVAL,
				       "SET_FEATURES takes 0x%" PRIx64 ", which was not offered",
				       take & ~offered);
	/*
	 * Drivers from before virtio 1.0 have rings in the byte order of their processor. Where that is ours,
	 * and little, their rings are what split rings are today; a device may refuse the others.
	 */
	if (!(take >> BLK_F_VERSION_1 & 1) && BYTE_ORDER != LITTLE_ENDIAN)
		return varve_error_set(&s->err, -ENOTSUP,
				       "SET_FEATURES without VERSION_1: drivers from before virtio 1.0 are "
				       "served on little-endian machines only");
	if (!(take >> BLK_F_VERSION_1 & 1) && take >> BLK_F_RING_PACKED & 1)
		return varve_error_set(&s->err, -EINVAL, "SET_FEATURES with RING_PACKED, without VERSION_1");
	for (unsigned i = 0; i < s->nr_rings; i++) {
		if (s->rings[i].on && take != s->features)
			return varve_error_set(&s->err, -EBUSY,
					       "SET_FEATURES changes 0x%" PRIx64 " while queue %u runs",
					       take ^ s->features, i);
	}
	s->features = take;
	s->has_features = true;
	/* A front end that cannot enable rings finds them enabled; one that can has none disabled by this. */
	for (unsigned i = 0; i < s->nr_rings && !(take >> UMSG_F_PROTOCOL_FEATURES & 1); i++)
		s->rings[i].enabled = true;
	return 0;
}

static int get_protocol_features(struct session *s)
{
	session_answer_u64(s, PROTOCOL_FEATURES);
	return 0;
}

static int set_protocol_features(struct session *s)
{
	uint64_t take = s->msg.payload.u64;

	if (take & ~PROTOCOL_FEATURES)
		return varve_error_set(&s->err, -EINVAL,
				       "SET_PROTOCOL_FEATURES takes 0x%" PRIx64 ", which was not offered",
				       take & ~PROTOCOL_FEATURES);
	s->protocol_features = take;
	return 0;
}

static int get_queue_num(struct session *s)
{
	session_answer_u64(s, s->nr_rings);
	return 0;
}

/* SET_OWNER needs nothing done; RESET_OWNER is obsolete, and best ignored. */
static int nothing(struct session *s)
{
	(void)s;
	return 0;
}

/*
 * r->base stays: whoever asks where the ring was is told. The ring itself begins at its beginning if it is started without
 * being told another place.
 */
static void reset_rings(struct session *s)
{
	for (unsigned i = 0; i < s->nr_rings; i++) {
		struct ring *r = &s->rings[i];

		ring_set_kick(r, -1, false);
		inflight_forget(&s->inflight, i);
		r->num = 0;
		r->has_addr = r->has_base = r->enabled = r->broken = false;
	}
	s->features = 0;
	s->has_features = false;
	s->status = 0;
}

void session_set_writeback(struct session *s, bool writeback)
{
	s->writeback = writeback;
	inflight_note_writethrough(&s->inflight, !writeback);
}

int session_reset_device(struct session *s)
{
	reset_rings(s);
	session_set_writeback(s, true);
	return 0;
}

/* ---- device status ---- */

/*
 * Status 0 is a reset. But front ends (QEMU before 8.0) send it also when they stop the device because the machine is stopped,
 * or moves to another host, and ask for the place of each ring after that; the guest, which knows nothing of it, goes on there
 * later. So nothing is lost by it that the front end does not bring again: the places, and whether the guest has switched
 * the write cache off. After a reset that was meant, writing through is slower than the guest thinks, and no less safe.
 */
static int set_status(struct session *s)
{
	uint64_t status = s->msg.payload.u64;

	if (status > UINT8_MAX)
		return varve_error_set(&s->err, -EINVAL, "SET_STATUS: 0x%" PRIx64 " is not a device status", status);
	if (!status)
		reset_rings(s);
	s->status = (uint8_t)status;
	return 0;
}

/* What the driver set, except that it learns what only we know. */
static int get_status(struct session *s)
{
	uint8_t status = s->status;

	if (!s->has_features)
		status &= (uint8_t)~STATUS_FEATURES_OK;
	for (unsigned i = 0; i < s->nr_rings; i++) {
		if (__atomic_load_n(&s->rings[i].broken, __ATOMIC_RELAXED)) /* it may run */
			status |= STATUS_NEEDS_RESET;
	}
	session_answer_u64(s, status);
	return 0;
}

/* ---- the channel for what we say unasked ---- */

static int set_backend_req_fd(struct session *s)
{
	struct stat st;

	if (fstat(s->msg.fds[0], &st) < 0)
		return varve_error_errno(&s->err, -errno, "SET_BACKEND_REQ_FD");
	if (!S_ISSOCK(st.st_mode))
		return varve_error_set(&s->err, -EINVAL, "SET_BACKEND_REQ_FD: the descriptor is not a socket");
	if (s->backend_fd >= 0)
		close(s->backend_fd);
	s->backend_fd = umsg_take_fd(&s->msg, 0);
	return 0;
}

/* ---- memory ---- */

/* While what we write is logged, memory that the log has no bits for would be lost on the way to the other host. */
static int log_has(struct session *s, const struct umsg_region *r)
{
	if (!s->log.bits || memlog_covers(&s->log, r->guest_addr, r->len))
		return 0;
	return varve_error_set(&s->err, -EINVAL, "the dirty log ends before guest address 0x%" PRIx64,
			       r->guest_addr + r->len);
}

static int set_mem_table(struct session *s)
{
	const struct umsg_mem_table *t = &s->msg.payload.mem;
	int ret = 0;

	for (unsigned i = 0; i < t->nr_regions && ret == 0; i++)
		ret = log_has(s, &t->region[i]);
	if (ret == 0)
		ret = gmem_map(&s->mem, t->region, s->msg.fds, t->nr_regions, &s->err);
	return ret < 0 ? varve_error_prefix(&s->err, ret, "SET_MEM_TABLE: ") : 0;
}

static int get_max_mem_slots(struct session *s)
{
	session_answer_u64(s, GMEM_REGIONS_MAX);
	return 0;
}

static int add_mem_reg(struct session *s)
{
	const struct umsg_region *region = &s->msg.payload.mem_region.region;
	int ret = log_has(s, region);

	if (ret == 0)
		ret = gmem_add(&s->mem, region, s->msg.fds[0], &s->err);
	return ret < 0 ? varve_error_prefix(&s->err, ret, "ADD_MEM_REG: ") : 0;
}

static int rem_mem_reg(struct session *s)
{
	int ret = gmem_remove(&s->mem, &s->msg.payload.mem_region.region, &s->err);

	return ret < 0 ? varve_error_prefix(&s->err, ret, "REM_MEM_REG: ") : 0;
}

/* ---- rings ---- */

static int running(struct session *s, const struct ring *r)
{
	return varve_error_set(&s->err, -EBUSY, "%s: queue %u is running", umsg_name(s->msg.header.request),
			       r->index);
}

static bool is_packed(const struct session *s)
{
	return s->features >> BLK_F_RING_PACKED & 1;
}

/* Before SET_FEATURES nobody knows; a ring that is not what it should have been does not start. */
static bool may_be_packed(const struct session *s)
{
	return !s->has_features || is_packed(s);
}

static int set_vring_num(struct session *s)
{
	struct ring *r = ring_of(s);
	uint32_t num = s->msg.payload.state.num;

	if (!num || num > s->num_max || (!is_pow2(num) && !may_be_packed(s)))
		return varve_error_set(&s->err, -EINVAL,
				       "SET_VRING_NUM: queue %u: a size of %u is not a power of two up to %u",
				       r->index, num, s->num_max);
	if (r->on)
		return running(s, r);
	r->num = num;
	return 0;
}

static int set_vring_addr(struct session *s)
{
	const struct umsg_vring_addr *a = &s->msg.payload.addr;
	struct ring *r = ring_of(s);
	struct vring_addr addr = { a->desc, a->avail, a->used };
	int ret;

	if (a->flags & ~UMSG_VRING_LOG)
		return varve_error_set(&s->err, -EINVAL, "SET_VRING_ADDR: queue %u: unknown flags 0x%x", r->index,
				       a->flags & ~UMSG_VRING_LOG);
	if (a->flags && s->log.bits && r->num &&
	    !memlog_covers(&s->log, a->log, vring_used_len(r->num, s->features >> BLK_F_RING_PACKED & 1)))
		return varve_error_set(&s->err, -EINVAL,
				       "SET_VRING_ADDR: queue %u: the dirty log has no bits for a used ring at 0x%" PRIx64,
				       r->index, a->log);
	/* If it can be told already that the ring would not start, this is the message to say so. */
	if (r->num && s->has_features && s->mem.nr_regions) {
		ret = vring_check(&s->mem, &addr, r->num, is_packed(s), &s->err);
		if (ret < 0)
			return varve_error_prefix(&s->err, ret, "SET_VRING_ADDR: queue %u: ", r->index);
	}
	r->addr = addr;
	r->has_addr = true;
	r->log_used = a->flags & UMSG_VRING_LOG;
	r->log_addr = a->log;
	return 0;
}

static int set_vring_base(struct session *s)
{
	struct ring *r = ring_of(s);
	uint32_t base = s->msg.payload.state.num;

	if (base > UINT16_MAX && !may_be_packed(s))
		return varve_error_set(&s->err, -EINVAL,
				       "SET_VRING_BASE: queue %u: %u is not an index of a split ring",
				       r->index, base);
	if (r->on)
		return running(s, r);
	r->base = base;
	r->has_base = true;
	return 0;
}

/* Stops the ring: it starts again with the next SET_VRING_KICK. What was broken may be set up anew. */
static int get_vring_base(struct session *s)
{
	struct ring *r = ring_of(s);
	struct umsg_vring_state state = { r->index, r->base };

	ring_set_kick(r, -1, false);
	inflight_forget(&s->inflight, r->index);
	r->broken = false;
	session_answer(s, &state, sizeof(state));
	return 0;
}

static int set_vring_enable(struct session *s)
{
	struct ring *r = ring_of(s);
	uint32_t enable = s->msg.payload.state.num;

	if (enable > 1)
		return varve_error_set(&s->err, -EINVAL, "SET_VRING_ENABLE: queue %u: %u is neither 0 nor 1",
				       r->index, enable);
	r->enabled = enable;
	return 0;
}

/* Takes the message's descriptor, an eventfd; -1 if it has none. */
static int take_eventfd(struct session *s, int *ret_fd)
{
	const char *name = umsg_name(s->msg.header.request);
	unsigned index = ring_of(s)->index;
	struct stat st;
	int flags;

	*ret_fd = -1;
	if (!s->msg.nr_fds)
		return 0;
	if (fstat(s->msg.fds[0], &st) < 0)
		return varve_error_errno(&s->err, -errno, "%s: queue %u", name, index);
	if (st.st_dev != s->eventfd_dev || st.st_ino != s->eventfd_ino)
		return varve_error_set(&s->err, -EINVAL, "%s: queue %u: the descriptor is not an eventfd",
				       name, index);
	flags = fcntl(s->msg.fds[0], F_GETFL);
	if (flags < 0 || fcntl(s->msg.fds[0], F_SETFL, flags | O_NONBLOCK) < 0)
		return varve_error_errno(&s->err, -errno,
					 "%s: queue %u: the descriptor cannot be made non-blocking", name,
					 index);
	*ret_fd = umsg_take_fd(&s->msg, 0);
	return 0;
}

/* Without a descriptor the ring is to be polled. */
static int set_vring_kick(struct session *s)
{
	int fd, ret = take_eventfd(s, &fd);

	if (ret == 0)
		ring_set_kick(ring_of(s), fd, fd < 0);
	return ret;
}

static int set_vring_call(struct session *s)
{
	int fd, ret = take_eventfd(s, &fd);

	if (ret == 0 && ring_set_call(ring_of(s), fd))
		s->nr_waiting++;
	return ret;
}

static int set_vring_err(struct session *s)
{
	int fd, ret = take_eventfd(s, &fd);

	if (ret == 0 && ring_set_err(ring_of(s), fd))
		s->nr_waiting++;
	return ret;
}

/* ---- configuration ---- */

static int get_config(struct session *s)
{
	struct umsg_config c = s->msg.payload.config;
	uint8_t space[UMSG_CONFIG_MAX];

	/* No payload says that there is no such part. */
	if (c.off > sizeof(space) || c.len > sizeof(space) - c.off) {
		session_answer(s, NULL, 0);
		return 0;
	}
	blk_config(s->disk, s->nr_rings, s->num_max, s->writeback, space);
	memcpy(c.data, space + c.off, c.len);
	session_answer(s, &c, (uint32_t)UMSG_CONFIG_HEADER_LEN + c.len);
	return 0;
}

/* Where in the message's bytes the field is that can be written; NULL: not there, or not to be written. */
static const uint8_t *writeback_field(const struct session *s)
{
	const struct umsg_config *c = &s->msg.payload.config;

	if (c->off > BLK_CONFIG_WRITEBACK || c->len <= BLK_CONFIG_WRITEBACK - c->off ||
	    !(s->features >> BLK_F_CONFIG_WCE & 1))
		return NULL;
	return &c->data[BLK_CONFIG_WRITEBACK - c->off];
}

/*
 * The guest writes one field, whether the disk has a write cache; after a migration the front end may bring the whole
 * space, of which we take that field. A guest can make its front end send anything here, so nothing is a reason to end the
 * session: it is refused if an answer is wanted, and else ignored.
 */
static int set_config(struct session *s)
{
	const struct umsg_config *c = &s->msg.payload.config;
	const uint8_t *field = writeback_field(s);

	if (field && *field <= 1 && (c->flags == UMSG_CONFIG_MIGRATION || (c->flags == 0 && c->len == 1))) {
		session_set_writeback(s, *field);
		return 0;
	}
	if (c->flags == UMSG_CONFIG_MIGRATION && !field)
		return 0;
	if (!s->need_reply)
		return 0;
	return varve_error_set(&s->err, -EPERM,
			       "SET_CONFIG: %" PRIu32 " bytes at %" PRIu32 ", flags 0x%" PRIx32
			       ": only the write cache (0 or 1 at %u) can be written, when CONFIG_WCE is negotiated",
			       c->len, c->off, c->flags, BLK_CONFIG_WRITEBACK);
}

/* ---- the table ---- */

static const struct request {
	int (*apply)(struct session *s);
	enum session_scope scope;
	bool has_answer;
} table[UMSG_REQUESTS] = {
	[UMSG_GET_FEATURES] = { get_features, SCOPE_NO_RING, true },
	[UMSG_SET_FEATURES] = { set_features, SCOPE_NO_RING, false },
	[UMSG_SET_OWNER] = { nothing, SCOPE_NO_RING, false },
	[UMSG_RESET_OWNER] = { nothing, SCOPE_NO_RING, false },
	[UMSG_SET_MEM_TABLE] = { set_mem_table, SCOPE_ALL_RINGS, false },
	[UMSG_SET_LOG_BASE] = { session_set_log_base, SCOPE_ALL_RINGS, true },
	[UMSG_SET_LOG_FD] = { session_set_log_fd, SCOPE_NO_RING, false },
	[UMSG_SET_VRING_NUM] = { set_vring_num, SCOPE_NO_RING, false },
	[UMSG_SET_VRING_ADDR] = { set_vring_addr, SCOPE_RING, false },
	[UMSG_SET_VRING_BASE] = { set_vring_base, SCOPE_NO_RING, false },
	[UMSG_GET_VRING_BASE] = { get_vring_base, SCOPE_RING, true },
	[UMSG_SET_VRING_KICK] = { set_vring_kick, SCOPE_RING, false },
	[UMSG_SET_VRING_CALL] = { set_vring_call, SCOPE_NO_RING, false },
	[UMSG_SET_VRING_ERR] = { set_vring_err, SCOPE_NO_RING, false },
	[UMSG_GET_PROTOCOL_FEATURES] = { get_protocol_features, SCOPE_NO_RING, true },
	[UMSG_SET_PROTOCOL_FEATURES] = { set_protocol_features, SCOPE_NO_RING, false },
	[UMSG_GET_QUEUE_NUM] = { get_queue_num, SCOPE_NO_RING, true },
	[UMSG_SET_VRING_ENABLE] = { set_vring_enable, SCOPE_RING, false },
	[UMSG_GET_CONFIG] = { get_config, SCOPE_NO_RING, true },
	[UMSG_SET_CONFIG] = { set_config, SCOPE_NO_RING, false },
	[UMSG_SET_BACKEND_REQ_FD] = { set_backend_req_fd, SCOPE_NO_RING, false },
	[UMSG_GET_INFLIGHT_FD] = { session_get_inflight_fd, SCOPE_NO_RING, true },
	[UMSG_SET_INFLIGHT_FD] = { session_set_inflight_fd, SCOPE_ALL_RINGS, false },
	[UMSG_RESET_DEVICE] = { session_reset_device, SCOPE_ALL_RINGS, false },
	[UMSG_GET_MAX_MEM_SLOTS] = { get_max_mem_slots, SCOPE_NO_RING, true },
	[UMSG_ADD_MEM_REG] = { add_mem_reg, SCOPE_ALL_RINGS, false },
	[UMSG_REM_MEM_REG] = { rem_mem_reg, SCOPE_ALL_RINGS, false },
	[UMSG_SET_STATUS] = { set_status, SCOPE_NO_RING, false },
	[UMSG_GET_STATUS] = { get_status, SCOPE_NO_RING, true },
	[UMSG_SET_DEVICE_STATE_FD] = { session_set_device_state_fd, SCOPE_NO_RING, true },
	[UMSG_CHECK_DEVICE_STATE] = { session_check_device_state, SCOPE_NO_RING, true },
};

static const struct request *request_of(const struct umsg *m)
{
	assert(m->header.request < UMSG_REQUESTS && table[m->header.request].apply);
	return &table[m->header.request];
}

enum session_scope session_scope(const struct session *s)
{
	switch (s->msg.header.request) {
	case UMSG_SET_FEATURES:
		return only_logging_changes(s) ? SCOPE_ALL_RINGS : SCOPE_NO_RING;
	case UMSG_SET_CONFIG:
		return writeback_field(s) ? SCOPE_ALL_RINGS : SCOPE_NO_RING;
	case UMSG_SET_STATUS:
		return s->msg.payload.u64 ? SCOPE_NO_RING : SCOPE_ALL_RINGS; /* 0: the device is reset */
	default:
		return request_of(&s->msg)->scope;
	}
}

bool session_has_answer(const struct umsg *m)
{
	return request_of(m)->has_answer;
}

int session_apply(struct session *s)
{
	if (umsg_ring(&s->msg) >= (int64_t)s->nr_rings)
		return varve_error_set(&s->err, -EINVAL, "%s: queue %" PRId64 " of %u",
				       umsg_name(s->msg.header.request), umsg_ring(&s->msg), s->nr_rings);
	return request_of(&s->msg)->apply(s);
}
