/* SPDX-License-Identifier: MIT */
/*
 * job/source.c - see source.h
 *
 * Assumes: a fiber of the sources' home queue.
 */
#include "job/source.h"

#include <stdio.h>
#include <string.h>

const struct convert_source *source_at(const struct convert_source *sources, unsigned nr, uint64_t off)
{
	unsigned low = 0, high = nr;

	while (high - low > 1) {
		unsigned mid = (low + high) / 2;

		if (sources[mid].start <= off)
			low = mid;
		else
			high = mid;
	}
	return &sources[low];
}

int source_read(struct fiber *f, const struct convert_source *s, uint64_t off, uint8_t *buf, uint64_t len)
{
	struct iovec iov = { buf, len };

	return node_readv(f, s->top, off, &iov, 1);
}

struct loss {
	const struct convert_source *s;
	uint64_t off, len; /* not told yet */
	void (*report)(void *user_data, const char *text);
	void *user_data;
};

static void tell(struct loss *l)
{
	char text[256];

	if (l->len && l->report) {
		snprintf(text, sizeof(text), "%.100s: cannot be read at offset %llu: %llu zeroes instead", node_name(l->s->top),
			 (unsigned long long)l->off, (unsigned long long)l->len);
		l->report(l->user_data, text);
	}
	l->len = 0;
}

static void lose(struct loss *l, uint64_t off, uint8_t *buf, uint64_t len)
{
	memset(buf, 0, len);
	if (l->len && l->off + l->len == off && !is_aligned(off, SALVAGE_LEN)) {
		l->len += len; /* sectors of one piece are one line */
		return;
	}
	tell(l);
	l->off = off;
	l->len = len;
}

void source_salvage(struct fiber *f, const struct convert_source *s, uint64_t off, uint8_t *buf, uint64_t len,
		    void (*report)(void *user_data, const char *text), void *user_data)
{
	struct loss l = { .s = s, .report = report, .user_data = user_data };

	for (uint64_t pos = 0, step; pos < len; pos += step) {
		step = MIN(SALVAGE_LEN - (off + pos) % SALVAGE_LEN, len - pos);
		if (source_read(f, s, off + pos, buf + pos, step) == 0)
			continue;
		for (uint64_t in = 0, part; in < step; in += part) {
			part = MIN(SALVAGE_SECTOR_LEN - (off + pos + in) % SALVAGE_SECTOR_LEN, step - in);
			if (source_read(f, s, off + pos + in, buf + pos + in, part) < 0)
				lose(&l, off + pos + in, buf + pos + in, part);
		}
	}
	tell(&l);
}
