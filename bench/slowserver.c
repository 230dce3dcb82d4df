/* SPDX-License-Identifier: MIT */
/*
 * bench/slowserver.c - a web server with ranges that waits before each answer: what a distant server looks like
 *
 *     slowserver FILE MILLISECONDS
 *
 * Prints its port, then serves FILE at every path on 127.0.0.1 until standard input ends; then it prints how many bytes it
 * has sent. A thread for each connection, bytes by sendfile(): it costs little, so that what is measured are its clients.
 *
 * Assumes: clients that mean well (bench/cor). Not for any other use.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

static int file;
static long long file_len, delay_ms;
static _Atomic long long sent;

static int send_all(int s, const char *text)
{
	size_t len = strlen(text);

	while (len) {
		ssize_t n = send(s, text, len, MSG_NOSIGNAL | MSG_MORE);

		if (n <= 0)
			return -1;
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

static int send_file(int s, long long first, long long last)
{
	off_t off = first;

	while (off <= last) {
		long long want = last + 1 - off;
		ssize_t n;

		/* Before they are sent: who has them all, and asks, must find them counted. */
		sent += want;
		n = sendfile(s, file, &off, (size_t)want);
		sent -= want - (n > 0 ? n : 0);
		if (n <= 0)
			return -1;
	}
	return 0;
}

static int answer(int s, const char *request)
{
	struct timespec ts = { delay_ms / 1000, delay_ms % 1000 * 1000000 };
	const char *range = strcasestr(request, "\nrange: bytes=");
	long long first = 0, last = file_len - 1;
	int whole = 1, off = 1;
	char head[400];

	if (range && sscanf(range + strlen("\nrange: bytes="), "%lld-%lld", &first, &last) >= 1)
		whole = 0;
	if (last >= file_len)
		last = file_len - 1;
	nanosleep(&ts, NULL);
	if (!strncmp(request, "HEAD", 4)) {
		snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Length: %lld\r\nAccept-Ranges: bytes\r\n\r\n", file_len);
		send_all(s, head);
	} else {
		snprintf(head, sizeof(head),
			 "HTTP/1.1 %s\r\nContent-Length: %lld\r\nAccept-Ranges: bytes\r\nETag: \"1\"\r\n"
			 "Content-Range: bytes %lld-%lld/%lld\r\n\r\n",
			 whole ? "200 OK" : "206 Partial Content", last + 1 - first, first, last, file_len);
		if (send_all(s, head) < 0 || send_file(s, first, last) < 0)
			return -1;
	}
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &off, sizeof(off)); /* what is held back goes out */
	return 0;
}

static void *connection(void *arg)
{
	int s = (int)(intptr_t)arg;
	char buf[8192];
	size_t have = 0;

	for (;;) {
		ssize_t n = recv(s, buf + have, sizeof(buf) - 1 - have, 0);
		char *end;

		if (n <= 0)
			break;
		have += (size_t)n;
		buf[have] = 0;
		while ((end = strstr(buf, "\r\n\r\n"))) {
			end[2] = 0;
			if (answer(s, buf) < 0)
				goto out;
			have -= (size_t)(end + 4 - buf);
			memmove(buf, end + 4, have + 1);
		}
		if (have == sizeof(buf) - 1)
			break;
	}
out:
	close(s);
	return NULL;
}

static void *serve(void *arg)
{
	int listener = (int)(intptr_t)arg, one = 1;
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int s = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (s < 0)
			continue;
		setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (pthread_create(&thread, &attr, connection, (void *)(intptr_t)s))
			close(s);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pthread_t thread;
	struct stat st;

	if (argc != 3 || (file = open(argv[1], O_RDONLY | O_CLOEXEC)) < 0 || fstat(file, &st) < 0 || listener < 0 ||
	    bind(listener, (struct sockaddr *)&addr, sizeof(addr)) < 0 || listen(listener, 128) < 0 ||
	    getsockname(listener, (struct sockaddr *)&addr, &len) < 0) {
		perror("slowserver FILE MILLISECONDS");
		return 1;
	}
	file_len = st.st_size;
	delay_ms = atoll(argv[2]);
	if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener))
		return 1;
	printf("%d\n", ntohs(addr.sin_port));
	fflush(stdout);
	for (char line[16]; fgets(line, sizeof(line), stdin);) { /* each line asks how many bytes were sent */
		printf("%lld\n", (long long)sent);
		fflush(stdout);
	}
	return 0;
}
