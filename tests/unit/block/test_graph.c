/* SPDX-License-Identifier: MIT */
/*
 * unit/block/test_graph.c - opening disks from names and options: what is built, and what is refused with which words
 */
#include "fake.h"

#include <fcntl.h>

#include "proto/file.h"

static void refused(const char *options, uint32_t flags, int code, const char *words)
{
	leaf_expect_refused(NULL, options, flags, code, words);
}

static void opened(struct leaf *l, const char *options, uint32_t flags)
{
	l->q = leaf_queue();
	if (leaf_try(l, NULL, NULL, options, flags) < 0)
		fail_msg("%s: %s", options, l->err.message);
}

struct create {
	const char *name, *options;
	uint64_t len;
};

static int create_fiber(struct fiber *f, void *arg)
{
	struct create *c = arg;
	struct varve_error err = { 0, "" };
	struct opts *o = opts_new();
	struct node *file;
	int ret;

	leaf_make_file(c->name, 0, false);
	ret = opts_parse(o, c->options, &err);
	if (ret == 0)
		ret = graph_open_file(f, leaf_path(c->name), NODE_WRITABLE, &file, &err);
	if (ret == 0) {
		ret = driver_find("qcow2")->create(f, file, c->len, o, NULL, NULL, &err);
		graph_close(f, file, NULL);
	}
	opts_free(o);
	if (ret < 0)
		print_error("%s: %s\n", c->name, err.message);
	return ret;
}

/* backing NULL: none. The name is stored as it is. */
static void make_qcow2(const char *name, const char *backing, const char *backing_format)
{
	struct queue *q = leaf_queue();
	struct create c = { .name = name, .len = 65536 };
	char options[300] = "";

	if (backing)
		snprintf(options, sizeof(options), "backing_file=%s,backing_fmt=%s", backing, backing_format);
	c.options = options;
	assert_int_equal(fiber_call(q, create_fiber, &c), 0);
	queue_free(q);
}

static unsigned chain_len(const struct node *n)
{
	unsigned nr = 0;

	while ((n = n->backing))
		nr++;
	return nr;
}

static void a_name_is_probed_and_a_format_is_taken_at_its_word(void **state)
{
	struct leaf l;

	(void)state;
	leaf_make_file("raw", 4096, true);
	make_qcow2("q", NULL, NULL);
	opened(&l, leaf_file_opts("raw", ""), 0);
	assert_string_equal(l.n->drv->name, "raw");
	leaf_close(&l);
	opened(&l, leaf_file_opts("q", ""), 0);
	assert_string_equal(l.n->drv->name, "qcow2");
	leaf_close(&l);
	opened(&l, leaf_file_opts("q", ",format=raw"), 0);
	assert_string_equal(l.n->drv->name, "raw");
	leaf_close(&l);
	refused(leaf_file_opts("raw", ",driver=qcow2"), 0, -EINVAL, "raw");
	refused(leaf_file_opts("raw", ",driver=nonesuch"), 0, -EINVAL, "nonesuch");
	refused("driver=raw", 0, -EINVAL, "file.filename");
	refused(leaf_file_opts("missing", ""), 0, -ENOENT, "missing");
}

/* Its bytes are no disk; but with the format given, they are what was asked for. */
static void a_format_that_nobody_reads_is_not_taken_for_raw(void **state)
{
	static const struct {
		const char *name, *magic;
		size_t off, len;
	} formats[] = {
		{ "vmdk", "KDMV", 0, 4 },
		{ "vdi", "\x7f\x10\xda\xbe", 64, 4 },
		{ "vhdx", "vhdxfile", 0, 8 },
		{ "vpc", "conectix", 0, 8 },
		{ "luks", "LUKS\xba\xbe\0\1", 0, 8 },
		{ "qcow", "QFI\xfb\0\0\0\1", 0, 8 },
		{ "vmdk", "# Disk DescriptorFile", 0, 21 },
		{ "parallels", "WithoutFreeSpace", 0, 16 },
	};
	struct leaf l;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
		int fd;

		leaf_make_file("foreign", 4096, false);
		fd = open(leaf_path("foreign"), O_WRONLY | O_CLOEXEC);
		assert_int_equal(pwrite(fd, formats[i].magic, formats[i].len, (off_t)formats[i].off),
				 formats[i].len);
		close(fd);
		refused(leaf_file_opts("foreign", ""), 0, -ENOTSUP, formats[i].name);
		opened(&l, leaf_file_opts("foreign", ",format=raw"), 0);
		leaf_close(&l);
	}
	/* one byte off is another matter */
	leaf_make_file("foreign", 4096, false);
	opened(&l, leaf_file_opts("foreign", ""), NODE_WRITABLE);
	assert_int_equal(leaf_write(&l, 0, "KDMV", 4, 0), -EPERM); /* it stays what it was found to be */
	assert_int_equal(leaf_write(&l, 1, "KDMV", 4, 0), 0);
	leaf_close(&l);
	opened(&l, leaf_file_opts("foreign", ""), 0);
	leaf_close(&l);
}

