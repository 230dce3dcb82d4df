/* SPDX-License-Identifier: MIT */
/*
 * qcow2/backing.c - another backing file, or none, in the header of an image that is in use
 *
 * A power cut must leave the old name with the old format, or the new name with the new one: a name with a foreign format
 * would be read as garbage. Name and format are found from the first sector of the file, which a device writes whole or not
 * at all; so the new name is written to a free place first, and then the first sector changes at once.
 *
 * Assumes: fibers of the home queue; the image is writable.
 */
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/qcow2.h"

#define SECTOR 512u
#define EXTENSION_BACKING_FORMAT 0xe2792acau

struct place {
	uint32_t format_at, format_len; /* data of the backing format extension; 0: there is none */
	uint32_t end;			/* of the extensions, the end marker included */
};

static uint32_t get32(const uint8_t *p)
{
	be32 x;

	memcpy(&x, p, sizeof(x));
	return be32_get(x);
}

static void put32(uint8_t *p, uint32_t value)
{
	be32 x = be32_put(value);

	memcpy(p, &x, sizeof(x));
}

/* The header was parsed at open: its extensions are well-formed. What is not ends the walk. */
static struct place walk(const uint8_t *cluster, uint32_t len, uint32_t header_len)
{
	struct place p = { .end = header_len };

	while (p.end + 8 <= len) {
		uint32_t type = get32(cluster + p.end), data_len = get32(cluster + p.end + 4);

		if (!type) {
			p.end += 8;
			break;
		}
		if (data_len > len - p.end - 8)
			break;
		if (type == EXTENSION_BACKING_FORMAT) {
			p.format_at = p.end + 8;
			p.format_len = data_len;
		}
		p.end += 8 + (uint32_t)align_up(data_len, 8);
	}
	return p;
}

/* A free place for the new name in the first cluster: not over the extensions, not over the old name. 0: none. */
static uint32_t find_room(const struct place *p, uint32_t old_at, uint32_t old_len, uint32_t len, uint32_t cluster_len)
{
	uint32_t behind = (uint32_t)align_up(MAX(p->end, old_at + old_len), 8);

	if (p->end + len <= old_at)
		return p->end;
	return behind + len <= cluster_len ? behind : 0;
}

static int set_none(struct fiber *f, struct qcow2 *q, order_mark *ret_mark)
{
	uint8_t none[12] = { 0 };

	/* The format that an extension may go on naming is that of nothing. */
	return order_put(f, q->order, offsetof(struct qcow2_header_disk, backing_name_off), none, sizeof(none),
			 order_all(q->order), ret_mark);
}

static int set_name(struct fiber *f, struct qcow2 *q, uint8_t *cluster, const char *name, const char *format,
		    order_mark *ret_mark, struct varve_error *err)
{
	uint32_t len = (uint32_t)strlen(name), format_len = (uint32_t)strlen(format), old_at, old_len, at;
	struct place p = walk(cluster, q->cluster_len, q->h.header_len);
	order_mark written;
	be64 name_off;
	int ret;

	memcpy(&name_off, cluster + offsetof(struct qcow2_header_disk, backing_name_off), sizeof(name_off));
	old_at = (uint32_t)be64_get(name_off);
	old_len = get32(cluster + offsetof(struct qcow2_header_disk, backing_name_len));
	at = find_room(&p, old_at, old_len, len, q->cluster_len);
	if (len > QCOW2_BACKING_NAME_MAX || !at)
		return varve_error_set(err, -ENOSPC, "the first cluster has no room for the backing file name '%.200s'",
				       name);
	if (!p.format_at || p.format_at + align_up(p.format_len, 8) > SECTOR ||
	    align_up(format_len, 8) != align_up(p.format_len, 8))
		return varve_error_set(err, -ENOTSUP,
				       "the header has no place for the backing format '%.20s' in its first sector", format);
	/* Durable first: the new name. Only then: the sector that leads to it. */
	ret = order_put(f, q->order, at, name, len, ORDER_NONE, &written);
	if (ret < 0)
		return ret;
	name_off = be64_put(at);
	memcpy(cluster + offsetof(struct qcow2_header_disk, backing_name_off), &name_off, sizeof(name_off));
	put32(cluster + offsetof(struct qcow2_header_disk, backing_name_len), len);
	memset(cluster + p.format_at, 0, align_up(p.format_len, 8));
	memcpy(cluster + p.format_at, format, format_len);
	put32(cluster + p.format_at - 4, format_len);
	return order_put(f, q->order, 0, cluster, SECTOR, order_max(written, order_all(q->order)), ret_mark);
}

/* Everything that was copied so that the old backing file is not needed any more is durable before the header. */
int qcow2_set_backing(struct fiber *f, struct node *n, const char *name, const char *format, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	uint8_t *cluster;
	order_mark mark;
	int ret;

	if (!q->writable)
		return varve_error_set(err, -EACCES, "open read-only, the backing file cannot be changed");
	cluster = malloc(q->cluster_len);
	if (!cluster)
		return varve_error_errno(err, -ENOMEM, "header");
	fiber_lock(f, &q->l1_mutex); /* who changes the header's other fields holds it, too */
	ret = name ? order_read(f, q->order, 0, cluster, q->cluster_len) : 0;
	if (ret == 0)
		ret = name ? set_name(f, q, cluster, name, format, &mark, err) : set_none(f, q, &mark);
	if (ret == 0)
		ret = order_wait(f, q->order, mark);
	fiber_unlock(&q->l1_mutex);
	free(cluster);
	if (ret < 0 && !(err && *err->message))
		return varve_error_errno(err, ret, "the header cannot be written");
	if (ret < 0)
		return ret;
	strcpy(q->h.backing_name, name ? name : "");
	strcpy(q->h.backing_format, name ? format : "");
	return 0;
}
