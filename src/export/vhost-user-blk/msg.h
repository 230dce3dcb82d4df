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
	UMSG_GET_CONFIG = 24,
	UMSG_SET_CONFIG = 25,
	UMSG_RESET_DEVICE = 34,
	UMSG_REQUESTS = 35, /* one past the last */
};

/* umsg_header.flags */
#define UMSG_VERSION_MASK 0x3u
#define UMSG_VERSION 0x1u
#define UMSG_REPLY 0x4u
#define UMSG_NEED_REPLY 0x8u

/* The virtio feature bit that says: protocol features can be negotiated. */
#define UMSG_F_PROTOCOL_FEATURES 30

/* Bits of the protocol features. */
#define UMSG_PROTOCOL_F_MQ 0
#define UMSG_PROTOCOL_F_REPLY_ACK 3
#define UMSG_PROTOCOL_F_CONFIG 9
#define UMSG_PROTOCOL_F_RESET_DEVICE 13

/* The u64 of SET_VRING_KICK, _CALL and _ERR: which ring, and "no descriptor comes with this". */
#define UMSG_VRING_INDEX 0xffu
#define UMSG_VRING_NO_FD 0x100u

/* umsg_vring_addr.flags: used ring writes are to be logged; not offered. */
#define UMSG_VRING_LOG 0x1u

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
	struct umsg_config config;
};

#define UMSG_CONFIG_HEADER_LEN offsetof(struct umsg_config, data)
#define UMSG_MEM_HEADER_LEN offsetof(struct umsg_mem_table, region)

/* A message as it came. */
struct umsg {
	struct umsg_header header;
	union umsg_payload payload;
	int fds[UMSG_FDS_MAX];
	unsigned nr_fds;
	size_t have; /* bytes received so far */
};

static_assert(sizeof(struct umsg_header) == 12, "vhost-user header");
static_assert(sizeof(struct umsg_vring_addr) == 40, "vhost-user vring address");
static_assert(sizeof(struct umsg_region) == 32, "vhost-user memory region");

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
