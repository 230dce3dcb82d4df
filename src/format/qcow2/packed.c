/* SPDX-License-Identifier: MIT */
/*
 * qcow2/packed.c - tables whose entries have no fixed length, read from front to end
 *
 * Owns:    the bounds of such a table: its own, the file's, and the format's.
 * Assumes: off and len were read from the file and mean nothing yet.
 * Never:   holds more than a window of the table in memory.
 */
#include "format/qcow2/packed.h"

#include <stdlib.h>
#include <string.h>

int packed_open(struct fiber *f, struct packed *p, struct node *file, const char *what, uint64_t off,
		uint64_t len, uint64_t max_len, struct varve_error *err)
{
	int64_t file_len = node_file_len(f, file);

	memset(p, 0, sizeof(*p));
	if (file_len < 0)
		return varve_error_errno(err, (int)file_len, "%s: cannot find the file's length", what);
	if (off > (uint64_t)file_len)
		return varve_error_set(err, -EINVAL, "%s: host offset 0x%llx is beyond the end of the file",
				       what, (unsigned long long)off);
	if (len != UINT64_MAX && len > max_len)
		return varve_error_set(err, -EFBIG, "%s: %llu bytes long, at most %llu are allowed", what,
				       (unsigned long long)len, (unsigned long long)max_len);
	if (len != UINT64_MAX && len > (uint64_t)file_len - off)
		return varve_error_set(err, -EINVAL,
				       "%s: host offset 0x%llx, length %llu: ends beyond the end of the file",
				       what, (unsigned long long)off, (unsigned long long)len);
	p->window = malloc(PACKED_WINDOW_LEN);
	if (!p->window)
		return varve_error_set(err, -ENOMEM, "%s: out of memory", what);
	p->file = file;
	p->what = what;
	p->start = p->pos = off;
	p->end = len == UINT64_MAX ? (uint64_t)file_len : off + len;
	p->max_len = max_len;
	p->err = err;
	return 0;
}

void packed_close(struct packed *p)
{
	free(p->window);
	p->window = NULL;
}

int packed_take(struct fiber *f, struct packed *p, uint32_t nr, size_t len, const uint8_t **ret)
{
	assert(len <= PACKED_WINDOW_LEN);
	if (len > p->end - p->pos)
		return varve_error_set(p->err, -EINVAL,
				       "%s: entry %u ends beyond the end of the table or file", p->what, nr);
	if (p->pos + len - p->start > p->max_len)
		return varve_error_set(p->err, -EFBIG,
				       "%s: entry %u ends beyond the %llu bytes that are allowed", p->what,
				       nr, (unsigned long long)p->max_len);
	if (p->pos < p->window_off || p->pos + len > p->window_off + p->window_len) {
		size_t part = (size_t)MIN(PACKED_WINDOW_LEN, p->end - p->pos);
		int err = node_read(f, p->file, p->pos, p->window, part);

		if (err < 0)
			return varve_error_errno(p->err, err, "%s: cannot read entry %u", p->what, nr);
		p->window_off = p->pos;
		p->window_len = part;
	}
	*ret = p->window + (p->pos - p->window_off);
	p->pos += len;
	return 0;
}

void packed_align(struct packed *p)
{
	p->pos = MIN(p->start + align_up(p->pos - p->start, 8), p->end);
}

char *packed_string(const uint8_t *bytes, size_t len)
{
	char *s = malloc(len + 1);

	if (s) {
		memcpy(s, bytes, len);
		s[len] = 0;
	}
	return s;
}
