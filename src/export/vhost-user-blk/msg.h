/* SPDX-License-Identifier: MIT */
/*
 * vhost-user-blk/msg.h - vhost-user messages: layout, receiving, checking
 *
 * Owns:    the descriptors of a message until somebody takes them; umsg_close_fds() closes the rest.
 * Assumes: a non-blocking stream socket; both ends on one machine, so numbers are in native byte order.
 * Never:   waits; believes a size or a number of descriptors; lets a descriptor leak.
 *
 * docs/spec/vhost-user.md.
 */
#ifndef VARVE_VUBLK_MSG_H
#define VARVE_VUBLK_MSG_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <varve/varve.h>

/* The messages that are answered here. Others are refused by name or number in umsg_check(). */
enum umsg_request {
	UMSG_GET_FEATURES = 1,
	UMSG_SET_FEATURES = 2,
	UMSG_SET_OWNER = 3,
	UMSG_RESET_OWNER = 4,
	UMSG_SET_MEM_TABLE = 5,
	UMSG_SET_LOG_BASE = 6,
	UMSG_SET_LOG_FD = 7,
	UMSG_SET_VRING_NUM = 8,
	UMSG_SET_VRING_ADDR = 9,
	UMSG_SET_VRING_BASE = 10,
	UMSG_GET_VRING_BASE = 11,
	UMSG_SET_VRING_KICK = 12,
	UMSG_SET_VRING_CALL = 13,
	UMSG_SET_VRING_ERR = 14,
	UMSG_GET_PROTOCOL_FEATURES = 15,
	UMSG_SET_PROTOCOL_FEATURES = 16,
	UMSG_GET_QUEUE_NUM = 17,
	UMSG_SET_VRING_ENABLE = 18,
	UMSG_SET_BACKEND_REQ_FD = 21,
	UMSG_GET_CONFIG = 24,
	UMSG_SET_CONFIG = 25,
	UMSG_GET_INFLIGHT_FD = 31,
	UMSG_SET_INFLIGHT_FD = 32,
	UMSG_RESET_DEVICE = 34,
	UMSG_GET_MAX_MEM_SLOTS = 36,
	UMSG_ADD_MEM_REG = 37,
	UMSG_REM_MEM_REG = 38,
	UMSG_SET_STATUS = 39,
	UMSG_GET_STATUS = 40,
	UMSG_SET_DEVICE_STATE_FD = 42,
	UMSG_CHECK_DEVICE_STATE = 43,
	UMSG_REQUESTS = 44, /* one past the last */
};

/* What we send on the channel of SET_BACKEND_REQ_FD. */
#define UMSG_BACKEND_CONFIG_CHANGE 2

/* umsg_header.flags */
#define UMSG_VERSION_MASK 0x3u
#define UMSG_VERSION 0x1u
#define UMSG_REPLY 0x4u
#define UMSG_NEED_REPLY 0x8u

/* Bits among the virtio features that are vhost's: what we write is logged; protocol features can be negotiated. */
#define UMSG_F_LOG_ALL 26
#define UMSG_F_PROTOCOL_FEATURES 30

/* Bits of the protocol features. */
#define UMSG_PROTOCOL_F_MQ 0
#define UMSG_PROTOCOL_F_LOG_SHMFD 1
#define UMSG_PROTOCOL_F_REPLY_ACK 3
#define UMSG_PROTOCOL_F_BACKEND_REQ 5
#define UMSG_PROTOCOL_F_CONFIG 9
#define UMSG_PROTOCOL_F_INFLIGHT_SHMFD 12
#define UMSG_PROTOCOL_F_RESET_DEVICE 13
#define UMSG_PROTOCOL_F_CONFIGURE_MEM_SLOTS 15
#define UMSG_PROTOCOL_F_STATUS 16
#define UMSG_PROTOCOL_F_DEVICE_STATE 19

/* The u64 of SET_VRING_KICK, _CALL and _ERR: which ring, and "no descriptor comes with this". */
#define UMSG_VRING_INDEX 0xffu
#define UMSG_VRING_NO_FD 0x100u

/* umsg_vring_addr.flags: writes to the used ring are to be logged, from the guest address `log` on. */
#define UMSG_VRING_LOG 0x1u

/* umsg_config.flags: the fields come from the source of a migration, not from the guest. */
#define UMSG_CONFIG_MIGRATION 0x1u

