/* SPDX-License-Identifier: MIT */
/*
 * tools/img_dd.c - `varve img dd`: blocks of an image, or of standard input, into a new image, or to standard output
 *
 * The operands are those of dd: if= of= bs= count= skip=, and isize= osize= for streams, which do not know their lengths.
 *
 * Never:   leaves a target that it made behind when the copy failed.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "img.h"
#include "stop.h"

#define PIECE_LEN ((size_t)1 << 20)

static const struct option_row options[] = {
	OPT_FORMAT,
	OPT_IMAGE_OPTS,
	{ 'O', "target-format", ARG_NEW_FORMAT, "of the output: raw (default), qcow2, qed" },
	{ 'l', "snapshot", ARG_SNAPSHOT, "of the input: name, id, or snapshot.name=NAME, snapshot.id=ID" },
	{ 'n', "no-create", NULL, "the output exists, and keeps what is not written" },
	OPT_FORCE_SHARE,
	OPT_OBJECT,
	OPTION_END,
};

struct dd {
	struct open_args open;
	const char *target_format, *snapshot;
	bool no_create, zeroinit; /* zeroinit: of= exists, and reads as zeroes */
	const char *in, *out;			 /* NULL: standard input, standard output */
	uint64_t bs, count, skip, isize, osize; /* UINT64_MAX: not given */

	struct varve_image *source, *target; /* NULL: a stream */
	uint64_t most;			     /* bytes that count= says; UINT64_MAX: not given */
	uint64_t from, len;		     /* bytes of the input; len UINT64_MAX: to the end of the stream */
	bool fresh;			     /* the target reads as zeroes: it was made by us, or that is said of it */
	bool skipped_all;		     /* nothing was left to copy */
	uint8_t *buf;
};

/* ---- operands ---- */

static int parse_number(const char *name, const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
	if (parse_size(text, ret) < 0 || *ret < min || *ret > max)
		return complain_usage("dd: %s=%s is no number from %" PRIu64 " to %" PRIu64, name, text, min, max);
	return 0;
}

static int take_operand(struct dd *d, const char *word)
{
	static const char *const names[] = { "if", "of", "bs", "count", "skip", "isize", "osize" };
	const char *equals = strchr(word, '='), *value = equals ? equals + 1 : "";
	unsigned i = 0;

	while (equals && i < ARRAY_LEN(names) &&
	       (strncmp(word, names[i], (size_t)(equals - word)) != 0 || names[i][equals - word]))
		i++;
	if (!equals || i == ARRAY_LEN(names))
		return complain_usage("dd: '%s' is none of if= of= bs= count= skip= isize= osize=", word);
	switch (i) {
	case 0:
		d->in = value;
		return 0;
	case 1:
		d->out = value;
		return 0;
	case 2:
		return parse_number("bs", value, 1, INT_MAX, &d->bs);
	case 3:
		return parse_number("count", value, 0, INT64_MAX, &d->count);
	case 4:
		return parse_number("skip", value, 0, INT64_MAX, &d->skip);
	case 5:
		return parse_number("isize", value, 0, INT64_MAX, &d->isize);
	default:
		return parse_number("osize", value, 0, INT64_MAX, &d->osize);
	}
}

/* What standard input and output are. */
static bool is_raw(const char *format)
{
	return !format || strcmp(format, "raw") == 0;
}

static int check_operands(struct dd *d)
{
	if (!d->out && (d->osize != UINT64_MAX || d->no_create || !is_raw(d->target_format)))
		return complain_usage("dd: osize=, -n and -O (but raw) are about an output image, but there is no of=");
	d->zeroinit = d->out && img_take_zeroinit(&d->out);
	if (d->zeroinit && !d->no_create)
		return complain_usage("dd: " ZEROINIT " is about an output that exists; -n is needed with it");
	if (!d->in && (d->snapshot || !is_raw(d->open.format) || d->open.image_opts || d->open.force_share))
		return complain_usage("dd: -f (but raw), --image-opts, -l and -U are about an input image, but there is no if=");
	/* More than there can be is all there is. */
	if (__builtin_mul_overflow(d->skip, d->bs, &d->from) || d->from > INT64_MAX)
		d->from = INT64_MAX;
	if (d->count != UINT64_MAX && (__builtin_mul_overflow(d->count, d->bs, &d->most) || d->most > INT64_MAX))
		d->most = INT64_MAX;
	return 0;
}

/* ---- how much ---- */

