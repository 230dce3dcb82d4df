/* SPDX-License-Identifier: MIT */
/*
 * api/convert.c - the contents of images into another one, or into a pipe
 */
#include "api/api.h"
#include "job/convert.h"
#include "job/emit.h"

#include <stdlib.h>

#define SPARSE_DEFAULT 4096

struct convert_call {
	struct convert_options o;
	struct varve_error *err;
};

static int convert_fiber(struct fiber *f, void *arg)
{
	struct convert_call *c = arg;

	return convert(f, &c->o, c->err);
}

static int check_options(const struct varve_image *target, const struct varve_convert_options *o, struct varve_error *err)
{
	const unsigned known = VARVE_CONVERT_COMPRESS | VARVE_CONVERT_TARGET_IS_ZERO | VARVE_CONVERT_OUT_OF_ORDER |
			       VARVE_CONVERT_OFFLOAD | VARVE_CONVERT_SALVAGE | VARVE_CONVERT_OVER_BACKING |
			       VARVE_CONVERT_CANONICAL | VARVE_CONVERT_ALL_DATA;

	if (o->flags & ~known)
		return varve_error_set(err, -EINVAL, "convert: unknown flags 0x%x", o->flags & ~known);
	if (o->parallel > CONVERT_PARALLEL_MAX)
		return varve_error_set(err, -EINVAL, "convert: %u pieces at once are too many, at most %d", o->parallel,
				       CONVERT_PARALLEL_MAX);
	if (o->sparse > 1u << 30 || (o->sparse && o->sparse % 512))
		return varve_error_set(err, -EINVAL,
				       "convert: a sparse size of %llu bytes is no multiple of 512, or above 1 GiB",
				       (unsigned long long)o->sparse);
	if ((o->flags & VARVE_CONVERT_OFFLOAD) && (o->flags & (VARVE_CONVERT_COMPRESS | VARVE_CONVERT_SALVAGE)))
		return varve_error_set(err, -EINVAL, "convert: what the kernel copies cannot be compressed or salvaged");
	if ((o->flags & VARVE_CONVERT_CANONICAL) && (o->flags & VARVE_CONVERT_OUT_OF_ORDER))
		return varve_error_set(err, -EINVAL, "convert: canonical and out of order contradict each other");
	if ((o->flags & VARVE_CONVERT_TARGET_IS_ZERO) && (o->flags & VARVE_CONVERT_OVER_BACKING))
		return varve_error_set(err, -EINVAL, "convert: a target with a backing image does not read as zeroes");
	if ((o->flags & VARVE_CONVERT_COMPRESS) && !api_packs(target))
		return varve_error_set(err, -ENOTSUP, "%s: %s images%s have no compressed clusters", node_name(target->top),
				       target->top->drv->name, target->top->data ? " with an external data file" : "");
	return 0;
}

static int check_images(const struct varve_image *target, struct varve_image *const *sources, unsigned nr_sources,
			struct varve_error *err)
{
	uint64_t total = 0;

	if (!nr_sources || nr_sources > CONVERT_SOURCES_MAX)
		return varve_error_set(err, -EINVAL, "convert: 1 .. %d sources, not %u", CONVERT_SOURCES_MAX, nr_sources);
	for (unsigned i = 0; i < nr_sources; i++) {
		if (sources[i]->home != target->home)
			return varve_error_set(err, -EINVAL,
					       "%s and %s: images are converted when they have the same home queue",
					       node_name(sources[i]->top), node_name(target->top));
		if (sources[i]->top->flags & NODE_NO_IO)
			return varve_error_set(err, -EINVAL, "%s: opened for information only",
					       node_name(sources[i]->top));
		if (u64_add(total, node_len(sources[i]->top), &total))
			return varve_error_set(err, -EFBIG, "convert: the sources are too long together");
	}
	if (!(target->top->flags & NODE_WRITABLE))
		return varve_error_set(err, -EACCES, "%s: the image is open read-only", node_name(target->top));
	if (total > node_len(target->top))
		return varve_error_set(err, -EINVAL, "%s: %llu bytes do not fit the image of %llu bytes",
				       node_name(target->top), (unsigned long long)total,
				       (unsigned long long)node_len(target->top));
	return 0;
}

