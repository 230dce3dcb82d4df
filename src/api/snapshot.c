/* SPDX-License-Identifier: MIT */
/*
 * api/snapshot.c - internal snapshots for embedders
 *
 * Every call goes to a fiber of the image's home queue; so any thread may make it.
 */
#include "api/api.h"
#include "block/snapshot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct node *api_format_node(struct varve_image *image)
{
	struct node *n = image->top;

	while (n->drv->kind == DRIVER_FILTER)
		n = n->file;
	return n;
}

int api_no_snapshots(struct varve_image *image, struct varve_error *err)
{
	return varve_error_set(err, -ENOTSUP, "%s: format %s has no internal snapshots", node_name(image->top),
			       api_format_node(image)->drv->name);
}

struct snapshot_call {
	struct varve_image *image;
	struct node *n;
	struct snapshot_want want;
	struct snapshot_pick pick;
	struct snapshot_info *list;
	uint32_t nr;
	char **ret_id;
	struct varve_error *err;
};

static int prefixed(const struct snapshot_call *c, int ret)
{
	return ret < 0 ? varve_error_prefix(c->err, ret, "%s: ", node_name(c->image->top)) : 0;
}

/* ---- list ---- */

static int list_fiber(struct fiber *f, void *arg)
{
	struct snapshot_call *c = arg;

	return c->n->drv->snapshot_list(f, c->n, &c->list, &c->nr, c->err);
}

int varve_snapshot_list(struct varve_image *image, struct varve_snapshot_info **ret_list, unsigned *ret_nr,
			struct varve_error *err)
{
	struct snapshot_call c = { .image = image, .n = api_format_node(image), .err = err };
	struct varve_snapshot_info *list;
	int ret;

	if (!c.n->drv->snapshot_list) { /* an image of such a format has none */
		*ret_list = NULL;
		*ret_nr = 0;
		return 0;
	}
	ret = prefixed(&c, api_call(image, list_fiber, &c));
	if (ret < 0)
		return ret;
	list = calloc(c.nr + 1ull, sizeof(*list));
	for (uint32_t i = 0; i < c.nr; i++) {
		const struct snapshot_info *s = &c.list[i];

		if (!list) {
			free(s->id);
			free(s->name);
			continue;
		}
		list[i] = (struct varve_snapshot_info){ .id = s->id,
							.name = s->name,
							.date_s = s->date_s,
							.date_ns = s->date_ns,
							.vm_clock_ns = s->vm_clock_ns,
							.state_length = s->vm_state_len,
							.disk_length = s->disk_len,
							.icount = s->icount };
	}
	free(c.list);
	if (!list)
		return varve_error_errno(err, -ENOMEM, "%s", node_name(image->top));
	*ret_list = list;
	*ret_nr = c.nr;
	return 0;
}

void varve_snapshot_list_free(struct varve_snapshot_info *list, unsigned nr)
{
	for (unsigned i = 0; list && i < nr; i++) {
		free((char *)list[i].id);
		free((char *)list[i].name);
	}
	free(list);
}

/* ---- graph ---- */

struct graph_call {
	struct node *n;
	struct snapshot_usage *list;
	uint32_t nr;
	struct varve_error *err;
};

static int graph_fiber(struct fiber *f, void *arg)
{
	struct graph_call *c = arg;

	return c->n->drv->snapshot_graph(f, c->n, &c->list, &c->nr, c->err);
}

int varve_snapshot_graph(struct varve_image *image, struct varve_snapshot_node **ret_list, unsigned *ret_nr,
			 struct varve_error *err)
{
	struct graph_call c = { .n = api_format_node(image), .err = err };
	struct varve_snapshot_node *list;
	int ret;

	if (!c.n->drv->snapshot_graph)
		return api_no_snapshots(image, err);
	ret = api_call(image, graph_fiber, &c);
	if (ret < 0)
		return varve_error_prefix(err, ret, "%s: ", node_name(image->top));
	list = calloc(c.nr, sizeof(*list));
	if (!list) {
		snapshot_usage_free(c.list, c.nr);
		return varve_error_errno(err, -ENOMEM, "%s", node_name(image->top));
	}
	for (uint32_t i = 0; i < c.nr; i++) {
		const struct snapshot_usage *u = &c.list[i];

		list[i] = (struct varve_snapshot_node){ .id = u->id,
							.name = u->name,
							.parent = (int)u->parent,
							.date_s = u->date_s,
							.state_length = u->vm_state_len,
							.alone = u->alone,
							.shared = u->shared };
	}
	free(c.list); /* ids and names are the new list's */
	*ret_list = list;
	*ret_nr = c.nr;
	return 0;
}

