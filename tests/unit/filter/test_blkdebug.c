/* SPDX-License-Identifier: MIT */
/*
 * unit/filter/test_blkdebug.c - the filter blkdebug: which request fails after which event, break points, limits
 */
#include "../proto/leaf.h"

#include "block/event.h"
#include "filter/filter.h"

static int debug_try(struct leaf *l, const char *options)
{
	struct leaf m;
	int ret;

	leaf_open(&m, &driver_memory, "size=64k", NODE_WRITABLE);
	l->q = m.q;
	ret = leaf_try(l, &driver_blkdebug, m.n, options, NODE_WRITABLE);
	if (ret < 0)
		leaf_close(&m);
	return ret;
}

static void debug_open(struct leaf *l, const char *options)
{
	if (debug_try(l, options) < 0)
		fail_msg("'%s': %s", options, l->err.message);
}

static int write_as(struct leaf *l, uint64_t off, size_t len, uint32_t flags)
{
	uint8_t buf[16384];

	assert_true(len <= sizeof(buf));
	memset(buf, 0x11, len);
	return leaf_write(l, off, buf, len, flags);
}

static int write_at(struct leaf *l, uint64_t off)
{
	return write_as(l, off, 512, 0);
}

static int read_at(struct leaf *l, uint64_t off)
{
	uint8_t buf[512];

	return leaf_read(l, off, buf, sizeof(buf));
}

static void without_rules_everything_passes(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "");
	assert_int_equal(node_len(l.n), 65536);
	assert_int_equal(write_at(&l, 70000), 0);
	assert_int_equal(node_len(l.n), 70512);
	leaf_expect(&l, 70000, 512, 0x11);
	assert_int_equal(leaf_zero(&l, 70000, 512, 0), 0);
	assert_int_equal(leaf_discard(&l, 0, 512), 0);
	assert_int_equal(leaf_flush(&l), 0);
	leaf_close(&l);
}

/* The rule waits from its event on, whatever comes next; of the file itself nothing changes. */
static void an_event_makes_the_next_request_fail(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "inject-error.0.event=write_aio,inject-error.0.errno=28,inject-error.0.once=on");
	assert_int_equal(read_at(&l, 0), 0);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(write_at(&l, 0), -ENOSPC);
	leaf_expect(&l, 0, 512, 0);
	assert_int_equal(write_at(&l, 0), 0);
	leaf_close(&l);
}

static void a_rule_without_once_stays_until_another_takes_its_place(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "inject-error.0.event=read_aio,inject-error.0.iotype=flush,"
		       "inject-error.1.event=write_aio,inject-error.1.iotype=discard,inject-error.1.errno=1");
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(read_at(&l, 0), 0);
	assert_int_equal(leaf_flush(&l), -EIO);
	assert_int_equal(leaf_flush(&l), -EIO);
	assert_int_equal(leaf_discard(&l, 0, 512), 0);
	assert_int_equal(write_at(&l, 0), 0);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(leaf_discard(&l, 0, 512), -EPERM);
	leaf_close(&l);
}

static void states_are_judged_as_they_were_before_the_event(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "set-state.0.event=read_aio,set-state.0.state=1,set-state.0.new_state=2,"
		       "set-state.1.event=read_aio,set-state.1.state=2,set-state.1.new_state=3,"
		       "inject-error.0.event=read_aio,inject-error.0.state=3,inject-error.0.once=on");
	assert_int_equal(read_at(&l, 0), 0);
	assert_int_equal(read_at(&l, 0), 0);
	assert_int_equal(read_at(&l, 0), -EIO);
	assert_int_equal(read_at(&l, 0), 0);
	leaf_close(&l);
}

static void the_first_rule_that_fits_decides(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "inject-error.0.event=read_aio,inject-error.0.errno=28,inject-error.0.once=on,inject-error.0.sector=2,"
		       "inject-error.1.event=none,inject-error.1.sector=3,inject-error.1.iotype=read,inject-error.1.errno=12");
	assert_int_equal(write_at(&l, 1536), 0);
	assert_int_equal(read_at(&l, 0), 0);	      /* from here on the rule of read_aio waits, and no other */
	assert_int_equal(read_at(&l, 1536), 0);
	assert_int_equal(leaf_flush(&l), 0);
	assert_int_equal(write_at(&l, 600), -ENOSPC); /* 600 .. 1112 */
	assert_int_equal(write_at(&l, 600), 0);
	leaf_close(&l);
}

