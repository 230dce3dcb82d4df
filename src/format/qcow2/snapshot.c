/* SPDX-License-Identifier: MIT */
/*
 * qcow2/snapshot.c - the snapshot table: read, and built anew
 *
 * Owns:    the shape of the table: every length in it is bounded before it is used.
 * Assumes: qcow2_header_parse() bounded the number of snapshots.
 * Never:   follows what the table points to. Where an L1 table lies is for its reader to check.
 */
#include <stdlib.h>
#include <string.h>

#include "format/qcow2/packed.h"
#include "format/qcow2/qcow2.h"

/* docs/spec/qcow2.md, "Snapshots". Extra data, id and name follow; entries begin at multiples of 8. */
struct snapshot_disk {
	be64 l1_off;	   /*  0 */
	be32 l1_entries;   /*  8 */
	be16 id_len;	   /* 12  not NUL-terminated */
	be16 name_len;	   /* 14  not NUL-terminated */
	be32 date_s;	   /* 16 */
	be32 date_ns;	   /* 20 */
	be64 vm_clock_ns;  /* 24 */
	be32 vm_state_len; /* 32  if it needs more bits: 0, see the extra data */
	be32 extra_len;	   /* 36 */
};
static_assert(sizeof(struct snapshot_disk) == 40, "see the spec");

/* Extra data; each field is there if extra_len reaches behind it. */
struct snapshot_extra_disk {
	be64 vm_state_len; /*  0 */
	be64 disk_len;	   /*  8 */
	be64 icount;	   /* 16  all ones: none */
};
static_assert(sizeof(struct snapshot_extra_disk) == 24, "see the spec");

static_assert(PACKED_WINDOW_LEN >= QCOW2_SNAPSHOT_EXTRA_MAX + 2 * 65535, "one entry must fit");

static void parse_extra(struct qcow2_snapshot *s, const uint8_t *bytes, uint32_t len)
{
	struct snapshot_extra_disk extra;

	memset(&extra, 0xff, sizeof(extra)); /* no icount */
	memcpy(&extra, bytes, MIN(len, sizeof(extra)));
	if (len >= offsetof(struct snapshot_extra_disk, disk_len))
		s->vm_state_len = be64_get(extra.vm_state_len);
	if (len >= offsetof(struct snapshot_extra_disk, icount))
		s->disk_len = be64_get(extra.disk_len);
	if (len >= sizeof(extra))
		s->icount = be64_get(extra.icount);
}

static int read_entry(struct fiber *f, struct packed *p, uint32_t nr, const struct qcow2_header *h,
		      struct qcow2_snapshot *s)
{
	struct snapshot_disk d;
	uint32_t extra_len, id_len, name_len;
	const uint8_t *bytes;
	int ret = packed_take(f, p, nr, sizeof(d), &bytes);

	if (ret < 0)
		return ret;
	memcpy(&d, bytes, sizeof(d));
	extra_len = be32_get(d.extra_len);
	id_len = be16_get(d.id_len);
	name_len = be16_get(d.name_len);
	if (extra_len > QCOW2_SNAPSHOT_EXTRA_MAX)
		return varve_error_set(p->err, -EFBIG,
				       "snapshot table: entry %u has %u bytes of extra data, at most %d "
				       "are allowed",
				       nr, extra_len, QCOW2_SNAPSHOT_EXTRA_MAX);
	ret = packed_take(f, p, nr, (size_t)extra_len + id_len + name_len, &bytes);
	if (ret < 0)
		return ret;
	s->l1_off = be64_get(d.l1_off);
	s->l1_entries = be32_get(d.l1_entries);
	s->date_s = be32_get(d.date_s);
	s->date_ns = be32_get(d.date_ns);
	s->vm_clock_ns = be64_get(d.vm_clock_ns);
	s->vm_state_len = be32_get(d.vm_state_len);
	s->disk_len = h->disk_len; /* older images do not say */
	s->icount = UINT64_MAX;
	parse_extra(s, bytes, extra_len);
	s->id = packed_string(bytes + extra_len, id_len);
	s->name = packed_string(bytes + extra_len + id_len, name_len);
	s->extra = malloc(MAX(extra_len, 1u));
	if (!s->id || !s->name || !s->extra)
		return varve_error_set(p->err, -ENOMEM, "snapshot table: out of memory");
	memcpy(s->extra, bytes, extra_len);
	s->extra_len = extra_len;
	packed_align(p);
	return 0;
}

