/* SPDX-License-Identifier: MIT */
/*
 * async-read.c - adds up all bytes of an image, eight reads at a time, from a poll() loop of its own
 * cc async-read.c $(pkg-config --cflags --libs varve) && ./a.out disk.qcow2
 */
#include <poll.h>
#include <stdio.h>
#include <varve/varve.h>

#define DEPTH 8
#define CHUNK 65536

static struct slot {
	unsigned char buf[CHUNK];
	struct iovec iov;
} slots[DEPTH];

int main(int argc, char **argv)
{
	struct varve_queue_options qo = { .depth = DEPTH };
	struct varve_open_options oo = { 0 };
	struct varve_completion done[DEPTH];
	struct varve_queue *queue;
	struct varve_image *image;
	struct varve_error err;
	uint64_t sum = 0, at = 0, len;
	int in_flight = 0, n, failed = 0;

	if (argc != 2 || varve_queue_new(&oo.home, &qo, &err) < 0)
		return 1;
	queue = oo.home; /* this thread runs the queue, by varve_queue_reap() */
	if (varve_image_open(&image, argv[1], &oo, &err) < 0)
		return fprintf(stderr, "async-read: %s\n", err.message), 1;
	len = varve_image_length(image);
	for (int i = 0; i < DEPTH; i++)
		done[i] = (struct varve_completion){ .user_data = &slots[i] };
	for (n = DEPTH; n || in_flight;) {
		for (int i = 0; i < n && at < len && !failed; i++, in_flight++) { /* each slot that is free: next piece */
			struct slot *s = done[i].user_data;

			s->iov = (struct iovec){ s->buf, len - at < CHUNK ? len - at : CHUNK };
			failed = varve_submit_readv(queue, image, &s->iov, 1, at, s);
			at += s->iov.iov_len;
		}
		n = varve_queue_reap(queue, done, DEPTH, 0); /* sends what was submitted, never waits */
		if (n == 0 && in_flight) /* a program would have more descriptors here */
			poll(&(struct pollfd){ varve_queue_fd(queue), POLLIN, 0 }, 1, -1);
		for (int i = 0; i < n; i++, in_flight--) {
			const struct slot *s = done[i].user_data;
			failed |= done[i].result;
			for (size_t b = 0; b < s->iov.iov_len; b++)
				sum += s->buf[b];
		}
	}
	varve_image_close(image, NULL); /* opened read-only: there is nothing to lose */
	varve_queue_free(queue);
	printf("%llu bytes, sum %llu\n", (unsigned long long)len, (unsigned long long)sum);
	return failed ? 1 : 0;
}