/* What is the same for every kind of target. 0: the list of sources is to be freed. */
static int take_options(struct convert_options *ret, const struct varve_convert_options *vo, struct varve_image *const *sources,
			unsigned nr_sources, varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	*ret = (struct convert_options){
		.sources = calloc(nr_sources, sizeof(*ret->sources)),
		.nr_sources = nr_sources,
		.parallel = vo->parallel,
		.sparse = vo->flags & VARVE_CONVERT_ALL_DATA ? 0 : vo->sparse ? vo->sparse : SPARSE_DEFAULT,
		.rate = vo->rate,
		.over_backing = vo->flags & VARVE_CONVERT_OVER_BACKING,
		.compress = vo->flags & VARVE_CONVERT_COMPRESS,
		.salvage = vo->flags & VARVE_CONVERT_SALVAGE,
		.report = vo->report,
		.progress = progress,
		.user_data = user_data,
	};
	if (!ret->sources)
		return varve_error_errno(err, -ENOMEM, "convert");
	for (unsigned i = 0; i < nr_sources; i++)
		ret->sources[i].top = sources[i]->top;
	return 0;
}

int varve_convert(struct varve_image *target, struct varve_image *const *sources, unsigned nr_sources,
		  const struct varve_convert_options *opts, varve_progress_fn progress, void *user_data,
		  struct varve_error *err)
{
	static const struct varve_convert_options defaults;
	const struct varve_convert_options *vo = opts ? opts : &defaults;
	struct convert_call c = { .err = err };
	int ret;

	if (!target || !sources)
		return varve_error_set(err, -EINVAL, "varve_convert: an image is missing");
	ret = check_options(target, vo, err);
	if (ret == 0)
		ret = check_images(target, sources, nr_sources, err);
	if (ret < 0)
		return ret;
	ret = take_options(&c.o, vo, sources, nr_sources, progress, user_data, err);
	if (ret < 0)
		return ret;
	c.o.target = target->top;
	c.o.reads_zero = vo->flags & VARVE_CONVERT_TARGET_IS_ZERO;
	c.o.in_order = !(vo->flags & VARVE_CONVERT_OUT_OF_ORDER);
	c.o.one_by_one = vo->flags & VARVE_CONVERT_CANONICAL;
	c.o.offload = vo->flags & VARVE_CONVERT_OFFLOAD;
	ret = api_call(target, convert_fiber, &c);
	free(c.o.sources);
	return ret;
}

/* ---- forward only ---- */

struct forward_call {
	struct emission o;
	struct varve_error *err;
};

static int forward_fiber(struct fiber *f, void *arg)
{
	struct forward_call *c = arg;

	return emit(f, &c->o, c->err);
}

static int forward_check(const char *format, const struct driver *drv, const struct varve_convert_options *o,
			 struct varve_error *err)
{
	const unsigned known = VARVE_CONVERT_COMPRESS | VARVE_CONVERT_TARGET_IS_ZERO | VARVE_CONVERT_OUT_OF_ORDER |
			       VARVE_CONVERT_SALVAGE | VARVE_CONVERT_OVER_BACKING | VARVE_CONVERT_CANONICAL |
			       VARVE_CONVERT_ALL_DATA;

	if (o->flags & ~known)
		return varve_error_set(err, -EINVAL, "convert forward only: unknown flags 0x%x", o->flags & ~known);
	if (!drv || drv->kind != DRIVER_FORMAT)
		return varve_error_set(err, -EINVAL, "unknown format '%s'", format ? format : "");
	if (!drv->emit)
		return varve_error_set(err, -ENOTSUP, "a %s image cannot be written forward only, into a pipe; raw and qcow2 can",
				       format);
	if ((o->flags & VARVE_CONVERT_COMPRESS) && !drv->emit->pack)
		return varve_error_set(err, -ENOTSUP, "%s images have no compressed clusters", format);
	if ((o->flags & VARVE_CONVERT_OVER_BACKING) && drv->emit->dense)
		return varve_error_set(err, -ENOTSUP, "%s images have no backing file", format);
	if (o->parallel > CONVERT_PARALLEL_MAX || (o->sparse && (o->sparse > 1u << 30 || o->sparse % 512)))
		return varve_error_set(err, -EINVAL, "convert forward only: %u pieces at once, sparse size %llu: out of bounds",
				       o->parallel, (unsigned long long)o->sparse);
	return 0;
}

