/* SPDX-License-Identifier: MIT */
/*
 * format/raw_emit.c - a raw image written forward only: the bytes, and zeroes where there are none
 */
#include <stdlib.h>
#include <string.h>

#include "base/math.h"
#include "block/emit.h"
#include "format/raw.h"

#define UNIT KiB(64)

struct emitter {
	uint64_t disk_len;
	emit_write *write;
	void *write_arg;
	uint64_t next; /* all before is written */
	uint8_t *zeroes;
};

static int raw_open(uint64_t disk_len, struct opts *o, struct emitter **ret, struct varve_error *err)
{
	struct emitter *e;
	int r = opts_done(o, err);

	if (r < 0)
		return r;
	e = calloc(1, sizeof(*e));
	if (!e || !(e->zeroes = calloc(1, UNIT))) {
		free(e);
		return varve_error_errno(err, -ENOMEM, "raw");
	}
	e->disk_len = disk_len;
	*ret = e;
	return 0;
}

static void raw_close(struct emitter *e)
{
	if (!e)
		return;
	free(e->zeroes);
	free(e);
}

static uint32_t raw_unit(const struct emitter *e)
{
	(void)e;
	return UNIT;
}

static int raw_begin(struct fiber *f, struct emitter *e, emit_write *write, void *arg)
{
	(void)f;
	e->write = write;
	e->write_arg = arg;
	e->next = 0;
	return 0;
}

static int fill(struct fiber *f, struct emitter *e, uint64_t end)
{
	int ret = 0;

	while (ret == 0 && e->next < end) {
		uint64_t len = MIN(end - e->next, UNIT);

		ret = e->write(f, e->write_arg, e->zeroes, len);
		e->next += len;
	}
	return ret;
}

static int raw_zero(struct fiber *f, struct emitter *e, uint64_t off, uint64_t len)
{
	return fill(f, e, MIN(off + len, e->disk_len));
}

static int raw_data(struct fiber *f, struct emitter *e, uint64_t off, const void *buf, uint64_t len)
{
	int ret = fill(f, e, off);

	len = MIN(len, e->disk_len - off);
	if (ret == 0)
		ret = e->write(f, e->write_arg, buf, len);
	e->next = off + len;
	return ret;
}

static int raw_end(struct fiber *f, struct emitter *e)
{
	return fill(f, e, e->disk_len);
}

const struct emit_driver raw_emit = {
	.dense = true,
	.open = raw_open,
	.close = raw_close,
	.unit = raw_unit,
	.begin = raw_begin,
	.zero = raw_zero,
	.data = raw_data,
	.end = raw_end,
};
