/* SPDX-License-Identifier: MIT */
/*
 * tools/serve_job.c - commands of the control socket that may wait, each on a thread of its own
 *
 *     none ──serve_job_start()──▶ RUNNING ──the command has its answer──▶ DONE ──serve_job_take()──▶ none
 *
 * A pause, a flush, a resize, a snapshot wait for requests of the disk, and those of a disk that an error has stopped
 * (werror=stop) end only when somebody resumes it, who needs an ear for that. So the main thread goes on meanwhile. One job at a
 * time for each disk, and nothing else changes that disk until it is done. Beside it one that only looks, or sets limits: that
 * is done at once, unless the disk's thread is stuck in the kernel (a frozen file system, a server that is gone).
 *
 * Owns:    the jobs, from start to take.
 * Assumes: the main thread, but for the command itself.
 * Never:   leaves a thread behind when the server ends.
 */
#include "serve.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define JOB_WAIT_S 5

struct serve_job {
	struct serve *s;
	pthread_t thread;
	sem_t ended;
	_Atomic bool done;
	char *answer; /* set before done is; NULL: no memory */
	size_t len;
	char line[];
};

static void *job_main(void *arg)
{
	struct serve_job *j = arg;
	uint64_t one = 1;

	j->answer = serve_command(j->s, j->line, j->len);
	atomic_store(&j->done, true); /* pairs with the load in serve_job_take() */
	sem_post(&j->ended);
	if (write(j->s->job_fd, &one, sizeof(one)) < 0)
		return NULL; /* it cannot: the counter is read by the main thread */
	return NULL;
}

int serve_job_start(struct serve *s, struct serve_job **ret, const char *line, size_t len)
{
	struct serve_job *j = malloc(sizeof(*j) + len);
	int error;

	if (!j)
		return -ENOMEM;
	j->s = s;
	j->answer = NULL;
	j->len = len;
	memcpy(j->line, line, len);
	atomic_init(&j->done, false);
	sem_init(&j->ended, 0, 0);
	error = pthread_create(&j->thread, NULL, job_main, j);
	if (error) {
		sem_destroy(&j->ended);
		free(j);
		return -error;
	}
	*ret = j;
	return 0;
}

/* Waits for it. Its answer. */
static char *end(struct serve_job **job)
{
	struct serve_job *j = *job;
	char *answer;

	pthread_join(j->thread, NULL);
	answer = j->answer;
	sem_destroy(&j->ended);
	free(j);
	*job = NULL;
	return answer;
}

bool serve_job_wait(struct serve_job *j)
{
	struct timespec until;
	int ret;

	if (!j)
		return true;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += JOB_WAIT_S;
	do {
		ret = sem_timedwait(&j->ended, &until);
	} while (ret < 0 && errno == EINTR);
	if (ret == 0)
		sem_post(&j->ended);
	return ret == 0;
}

bool serve_job_take(struct serve_job **job, char **ret_answer)
{
	if (!*job || !atomic_load(&(*job)->done))
		return false;
	*ret_answer = end(job);
	return true;
}

void serve_jobs_end(struct serve_disk *d)
{
	if (d->job) {
		varve_image_set_waiting(d->lend.image, false);
		free(end(&d->job));
	}
	if (d->look)
		free(end(&d->look));
}