static void keys_that_nobody_knows_are_refused_by_name(void **state)
{
	(void)state;
	leaf_make_file("raw", 4096, true);
	make_qcow2("q", NULL, NULL);
	refused(leaf_file_opts("raw", ",bogus=1"), 0, -EINVAL, "bogus");
	refused(leaf_file_opts("raw", ",driver=raw,file.bogus=1"), 0, -EINVAL, "bogus");
	refused(leaf_file_opts("raw", ",driver=raw,file.driver=raw,file.bogus=1"), 0, -EINVAL, "bogus");
	refused(leaf_file_opts("raw", ",backing.bogus=1"), 0, -EINVAL, "backing");
	refused("driver=memory,size=1M,backing.filename=x", 0, -EINVAL, "backing");
	refused(leaf_file_opts("q", ",x-leaf=on"), 0, -EINVAL, "x-leaf");
	refused(leaf_file_opts("q", ",backing=node3"), 0, -EINVAL, "node3");
}

static void layers_have_an_end(void **state)
{
	char options[8192] = "", key[2048] = "";

	(void)state;
	leaf_make_file("raw", 4096, true);
	for (unsigned i = 0; i < 100; i++) {
		snprintf(options + strlen(options), sizeof(options) - strlen(options), "%sdriver=raw,", key);
		strcat(key, "file.");
		if (i == 7) {
			char text[9000];

			snprintf(text, sizeof(text), "%s%sfilename=%s", options, key, leaf_path("raw"));
			refused(text, 0, -EINVAL, "too many layers");
		}
		if (strlen(options) > 7000)
			break;
	}
	options[strlen(options) - 1] = 0;
	refused(options, 0, -EINVAL, "");
}

static void a_json_name_is_its_options(void **state)
{
	char text[400];
	struct leaf l = { 0 };
	struct opts *o = opts_new();

	(void)state;
	opts_free(o);
	leaf_make_file("raw", 4096, true);
	snprintf(text, sizeof(text),
		 "filename=json:{\"driver\": \"raw\",, \"file\": {\"driver\": \"file\",, \"filename\": \"%s\"}}",
		 leaf_path("raw"));
	opened(&l, text, 0);
	assert_string_equal(l.n->drv->name, "raw");
	assert_int_equal(node_len(l.n), 4096);
	leaf_close(&l);
	refused("filename=json:{\"driver\":", 0, -EINVAL, "");
	refused("filename=json:{\"driver\": \"raw\",, \"file\": {\"driver\": \"null-co\",, \"nope\": 1}}", 0, -EINVAL,
		"nope");
}

static void a_chain_is_opened_from_the_names_in_the_images(void **state)
{
	struct leaf l;

	(void)state;
	leaf_make_file("base", 65536, true);
	make_qcow2("mid", "base", "raw");
	make_qcow2("top", "mid", "qcow2");
	opened(&l, leaf_file_opts("top", ""), NODE_WRITABLE);
	assert_int_equal(chain_len(l.n), 2);
	assert_false(l.n->backing->flags & NODE_WRITABLE);
	assert_non_null(l.n->chain);
	leaf_expect(&l, 5, 1, leaf_pattern(5));
	leaf_close(&l);
	/* Said otherwise by the user. */
	opened(&l, leaf_file_opts("top", ""), NODE_NO_BACKING);
	assert_int_equal(chain_len(l.n), 0);
	leaf_close(&l);
	opened(&l, leaf_file_opts("top", ",backing="), 0);
	assert_int_equal(chain_len(l.n), 0);
	leaf_close(&l);
	opened(&l, leaf_file_opts("top", ",backing.driver=raw"), 0);
	assert_int_equal(chain_len(l.n), 1);
	assert_string_equal(l.n->backing->drv->name, "raw");
	leaf_close(&l);
	refused(leaf_file_opts("top", ",backing.backing.bogus=1"), 0, -EINVAL, "bogus");
}

/* Filters stand above the disk; the chain is the disk's. */
static void a_filter_above_an_image_sees_its_backing_images(void **state)
{
	char text[300];
	struct leaf l;

	(void)state;
	leaf_make_file("base", 65536, true);
	make_qcow2("top", "base", "raw");
	snprintf(text, sizeof(text), "driver=fault,file.driver=qcow2,file.file.filename=%s", leaf_path("top"));
	opened(&l, text, NODE_WRITABLE);
	assert_non_null(l.n->file->backing);
	leaf_expect(&l, 77, 1, leaf_pattern(77));
	leaf_close(&l);
	/* A format in the file of another: refused rather than read without its base. */
	snprintf(text, sizeof(text), "driver=raw,file.driver=qcow2,file.file.filename=%s", leaf_path("top"));
	refused(text, 0, -ENOTSUP, "backing");
}

