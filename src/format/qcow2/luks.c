/* SPDX-License-Identifier: MIT */
/*
 * qcow2/luks.c - the LUKS header inside an image: where it is, and what it says about itself
 *
 * Owns:    the layout of a LUKS version 1 header, as far as it can be shown.
 * Assumes: qcow2_header_parse() has walked the header extensions before.
 * Never:   touches key material.
 */
#include "format/qcow2/luks.h"

#include <stdlib.h>
#include <string.h>

struct luks_slot_disk {
	be32 active; /* LUKS_SLOT_ACTIVE or not */
	be32 iterations;
	uint8_t salt[32];
	be32 key_sector;
	be32 stripes;
};

/* The "LUKS On-Disk Format Specification", version 1. Texts are NUL-padded; sectors have 512 bytes. */
struct luks_disk {
	uint8_t magic[6];		/*   0 */
	be16 version;			/*   6 */
	char cipher[32];		/*   8  "aes" */
	char mode[32];			/*  40  "xts-plain64" */
	char hash[32];			/*  72  "sha256" */
	be32 payload_sector;		/* 104 */
	be32 key_bytes;			/* 108 */
	uint8_t digest[20];		/* 112 */
	uint8_t digest_salt[32];	/* 132 */
	be32 digest_iterations;		/* 164 */
	char uuid[40];			/* 168 */
	struct luks_slot_disk slots[8]; /* 208 */
};
static_assert(offsetof(struct luks_disk, slots) == 208, "see the spec");
static_assert(sizeof(struct luks_disk) == 592, "see the spec");

#define LUKS_MAGIC "LUKS\xba\xbe"
#define LUKS_SLOT_ACTIVE 0x00ac71f3u

int luks_place(struct fiber *f, struct node *file, const struct qcow2_header *h, uint64_t *ret_off,
	       uint64_t *ret_len, struct varve_error *err)
{
	int64_t file_len = node_file_len(f, file);
	uint64_t pos = h->header_len;
	size_t len;
	uint8_t *buf;
	int ret;

	*ret_off = *ret_len = 0;
	if (file_len < 0)
		return varve_error_errno(err, (int)file_len, "cannot find the file's length");
	len = (size_t)MIN((uint64_t)file_len, 1ull << h->cluster_bits);
	buf = malloc(len + 1);
	if (!buf)
		return varve_error_set(err, -ENOMEM, "out of memory");
	ret = node_read(f, file, 0, buf, len);
	if (ret < 0)
		varve_error_errno(err, ret, "cannot read the header");
	while (ret == 0 && pos + 8 <= len) {
		be32 type, ext_len;
		be64 place[2];

		memcpy(&type, buf + pos, 4);
		memcpy(&ext_len, buf + pos + 4, 4);
		pos += 8;
		if (be32_get(type) == QCOW2_EXT_END || be32_get(ext_len) > len - pos)
			break;
		if (be32_get(type) == QCOW2_EXT_LUKS && be32_get(ext_len) >= sizeof(place)) {
			memcpy(place, buf + pos, sizeof(place));
			*ret_off = be64_get(place[0]);
			*ret_len = be64_get(place[1]);
			break;
		}
		pos += align_up(be32_get(ext_len), 8);
	}
	free(buf);
	return ret;
}

/* A NUL-padded text that perhaps lacks its NUL, or is not text at all. */
static json_t *text(const char *field, size_t len)
{
	size_t n = strnlen(field, len);

	for (size_t i = 0; i < n; i++) {
		if (field[i] < 0x20 || field[i] > 0x7e)
			return json_string("?");
	}
	return json_stringn(field, n);
}

static json_t *slots_info(const struct luks_disk *d)
{
	json_t *slots = json_array();

	for (unsigned i = 0; i < ARRAY_LEN(d->slots); i++) {
		const struct luks_slot_disk *s = &d->slots[i];
		bool active = be32_get(s->active) == LUKS_SLOT_ACTIVE;
		json_t *slot = json_pack("{s:b, s:I}", "active", active, "key-offset",
					 (json_int_t)be32_get(s->key_sector) * 512);

		if (active) {
			json_object_set_new(slot, "iters", json_integer(be32_get(s->iterations)));
			json_object_set_new(slot, "stripes", json_integer(be32_get(s->stripes)));
		}
		json_array_append_new(slots, slot);
	}
	return slots;
}

static void cipher_info(const struct luks_disk *d, json_t *o)
{
	char cipher[sizeof(d->cipher) + 1] = "", name[64];
	const char *dash = memchr(d->mode, '-', sizeof(d->mode));
	size_t mode_len = dash ? (size_t)(dash - d->mode) : strnlen(d->mode, sizeof(d->mode));
	uint32_t bits = be32_get(d->key_bytes);

	/* XTS has two keys. */
	bits = (mode_len == 3 && !memcmp(d->mode, "xts", 3) ? bits / 2 : bits) & 0xffff;
	memcpy(cipher, d->cipher, sizeof(d->cipher));
	snprintf(name, sizeof(name), "%s-%u", cipher, bits * 8);
	json_object_set_new(o, "cipher-alg", text(name, sizeof(name)));
	json_object_set_new(o, "cipher-mode", text(d->mode, mode_len));
	if (dash) {
		const char *colon = memchr(dash, ':', sizeof(d->mode) - (size_t)(dash - d->mode));
		size_t len = sizeof(d->mode) - (size_t)(dash + 1 - d->mode);

		json_object_set_new(o, "ivgen-alg", text(dash + 1, colon ? (size_t)(colon - dash - 1) : len));
		if (colon)
			json_object_set_new(o, "ivgen-hash-alg",
					    text(colon + 1, sizeof(d->mode) - (size_t)(colon + 1 - d->mode)));
	}
}

int luks_info(struct fiber *f, struct node *file, const struct qcow2_header *h, json_t *encrypt,
	      struct varve_error *err)
{
	struct luks_disk d;
	uint64_t off, len;
	int64_t file_len = node_file_len(f, file);
	int ret = luks_place(f, file, h, &off, &len, err);

	if (ret < 0)
		return ret;
	if (len < sizeof(d) || file_len < (int64_t)sizeof(d) || off > (uint64_t)file_len - sizeof(d))
		return 0;
	ret = node_read(f, file, off, &d, sizeof(d));
	if (ret < 0)
		return varve_error_errno(err, ret, "cannot read the LUKS header at host offset 0x%llx",
					 (unsigned long long)off);
	if (memcmp(d.magic, LUKS_MAGIC, sizeof(d.magic)) || be16_get(d.version) != 1)
		return 0;
	cipher_info(&d, encrypt);
	json_object_set_new(encrypt, "hash-alg", text(d.hash, sizeof(d.hash)));
	json_object_set_new(encrypt, "uuid", text(d.uuid, sizeof(d.uuid)));
	json_object_set_new(encrypt, "slots", slots_info(&d));
	json_object_set_new(encrypt, "payload-offset",
			    json_integer((json_int_t)be32_get(d.payload_sector) * 512));
	json_object_set_new(encrypt, "master-key-iters", json_integer(be32_get(d.digest_iterations)));
	return 0;
}
