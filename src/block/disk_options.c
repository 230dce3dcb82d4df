/* SPDX-License-Identifier: MIT */
/*
 * block/disk_options.c - the options that every disk takes, and every layer of one, for people and shells
 *
 * Who reads an option says what it can be: the words are those of its parser.
 */
#include "aio/engine.h"
#include "block/graph.h"
#include "block/node.h"
#include "block/policy.h"
#include "block/wish.h"

#define LIMIT(name, unit)                                                                                    \
	{ "throttling." name, "size", unit " a second at most", false },                                     \
		{ "throttling." name "-max", "size", unit " a second in bursts", false },                    \
	{                                                                                                    \
		"throttling." name "-max-length", "num", "seconds that a burst may take (1)", false          \
	}

const struct varve_option_info disk_options[] = {
	{ "driver", "driver", "what the layer is (found from the first bytes of the file)", false },
	{ "format", "driver", "the same", false },
	{ "filename", "file", "name of the file, where the options are those of a format, too", false },
	{ "file", "node", "what the image stands in: file.driver, file.filename, ...", false },
	{ "backing", "node",
	  "its backing image: backing.file.filename, ...; empty: none, whatever the image says", false },
	{ "node-name", "str", "what the layer is called", false },
	{ "read-only", "bool", "is not written (off)", false },
	{ "auto-read-only", "bool", "what must not be written is opened for reading (off)", false },
	{ "force-share", "bool", "without locks; for images that are read only (off)", false },
	{ "cache", CACHE_MODE_WORDS, "cache mode (writeback)", false },
	{ "cache.direct", "bool", "O_DIRECT (as the mode says)", false },
	{ "cache.no-flush", "bool", "flushes do nothing (as the mode says)", false },
	{ "cache.writeback", "bool", "off: each write is FUA (as the mode says)", false },
	{ "sync", "bool", "every write of the file is FUA, of tables too (off)", false },
	{ "aio", AIO_ENGINE_WORDS, "engine that does the I/O of files (the best that works)", false },
	{ "locking", LOCKING_WORDS, "locks on its file that other programs see", false },
	{ "discard", WISH_DISCARD_WORDS, "whether discards are done (unmap)", false },
	{ "detect-zeroes", WISH_DETECT_WORDS,
	  "writes of zeroes become zeroing, with unmap one that gives space back (off)", false },
	{ "copy-on-read", "bool", "what is read from backing images is kept (off)", false },
	{ "copy-on-read-bottom", "str", "name of the last image of the chain to copy from", false },
	{ "werror", WERROR_WORDS,
	  "what fails to be written is reported, or waits (enospc: when the file system is full)", false },
	LIMIT("bps-total", "bytes"),
	LIMIT("bps-read", "bytes read"),
	LIMIT("bps-write", "bytes written"),
	LIMIT("iops-total", "requests"),
	LIMIT("iops-read", "reads"),
	LIMIT("iops-write", "writes"),
	{ "throttling.iops-size", "size", "a longer request counts as several", false },
	{ NULL, NULL, NULL, false },
};
