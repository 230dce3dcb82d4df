/* SPDX-License-Identifier: MIT */
/*
 * proto/http/libcurl.c - libcurl, loaded when the first URL is opened
 *
 * libcurl brings some thirty libraries with it, which would take half of the time that `img info` takes in all. So it is
 * no dependency of the library file, but looked for by name when it is needed.
 *
 * Owns:    the table of its functions; never unloaded.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include "base/error.h"
#include "proto/http/http.h"

struct libcurl lc;

static const char *problem;

static bool resolve(void *lib)
{
	static const struct {
		const char *name;
		void **to;
	} names[] = {
		{ "curl_global_init", (void **)&lc.global_init },
		{ "curl_easy_init", (void **)&lc.easy_init },
		{ "curl_easy_cleanup", (void **)&lc.easy_cleanup },
		{ "curl_easy_setopt", (void **)&lc.easy_setopt },
		{ "curl_easy_getinfo", (void **)&lc.easy_getinfo },
		{ "curl_easy_strerror", (void **)&lc.easy_strerror },
		{ "curl_multi_init", (void **)&lc.multi_init },
		{ "curl_multi_cleanup", (void **)&lc.multi_cleanup },
		{ "curl_multi_setopt", (void **)&lc.multi_setopt },
		{ "curl_multi_add_handle", (void **)&lc.multi_add_handle },
		{ "curl_multi_remove_handle", (void **)&lc.multi_remove_handle },
		{ "curl_multi_socket_action", (void **)&lc.multi_socket_action },
		{ "curl_multi_info_read", (void **)&lc.multi_info_read },
		{ "curl_multi_assign", (void **)&lc.multi_assign },
		{ "curl_slist_append", (void **)&lc.slist_append },
		{ "curl_slist_free_all", (void **)&lc.slist_free_all },
	};

	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		*names[i].to = dlsym(lib, names[i].name);
		if (!*names[i].to)
			return false;
	}
	return true;
}

static void load(void)
{
	static const char *const libs[] = { "libcurl-gnutls.so.4", "libcurl.so.4" };
	void *lib = NULL;

	for (unsigned i = 0; i < ARRAY_LEN(libs) && !lib; i++)
		lib = dlopen(libs[i], RTLD_NOW | RTLD_LOCAL);
	if (!lib)
		problem = "libcurl is not installed (libcurl-gnutls.so.4 or libcurl.so.4)";
	else if (!resolve(lib))
		problem = "the libcurl that is installed lacks functions that are needed (7.85 or newer has them)";
	else if (lc.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		problem = "libcurl cannot be initialised";
}

int libcurl_load(struct varve_error *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, load);
	return problem ? varve_error_set(err, -ENOSYS, "http and https: %s", problem) : 0;
}