/* Told when all went well: beside an error it would be a second line that is not the cause. */
static void tell_skipped(const struct dd *d)
{
	complain("dd: warning: skip=%" PRIu64 " blocks of %" PRIu64 " bytes is beyond the end of %s: nothing is copied", d->skip, d->bs,
		 d->in ? d->in : "standard input");
}

static int plan(struct dd *d)
{
	uint64_t have = d->source ? varve_image_length(d->source) : d->isize;

	if (!d->source && img_check_stdin("dd", d->out))
		return 1;
	if (d->source && d->isize != UINT64_MAX && d->isize > have) {
		complain("%s: has %" PRIu64 " bytes, isize= says %" PRIu64, d->in, have, d->isize);
		return 1;
	}
	if (have != UINT64_MAX)
		have = MIN(have, d->isize);
	if (have != UINT64_MAX && d->from > have) {
		d->skipped_all = true;
		d->from = have;
	}
	d->len = MIN(have == UINT64_MAX ? UINT64_MAX : have - d->from, d->most);
	if (d->source) /* of an image a part may be meant; a stream that goes on behind that is a surprise, see write_image() */
		d->len = MIN(d->len, d->osize);
	if (d->len == UINT64_MAX && d->out && !d->no_create && d->osize == UINT64_MAX) {
		complain("dd: how long standard input is cannot be known: isize=, osize= or count= is needed to make an image");
		return 1;
	}
	return 0;
}

static int open_target(struct dd *d, struct varve_queue *queue, bool *ret_made)
{
	const char *format = d->target_format ? d->target_format : "raw", *path;
	struct open_args oa = { .format = format };
	struct varve_error err;
	struct stat st;
	bool existed;

	*ret_made = false;
	d->fresh = d->zeroinit;
	if (!d->out)
		return 0;
	if (!d->no_create) {
		if (img_would_overwrite(&d->source, d->source ? 1 : 0, d->out))
			return 1;
		path = img_local_path(d->out);
		existed = stat(path, &st) == 0;
		if (varve_image_create(d->out, format, d->osize != UINT64_MAX ? d->osize : d->len, NULL, 0, NULL, NULL, &err) < 0) {
			complain("%s", err.message);
			return 1;
		}
		*ret_made = !existed;
		/* What a device held before is still there, until a format says otherwise. */
		d->fresh = !(existed && S_ISBLK(st.st_mode) && strcmp(format, "raw") == 0);
	}
	d->target = open_image(d->out, &oa, VARVE_OPEN_WRITABLE, queue);
	if (!d->target)
		return 1;
	if (d->len != UINT64_MAX && d->len > varve_image_length(d->target)) {
		complain("%s: has %" PRIu64 " bytes, fewer than the %" PRIu64 " to be written", d->out, varve_image_length(d->target),
			 d->len);
		return 1;
	}
	return 0;
}

/* ---- copying ---- */

static int read_stream(void *buf, size_t len, size_t *ret_got)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = read(STDIN_FILENO, (char *)buf + got, len - got);

		if (n < 0 && errno == EINTR && !stop_asked())
			continue;
		if (n < 0 && !stop_asked()) {
			complain("standard input: %s", strerror(errno));
			return 1;
		}
		if (n <= 0)
			break;
		got += (size_t)n;
	}
	*ret_got = got;
	return 0;
}

static int write_stream(const void *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(STDOUT_FILENO, (const char *)buf + done, len - done);

		if (n < 0 && errno == EINTR && !stop_asked())
			continue;
		if (n < 0) {
			complain("standard output: %s", stop_asked() ? "not all of it was taken" : strerror(errno));
			return 1;
		}
		done += (size_t)n;
	}
	return 0;
}

/* Up to *len bytes of the image at off. *ret_zero: they are zeroes, and were not read where that is possible. */
static int read_image(struct dd *d, uint64_t off, uint64_t *len, bool *ret_zero)
{
	struct varve_extent e;
	struct varve_error err;
	int ret = varve_image_map(d->source, off, *len, &e, &err);

	if (ret >= 0) {
		*ret_zero = e.zero;
		*len = MIN(e.length, e.zero && d->target ? *len : PIECE_LEN);
		if (!(e.zero && d->target))
			ret = varve_image_read(d->source, off, d->buf, *len, &err);
	}
	if (ret < 0)
		complain("%s", err.message);
	return ret < 0;
}