/* Metadata says what it is; a write of it is no write_aio. */
static void metadata_carries_its_event(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "inject-error.0.event=l2_update,inject-error.0.once=on,"
		       "inject-error.1.event=write_aio,inject-error.1.errno=28");
	assert_int_equal(write_as(&l, 0, 512, req_flags_of(EVENT_L1_UPDATE, EVENT_UNNAMED)), 0);
	assert_int_equal(write_as(&l, 0, 512, REQ_META), 0);
	assert_int_equal(write_as(&l, 0, 512, req_flags_of(EVENT_L2_ALLOC_WRITE, EVENT_L2_UPDATE)), -EIO);
	assert_int_equal(write_as(&l, 0, 512, req_flags_of(EVENT_L2_UPDATE, EVENT_UNNAMED)), 0);
	assert_int_equal(write_at(&l, 0), -ENOSPC);
	leaf_close(&l);
}

static void long_requests_go_in_pieces(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "max-transfer=4k,set-state.0.event=pwritev,set-state.0.state=1,set-state.0.new_state=2,"
		       "set-state.1.event=pwritev,set-state.1.state=2,set-state.1.new_state=3,"
		       "inject-error.0.event=pwritev,inject-error.0.state=3,inject-error.0.once=on");
	assert_int_equal(write_as(&l, 1000, 16384, 0), -EIO);
	leaf_expect(&l, 1000, 8192, 0x11); /* two of four */
	leaf_expect(&l, 9192, 8192, 0);
	assert_int_equal(write_as(&l, 1000, 16384, 0), 0);
	leaf_expect(&l, 1000, 16384, 0x11);
	leaf_close(&l);
}

static void zeroes_are_cut_at_their_unit(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "opt-write-zero=4k,max-write-zero=8k,set-state.0.event=pwritev_zero,set-state.0.state=1,"
		       "set-state.0.new_state=2,inject-error.0.event=pwritev_zero,inject-error.0.state=2,inject-error.0.once=on");
	leaf_fill(&l, 0, 32768, 0x22);
	assert_int_equal(leaf_zero(&l, 1024, 20000, 0), -EIO);
	leaf_expect(&l, 0, 1024, 0x22);
	leaf_expect(&l, 1024, 3072, 0); /* up to the unit */
	leaf_expect(&l, 4096, 28672, 0x22);
	leaf_close(&l);
}

static void unaligned_writes_read_first(void **state)
{
	static const char *const events[] = { "pwritev_rmw_head", "pwritev_rmw_tail" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_LEN(events); i++) {
		char options[128];
		struct leaf l;

		snprintf(options, sizeof(options), "align=4k,inject-error.0.event=%s,inject-error.0.once=on", events[i]);
		debug_open(&l, options);
		assert_int_equal(write_as(&l, 4096, 4096, 0), 0);
		assert_int_equal(write_as(&l, i ? 4096 : 4608, i ? 512 : 3584, 0), -EIO);
		assert_int_equal(write_as(&l, 4608, 512, 0), 0);
		leaf_expect(&l, 4096, 4096, 0x11);
		leaf_close(&l);
	}
}

/* ---- break points ---- */

struct stop {
	struct leaf *l;
	struct req r;
	struct iovec iov;
	uint8_t buf[512];
	bool done;
	int ret;
};

static void stop_done(struct req *r, int ret)
{
	struct stop *s = container_of(r, struct stop, r);

	s->done = true;
	s->ret = ret;
}

/* Submits a write that stops at the events of l, one after the other, and lets it go; others pass meanwhile. */
static int stop_fiber(struct fiber *f, void *arg)
{
	static const char *const events[] = { "write_aio", "pwritev", "pwritev_done" };
	struct stop *s = arg;
	struct node *n = s->l->n;

	for (unsigned i = 0; i < ARRAY_LEN(events); i++)
		assert_int_equal(node_debug(n, DEBUG_BREAK, events[i], events[i], NULL), 0);
	s->iov = (struct iovec){ s->buf, sizeof(s->buf) };
	req_init(&s->r, fiber_queue(f), REQ_WRITE, 0, sizeof(s->buf), &s->iov, 1, 0, stop_done);
	s->r.at = n;
	n->submit(n, &s->r);
	for (unsigned i = 0; i < ARRAY_LEN(events); i++) {
		uint8_t other[512];

		while (!node_debug(n, DEBUG_IS_SUSPENDED, NULL, events[i], NULL)) {
			assert_false(s->done);
			fiber_yield(f);
		}
		assert_int_equal(node_readv(f, n, 0, &(struct iovec){ other, sizeof(other) }, 1), 0);
		assert_int_equal(other[0], i == 2 ? 0x33 : 0); /* the last one stops when it has been written */
		assert_false(s->done);
		assert_int_equal(node_debug(n, DEBUG_RESUME, NULL, events[i], NULL), 0);
		assert_int_equal(node_debug(n, DEBUG_RESUME, NULL, events[i], NULL), -ENOENT);
	}
	while (!s->done)
		fiber_yield(f);
	return s->ret;
}