/* They have one home queue, and a length together. */
static int forward_images(struct varve_image *const *sources, unsigned nr_sources, uint64_t *ret_len, struct varve_error *err)
{
	*ret_len = 0;
	if (!sources || !nr_sources || nr_sources > CONVERT_SOURCES_MAX)
		return varve_error_set(err, -EINVAL, "convert: 1 .. %d sources, not %u", CONVERT_SOURCES_MAX, nr_sources);
	for (unsigned i = 0; i < nr_sources; i++) {
		if (sources[i]->home != sources[0]->home)
			return varve_error_set(err, -EINVAL, "%s and %s: images are converted when they have the same home queue",
					       node_name(sources[0]->top), node_name(sources[i]->top));
		if (sources[i]->top->flags & NODE_NO_IO)
			return varve_error_set(err, -EINVAL, "%s: opened for information only", node_name(sources[i]->top));
		if (u64_add(*ret_len, node_len(sources[i]->top), ret_len) || *ret_len > VARVE_LEN_MAX - MiB(2))
			return varve_error_set(err, -EFBIG, "convert: the sources are too long together");
	}
	return 0;
}

/* A backing file is not looked at: where the image will be is not known here. */
static int forward_backing(struct opts *o, bool over_backing, struct varve_error *err)
{
	const char *file = opts_get(o, "backing_file"), *format = opts_get(o, "backing_fmt");

	if (over_backing != (file && *file))
		return varve_error_set(err, -EINVAL, "a backing file, and contents without what it holds: one needs the other");
	if (over_backing && (!format || !*format))
		return varve_error_set(err, -EINVAL,
				       "the format of the backing file %s is not given; say it (-F), it is never guessed", file);
	return 0;
}

static int forward_open(const struct driver *drv, uint64_t len, const char *options, bool over_backing,
			struct emitter **ret, struct varve_error *err)
{
	struct opts *o = opts_new();
	int r;

	if (!o)
		return varve_error_errno(err, -ENOMEM, "options");
	r = options ? opts_parse(o, options, err) : 0;
	(void)opts_get(o, "size"); /* that of the sources counts */
	if (r == 0)
		r = forward_backing(o, over_backing, err);
	if (r == 0)
		r = drv->emit->open(len, o, ret, err);
	opts_free(o);
	return r < 0 ? varve_error_prefix(err, r, "options: ") : 0;
}

int varve_convert_forward(const char *format, const char *options, struct varve_image *const *sources, unsigned nr_sources,
			  const struct varve_convert_options *opts, varve_sink_fn sink, void *sink_data,
			  varve_progress_fn progress, void *user_data, struct varve_error *err)
{
	static const struct varve_convert_options defaults;
	const struct varve_convert_options *vo = opts ? opts : &defaults;
	const struct driver *drv = format ? driver_find(format) : NULL;
	struct forward_call c = { .err = err };
	uint64_t len = 0;
	int ret;

	if (!sink)
		return varve_error_set(err, -EINVAL, "varve_convert_forward: there is no sink");
	ret = forward_check(format, drv, vo, err);
	if (ret == 0)
		ret = forward_images(sources, nr_sources, &len, err);
	if (ret < 0)
		return ret;
	c.o = (struct emission){ .drv = drv->emit, .sink = sink, .sink_arg = sink_data };
	ret = take_options(&c.o.convert, vo, sources, nr_sources, progress, user_data, err);
	if (ret < 0)
		return ret;
	ret = forward_open(drv, len, options, c.o.convert.over_backing, &c.o.emitter, err);
	if (ret == 0) {
		ret = api_call(sources[0], forward_fiber, &c);
		drv->emit->close(c.o.emitter);
	}
	free(c.o.convert.sources);
	return ret;
}
