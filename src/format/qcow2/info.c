/* SPDX-License-Identifier: MIT */
/*
 * qcow2/info.c - what `img info` shows of a qcow2 image
 *
 * Owns:    the members of ImageInfo that only the format knows; names and types are those of qemu-img's
 *          JSON.
 * Assumes: the caller adds what it knows from the node: names, lengths, backing files.
 * Never:   opens anything, and never reads more than the header, the snapshot table and the bitmap
 *          directory.
 */
#include <stdlib.h>
#include <string.h>

#include "block/snapshot.h"
#include "format/qcow2/bitmaps.h"
#include "format/qcow2/luks.h"

/* Names in an image are bytes; JSON wants UTF-8. What is none is shown with question marks. */
static json_t *text(const char *s)
{
	json_t *value = json_string(s);
	char *plain;

	if (value)
		return value;
	plain = strdup(s);
	for (char *p = plain; p && *p; p++) {
		if (*p & 0x80)
			*p = '?';
	}
	value = plain ? json_string(plain) : NULL;
	free(plain);
	return value;
}

/*
 * Of names that a stranger made as long as a table allows, the beginning: what is shown of 65536 snapshots stays small. We write
 * none that is longer.
 */
static json_t *beginning(const char *s)
{
	size_t len = strnlen(s, SNAPSHOT_NAME_MAX + 1);
	json_t *value;
	char *cut;

	if (len <= SNAPSHOT_NAME_MAX)
		return text(s);
	for (len = SNAPSHOT_NAME_MAX; len && ((unsigned char)s[len] & 0xc0) == 0x80; len--)
		; /* not within a character */
	cut = strndup(s, len);
	value = cut ? text(cut) : NULL;
	free(cut);
	return value;
}

static json_t *integer(uint64_t x)
{
	return json_integer((json_int_t)MIN(x, VARVE_LEN_MAX));
}

/* Takes over value. The first failure (NULL: no memory) is remembered. */
static void add(json_t *object, const char *key, json_t *value, int *ret)
{
	if (json_object_set_new(object, key, value) < 0)
		*ret = -ENOMEM;
}

static json_t *snapshot_info(const struct qcow2_snapshot *s, int *ret)
{
	const uint64_t second = 1000000000;
	json_t *o = json_object();

	add(o, "id", beginning(s->id), ret);
	add(o, "name", beginning(s->name), ret);
	add(o, "vm-state-size", integer(s->vm_state_len), ret);
	add(o, "date-sec", integer(s->date_s), ret);
	add(o, "date-nsec", integer(s->date_ns), ret);
	add(o, "vm-clock-sec", integer(s->vm_clock_ns / second), ret);
	add(o, "vm-clock-nsec", integer(s->vm_clock_ns % second), ret);
	if (s->icount != UINT64_MAX)
		add(o, "icount", integer(s->icount), ret);
	return o;
}

static int add_snapshots(struct fiber *f, struct qcow2 *q, json_t *image, struct varve_error *err)
{
	struct qcow2_snapshot *list;
	uint64_t table_len;
	json_t *all;
	int ret;

	if (!q->h.nr_snapshots)
		return 0;
	ret = snapshots_read(f, q->file, &q->h, &list, &table_len, err);
	if (ret < 0)
		return ret;
	all = json_array();
	for (uint32_t i = 0; ret == 0 && i < q->h.nr_snapshots; i++) {
		if (json_array_append_new(all, snapshot_info(&list[i], &ret)) < 0)
			ret = -ENOMEM;
	}
	snapshots_free(list, q->h.nr_snapshots);
	add(image, "snapshots", all, &ret);
	return ret < 0 ? varve_error_set(err, ret, "out of memory") : 0;
}

/* Nobody has so many; names may have 1023 bytes. */
#define MANY_BITMAPS 8192

static json_t *bitmap_info(const struct qcow2_bitmap *b, bool many, int *ret)
{
	json_t *o = json_object(), *flags = json_array();

	if (b->flags & BITMAP_IN_USE)
		json_array_append_new(flags, json_string("in-use"));
	if (b->flags & BITMAP_AUTO)
		json_array_append_new(flags, json_string("auto"));
	add(o, "name", many ? beginning(b->name) : text(b->name), ret);
	add(o, "granularity", integer(1ull << b->granularity_bits), ret);
	add(o, "flags", flags, ret);
	return o;
}