static void chains_that_loop_are_refused(void **state)
{
	(void)state;
	make_qcow2("self", "self", "qcow2");
	refused(leaf_file_opts("self", ""), 0, -ELOOP, "self");
	make_qcow2("x", "y", "qcow2");
	make_qcow2("y", "z", "qcow2");
	make_qcow2("z", "x", "qcow2");
	refused(leaf_file_opts("x", ""), 0, -ELOOP, "loop");
	make_qcow2("entry", "x", "qcow2");
	refused(leaf_file_opts("entry", ""), 0, -ELOOP, "loop");
}

static void names_in_images_are_names_of_files_only(void **state)
{
	char buf[NODE_NAME_MAX], long_name[NODE_NAME_MAX];
	struct varve_error err;

	(void)state;
	assert_int_equal(backing_path("dir/top", "base", buf, &err), 0);
	assert_string_equal(buf, "dir/base");
	assert_int_equal(backing_path("file:/a/b/top", "../base", buf, &err), 0);
	assert_string_equal(buf, "/a/b/../base");
	assert_int_equal(backing_path("/a/top", "/base", buf, &err), 0);
	assert_string_equal(buf, "/base");
	assert_int_equal(backing_path("top", "base", buf, &err), 0);
	assert_string_equal(buf, "base");
	assert_int_equal(backing_path("/a/top", "json:{}", buf, &err), -EPERM);
	memset(long_name, 'x', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = 0;
	assert_int_equal(backing_path("/a/top", long_name, buf, &err), -ENAMETOOLONG);
	make_qcow2("missing-base", "nowhere", "raw");
	refused(leaf_file_opts("missing-base", ""), 0, -ENOENT, "missing-base");
}

static void read_only_holds_for_what_is_below(void **state)
{
	static uint8_t buf[512];
	struct leaf l;
	struct io io;

	(void)state;
	leaf_make_file("raw", 4096, true);
	opened(&l, leaf_file_opts("raw", ",driver=raw,read-only=on"), NODE_WRITABLE);
	assert_false(l.n->flags & NODE_WRITABLE);
	assert_false(l.n->file->flags & NODE_WRITABLE);
	io_start(&io, l.n, l.q, REQ_WRITE, 0, buf, 512, 0);
	assert_int_equal(io_wait(&io), -EROFS);
	leaf_close(&l);
	opened(&l, leaf_file_opts("raw", ",driver=raw,read-only=off"), 0);
	assert_false(l.n->flags & NODE_WRITABLE);
	leaf_close(&l);
	refused(leaf_file_opts("raw", ",driver=raw,file.read-only=on"), NODE_WRITABLE, -EROFS, "read-only");
	refused(leaf_file_opts("raw", ",read-only=perhaps"), 0, -EINVAL, "perhaps");
}

/* ---- cache modes and engines ---- */

static void expect_mode(const char *options, const char *cache, bool direct)
{
	struct leaf l;
	struct file *fl;

	opened(&l, options, NODE_WRITABLE);
	assert_string_equal(cache_mode_name(l.n->flags), cache);
	assert_string_equal(cache_mode_name(l.n->file->flags), cache);
	fl = node_state(l.n->file);
	assert_int_equal(!!(fcntl(fl->af.fd, F_GETFL) & O_DIRECT), direct);
	assert_int_equal(fl->af.direct, direct);
	assert_int_equal(fl->no_flush, strstr(cache, "no-flush") || !strcmp(cache, "unsafe"));
	leaf_close(&l);
}

static void cache_modes_are_three_switches(void **state)
{
	int fd;

	(void)state;
	leaf_make_file("raw", 8192, true);
	fd = open(leaf_path("raw"), O_RDONLY | O_DIRECT);
	expect_mode(leaf_file_opts("raw", ",driver=raw"), "writeback", false);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache=writethrough"), "writethrough", false);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache=unsafe"), "unsafe", false);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache.writeback=off"), "writethrough", false);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache=unsafe,cache.no-flush=off"), "writeback", false);
	refused(leaf_file_opts("raw", ",driver=raw,cache=fast"), 0, -EINVAL, "fast");
	refused(leaf_file_opts("raw", ",driver=raw,cache.direct=perhaps"), 0, -EINVAL, "perhaps");
	refused(leaf_file_opts("raw", ",driver=raw,cache=unsafe,sync=on"), NODE_WRITABLE, -EINVAL, "sync=on");
	if (fd < 0)
		return; /* a file system without O_DIRECT: the other modes have been seen */
	close(fd);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache=none"), "none", true);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache=off"), "none", true);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache=directsync"), "directsync", true);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache=directsync,cache.direct=off"), "writethrough", false);
	expect_mode(leaf_file_opts("raw", ",driver=raw,cache.direct=on,cache.no-flush=on"), "direct,no-flush", true);
}

