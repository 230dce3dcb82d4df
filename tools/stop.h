/* SPDX-License-Identifier: MIT */
/*
 * tools/stop.h - SIGINT, SIGTERM and SIGHUP end a command that changes images at its next safe point
 *
 * The first of them asks: the command stops, closes its images cleanly (so that nothing is leaked), and then the process ends by
 * that signal, as if it had ended at once. A second one does end it at once. Signals that whoever started us ignores stay ignored.
 */
#ifndef VARVE_TOOLS_STOP_H
#define VARVE_TOOLS_STOP_H

#include <stdbool.h>

struct varve_image;

/* From now on. */
void stop_watch(void);
/* The name of the signal, "SIGTERM"; NULL: nobody asked. */
const char *stop_asked(void);
/* What takes long on this image is to end, too; NULL: nothing any more, before it is closed. */
void stop_image(struct varve_image *image);
/* At the very end: the process ends by the signal, if status says that something is not done and there was one. Else status. */
int stop_status(int status);

#endif
