/* SPDX-License-Identifier: MIT */
/*
 * vu_msg.h - vhost-user messages: their numbers, their layout, sending and receiving them
 *
 * Owns:    nothing; sockets and descriptors belong to the caller.
 * Assumes: both ends run on this machine: the protocol uses native byte order.
 * Never:   knows what a message means (vu_front.h does), or checks that what it sends is sane:
 *          tests send nonsense through it on purpose.
 *
 * Written from the vhost-user specification (the QEMU project's docs/interop/vhost-user).
 */
#ifndef VU_MSG_H
#define VU_MSG_H

#include <stddef.h>
#include <stdint.h>

#include "vu_util.h"

enum vu_request {
	VU_GET_FEATURES = 1,
	VU_SET_FEATURES = 2,
	VU_SET_OWNER = 3,
	VU_RESET_OWNER = 4,
	VU_SET_MEM_TABLE = 5,
	VU_SET_LOG_BASE = 6,
	VU_SET_LOG_FD = 7,
	VU_SET_VRING_NUM = 8,
	VU_SET_VRING_ADDR = 9,
	VU_SET_VRING_BASE = 10,
	VU_GET_VRING_BASE = 11,
	VU_SET_VRING_KICK = 12,
	VU_SET_VRING_CALL = 13,
	VU_SET_VRING_ERR = 14,
	VU_GET_PROTOCOL_FEATURES = 15,
	VU_SET_PROTOCOL_FEATURES = 16,
	VU_GET_QUEUE_NUM = 17,
	VU_SET_VRING_ENABLE = 18,
	VU_SET_BACKEND_REQ_FD = 21,
	VU_GET_CONFIG = 24,
	VU_SET_CONFIG = 25,
	VU_GET_INFLIGHT_FD = 31,
	VU_SET_INFLIGHT_FD = 32,
	VU_RESET_DEVICE = 34,
	VU_GET_MAX_MEM_SLOTS = 36,
	VU_ADD_MEM_REG = 37,
	VU_REM_MEM_REG = 38,
	VU_SET_STATUS = 39,
	VU_GET_STATUS = 40,
	VU_SET_DEVICE_STATE_FD = 42,
	VU_CHECK_DEVICE_STATE = 43,
};

/* vu_hdr.flags */
#define VU_FLAG_VERSION		0x1u
#define VU_FLAG_VERSION_MASK	0x3u
#define VU_FLAG_REPLY		0x4u
#define VU_FLAG_NEED_REPLY	0x8u

/* The virtio feature bit that stands for "protocol features can be negotiated". */
#define VU_F_PROTOCOL_FEATURES	30

/* Protocol feature bits. */
#define VU_PROTOCOL_F_MQ			0
#define VU_PROTOCOL_F_LOG_SHMFD			1
#define VU_PROTOCOL_F_REPLY_ACK			3
#define VU_PROTOCOL_F_BACKEND_REQ		5
#define VU_PROTOCOL_F_CONFIG			9
#define VU_PROTOCOL_F_INFLIGHT_SHMFD		12
#define VU_PROTOCOL_F_RESET_DEVICE		13
#define VU_PROTOCOL_F_CONFIGURE_MEM_SLOTS	15
#define VU_PROTOCOL_F_STATUS			16
#define VU_PROTOCOL_F_DEVICE_STATE		19

/* In the u64 of SET_VRING_KICK, _CALL and _ERR: the queue, and "no descriptor is attached". */
#define VU_VRING_INDEX_MASK	0xffu
#define VU_VRING_NO_FD		0x100u

#define VU_MAX_REGIONS		8	/* what one SET_MEM_TABLE can carry */
#define VU_CONFIG_LEN		256	/* bytes of device configuration one message can carry */
#define VU_MAX_FDS		16
#define VU_MAX_PAYLOAD		4096	/* longer replies than this are refused */

struct vu_hdr {
	uint32_t request;	/* enum vu_request, or whatever a test likes */
	uint32_t flags;		/* VU_FLAG_* */
	uint32_t size;		/* bytes of payload that follow */
};

struct vu_vring_state {
	uint32_t index;
	uint32_t num;
};

struct vu_vring_addr {
	uint32_t index;
	uint32_t flags;
	uint64_t desc;		/* user addresses, to be translated through the memory table */
	uint64_t used;
	uint64_t avail;
	uint64_t log;
};

struct vu_region_msg {
	uint64_t guest_addr;
	uint64_t len;
	uint64_t user_addr;
	uint64_t mmap_off;
};

struct vu_mem_table_msg {
	uint32_t nr_regions;
	uint32_t padding;
	struct vu_region_msg region[VU_MAX_REGIONS];
};

struct vu_config_msg {
	uint32_t off;
	uint32_t len;
	uint32_t flags;		/* 0: the guest wrote; 1: live migration */
	uint8_t data[VU_CONFIG_LEN];
};
#define VU_CONFIG_HDR_LEN	12u

/* ADD_MEM_REG, REM_MEM_REG. */
struct vu_mem_reg_msg {
	uint64_t padding;
	struct vu_region_msg region;
};

struct vu_log_msg {
	uint64_t len;
	uint64_t off;
};

struct vu_inflight_msg {
	uint64_t mmap_len;
	uint64_t mmap_off;
	uint16_t nr_queues;
	uint16_t queue_size;
};
#define VU_INFLIGHT_LEN		20u	/* without what a C compiler adds */

struct vu_transfer_msg {
	uint32_t direction;	/* 0: save, 1: load */
	uint32_t phase;
};
#define VU_STATE_NO_FD		0x100u

/* Of the channel of SET_BACKEND_REQ_FD. */
#define VU_BACKEND_CONFIG_CHANGE	2

/* A received message. fds belong to the receiver: vu_msg_close_fds() when they are not wanted. */
struct vu_msg {
	struct vu_hdr hdr;
	union {
		uint64_t u64;
		struct vu_vring_state state;
		struct vu_config_msg config;
		struct vu_inflight_msg inflight;
		uint8_t bytes[VU_MAX_PAYLOAD];
	};
	int fds[VU_MAX_FDS];
	unsigned nr_fds;
};

/* Connect to the unix socket at path. Returns the descriptor (>= 0, close-on-exec, blocking). */
int vu_sock_connect(const char *path, struct vu_err *err);

/*
 * Send exactly these bytes, with nr_fds descriptors attached to the first of them. No framing:
 * half a header, a header that lies about its size, two messages in one go are all fine.
 * -EPIPE or -ECONNRESET when the back end has closed the connection.
 */
int vu_send_bytes(int sock, const void *bytes, size_t len, const int *fds, unsigned nr_fds,
		  uint64_t deadline_ns, struct vu_err *err);

/* Send one well-formed message: header (flags as given), payload, descriptors. */
int vu_send(int sock, uint32_t request, uint32_t flags, const void *payload, uint32_t len,
	    const int *fds, unsigned nr_fds, uint64_t deadline_ns, struct vu_err *err);

/*
 * Receive one message into *m. -ECONNRESET when the back end closed the connection, -ETIMEDOUT
 * when it sent nothing in time, -EPROTO when it announced more than VU_MAX_PAYLOAD bytes.
 */
int vu_recv(int sock, struct vu_msg *m, uint64_t deadline_ns, struct vu_err *err);

/* Close what a message brought along. */
void vu_msg_close_fds(struct vu_msg *m);

/* The name of a request, for messages to people; "request ?" for one that we do not know. */
const char *vu_request_name(uint32_t request);

#endif
