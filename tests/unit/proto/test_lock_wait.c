/* SPDX-License-Identifier: MIT */
/*
 * unit/proto/test_lock_wait.c - a file that changed while its lock was waited for
 *
 * The linker leads file_lock() to here (--wrap, see meson.build): what it waits for is somebody who does his last change.
 */
#include "leaf.h"

#include "proto/file.h"

static uint64_t left_behind; /* the length that the one before leaves the file with */

int __real_file_lock(int fd, const char *name, bool writable, enum file_locking locking, struct varve_error *err);
int __wrap_file_lock(int fd, const char *name, bool writable, enum file_locking locking, struct varve_error *err);

int __wrap_file_lock(int fd, const char *name, bool writable, enum file_locking locking, struct varve_error *err)
{
	assert_int_equal(truncate(name, (off_t)left_behind), 0);
	return __real_file_lock(fd, name, writable, locking, err);
}

/* An old length would let a format allocate where the other one has put data, and a resize cut the file off there. */
static void the_length_is_that_of_when_the_lock_was_got(void **state)
{
	static const uint32_t flags[] = { NODE_WRITABLE, 0, NODE_WRITABLE | NODE_DIRECT };
	static const uint64_t lengths[] = { 300 << 10, 4 << 10, 0 };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(flags); i++) {
		for (unsigned k = 0; k < ARRAY_LEN(lengths); k++) {
			struct leaf l;

			left_behind = lengths[k];
			leaf_make_file("a", 100 << 10, false);
			leaf_open(&l, &driver_file, leaf_file_opts("a", ""), flags[i]);
			assert_int_equal(node_len(l.n), left_behind);
			leaf_close(&l);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(the_length_is_that_of_when_the_lock_was_got) };

	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