static struct file *leaf_file_of(struct node *n)
{
	while (n->file)
		n = n->file;
	return node_state(n);
}

/* What the top is opened with holds for its backing images, down to one whose options say otherwise, and those below it. */
static void backing_images_inherit_cache_and_engine(void **state)
{
	struct leaf l;

	(void)state;
	make_qcow2("c0", NULL, NULL);
	make_qcow2("c1", "c0", "qcow2");
	make_qcow2("c2", "c1", "qcow2");
	opened(&l, leaf_file_opts("c2", ",driver=qcow2,cache=unsafe,aio=threads"), NODE_WRITABLE);
	for (struct node *n = l.n; n; n = n->backing) {
		assert_true(n->flags & NODE_NO_FLUSH);
		assert_string_equal(leaf_file_of(n)->af.engine->name, "threads");
	}
	leaf_close(&l);

	opened(&l,
	       leaf_file_opts("c2", ",driver=qcow2,cache=unsafe,aio=threads,backing.driver=qcow2,backing.cache=writeback"),
	       NODE_WRITABLE);
	assert_true(l.n->flags & NODE_NO_FLUSH);
	assert_false(l.n->backing->flags & NODE_NO_FLUSH);
	assert_false(l.n->backing->backing->flags & NODE_NO_FLUSH);
	assert_string_equal(leaf_file_of(l.n->backing->backing)->af.engine->name, "threads");
	leaf_close(&l);

	/* The file's own word is the last one, and the file's alone. */
	opened(&l, leaf_file_opts("c2", ",driver=qcow2,cache=unsafe,file.cache=writeback"), NODE_WRITABLE);
	assert_false(leaf_file_of(l.n)->no_flush);
	assert_true(leaf_file_of(l.n->backing)->no_flush);
	leaf_close(&l);
	/* Backing images are not written: what only concerns writes does not reach them. */
	opened(&l, leaf_file_opts("c2", ",driver=qcow2,cache=writethrough,sync=on"), NODE_WRITABLE);
	assert_true(leaf_file_of(l.n)->sync);
	assert_false(leaf_file_of(l.n->backing)->sync);
	leaf_close(&l);
}

/* An engine that comes from above is no concern of a leaf without engines; one that is set there is. */
static void a_leaf_without_engine_minds_its_own_option_only(void **state)
{
	struct leaf l;

	(void)state;
	opened(&l, "driver=raw,aio=threads,file.driver=null-co", 0);
	leaf_close(&l);
	opened(&l, "driver=raw,aio=threads,file.driver=memory,file.size=1M", 0);
	leaf_close(&l);
	make_qcow2("on-null", NULL, NULL);
	opened(&l,
	       leaf_file_opts("on-null", ",driver=qcow2,aio=threads,backing.driver=raw,backing.file.driver=null-co"), 0);
	assert_string_equal(leaf_file_of(l.n)->af.engine->name, "threads");
	leaf_close(&l);
	refused("driver=raw,file.driver=null-co,file.aio=threads", 0, -EINVAL, "aio");
	refused("driver=null-co,aio=threads", 0, -EINVAL, "aio");
	refused("driver=raw,aio=magic,file.driver=null-co", 0, -EINVAL, "magic");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_name_is_probed_and_a_format_is_taken_at_its_word),
		cmocka_unit_test(a_format_that_nobody_reads_is_not_taken_for_raw),
		cmocka_unit_test(keys_that_nobody_knows_are_refused_by_name),
		cmocka_unit_test(layers_have_an_end),
		cmocka_unit_test(a_json_name_is_its_options),
		cmocka_unit_test(a_chain_is_opened_from_the_names_in_the_images),
		cmocka_unit_test(a_filter_above_an_image_sees_its_backing_images),
		cmocka_unit_test(chains_that_loop_are_refused),
		cmocka_unit_test(names_in_images_are_names_of_files_only),
		cmocka_unit_test(read_only_holds_for_what_is_below),
		cmocka_unit_test(cache_modes_are_three_switches),
		cmocka_unit_test(backing_images_inherit_cache_and_engine),
		cmocka_unit_test(a_leaf_without_engine_minds_its_own_option_only),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, leaf_remove_dir);
}
