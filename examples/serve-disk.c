/* SPDX-License-Identifier: MIT */
/*
 * serve-disk.c - gives an image to virtual machines over vhost-user-blk, until it is interrupted
 *
 * cc serve-disk.c $(pkg-config --cflags --libs varve) && ./a.out disk.qcow2 /tmp/disk.sock
 */
#include <signal.h>
#include <stdio.h>
#include <varve/varve.h>

static struct varve_error err;

static int fail(void)
{
	fprintf(stderr, "serve-disk: %s\n", err.message);
	return 1;
}

int main(int argc, char **argv)
{
	struct varve_queue_options qo = { .flags = VARVE_QUEUE_THREAD };
	struct varve_open_options oo = { .flags = VARVE_OPEN_WRITABLE };
	struct varve_vhost_user_blk_options eo = { .writable = true, .serial = "example" };
	struct varve_queue *control, *queue;
	struct varve_image *image;
	struct varve_export *exp;
	sigset_t ends;
	int sig, ret;

	if (argc != 3) {
		fprintf(stderr, "usage: serve-disk IMAGE SOCKET\n");
		return 1;
	}
	/* Before the library makes threads, so that the signals come to sigwait() below. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigprocmask(SIG_BLOCK, &ends, NULL);
	if (varve_queue_new(&control, &qo, &err) < 0 || varve_queue_new(&queue, &qo, &err) < 0)
		return fail();
	oo.home = queue;
	if (varve_image_open(&image, argv[1], &oo, &err) < 0)
		return fail();
	eo.socket_path = argv[2];
	if (varve_export_vhost_user_blk(&exp, image, &eo, control, &queue, 1, &err) < 0)
		return fail();
	printf("listening\n");
	fflush(stdout);
	sigwait(&ends, &sig);

	ret = varve_export_stop(exp, &err); /* an error here, or in close, is data that a guest believes to be safe */
	if (varve_image_close(image, ret < 0 ? NULL : &err) < 0 || ret < 0)
		return fail();
	varve_queue_free(queue);
	varve_queue_free(control);
	return 0;
}