void varve_snapshot_graph_free(struct varve_snapshot_node *list, unsigned nr)
{
	for (unsigned i = 0; list && i < nr; i++) {
		free((char *)list[i].id);
		free((char *)list[i].name);
	}
	free(list);
}

/* ---- create ---- */

int api_snapshot_want(struct varve_image *image, const struct varve_snapshot_options *so, struct snapshot_want *ret,
		      struct varve_error *err)
{
	struct timespec now;

	if (!so || !so->name || !*so->name)
		return varve_error_set(err, -EINVAL, "%s: a snapshot needs a name", node_name(image->top));
	if (so->flags & ~(VARVE_SNAPSHOT_NOW | VARVE_SNAPSHOT_REPEAT))
		return varve_error_set(err, -EINVAL, "unknown snapshot flags 0x%x", so->flags);
	if (!api_format_node(image)->drv->snapshot_create)
		return api_no_snapshots(image, err);
	*ret = (struct snapshot_want){ .name = so->name,
				       .id = so->id,
				       .date_s = so->date_s,
				       .date_ns = so->date_ns,
				       .vm_clock_ns = so->vm_clock_ns,
				       .icount = so->icount ? so->icount : UINT64_MAX,
				       .door = image->top,
				       .now = so->flags & VARVE_SNAPSHOT_NOW,
				       .repeat = so->flags & VARVE_SNAPSHOT_REPEAT };
	if (!so->date_s && !so->date_ns) {
		clock_gettime(CLOCK_REALTIME, &now);
		ret->date_s = (uint32_t)now.tv_sec;
		ret->date_ns = (uint32_t)now.tv_nsec;
	}
	return 0;
}

static int create_fiber(struct fiber *f, void *arg)
{
	struct snapshot_call *c = arg;
	struct snapshot_draft *d;
	int ret = c->n->drv->snapshot_create(f, c->n, &c->want, &d, c->err);

	return ret < 0 ? ret : c->n->drv->snapshot_commit(f, c->n, d, 0, c->ret_id, c->err);
}

int varve_snapshot_create(struct varve_image *image, const struct varve_snapshot_options *opts, char **ret_id,
			  struct varve_error *err)
{
	struct snapshot_call c = { .image = image, .n = api_format_node(image), .ret_id = ret_id, .err = err };
	int ret = api_snapshot_want(image, opts, &c.want, err);

	c.want.now = false; /* the commit comes at once */
	return ret < 0 ? ret : prefixed(&c, api_call(image, create_fiber, &c));
}

/* ---- delete, apply ---- */

static int check_pick(struct varve_image *image, const struct snapshot_call *c, struct varve_error *err)
{
	if (!c->n->drv->snapshot_delete)
		return api_no_snapshots(image, err);
	if (!c->pick.id && !c->pick.name)
		return varve_error_set(err, -EINVAL, "%s: no snapshot is named", node_name(image->top));
	return 0;
}

static int delete_fiber(struct fiber *f, void *arg)
{
	struct snapshot_call *c = arg;

	return c->n->drv->snapshot_delete(f, c->n, &c->pick, c->err);
}

int varve_snapshot_delete(struct varve_image *image, const char *id, const char *name, struct varve_error *err)
{
	struct snapshot_call c = {
		.image = image, .n = api_format_node(image), .pick = { .id = id, .name = name }, .err = err
	};
	int ret = check_pick(image, &c, err);

	return ret < 0 ? ret : prefixed(&c, api_call(image, delete_fiber, &c));
}

static int apply_fiber(struct fiber *f, void *arg)
{
	struct snapshot_call *c = arg;
	int ret;

	node_change_begin(f, c->image->top);
	ret = c->n->drv->snapshot_apply(f, c->n, &c->pick, c->err);
	for (struct node *n = c->image->top; n != c->n; n = n->file) /* filters above have the format's length */
		atomic_store(&n->len, node_len(c->n));
	node_change_end(c->image->top);
	return ret;
}

int varve_snapshot_apply(struct varve_image *image, const char *id, const char *name, struct varve_error *err)
{
	struct snapshot_call c = {
		.image = image, .n = api_format_node(image), .pick = { .id = id, .name = name }, .err = err
	};
	int ret = check_pick(image, &c, err);

	if (ret == 0 && atomic_load(&image->users))
		ret = varve_error_set(err, -EBUSY, "%s: in use; a snapshot is applied to a disk that nobody uses",
				      node_name(image->top));
	return ret < 0 ? ret : prefixed(&c, api_call(image, apply_fiber, &c));
}
