/* SPDX-License-Identifier: MIT */
/*
 * block/cache_mode.c - cache modes: the names people know, and the three switches that they stand for
 */
#include "block/graph.h"

#include <assert.h>
#include <string.h>

#include "base/words.h"

/* In the order of CACHE_MODE_WORDS. */
static const struct {
	const char *name;
	uint32_t flags;
} modes[] = {
	{ "writeback", 0 },
	{ "none", NODE_DIRECT },
	{ "off", NODE_DIRECT },
	{ "writethrough", NODE_WRITETHROUGH },
	{ "directsync", NODE_DIRECT | NODE_WRITETHROUGH },
	{ "unsafe", NODE_NO_FLUSH },
};

int cache_mode_parse(const char *name, uint32_t *ret_flags, struct varve_error *err)
{
	int i = words_find(CACHE_MODE_WORDS, name);

	if (i >= 0) {
		assert(!strcmp(name, modes[i].name));
		*ret_flags = modes[i].flags;
		return 0;
	}
	return varve_error_set(
		err, -EINVAL,
		"cache mode '%.200s' is not writeback, none (off), writethrough, directsync or unsafe", name);
}

const char *cache_mode_name(uint32_t flags)
{
	flags &= NODE_CACHE_FLAGS;
	for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
		if (modes[i].flags == flags)
			return modes[i].name;
	}
	/* Combinations without a name, which only the single switches can make. */
	switch (flags) {
	case NODE_DIRECT | NODE_NO_FLUSH:
		return "direct,no-flush";
	case NODE_WRITETHROUGH | NODE_NO_FLUSH:
		return "no-flush,no-writeback";
	default:
		return "direct,no-flush,no-writeback";
	}
}