static int add_bitmaps(struct fiber *f, struct qcow2 *q, json_t *data, struct varve_error *err)
{
	struct qcow2_bitmap *list;
	json_t *all;
	int ret;

	if (!bitmaps_valid(&q->h))
		return 0;
	ret = bitmaps_read(f, q->file, &q->h, &list, err);
	if (ret < 0)
		return ret;
	all = json_array();
	for (uint32_t i = 0; ret == 0 && i < q->h.nr_bitmaps; i++) {
		if (json_array_append_new(all, bitmap_info(&list[i], q->h.nr_bitmaps > MANY_BITMAPS, &ret)) < 0)
			ret = -ENOMEM;
	}
	bitmaps_free(list, q->h.nr_bitmaps);
	add(data, "bitmaps", all, &ret);
	return ret < 0 ? varve_error_set(err, ret, "out of memory") : 0;
}

static int add_encryption(struct fiber *f, struct qcow2 *q, json_t *image, json_t *data,
			  struct varve_error *err)
{
	json_t *encrypt;
	int ret = 0;

	if (!q->h.crypt_method)
		return 0;
	encrypt = json_object();
	add(encrypt, "format", json_string(q->h.crypt_method == 2 ? "luks" : "aes"), &ret);
	if (ret == 0 && q->h.crypt_method == 2) {
		int broken = luks_info(f, q->file, &q->h, encrypt, err);

		if (broken < 0) {
			json_decref(encrypt);
			return broken;
		}
	}
	add(data, "encrypt", encrypt, &ret);
	add(image, "encrypted", json_true(), &ret);
	return ret < 0 ? varve_error_set(err, ret, "out of memory") : 0;
}

static int add_features(const struct qcow2_header *h, json_t *data, struct varve_error *err)
{
	int ret = 0;

	add(data, "compat", json_string(h->version < 3 ? "0.10" : "1.1"), &ret);
	add(data, "compression-type", json_string(h->compression_type ? "zstd" : "zlib"), &ret);
	/*
	 * In this order, because the human form prints them as they come and is compared with the other
	 * tool's.
	 */
	if (h->version >= 3)
		add(data, "lazy-refcounts", json_boolean(h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS), &ret);
	add(data, "refcount-bits", json_integer(1 << h->refcount_order), &ret);
	if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE) {
		if (h->data_file[0])
			add(data, "data-file", text(h->data_file), &ret);
		add(data, "data-file-raw", json_boolean(h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA), &ret);
	}
	if (h->autoclear & QCOW2_AUTOCLEAR_JOURNAL) /* only then: others know no such member */
		add(data, "journal", json_true(), &ret);
	if (h->version >= 3) {
		add(data, "corrupt", json_boolean(h->incompatible & QCOW2_INCOMPAT_CORRUPT), &ret);
		add(data, "extended-l2", json_boolean(h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2), &ret);
	}
	return ret < 0 ? varve_error_set(err, ret, "out of memory") : 0;
}

int qcow2_info(struct fiber *f, struct node *n, void *json_image_info, struct varve_error *err)
{
	struct qcow2 *q = node_state(n);
	json_t *image = json_image_info, *specific = json_object(), *data = json_object();
	int ret = 0;

	add(specific, "type", json_string("qcow2"), &ret);
	add(specific, "data", data, &ret); /* specific owns it now */
	add(image, "format-specific", specific, &ret);
	add(image, "cluster-size", integer(q->cluster_len), &ret);
	add(image, "dirty-flag", json_boolean(q->h.incompatible & QCOW2_INCOMPAT_DIRTY), &ret);
	if (ret < 0)
		return varve_error_set(err, ret, "%s: out of memory", node_name(n));
	fiber_lock(f, &q->snapshot_mutex); /* the tables that are read stay where they are, and as long */
	if ((ret = add_features(&q->h, data, err)) < 0 || (ret = add_bitmaps(f, q, data, err)) < 0 ||
	    (ret = add_encryption(f, q, image, data, err)) < 0 || (ret = add_snapshots(f, q, image, err)) < 0)
		varve_error_prefix(err, ret, "%s: ", node_name(n));
	fiber_unlock(&q->snapshot_mutex);
	return ret;
}