static void a_request_stops_at_each_break_point_once(void **state)
{
	struct leaf l;
	struct stop s = { .l = &l };

	(void)state;
	memset(s.buf, 0x33, sizeof(s.buf));
	debug_open(&l, "");
	assert_int_equal(fiber_call(l.q, stop_fiber, &s), 0);
	assert_int_equal(write_at(&l, 0), 0);
	leaf_close(&l);
}

static int names_fiber(struct fiber *f, void *arg)
{
	struct node *n = arg;
	char tag[80];

	(void)f;
	memset(tag, 'x', sizeof(tag) - 1);
	tag[sizeof(tag) - 1] = '\0';
	assert_int_equal(node_debug(n, DEBUG_BREAK, "no_such_event", "a", NULL), -ENOENT);
	assert_int_equal(node_debug(n, DEBUG_BREAK, "cor_write", "a", NULL), -ENOTSUP);
	assert_int_equal(node_debug(n, DEBUG_BREAK, "write_aio", tag, NULL), -ENAMETOOLONG);
	assert_int_equal(node_debug(n, DEBUG_REMOVE_BREAK, NULL, "a", NULL), -ENOENT);
	for (int i = 0; i < 64; i++)
		assert_int_equal(node_debug(n, DEBUG_BREAK, "l2_load", "a", NULL), 0);
	assert_int_equal(node_debug(n, DEBUG_BREAK, "l2_load", "a", NULL), -ENOSPC);
	assert_int_equal(node_debug(n, DEBUG_REMOVE_BREAK, NULL, "a", NULL), 0);
	return node_debug(n->file, DEBUG_BREAK, "l2_load", "a", NULL);
}

static void break_points_have_names_and_an_end(void **state)
{
	struct leaf l;

	(void)state;
	debug_open(&l, "");
	assert_int_equal(fiber_call(l.q, names_fiber, l.n), -ENOTSUP); /* the leaf below has none */
	leaf_close(&l);
}

/* ---- what is refused ---- */

static void bad_rules_are_refused_by_name(void **state)
{
	static const struct {
		const char *options, *words;
	} bad[] = {
		{ "inject-error.0.errno=5", "inject-error.0: option 'event' is missing" },
		{ "inject-error.0.event=open", "no event 'open'" },
		{ "inject-error.0.event=cor_write", "cor_write never occurs" },
		{ "inject-error.0.event=read_aio,inject-error.0.errno=EIO", "'EIO'" },
		{ "inject-error.0.event=read_aio,inject-error.0.errno=0", "0 is not from 1 to 4095" },
		{ "inject-error.0.event=read_aio,inject-error.0.errno=4096", "4096" },
		{ "inject-error.0.event=read_aio,inject-error.0.sector=99999999999999999", "99999999999999999" },
		{ "inject-error.0.event=read_aio,inject-error.0.iotype=seek", "'seek' is none of" },
		{ "inject-error.0.event=read_aio,inject-error.0.state=99999999999", "too large for a state" },
		{ "inject-error.0.event=read_aio,inject-error.0.new_state=2", "new_state" },
		{ "inject-error.1.event=read_aio", "1.event" },
		{ "set-state.0.event=read_aio", "'new_state' is missing" },
		{ "set-state.0.event=read_aio,set-state.0.new_state=2,set-state.0.errno=5", "errno" },
		{ "align=3", "3 is no power of two" },
		{ "align=4k,max-transfer=6k", "no multiple of align" },
		{ "max-discard=2G", "2 GiB" },
		{ "config=/nonexistent/rules", "/nonexistent/rules" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct leaf l;

		if (debug_try(&l, bad[i].options) >= 0 || !strstr(l.err.message, bad[i].words))
			fail_msg("'%s': '%s'", bad[i].options, l.err.message);
	}
	for (unsigned i = EVENT_UNNAMED + 1; i < EVENTS; i++)
		assert_int_equal(event_by_name(event_name((enum event)i)), i);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_rules_everything_passes),
		cmocka_unit_test(an_event_makes_the_next_request_fail),
		cmocka_unit_test(a_rule_without_once_stays_until_another_takes_its_place),
		cmocka_unit_test(states_are_judged_as_they_were_before_the_event),
		cmocka_unit_test(the_first_rule_that_fits_decides),
		cmocka_unit_test(metadata_carries_its_event),
		cmocka_unit_test(long_requests_go_in_pieces),
		cmocka_unit_test(zeroes_are_cut_at_their_unit),
		cmocka_unit_test(unaligned_writes_read_first),
		cmocka_unit_test(a_request_stops_at_each_break_point_once),
		cmocka_unit_test(break_points_have_names_and_an_end),
		cmocka_unit_test(bad_rules_are_refused_by_name),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
