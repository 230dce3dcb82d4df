/* SPDX-License-Identifier: MIT */
/*
 * block/drivers.c - the one list of drivers: the only place in block/ that knows any of them by name
 */
#include "block/node.h"
#include "config.h"
#include "filter/filter.h"
#include "format/qcow2/driver.h"
#include "format/qed/driver.h"
#include "format/raw.h"
#include "proto/proto.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static const struct driver *const drivers[] = {
	&driver_file, &driver_host_device, &driver_null, &driver_memory, /* leaves */
#ifdef HAVE_CURL
	&driver_http, &driver_https,
#endif
	&driver_blkdebug, &driver_fault, &driver_lockstep, &driver_write_log, /* filters */
	&driver_qcow2, &driver_qed, &driver_raw,		  /* formats */
};

const struct driver *driver_at(unsigned i)
{
	return i < ARRAY_LEN(drivers) ? drivers[i] : NULL;
}

const char *driver_formats(char buf[DRIVER_FORMATS_MAX])
{
	size_t at = 0;

	for (size_t i = 0; i < ARRAY_LEN(drivers); i++) {
		if (drivers[i]->kind == DRIVER_FORMAT && at < DRIVER_FORMATS_MAX)
			at += (size_t)snprintf(buf + at, DRIVER_FORMATS_MAX - at, "%s%s", at ? ", " : "", drivers[i]->name);
	}
	return buf;
}

const struct driver *driver_find(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(drivers); i++)
		if (!strcmp(drivers[i]->name, name))
			return drivers[i];
	return NULL;
}

const struct driver *driver_by_prefix(const char *filename, const char **ret_rest)
{
	for (size_t i = 0; i < ARRAY_LEN(drivers); i++) {
		const char *prefix = drivers[i]->prefix;

		if (prefix && !strncmp(filename, prefix, strlen(prefix))) {
			*ret_rest = filename + strlen(prefix);
			return drivers[i];
		}
	}
	return NULL;
}

bool driver_names_unknown(const char *filename, size_t *ret_len)
{
	size_t len = strcspn(filename, ":/");
	const char *rest;

	if (len < 2 || filename[len] != ':' || !isalpha((unsigned char)*filename) || driver_by_prefix(filename, &rest))
		return false;
	for (size_t i = 0; i < len; i++) {
		if (!isalnum((unsigned char)filename[i]) && !strchr("+-.", filename[i]))
			return false;
	}
	*ret_len = len;
	return true;
}

const char *driver_probe_foreign(const uint8_t *buf, size_t len)
{
	static const struct {
		const char *name;
		size_t off, len;
		const char *magic;
	} formats[] = {
		{ "vmdk", 0, 4, "KDMV" },
		{ "vmdk", 0, 4, "COWD" },
		{ "vmdk", 0, 21, "# Disk DescriptorFile" },
		{ "vhdx", 0, 8, "vhdxfile" },
		{ "vpc", 0, 8, "conectix" },
		{ "vdi", 64, 4, "\x7f\x10\xda\xbe" },
		{ "parallels", 0, 16, "WithoutFreeSpace" },
		{ "parallels", 0, 16, "WithouFreSpacExt" },
		{ "luks", 0, 8, "LUKS\xba\xbe\0\1" },
		{ "qcow", 0, 8, "QFI\xfb\0\0\0\1" },
		{ "bochs", 0, 21, "Bochs Virtual HD Image" },
		{ "cloop", 0, 22, "#!/bin/sh\n#V2.0 Format" },
	};

	for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
		if (len >= formats[i].off + formats[i].len &&
		    !memcmp(buf + formats[i].off, formats[i].magic, formats[i].len))
			return formats[i].name;
	}
	return NULL;
}

const struct driver *driver_probe(const uint8_t *buf, size_t len)
{
	const struct driver *best = &driver_raw;
	int best_score = 0;

	for (size_t i = 0; i < ARRAY_LEN(drivers); i++) {
		int score = drivers[i]->probe ? drivers[i]->probe(buf, len) : 0;

		if (score > best_score) {
			best = drivers[i];
			best_score = score;
		}
	}
	return best;
}
