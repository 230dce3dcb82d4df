/* SPDX-License-Identifier: MIT */
/*
 * tools/io_buf.c - patterns, dumps, and the lines that report a result
 *
 * The form of the lines is that of qemu-io, because scripts compare them.
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "io.h"

#define BUF_ALIGN 4096
#define MISALIGN 16 /* bytes behind such an address, with -m */

/* ---- buffers ---- */

static size_t misaligned_by;

void io_buf_misalign(void)
{
	misaligned_by = MISALIGN;
}

void *io_buf(size_t len, int fill)
{
	uint8_t *buf = aligned_alloc(BUF_ALIGN, (len + MISALIGN + BUF_ALIGN) / BUF_ALIGN * BUF_ALIGN);

	if (!buf) {
		printf("no memory for a buffer of %zu bytes\n", len);
		return NULL;
	}
	buf += misaligned_by;
	memset(buf, fill, len);
	return buf;
}

void io_buf_free(void *buf)
{
	if (buf)
		free((uint8_t *)buf - misaligned_by);
}

int io_size(const char *text, uint64_t *ret)
{
	int r = parse_size(text, ret);

	if (r == 0 && *ret <= INT64_MAX)
		return 0;
	if (r == 0 || r == -ERANGE)
		printf("%s is too large\n", text);
	else
		printf("%s is no number of bytes\n", text);
	return -1;
}

int io_pattern(const char *text, int *ret)
{
	char *end;
	long v;

	errno = 0;
	v = strtol(text, &end, 0);
	if (!*text || *end || errno || v < 0 || v > 255) {
		printf("%s is not a valid pattern byte\n", text);
		return -1;
	}
	*ret = (int)v;
	return 0;
}

int io_vector(struct io_vector *ret, int argc, char **argv, int fill)
{
	struct io_vector v = { .nr_iov = argc };
	uint64_t len, sum = 0;
	size_t at = 0;

	if (argc > 1024) {
		printf("%d pieces in one request are too many (at most 1024)\n", argc);
		return -1;
	}
	v.iov = calloc((size_t)argc, sizeof(*v.iov));
	if (!v.iov) {
		printf("no memory for %d pieces\n", argc);
		return -1;
	}
	for (int i = 0; i < argc; i++) {
		if (io_size(argv[i], &len) < 0)
			goto fail;
		if (len > IO_LEN_MAX || (sum += len) > IO_LEN_MAX) {
			printf("length cannot exceed %llu, given %s\n", IO_LEN_MAX, argv[i]);
			goto fail;
		}
		v.iov[i].iov_len = len;
	}
	v.len = sum;
	v.buf = io_buf(v.len, fill);
	if (!v.buf)
		goto fail;
	for (int i = 0; i < argc; i++) {
		v.iov[i].iov_base = v.buf + at;
		at += v.iov[i].iov_len;
	}
	*ret = v;
	return 0;

fail:
	free(v.iov);
	return -1;
}

int io_vector_register(struct io_vector *v, struct varve_queue *queue)
{
	struct varve_error err;

	if (!v->len)
		return 0;
	if (varve_queue_add_memory(queue, v->buf, v->len, &err) < 0) {
		io_vector_free(v);
		return io_complain(NULL, &err);
	}
	v->registered = queue;
	return 0;
}

void io_vector_free(struct io_vector *v)
{
	if (v->registered)
		varve_queue_remove_memory(v->registered, v->buf, v->len);
	io_buf_free(v->buf);
	free(v->iov);
}

/* ---- what was read ---- */

void io_dump(const uint8_t *buf, uint64_t off, size_t len)
{
	for (size_t at = 0; at < len; at += 16) {
		size_t n = MIN(len - at, 16);

		printf("%08llx:  ", (unsigned long long)(off + at));
		for (size_t i = 0; i < n; i++)
			printf("%02x ", buf[at + i]);
		putchar(' ');
		for (size_t i = 0; i < n; i++)
			putchar(buf[at + i] >= 0x20 && buf[at + i] < 0x7f ? buf[at + i] : '.');
		putchar('\n');
	}
}

int io_verify(const uint8_t *buf, size_t len, int pattern, uint64_t off)
{
	for (size_t i = 0; i < len; i++) {
		if (buf[i] == pattern)
			continue;
		printf("Pattern verification failed at offset %llu, %zu bytes\n", (unsigned long long)off, len);
		return -1;
	}
	return 0;
}

/* ---- results ---- */

uint64_t io_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void time_text(char buf[32], uint64_t ns, bool full)
{
	uint64_t s = ns / 1000000000u, hundredths = ns / 10000000u % 100;

	if (full || s >= 60)
		snprintf(buf, 32, "%llu:%02u:%02u.%02u", (unsigned long long)(s / 3600), (unsigned)(s / 60 % 60),
			 (unsigned)(s % 60), (unsigned)hundredths);
	else
		snprintf(buf, 32, "%02u.%02u sec", (unsigned)s, (unsigned)hundredths);
}

void io_report(const struct io_report *r)
{
	uint64_t ns = io_now_ns() - r->start_ns;
	double seconds = (double)(ns ? ns : 1) / 1e9;
	char took[32], amount[32], rate[32];

	if (r->quiet)
		return;
	time_text(took, ns, r->machine);
	if (r->machine) {
		printf("%llu,%d,%s,%.3f,%.3f\n", (unsigned long long)r->len, 1, took, (double)r->len / seconds,
		       1 / seconds);
		return;
	}
	printf("%s %llu/%llu bytes at offset %llu\n", r->what, (unsigned long long)r->len, (unsigned long long)r->len,
	       (unsigned long long)r->off);
	printf("%s, %d ops; %s (%s/sec and %.4f ops/sec)\n", size_text_exact(amount, (double)r->len), 1, took,
	       size_text_exact(rate, (double)r->len / seconds), 1 / seconds);
}

int io_failed(const char *name, int error)
{
	printf("%s failed: %s\n", name, strerror(-error));
	return -1;
}

int io_complain(const char *name, const struct varve_error *err)
{
	fflush(stdout);
	complain("%s%s%s", name ? name : "", name ? ": " : "", err->message);
	return -1;
}

int io_check_range(const struct io *io, uint64_t off, uint64_t len)
{
	uint64_t end = varve_image_length(io->image);

	return off > end || len > end - off ? -EIO : 0;
}
