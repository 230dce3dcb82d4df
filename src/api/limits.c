/* SPDX-License-Identifier: MIT */
/*
 * api/limits.c - requests and bytes a second, changed and told while the image is in use
 */
#include "api/api.h"
#include "block/throttle.h"

#include <jansson.h>

int varve_image_set_limits(struct varve_image *image, const char *limits, struct varve_error *err)
{
	struct throttle_config c;
	struct opts *o = opts_new();
	int ret;

	if (!o)
		return varve_error_errno(err, -ENOMEM, "limits");
	ret = opts_parse(o, limits ? limits : "", err);
	if (ret == 0)
		ret = throttle_parse(o, &c, err);
	if (ret == 0)
		ret = throttle_set(image->top, &c, err);
	opts_free(o);
	return ret < 0 ? varve_error_prefix(err, ret, "%s: ", node_name(image->top)) : 0;
}

static void add(json_t *o, const char *name, const char *what, uint64_t value)
{
	char key[40];

	snprintf(key, sizeof(key), "%s%s", name, what);
	json_object_set_new(o, key, json_integer((json_int_t)value));
}

int varve_image_limits(struct varve_image *image, char **ret_json, struct varve_error *err)
{
	struct throttle_config c;
	json_t *o = json_object();
	char *text;

	throttle_get(image->top, &c);
	for (unsigned i = 0; i < THROTTLE_KINDS; i++) {
		const struct throttle_limit *l = &c.limit[i];
		const char *name = throttle_kind_name((enum throttle_kind)i);

		if (!l->avg)
			continue;
		add(o, name, "", l->avg);
		if (l->max) {
			add(o, name, "-max", l->max);
			add(o, name, "-max-length", l->max_length);
		}
	}
	if (c.iops_size)
		add(o, "iops-size", "", c.iops_size);
	text = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	if (!text)
		return varve_error_errno(err, -ENOMEM, "%s: limits", node_name(image->top));
	*ret_json = text;
	return 0;
}
