/* SPDX-License-Identifier: MIT */
/*
 * block/wish.c - discards that are not wanted, and zeroes that are found in writes
 *
 * Looking for zeroes reads the guest's memory once more. The guest may change it meanwhile; then it has a write under way to
 * memory that it changes, of which nobody promised it which bytes arrive.
 *
 * Assumes: node.c asks at the door, before anything else saw the request.
 */
#include "block/wish.h"

#include "base/error.h"
#include "base/iov.h"
#include "base/opts.h"
#include "base/words.h"
#include "block/block.h"

static int one_of(struct opts *o, const char *key, const char *words, unsigned *ret, const char *expected, struct varve_error *err)
{
	const char *value = opts_get(o, key);
	int i = value ? words_find(words, value) : 0;

	if (i < 0)
		return varve_error_set(err, -EINVAL, "option '%s': '%.200s' is not %s", key, value, expected);
	if (value)
		*ret = (unsigned)i;
	return 0;
}

int wish_discard(struct opts *o, bool *ret_ignore, struct varve_error *err)
{
	unsigned i = 0;
	int ret = one_of(o, "discard", WISH_DISCARD_WORDS, &i, "unmap (on) or ignore (off)", err);

	*ret_ignore = i >= 2;
	return ret;
}

int wish_options(struct opts *o, uint32_t *ret_wish, struct varve_error *err)
{
	unsigned detect = 0;
	bool ignore;
	int ret = wish_discard(o, &ignore, err);

	if (ret == 0)
		ret = one_of(o, "detect-zeroes", WISH_DETECT_WORDS, &detect, "off, on or unmap", err);
	if (ret < 0)
		return ret;
	if (ignore && detect == 2)
		return varve_error_set(err, -EINVAL, "detect-zeroes=unmap gives space back, and discard=ignore forbids it; "
						     "say detect-zeroes=on, or discard=unmap");
	*ret_wish = (ignore ? WISH_NO_DISCARD : 0) | (detect ? WISH_DETECT_ZEROES : 0) |
		    (detect == 2 ? WISH_UNMAP_ZEROES : 0);
	return 0;
}

static bool all_zero(const struct req *r)
{
	for (unsigned i = 0; i < r->nr_iov; i++) {
		if (!buf_is_zero(r->iov[i].iov_base, r->iov[i].iov_len))
			return false;
	}
	return true;
}

bool wish_apply(const struct node *n, struct req *r)
{
	if (r->op == REQ_WRITE && (n->wish & WISH_DETECT_ZEROES) && all_zero(r)) {
		r->op = REQ_ZERO;
		if (n->wish & WISH_UNMAP_ZEROES)
			r->flags |= REQ_MAY_UNMAP;
	}
	if (!(n->wish & WISH_NO_DISCARD))
		return true;
	if (!(n->wish & WISH_UNMAP_STAYS))
		r->flags &= ~REQ_MAY_UNMAP;
	return r->op != REQ_DISCARD;
}