int snapshots_read(struct fiber *f, struct node *file, const struct qcow2_header *h,
		   struct qcow2_snapshot **ret_list, uint64_t *ret_table_len, struct varve_error *err)
{
	struct qcow2_snapshot *list;
	struct packed p;
	int ret;

	if (h->nr_snapshots > QCOW2_SNAPSHOTS_MAX)
		return varve_error_set(err, -EFBIG, "%u snapshots: at most %d are allowed", h->nr_snapshots,
				       QCOW2_SNAPSHOTS_MAX);
	list = calloc((size_t)h->nr_snapshots + 1, sizeof(*list));
	if (!list)
		return varve_error_set(err, -ENOMEM, "snapshot table: out of memory");
	if (h->nr_snapshots == 0) {
		*ret_list = list;
		*ret_table_len = 0;
		return 0;
	}
	ret = packed_open(f, &p, file, "snapshot table", h->snapshots_off, UINT64_MAX,
			  QCOW2_SNAPSHOT_TABLE_LEN_MAX, err);
	for (uint32_t i = 0; ret == 0 && i < h->nr_snapshots; i++)
		ret = read_entry(f, &p, i, h, &list[i]);
	packed_close(&p);
	if (ret < 0) {
		snapshots_free(list, h->nr_snapshots);
		return ret;
	}
	*ret_list = list;
	*ret_table_len = p.pos - p.start;
	return 0;
}

void snapshots_free(struct qcow2_snapshot *list, uint32_t nr)
{
	if (!list)
		return;
	for (uint32_t i = 0; i < nr; i++) {
		free(list[i].id);
		free(list[i].name);
		free(list[i].extra);
	}
	free(list);
}

/* ---- building ---- */

/* One entry, at out; NULL: only its length. Fields that we do not know are kept. */
static size_t put_entry(const struct qcow2_snapshot *s, uint8_t *out)
{
	size_t id_len = strlen(s->id), name_len = strlen(s->name);
	size_t extra_len = MAX((size_t)s->extra_len, sizeof(struct snapshot_extra_disk));
	struct snapshot_disk d = {
		.l1_off = be64_put(s->l1_off),
		.l1_entries = be32_put(s->l1_entries),
		.id_len = be16_put((uint16_t)id_len),
		.name_len = be16_put((uint16_t)name_len),
		.date_s = be32_put(s->date_s),
		.date_ns = be32_put(s->date_ns),
		.vm_clock_ns = be64_put(s->vm_clock_ns),
		.vm_state_len = be32_put(s->vm_state_len > UINT32_MAX ? 0 : (uint32_t)s->vm_state_len),
		.extra_len = be32_put((uint32_t)extra_len),
	};
	struct snapshot_extra_disk extra = {
		.vm_state_len = be64_put(s->vm_state_len),
		.disk_len = be64_put(s->disk_len),
		.icount = be64_put(s->icount),
	};
	size_t len = sizeof(d) + extra_len + id_len + name_len;

	if (!out)
		return align_up(len, 8);
	memcpy(out, &d, sizeof(d));
	out += sizeof(d);
	if (s->extra_len)
		memcpy(out, s->extra, s->extra_len);
	memcpy(out, &extra, sizeof(extra));
	out += extra_len;
	memcpy(out, s->id, id_len);
	memcpy(out + id_len, s->name, name_len);
	return align_up(len, 8);
}

int snapshots_build(const struct qcow2_snapshot *list, uint32_t nr, uint32_t without, uint8_t **ret, size_t *ret_len,
		    struct varve_error *err)
{
	size_t len = 0, pos = 0;
	uint8_t *out;

	if (nr - (without < nr) > QCOW2_SNAPSHOTS_MAX)
		return varve_error_set(err, -EFBIG, "the image has %d snapshots already, more are not allowed; "
				       "delete one first", QCOW2_SNAPSHOTS_MAX);
	for (uint32_t i = 0; i < nr; i++)
		len += i != without ? put_entry(&list[i], NULL) : 0;
	if (len > QCOW2_SNAPSHOT_TABLE_LEN_MAX)
		return varve_error_set(err, -EFBIG, "the snapshot table would have %zu bytes, at most %llu are allowed",
				       len, (unsigned long long)QCOW2_SNAPSHOT_TABLE_LEN_MAX);
	out = calloc(1, MAX(len, (size_t)1));
	if (!out)
		return varve_error_set(err, -ENOMEM, "snapshot table: out of memory");
	for (uint32_t i = 0; i < nr; i++)
		pos += i != without ? put_entry(&list[i], out + pos) : 0;
	*ret = out;
	*ret_len = len;
	return 0;
}
