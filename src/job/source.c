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

void source_salvage(struct fiber *f, const struct convert_source *s, uint64_t off, uint8_t *buf, uint64_t len,
		    void (*report)(void *user_data, const char *text), void *user_data)
{
	char text[256];

	for (uint64_t pos = 0, step; pos < len; pos += step) {
		step = MIN(SALVAGE_LEN - (off + pos) % SALVAGE_LEN, len - pos);
		if (source_read(f, s, off + pos, buf + pos, step) == 0)
			continue;
		memset(buf + pos, 0, step);
		if (!report)
			continue;
		snprintf(text, sizeof(text), "%.100s: cannot be read at offset %llu: %llu zeroes instead", node_name(s->top),
			 (unsigned long long)(off + pos), (unsigned long long)step);
		report(user_data, text);
	}
}