/* The answer to SET_DEVICE_STATE_FD: no descriptor comes with it. The low byte: not 0, refused. */
#define UMSG_STATE_NO_FD 0x100u
#define UMSG_STATE_SAVE 0u /* umsg_transfer.direction: to the front end */
#define UMSG_STATE_LOAD 1u /* from the front end */

#define UMSG_REGIONS_MAX 8
#define UMSG_CONFIG_MAX 256
#define UMSG_FDS_MAX UMSG_REGIONS_MAX

struct umsg_header {
	uint32_t request;
	uint32_t flags;
	uint32_t size; /* bytes of payload that follow */
};

struct umsg_vring_state {
	uint32_t index;
	uint32_t num;
};

struct umsg_vring_addr {
	uint32_t index;
	uint32_t flags;
	uint64_t desc; /* these three are addresses of the front end's process */
	uint64_t used;
	uint64_t avail;
	uint64_t log;
};

struct umsg_region {
	uint64_t guest_addr;
	uint64_t len;
	uint64_t user_addr;
	uint64_t mmap_off;
};

struct umsg_mem_table {
	uint32_t nr_regions;
	uint32_t padding;
	struct umsg_region region[UMSG_REGIONS_MAX];
};

/* ADD_MEM_REG, REM_MEM_REG. */
struct umsg_mem_region {
	uint64_t padding;
	struct umsg_region region;
};

struct umsg_log {
	uint64_t len; /* bytes of the bitmap */
	uint64_t off; /* of its start in the file */
};

struct umsg_inflight {
	uint64_t mmap_len;
	uint64_t mmap_off;
	uint16_t nr_queues;
	uint16_t queue_size;
	uint8_t padding[4]; /* sent by those whose compiler puts it there, and then sent back */
};

struct umsg_transfer {
	uint32_t direction;
	uint32_t phase; /* 0: the device is stopped; there is no other */
};

struct umsg_config {
	uint32_t off;
	uint32_t len;
	uint32_t flags;
	uint8_t data[UMSG_CONFIG_MAX];
};

union umsg_payload {
	uint64_t u64;
	struct umsg_vring_state state;
	struct umsg_vring_addr addr;
	struct umsg_mem_table mem;
	struct umsg_mem_region mem_region;
	struct umsg_log log;
	struct umsg_inflight inflight;
	struct umsg_transfer transfer;
	struct umsg_config config;
};

#define UMSG_CONFIG_HEADER_LEN offsetof(struct umsg_config, data)
#define UMSG_MEM_HEADER_LEN offsetof(struct umsg_mem_table, region)
#define UMSG_INFLIGHT_LEN offsetof(struct umsg_inflight, padding)

/* A message as it came. */
struct umsg {
	struct umsg_header header;
	union umsg_payload payload;
	int fds[UMSG_FDS_MAX];
	unsigned nr_fds;
	size_t have; /* bytes received so far */
	struct strange_debt *debt; /* of the disk; set once. strange.h */
};

static_assert(sizeof(struct umsg_header) == 12, "vhost-user header");
static_assert(sizeof(struct umsg_vring_addr) == 40, "vhost-user vring address");
static_assert(sizeof(struct umsg_region) == 32, "vhost-user memory region");
static_assert(sizeof(struct umsg_mem_region) == 40, "vhost-user single memory region");
static_assert(UMSG_INFLIGHT_LEN == 20, "vhost-user inflight description");

/*
 * Receives what there is of one message into m, which was zeroed (or umsg_reset()) before the first call and
 * is given again until the message is whole. Returns 1: whole; 0: the front end closed the connection between
 * two messages; -EAGAIN: more to come; else a negative errno with err filled, after which the stream cannot
 * be trusted.
 */
int umsg_recv(struct umsg *m, int sock, struct varve_error *err);

/* Is it a request that we serve, of the right size, with the right number of descriptors? */
int umsg_check(const struct umsg *m, struct varve_error *err);

/* The ring that a message which passed umsg_check() is about, be there such a ring or not; -1: none. */
int64_t umsg_ring(const struct umsg *m);

/* Gives the descriptor i to the caller. */
int umsg_take_fd(struct umsg *m, unsigned i);

/* Closes the descriptors that nobody took, and makes m ready for the next message. */
void umsg_reset(struct umsg *m);

/* As in the specification, without the prefix; "request" for an unknown one. */
const char *umsg_name(uint32_t request);

#endif