static int write_image(struct dd *d, uint64_t off, uint64_t len, bool zero)
{
	uint64_t room = MIN(varve_image_length(d->target), d->osize);
	struct varve_error err;
	int ret = 0;

	if (off > room || len > room - off) {
		complain("%s: is full: standard input has more than %" PRIu64 " bytes", d->out, room);
		return 1;
	}
	if (zero && !d->fresh)
		ret = varve_image_write_zeroes(d->target, off, len, VARVE_REQ_MAY_UNMAP, &err);
	else if (!zero)
		ret = varve_image_write(d->target, off, d->buf, len, 0, &err);
	if (ret < 0)
		complain("%s", err.message);
	return ret < 0;
}

static int skip_stream(struct dd *d)
{
	uint64_t left = d->from;
	size_t got = 1;

	while (left && got && !stop_asked()) {
		if (read_stream(d->buf, MIN(left, PIECE_LEN), &got))
			return 1;
		left -= got;
	}
	d->skipped_all |= left && !stop_asked();
	return 0;
}

static int copy(struct dd *d)
{
	uint64_t done = 0, len;

	if (!d->source && skip_stream(d))
		return 1;
	for (; done < d->len && !stop_asked(); done += len) {
		bool zero = false;
		size_t got;

		len = d->len - done;
		if (d->source) {
			if (read_image(d, d->from + done, &len, &zero))
				return 1;
		} else {
			if (read_stream(d->buf, MIN(len, PIECE_LEN), &got))
				return 1;
			len = got;
			if (!len) /* the end */
				break;
		}
		if (d->target ? write_image(d, done, len, zero) : write_stream(d->buf, len))
			return 1;
		progress_update(NULL, done + len, d->len);
	}
	if (done < d->len && stop_asked()) {
		complain("dd: ended by %s after %" PRIu64 " bytes", stop_asked(), done);
		return 1;
	}
	if (!d->source && d->isize != UINT64_MAX && done < d->len) {
		complain("standard input: ended after %" PRIu64 " bytes, isize= says %" PRIu64, d->from + done, d->isize);
		return 1;
	}
	return 0;
}

static int run(struct dd *d, struct varve_queue *queue)
{
	bool made = false;
	int ret = 1;

	d->buf = malloc(PIECE_LEN);
	if (!d->buf)
		complain("out of memory");
	else if (!d->in || (d->source = img_open_snapshot(d->in, &d->open, d->snapshot, 0, queue)))
		ret = plan(d) || open_target(d, queue, &made) || copy(d);
	if (d->target)
		ret = close_image_after(d->target, ret);
	if (d->source)
		ret = close_image_after(d->source, ret);
	if (ret && made)
		(void)img_remove_made(d->out);
	if (!ret && d->skipped_all)
		tell_skipped(d);
	free(d->buf);
	return ret;
}

static int take_option(struct dd *d, int id, const char *value)
{
	switch (id) {
	case 'O':
		d->target_format = value;
		return 0;
	case 'l':
		d->snapshot = value;
		return 0;
	case 'n':
		d->no_create = true;
		return 0;
	default:
		return open_option(&d->open, id, value);
	}
}

static int img_dd(int argc, char **argv)
{
	struct dd d = { .bs = 512, .count = UINT64_MAX, .most = UINT64_MAX, .isize = UINT64_MAX, .osize = UINT64_MAX };
	struct varve_queue *queue;
	struct varve_error err;
	struct parse p;
	int id, ret = 0;

	parse_start(&p, &cmd_dd, argc, argv);
	while (!ret && (id = parse_next(&p)) > 0)
		ret = take_option(&d, id, p.value);
	if (ret || id < 0)
		return ret ? ret : p.status;
	for (int i = 0; !ret && i < p.nr_args; i++)
		ret = take_operand(&d, p.args[i]);
	if (ret || check_operands(&d))
		return 1;
	stop_watch();
	if (varve_queue_new(&queue, NULL, &err) < 0) {
		complain("%s", err.message);
		return 1;
	}
	ret = run(&d, queue);
	varve_queue_free(queue);
	return ret;
}

const struct command cmd_dd = {
	.name = "dd",
	.run = img_dd,
	.what = "copy blocks of an image into a new one",
	.args = "[if=FILE] [of=FILE] [bs=SIZE] [count=N] [skip=N] [isize=SIZE] [osize=SIZE]",
	.options = options,
	.notes = "Without if= standard input is read, without of= standard output is written. A block has 512 bytes (bs=).\n"
		 "isize= is how much of the input there is to read, osize= how long the new image shall be, or with -n how much is\n"
		 "written at most.\n",
};
