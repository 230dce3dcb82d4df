/* SPDX-License-Identifier: MIT */
/*
 * order/settings.c - the block queue: its option, and its counters as JSON
 */
#include "order/queue.h"

#include <errno.h>
#include <jansson.h>

#define AGE_MAX_S 86400

int order_get_age(struct opts *opts, uint64_t *ret_age_ns, struct varve_error *err)
{
	uint64_t seconds = UINT64_MAX;
	int ret = opts_get_u64(opts, "metadata-write-out", &seconds, err);

	if (ret < 0 || seconds == UINT64_MAX)
		return ret;
	if (seconds > AGE_MAX_S)
		return varve_error_set(err, -EINVAL,
				       "option 'metadata-write-out': %llu is not from 0 (never) to %d seconds",
				       (unsigned long long)seconds, AGE_MAX_S);
	*ret_age_ns = seconds * 1000000000;
	return 0;
}

void order_json_stats(const struct order *o, void *json_stats)
{
	struct order_stats s;

	order_stats(o, &s);
	const struct {
		const char *name;
		uint64_t value;
	} counts[] = {
		{ "puts", s.puts },
		{ "merges", s.merges },
		{ "barriers-asked", s.barriers_asked },
		{ "sections", s.sections },
		{ "syncs", s.syncs },
		{ "writes", s.writes },
		{ "bytes", s.bytes },
		{ "errors", s.errors },
		{ "write-outs-flush", s.write_outs[ORDER_FLUSH] },
		{ "write-outs-size", s.write_outs[ORDER_SIZE] },
		{ "write-outs-age", s.write_outs[ORDER_AGE] },
		{ "shared-waits", s.shared },
		{ "queued-bytes", s.queued_bytes },
		{ "queued-bytes-max", s.queued_bytes_max },
		{ "queued-sections", s.queued_sections },
	};
	json_t *object = json_object();

	for (size_t i = 0; i < ARRAY_LEN(counts); i++)
		json_object_set_new(object, counts[i].name, json_integer((json_int_t)counts[i].value));
	json_object_set_new(json_stats, "order", object);
}
