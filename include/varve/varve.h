/* SPDX-License-Identifier: MIT */
/*
 * varve/varve.h - the public interface of libvarve: disk images, queues, exports
 *
 * Conventions
 *   Offsets and lengths are bytes. Names of files are in the file system's encoding, NUL-terminated.
 *   A function that can fail returns 0 (or a count) on success and a negative errno on failure; with a
 *   struct varve_error it also says in one line what was wrong and what to do. err may be NULL.
 *   Objects are opaque and made by *_new/_open/_start, ended by *_free/_close/_stop, which take NULL.
 *   The library never prints, never exits and installs no signal handler, but one for SIGBUS while it maps the memory of a
 *   virtual machine: see varve_handle_sigbus().
 *
 * Threads
 *   An image belongs to one queue, its home (given at open, or private to the image). The synchronous calls of
 *   one image may be made by any thread, one at a time per image; they block until done. Asynchronous requests
 *   are submitted on a queue by the thread that runs that queue, and complete there. Different images and
 *   different queues are independent.
 */
#ifndef VARVE_VARVE_H
#define VARVE_VARVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define VARVE_API __attribute__((visibility("default")))
#else
#define VARVE_API
#endif

/* ---- errors ------------------------------------------------------------------------------------------- */

#define VARVE_ERROR_MAX 1024

/* Filled by a failing call: a negative errno and one line of text, always NUL-terminated, without newline. */
struct varve_error {
	int code;
	char message[VARVE_ERROR_MAX];
};

/* "0.1.0" */
VARVE_API const char *varve_version(void);

/* ---- queues ------------------------------------------------------------------------------------------- */

struct varve_queue;
struct varve_image;

#define VARVE_QUEUE_THREAD (1u << 0) /* the queue runs on a thread of its own; otherwise the caller runs it */
#define VARVE_QUEUE_ADAPTIVE (1u << 1) /* poll_us is the longest; it spins where that is found to pay, and not at all when idle */
/*
 * The caller runs the queue, and always from the thread that makes it: every call that names the queue, or an image
 * whose home it is, comes from there. The kernel does io_uring with less work then. Another thread is a fatal error,
 * and varve_queue_fd() is not for such a queue.
 */
#define VARVE_QUEUE_ONE_THREAD (1u << 2)

struct varve_queue_options {
	unsigned flags;	    /* VARVE_QUEUE_* */
	unsigned depth;	    /* asynchronous requests at most in flight, 1 .. 4096; 0: 128 */
	const char *name;   /* for logs and the thread's name; NULL: "varve" */
	/* For queues with a thread of their own: */
	const char *cpus;   /* processors it may run on, "0-3,8"; NULL: those of the calling thread */
	unsigned poll_us;   /* microseconds for which it looks for work before it sleeps; 0: not at all */
};

/* Makes a queue. opts may be NULL for the defaults. */
VARVE_API int varve_queue_new(struct varve_queue **ret_queue, const struct varve_queue_options *opts,
			      struct varve_error *err);

/* Frees a queue that no image and no export uses any more. Waits for the queue's thread. */
VARVE_API void varve_queue_free(struct varve_queue *queue);

/* One finished request. result: 0, or a negative errno. */
struct varve_completion {
	void *user_data;
	int result;
};

/*
 * A file descriptor that polls readable when varve_queue_reap() has something to do. Owned by the queue.
 * Only for queues without a thread of their own, and not for VARVE_QUEUE_ONE_THREAD: -EINVAL.
 */
VARVE_API int varve_queue_fd(struct varve_queue *queue);

/*
 * Runs the queue: submits what was queued, collects at most max completions. Waits for the first one at most
 * timeout_ms milliseconds (0: not at all, negative: until there is one). Returns the number collected, or a
 * negative errno. Only for queues without a thread of their own, by one thread at a time.
 */
VARVE_API int varve_queue_reap(struct varve_queue *queue, struct varve_completion *completions, int max,
			       int timeout_ms);

#define VARVE_REQ_FUA (1u << 0)	      /* write: on stable storage before it completes */
#define VARVE_REQ_MAY_UNMAP (1u << 1) /* write zeroes: space may be given back */
/*
 * write: whole clusters that have no space of their own yet are stored compressed, if that makes them smaller. -ENOTSUP: the
 * format cannot. Meant for images that are written once; overwriting moves a cluster to space of its own.
 */
#define VARVE_REQ_COMPRESS (1u << 2)
#define VARVE_REQ_NO_FALLBACK (1u << 3) /* write zeroes: -ENOTSUP, where zeroes would have to be written as data */

/*
 * Queue a request on an image. The memory and the iovec array stay the caller's, and must live until completion.
 * -EAGAIN: depth requests are in flight; reap first. -EINVAL: out of the image's bounds.
 * Nothing is sent to the kernel before varve_queue_reap(), so that a batch costs one system call.
 */
VARVE_API int varve_submit_readv(struct varve_queue *queue, struct varve_image *image, const struct iovec *iov,
				 int nr_iov, uint64_t offset, void *user_data);
VARVE_API int varve_submit_writev(struct varve_queue *queue, struct varve_image *image, const struct iovec *iov,
				  int nr_iov, uint64_t offset, unsigned flags, void *user_data);
VARVE_API int varve_submit_flush(struct varve_queue *queue, struct varve_image *image, void *user_data);
VARVE_API int varve_submit_discard(struct varve_queue *queue, struct varve_image *image, uint64_t offset,
				   uint64_t length, void *user_data);
VARVE_API int varve_submit_write_zeroes(struct varve_queue *queue, struct varve_image *image, uint64_t offset,
					uint64_t length, unsigned flags, void *user_data);

/*
 * Requests of this queue will go to this memory, and come from it, so that an engine that can (io_uring) registers it with the
 * kernel: its pages need not be looked up for each request, which pays with direct I/O. They stay in memory until it is
 * removed, and count against RLIMIT_MEMLOCK. Up to 32 ranges of a queue, of at most 1 TiB in all; what is beyond that, or may
 * not be registered, works as other memory does. Added more than once, it is removed as often, before it is unmapped or freed
 * and with no request under way there.
 */
VARVE_API int varve_queue_add_memory(struct varve_queue *queue, void *base, size_t length, struct varve_error *err);
VARVE_API void varve_queue_remove_memory(struct varve_queue *queue, void *base, size_t length);

/* ---- images ------------------------------------------------------------------------------------------- */

#define VARVE_OPEN_WRITABLE (1u << 0)
#define VARVE_OPEN_NO_BACKING (1u << 1)	 /* open only the file named: no backing file, no data file */
#define VARVE_OPEN_FORCE_SHARE (1u << 2) /* read although another process holds the image for writing */
#define VARVE_OPEN_NO_IO (1u << 3)	 /* only varve_image_info() will be called; not with WRITABLE */
#define VARVE_OPEN_CHECK (1u << 4)	 /* for varve_image_check(): open although metadata is damaged; not with WRITABLE */
#define VARVE_OPEN_IMAGE_OPTS (1u << 5)	 /* name is "driver=qcow2,file.filename=..." instead of a file name */
/*
 * What is read from a backing image is stored in the image (the same as copy-on-read=on among image options). Needs
 * VARVE_OPEN_WRITABLE. A copy that cannot be stored never fails the read.
 */
#define VARVE_OPEN_COPY_ON_READ (1u << 6)
/*
 * With VARVE_OPEN_WRITABLE: what refers to space is counted, and counts and tables are made right, as for an image that was
 * not closed. Damage that no crash explains (space that is used twice, tables in impossible places) is an error, and
 * nothing is changed then. Formats without tables have nothing to repair.
 */
#define VARVE_OPEN_REPAIR (1u << 7)

/*
 * With VARVE_OPEN_WRITABLE: a disk of a format that has bitmaps cannot be written, so that these stay true; only for
 * varve_bitmap_*(), amend, resize, set_backing, making and deleting snapshots, and VARVE_OPEN_REPAIR. Opened for writing without
 * this flag, an image notes every write in its enabled bitmaps, and stores them when it is closed; they are inconsistent meanwhile,
 * and stay so when the process dies.
 */
#define VARVE_OPEN_BITMAPS (1u << 8)
/* External data files, of backing images too, are not opened: where data is can be asked (varve_measure()), not what it is. */
#define VARVE_OPEN_NO_DATA_FILE (1u << 9)
#define VARVE_OPEN_DATA_FILE (1u << 10) /* with VARVE_OPEN_NO_BACKING: but the image's data file is opened */

struct varve_open_options {
	unsigned flags;		  /* VARVE_OPEN_* */
	const char *format;	  /* "qcow2", "raw", ...; NULL: found by probing */
	/*
	 * cache, aio: for the image's file and those of its backing images, where the image options (cache=, cache.direct=,
	 * aio=, file.aio=, backing.cache= ...) say nothing else. What has no engine (null-co, memory) ignores aio.
	 */
	const char *cache;	  /* writeback, none (off), writethrough, directsync, unsafe; NULL: writeback */
	const char *aio;	  /* name of an engine; NULL: the best one that works here */
	struct varve_queue *home; /* NULL: private to the image, run by the synchronous calls */
	/*
	 * The same as state-dir= among image options, for an image that is open for writing: metadata that is queued is also
	 * kept in a file of this directory (made if need be; on a tmpfs), so that it outlives the process. Whoever opens the
	 * image next with the same directory takes it over. NULL: a process that is killed loses what was not flushed.
	 */
	const char *state_dir;
};

/*
 * Opens an image and its backing chain. name: a path, a name with a protocol prefix ("file:...",
 * "null-co://"), or "json:{...}". opts may be NULL: read-only, probed.
 * A raw image found by probing refuses writes that would turn it into another format (sector 0).
 */
VARVE_API int varve_image_open(struct varve_image **ret_image, const char *name,
			       const struct varve_open_options *opts, struct varve_error *err);

/* Flushes and closes. A negative errno says that data acknowledged before may not be on stable storage. */
VARVE_API int varve_image_close(struct varve_image *image, struct varve_error *err);

/*
 * Lets a further queue submit requests to the image. While it is attached, the image's home queue must run
 * (have a thread, or be reaped) for requests of the other queues to make progress. Detaching waits for the
 * queue's requests. The home queue is attached by varve_image_open(). Calls that change more than contents (resize, snapshots,
 * make_empty, ...) wait for what is in flight on all queues: a thread that runs one of them itself reaps it first.
 */
VARVE_API int varve_image_attach(struct varve_image *image, struct varve_queue *queue, struct varve_error *err);
VARVE_API void varve_image_detach(struct varve_image *image, struct varve_queue *queue);

/*
 * From any thread, and from a signal handler: what takes long on this image (convert and copy into it, resize, amend) ends at its
 * next safe point with -ECANCELED, and so does what is begun later. The image can be closed cleanly then.
 */
VARVE_API void varve_image_cancel(struct varve_image *image);

VARVE_API uint64_t varve_image_length(const struct varve_image *image);
VARVE_API bool varve_image_writable(const struct varve_image *image);
VARVE_API const char *varve_image_format(const struct varve_image *image);

VARVE_API int varve_image_read(struct varve_image *image, uint64_t offset, void *buf, size_t length,
			       struct varve_error *err);
VARVE_API int varve_image_write(struct varve_image *image, uint64_t offset, const void *buf, size_t length,
				unsigned flags, struct varve_error *err);
VARVE_API int varve_image_flush(struct varve_image *image, struct varve_error *err);
/*
 * The same, whatever werror= says: if it fails that is reported and does not stop the image, and an image that is stopped does not keep it
 * waiting (what waits there is not part of it). For who wants to know whether a flush would succeed, beside a guest that is not to notice.
 */
VARVE_API int varve_image_try_flush(struct varve_image *image, struct varve_error *err);
/*
 * After a flush has failed, the kernel may have dropped data that it could not write, although it was acknowledged to
 * whoever wrote it. So every later flush and FUA write of the image fails too, until all data in doubt has been written
 * again and flushed, or until this call, by which the embedder says that it knows: what is lost is seen to elsewhere
 * (read back and compared, restored from a backup, ...). Flushes then speak of later writes only.
 * For all files of the image. Returns how many had an error, *ret_bytes (may be NULL) how much was in doubt, at most.
 */
VARVE_API int varve_image_acknowledge_flush_error(struct varve_image *image, uint64_t *ret_bytes,
						  struct varve_error *err);

/*
 * For a program that ends before it has served the image to anybody (its start failed). An image with a state directory inherits the
 * flush errors of a process that died, and varve_image_close() tells its caller of them for the last time. After this call they are
 * left to whoever opens the image next.
 */
VARVE_API void varve_image_leave_flush_error(struct varve_image *image);
/*
 * With werror=stop (enospc: only for a full file system) among the image options, a write or flush that fails is not
 * reported: it waits, and so does everything but reads that comes later. varve_image_stats() tells ("errors"). This call,
 * from any thread, sends what waits again. Returns the negative errno that had stopped the image, 0 if it was running.
 * Closing a stopped image, detaching a queue from it or stopping an export of it makes what waits fail.
 */
VARVE_API int varve_image_resume(struct varve_image *image);
/*
 * Off: until it is switched on again nothing waits so: what fails is reported, whatever werror= says, and what waits now is answered
 * with the error that had stopped the image. For who has nobody that would resume it: a flush before a program ends, or before
 * the image is somebody else's. On at the start; calls do not nest. Any thread, one at a time.
 */
VARVE_API void varve_image_set_waiting(struct varve_image *image, bool on);
/*
 * Other limits for the image's requests: "iops-total=500,bps-read=10M,bps-read-max=50M,bps-read-max-length=10", the options
 * throttling.* of varve(1) without that word; "" for none. Requests that wait are judged anew. Any thread, one at a time.
 */
VARVE_API int varve_image_set_limits(struct varve_image *image, const char *limits, struct varve_error *err);
/* Those in force, as a JSON object: {"iops-total": 500, ...}, without those that are off. The caller frees it. */
VARVE_API int varve_image_limits(struct varve_image *image, char **ret_json, struct varve_error *err);
VARVE_API int varve_image_discard(struct varve_image *image, uint64_t offset, uint64_t length,
				  struct varve_error *err);
VARVE_API int varve_image_write_zeroes(struct varve_image *image, uint64_t offset, uint64_t length, unsigned flags,
				       struct varve_error *err);

/* Called by long operations about once in 100 ms; may be NULL. done and total are in the same, any, unit. */
typedef void (*varve_progress_fn)(void *user_data, uint64_t done, uint64_t total);

#define VARVE_COPY_NO_OFFLOAD (1u << 0) /* read and write, do not ask the kernel to copy */

/*
 * Copies length bytes from src to dst (which may be the same image, if the ranges do not overlap). Where both hold plain
 * data in files, the kernel copies from file to file, sharing the blocks if the file system can; the rest is read and
 * written. Both images must have been opened with the same home queue. *ret_offloaded (may be NULL): how many bytes the
 * kernel copied; set on failure, too, when a part is copied. Other requests go on meanwhile; who writes to either range
 * gets one or the other. Stable after a flush of dst.
 */
VARVE_API int varve_image_copy(struct varve_image *dst, uint64_t dst_offset, struct varve_image *src,
			       uint64_t src_offset, uint64_t length, unsigned flags, uint64_t *ret_offloaded,
			       varve_progress_fn progress, void *user_data, struct varve_error *err);

/* Called with one line for each thing that was found; may be NULL. */
typedef void (*varve_report_fn)(void *user_data, const char *line);

#define VARVE_CONVERT_COMPRESS (1u << 0)       /* as VARVE_REQ_COMPRESS */
#define VARVE_CONVERT_TARGET_IS_ZERO (1u << 1) /* the target reads as zeroes everywhere: they are not written */
#define VARVE_CONVERT_OUT_OF_ORDER (1u << 2)   /* writes need not be submitted in the order of the disk */
#define VARVE_CONVERT_OFFLOAD (1u << 3)	       /* the kernel copies, where it can; zeroes in the data stay data */
#define VARVE_CONVERT_SALVAGE (1u << 4)	       /* what cannot be read becomes zeroes, and is reported */
/*
 * The target has a backing image with the contents of the sources' own: what their first images do not hold is not copied.
 */
#define VARVE_CONVERT_OVER_BACKING (1u << 5)
#define VARVE_CONVERT_CANONICAL (1u << 6) /* one write after the other: the same contents give the same file */
#define VARVE_CONVERT_ALL_DATA (1u << 7)  /* zeroes and holes are written, too, as data */

struct varve_convert_options {
	unsigned flags;	   /* VARVE_CONVERT_* */
	unsigned parallel; /* pieces under way at once, 1 .. 16; 0: 3 between cached files, else 8 */
	uint64_t sparse;   /* zeroes of that many bytes and more are not written as data; multiple of 512; 0: 4 KiB */
	uint64_t rate;	   /* bytes a second at most, as an average; 0: no limit */
	varve_report_fn report; /* with SALVAGE; may be NULL */
};

/*
 * Copies the contents of the sources, one behind the other, to the start of the target, which must be long enough. All images
 * were opened with the same home queue. Memory: a buffer of 1 MiB (or a cluster) for each piece. After an error the target
 * holds a part. opts may be NULL. Stable after a flush of the target.
 */
VARVE_API int varve_convert(struct varve_image *target, struct varve_image *const *sources, unsigned nr_sources,
			    const struct varve_convert_options *opts, varve_progress_fn progress, void *user_data,
			    struct varve_error *err);

/* The next bytes. Called by a thread of the library, one call at a time, in order. 0, or a negative errno that ends it all. */
typedef int (*varve_sink_fn)(void *user_data, const void *buf, size_t length);

/*
 * The same, into a pipe: an image of that format (raw, qcow2), made with these options (as for varve_image_create()), is given
 * to sink from its first byte to its last, each once. For qcow2 the sources are read twice (and compressed twice): its header
 * says where things are that come at the end. They must not change meanwhile: -ESTALE then. Always canonical;
 * VARVE_CONVERT_OFFLOAD makes no sense here; a backing file among the options needs
 * VARVE_CONVERT_OVER_BACKING, and is not opened. Memory is bounded as above.
 */
VARVE_API int varve_convert_forward(const char *format, const char *options, struct varve_image *const *sources,
				    unsigned nr_sources, const struct varve_convert_options *opts, varve_sink_fn sink,
				    void *sink_data, varve_progress_fn progress, void *user_data, struct varve_error *err);

/* One stretch of the image, as varve_image_map() finds it. */
struct varve_extent {
	uint64_t start;	     /* in the image */
	uint64_t length;
	uint64_t offset;     /* in file, when has_offset */
	unsigned depth;	     /* 0: the image itself, 1: its backing file, ... */
	bool present;	     /* allocated in a layer of the chain */
	bool data;	     /* may hold other bytes than zero; with zero: has a place, which is a hole of the file */
	bool zero;	     /* reads as zeroes */
	bool compressed;
	bool has_offset;
	const char *file;    /* name of the file that holds it; lives as long as the image; NULL without offset */
};

/* The stretch that begins at offset, at most length bytes. Neighbours that differ in nothing are not joined. */
VARVE_API int varve_image_map(struct varve_image *image, uint64_t offset, uint64_t length,
			      struct varve_extent *ret_extent, struct varve_error *err);

/*
 * Everything known about an image as one JSON object (the ImageInfo of qemu-img info --output=json).
 * *ret_json is malloc'd; the caller frees it.
 */
VARVE_API int varve_image_info(struct varve_image *image, char **ret_json, struct varve_error *err);

/*
 * Statistics as one JSON object (requests, cold path, fibers, order queue; has a qcow2 image been found corrupt; for each file the engine and cache mode in use,
 * the flush error and the bytes in doubt). *ret_json: the caller frees it.
 */
VARVE_API int varve_image_stats(struct varve_image *image, char **ret_json, struct varve_error *err);

struct varve_check_result {
	uint64_t corruptions; /* references to free or doubly used space: data at risk */
	uint64_t leaks;	      /* space marked used that nothing references: harmless */
	uint64_t check_errors;/* places that could not be examined */
	uint64_t image_end_offset;
	uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;
};


/* Examines the metadata; changes nothing. -ENOTSUP: the format has no check. */
VARVE_API int varve_image_check(struct varve_image *image, struct varve_check_result *ret_result,
				varve_report_fn report, varve_progress_fn progress, void *user_data,
				struct varve_error *err);

/*
 * Creates an image. options: "cluster_size=64k,backing_file=base.raw,..." (a comma in a value is written ",,");
 * may be NULL. length may be UINT64_MAX when options give a backing file, whose length is taken then.
 * On failure nothing is left behind: a file that was not there before is removed, one that was there is as it was.
 */
VARVE_API int varve_image_create(const char *name, const char *format, uint64_t length, const char *options,
				 unsigned flags, varve_progress_fn progress, void *user_data, struct varve_error *err);

#define VARVE_CREATE_NO_BACKING_CHECK (1u << 0) /* do not open the backing file (-u) */

/*
 * Is this the image's own file, or that of one of its backing files, by whatever name? Creating an image empties the file: who
 * makes one out of another, opened with VARVE_OPEN_FORCE_SHARE and thus without the locks that refuse it, asks first.
 */
VARVE_API bool varve_image_stands_on(const struct varve_image *image, const char *filename);

/* An option of varve_image_create(), varve_image_amend() or varve_image_open(), for people. */
struct varve_option_info {
	const char *name;  /* NULL: the list ends here */
	/*
	 * "size", "num", "bool" (on or off), "file" (the name of one), "driver" or "format" (of an image), "node" (options of a
	 * layer of its own, behind the name and a dot), "str" (else), or the words themselves: "off|metadata|falloc|full"
	 */
	const char *value;
	const char *what;  /* one line */
	bool can_amend;
};

/*
 * Those of a format, or of the "file" that holds an image of any format. The list lives as long as the process. NULL: no such
 * driver, or none that makes anything.
 */
VARVE_API const struct varve_option_info *varve_driver_options(const char *driver);

/* The same of the options of varve_image_open() that are the driver's own; NULL: those that every disk and every layer of it takes. */
VARVE_API const struct varve_option_info *varve_driver_open_options(const char *driver);

/* Names that driver= takes: formats, where images are stored, layers between. NULL: there are no more than that. */
VARVE_API const char *varve_driver_name(unsigned number);
/* "format", "filter" (a layer between), "file" (where images are stored); NULL: no such driver. */
VARVE_API const char *varve_driver_kind(const char *driver);

struct varve_measure {
	uint64_t required;	  /* of the file, for what the source holds */
	uint64_t fully_allocated; /* when all of the disk will have been written */
	uint64_t bitmaps;	  /* what the bitmaps of the source need besides, when */
	bool has_bitmaps;	  /* source and target can have some */
};

/*
 * How large an image of that format will be, made with these options (as for varve_image_create()): for the contents of source
 * with its backing chain, or, without one (NULL), for an empty disk of that length. Reads the source's tables only.
 */
VARVE_API int varve_measure(const char *format, const char *options, uint64_t length, struct varve_image *source,
			    struct varve_measure *ret_measure, varve_progress_fn progress, void *user_data,
			    struct varve_error *err);

/* ---- changing what an image is --------------------------------------------------------------------------- */

/* What becomes of new space: nothing; tables for it; blocks reserved; zeroes written. */
enum varve_prealloc { VARVE_PREALLOC_OFF, VARVE_PREALLOC_METADATA, VARVE_PREALLOC_FALLOC, VARVE_PREALLOC_FULL };

#define VARVE_RESIZE_SHRINK (1u << 0) /* a length below the present one is meant: what is behind it is lost */

/*
 * Another length, durable when it returns. What is added reads as zeroes, whatever a backing image has there. On failure
 * the image keeps its length; when it was to become shorter, it may have lost data behind the new end. Dirty bitmaps get the
 * new length, too; if one of them cannot, nothing is changed.
 */
VARVE_API int varve_image_resize(struct varve_image *image, uint64_t length, enum varve_prealloc prealloc, unsigned flags,
				 struct varve_error *err);

/*
 * The image's header names another backing file, of that format; NULL or "": none. Durable when it returns, and so is everything
 * written before. Nothing is copied: what the image and its snapshots do not hold is read from the new file when it is opened
 * again (this image goes on with the chain that it has). -EINVAL: the name is that of the local file in which the image itself is.
 */
VARVE_API int varve_image_set_backing(struct varve_image *image, const char *name, const char *format,
				      struct varve_error *err);

/*
 * Options of the image become others: "compat=1.1,lazy_refcounts=on,refcount_bits=8,size=2G" (qcow2). Those that are not named
 * stay. Durable when it returns. -ENOTSUP: not with this format.
 */
VARVE_API int varve_image_amend(struct varve_image *image, const char *options, varve_progress_fn progress, void *user_data,
				struct varve_error *err);

/*
 * The image holds nothing of its own any more: its backing file shows, zeroes without one. Space is given back. Durable
 * when it returns; after a power cut before that, some of the contents may be gone. -ENOTSUP: not with this format.
 */
VARVE_API int varve_image_make_empty(struct varve_image *image, struct varve_error *err);

/* ---- streaming: a backing chain is pulled into the image while it is in use ------------------------------- */

struct varve_stream;

struct varve_stream_options {
	const char *base;  /* name of the image of the chain that stays the backing file; NULL: none stays */
	uint64_t speed;	   /* bytes a second at most, as an average; 0: no limit */
	unsigned parallel; /* pieces of 1 MiB fetched at once, 1 .. 32; 0: 8 */
	unsigned flags;	   /* VARVE_STREAM_* */
};

#define VARVE_STREAM_KEEP_LINK (1u << 0) /* only copy; the image goes on naming its backing file */
#define VARVE_STREAM_IDLE (1u << 1)	 /* stands back while copy-on-read fetches what a guest asked for */

enum varve_stream_state { VARVE_STREAM_RUNNING, VARVE_STREAM_PAUSED, VARVE_STREAM_FINISHING, VARVE_STREAM_ENDED };

struct varve_stream_status {
	enum varve_stream_state state;
	uint64_t done, total; /* bytes of the image looked at, and its length */
	uint64_t copied;      /* bytes that became the image's own */
	int result;	      /* when ended: 0, -ECANCELED, or the negative errno of what went wrong */
	char message[VARVE_ERROR_MAX];
};

/*
 * Starts to copy everything that the image reads from its backing files (down to base) into the image, which must be
 * writable; it can be used meanwhile. At the end the image's header names base, or no backing file any more. It runs on the
 * image's home queue: when that has no thread, only while the queue is run (varve_stream_wait() runs it for an image
 * with a private one). One stream for an image at a time; it holds the image open: free it before closing. -ENOTSUP: the image
 * has internal snapshots, which would lose what they read from the backing files (not with VARVE_STREAM_KEEP_LINK); those
 * that are made meanwhile make it end so, also one of VARVE_SNAPSHOT_NOW whose state is still being written.
 */
VARVE_API int varve_stream_start(struct varve_stream **ret_stream, struct varve_image *image,
				 const struct varve_stream_options *opts, struct varve_error *err);
VARVE_API void varve_stream_pause(struct varve_stream *stream);
VARVE_API void varve_stream_resume(struct varve_stream *stream);
/* What was copied stays, and so does the link to the backing file. */
VARVE_API void varve_stream_cancel(struct varve_stream *stream);
VARVE_API void varve_stream_set_speed(struct varve_stream *stream, uint64_t speed);
VARVE_API void varve_stream_status(struct varve_stream *stream, struct varve_stream_status *ret_status);
/* Waits until it has ended, at most timeout_ms (negative: without limit). -EAGAIN: not yet; else its result. */
VARVE_API int varve_stream_wait(struct varve_stream *stream, int timeout_ms, struct varve_error *err);
/* Cancels it if it has not ended, waits, frees. Takes NULL. */
VARVE_API void varve_stream_free(struct varve_stream *stream);

/* ---- persistent dirty bitmaps ------------------------------------------------------------------------------ */

/*
 * What was written since when, for incremental backups: qcow2 images of version 3 have any number. Every change is durable
 * when the call returns, and complete or not made at all, whenever power fails. They need VARVE_OPEN_BITMAPS, all but the list.
 */
struct varve_bitmap_info {
	const char *name;
	uint64_t granularity; /* bytes of the disk for each bit */
	bool enabled;	      /* every write is noted there */
	bool inconsistent;    /* writes were made, or are being made, that it does not know: it can only be removed */
};

VARVE_API int varve_bitmap_list(struct varve_image *image, struct varve_bitmap_info **ret_list, unsigned *ret_nr,
				struct varve_error *err);
VARVE_API void varve_bitmap_list_free(struct varve_bitmap_info *list, unsigned nr);

#define VARVE_BITMAP_DISABLED (1u << 0)

/* granularity: a power of two, 512 .. 2 GiB; 0: a cluster, at least 4 KiB and at most 64 KiB. No bit is set. */
VARVE_API int varve_bitmap_add(struct varve_image *image, const char *name, uint64_t granularity, unsigned flags,
			       struct varve_error *err);
VARVE_API int varve_bitmap_remove(struct varve_image *image, const char *name, struct varve_error *err);
VARVE_API int varve_bitmap_clear(struct varve_image *image, const char *name, struct varve_error *err);
VARVE_API int varve_bitmap_enable(struct varve_image *image, const char *name, bool enable, struct varve_error *err);
/* Adds what source's bitmap says. Both images have the same length and home queue, and may be the same image. */
VARVE_API int varve_bitmap_merge(struct varve_image *image, const char *name, struct varve_image *source,
				 const char *source_name, struct varve_error *err);

/* ---- internal snapshots ------------------------------------------------------------------------------------ */

/*
 * A snapshot is the disk as it was, kept inside the same image (qcow2), perhaps with the state of a virtual machine. It is
 * there completely or not at all, whenever power fails. Ids are numbers given by the library, names are the caller's; both
 * are unique, unless the caller says VARVE_SNAPSHOT_REPEAT. To read one, open the image with the option snapshot.name=
 * (the first of that name) or snapshot.id=.
 */
struct varve_snapshot_info {
	const char *id, *name;
	uint32_t date_s, date_ns; /* when it was made, UTC */
	uint64_t vm_clock_ns;	  /* how long the machine had run */
	uint64_t state_length;	  /* bytes of the machine's state; 0: none */
	uint64_t disk_length;	  /* bytes; the disk may have another length now */
	uint64_t icount;	  /* instructions executed; UINT64_MAX: not counted */
};

/* *ret_list: as many as *ret_nr says, in the order of the image; free it, whole, with varve_snapshot_list_free(). */
VARVE_API int varve_snapshot_list(struct varve_image *image, struct varve_snapshot_info **ret_list, unsigned *ret_nr,
				  struct varve_error *err);
VARVE_API void varve_snapshot_list_free(struct varve_snapshot_info *list, unsigned nr);

struct varve_snapshot_options {
	const char *name;	  /* 1 .. 255 bytes */
	const char *id;		  /* NULL: the next number */
	uint32_t date_s, date_ns; /* both 0: now */
	uint64_t vm_clock_ns;
	uint64_t icount;	  /* 0 or UINT64_MAX: not counted */
	unsigned flags;		  /* VARVE_SNAPSHOT_* */
};

/* varve_vmstate_write_open(): the disk is kept as it is at that call, and not at varve_vmstate_write_close(). */
#define VARVE_SNAPSHOT_NOW (1u << 0)
/* The name may be taken: there are two of that name then, which their ids tell apart. */
#define VARVE_SNAPSHOT_REPEAT (1u << 1)

/*
 * Makes one of the disk as it is now: all writes that were acknowledged are in it. The image may be in use: requests wait
 * for a moment, then go on; what they change from then on is copied. *ret_id (may be NULL): malloc'd.
 * -EEXIST: the name or id is taken. -ENOTSUP: the format has no snapshots.
 */
VARVE_API int varve_snapshot_create(struct varve_image *image, const struct varve_snapshot_options *opts, char **ret_id,
				    struct varve_error *err);
/*
 * Which snapshot is meant: of id and name those that are not NULL must match. -ENOENT: none does; -EEXIST: several (of
 * that name).
 */
VARVE_API int varve_snapshot_delete(struct varve_image *image, const char *id, const char *name, struct varve_error *err);
/*
 * The disk becomes what it was, its length too; what it was until now is lost unless there is a snapshot of it. -EBUSY:
 * the image is exported or further queues are attached. -EINVAL: it had another length, and the image has dirty bitmaps.
 */
VARVE_API int varve_snapshot_apply(struct varve_image *image, const char *id, const char *name, struct varve_error *err);

/* What a snapshot takes of the image's file, and which one it grew out of, as far as what they share tells. */
struct varve_snapshot_node {
	const char *id, *name; /* NULL: the disk as it is now, which is the last */
	int parent;	       /* index in the list; -1: none */
	uint32_t date_s;
	uint64_t state_length;
	uint64_t alone;	       /* bytes of the file that only this one needs: what deleting it gives back */
	uint64_t shared;       /* and those that others need too */
};

/* Reads all tables of the image. Free the list with varve_snapshot_graph_free(). */
VARVE_API int varve_snapshot_graph(struct varve_image *image, struct varve_snapshot_node **ret_list, unsigned *ret_nr,
				   struct varve_error *err);
VARVE_API void varve_snapshot_graph_free(struct varve_snapshot_node *list, unsigned nr);

/* ---- states of virtual machines, kept in snapshots ----------------------------------------------------------- */

struct varve_vmstate_writer;
struct varve_vmstate_reader;

#define VARVE_VMSTATE_DEPTH_DEFAULT 4
#define VARVE_VMSTATE_DEPTH_MAX 8

/*
 * Begins a snapshot that is to hold a state. What is written is gathered in buffers of 1 MiB, and up to depth of them (2 ..
 * VARVE_VMSTATE_DEPTH_MAX; 0: the default) are on their way to the disk while the caller goes on. The snapshot exists when
 * varve_vmstate_write_close() has succeeded, not before. A writer is used by one thread at a time; it holds the image open.
 */
VARVE_API int varve_vmstate_write_open(struct varve_vmstate_writer **ret_writer, struct varve_image *image,
				       const struct varve_snapshot_options *opts, unsigned depth, struct varve_error *err);
/*
 * Appends. The memory is the caller's again when it returns. An error of a buffer that was written in the background is
 * reported by the next call, and by every one after it.
 */
VARVE_API int varve_vmstate_write(struct varve_vmstate_writer *writer, const void *buf, size_t length,
				  struct varve_error *err);
/*
 * Appends without copying where the image's cache mode allows (not with direct I/O, which wants other alignment). The memory
 * must not change until released() was called for it, which happens inside later calls with the same writer, or inside this
 * one. give_back: the pages that lie in it completely are then returned to the system, and read as zeroes if they are the
 * process's own (MADV_DONTNEED).
 */
VARVE_API int varve_vmstate_write_ref(struct varve_vmstate_writer *writer, void *buf, size_t length, bool give_back,
				      struct varve_error *err);
/* Called for memory of varve_vmstate_write_ref(), in the order of the calls for each buffer of 1 MiB. NULL: nobody asks. */
VARVE_API void varve_vmstate_write_released(struct varve_vmstate_writer *writer,
					    void (*released)(void *user_data, void *buf, size_t length), void *user_data);
/* Bytes appended. */
VARVE_API uint64_t varve_vmstate_write_position(const struct varve_vmstate_writer *writer);
/*
 * Writes what is left, makes the snapshot, and frees the writer in any case. On failure there is no snapshot, and all
 * space is given back. *ret_id as for varve_snapshot_create().
 */
VARVE_API int varve_vmstate_write_close(struct varve_vmstate_writer *writer, char **ret_id, struct varve_error *err);
/* No snapshot; all space is given back. Takes NULL. */
VARVE_API void varve_vmstate_write_abort(struct varve_vmstate_writer *writer);

/* Opens the state of a snapshot. -ENODATA: it has none. *ret_length (may be NULL): its bytes. */
VARVE_API int varve_vmstate_read_open(struct varve_vmstate_reader **ret_reader, struct varve_image *image, const char *id,
				      const char *name, unsigned depth, uint64_t *ret_length, struct varve_error *err);
/*
 * Reads at any place; who reads on and on finds the next buffers read already. Returns how many bytes were read: length, or
 * less at the end of the state, 0 behind it; or a negative errno.
 */
VARVE_API int64_t varve_vmstate_read(struct varve_vmstate_reader *reader, uint64_t offset, void *buf, size_t length,
				     struct varve_error *err);
/* The same without copying: *ret_buf is good until the next call with this reader. */
VARVE_API int64_t varve_vmstate_read_ref(struct varve_vmstate_reader *reader, uint64_t offset, const void **ret_buf,
					 struct varve_error *err);
/* Takes NULL. */
VARVE_API void varve_vmstate_read_close(struct varve_vmstate_reader *reader);

/*
 * The place behind the end of the disk where other programs keep a machine's state before they make a snapshot of it, and
 * find it after one was applied. Reads zeroes where nothing was written. Not part of a snapshot that this library makes.
 */
VARVE_API int varve_state_area_read(struct varve_image *image, uint64_t offset, void *buf, size_t length,
				    struct varve_error *err);
VARVE_API int varve_state_area_write(struct varve_image *image, uint64_t offset, const void *buf, size_t length,
				     struct varve_error *err);

/* ---- exports ------------------------------------------------------------------------------------------ */

struct varve_export;

struct varve_vhost_user_blk_options {
	const char *socket_path; /* made by the export; must not exist (or be a dead socket); see socket_fd */
	unsigned nr_queues;	 /* virtqueues offered, 1 .. 64; 0: 1 */
	unsigned queue_size;	 /* 2 .. 1024, power of two: the largest ring accepted; 0: 1024 */
	bool writable;
	const char *serial;	 /* at most 20 bytes; NULL: "varve" */
	bool in_order;		 /* offer to complete the requests of a queue in order: slower, for drivers that want it */
	bool own_sigbus;	 /* the program handles SIGBUS itself, see varve_handle_sigbus() */
	bool fixed_cache;	 /* the guest cannot switch the write cache off: nobody carries that to where it moves */
	bool paused;		 /* begins as after varve_export_pause(); see varve_export_set_image() */
	/*
	 * Called, by the control queue's thread, when the front end wants queues to run (it has set one up and started it) and
	 * when it wants none any more (the machine is stopped, reset, or gone), also while the export is paused. Must return
	 * soon and call nothing of the library. NULL: nobody wants to know.
	 */
	void (*demand)(void *user_data, bool wanted);
	void *user_data;
	/*
	 * > 0: a unix stream socket that listens, in place of one that is made: from whoever started the program, or from another
	 * process whose export this one follows (varve_export_socket()). It is duplicated, and does not block from then on. With a
	 * socket_path, that is its name, and removed when the export is stopped; without one nothing is removed.
	 */
	int socket_fd;
};

/*
 * Serves an image to virtual machines over vhost-user-blk. control and the queues need a thread of their own
 * (VARVE_QUEUE_THREAD); virtqueue i runs on queues[i % nr_queues]. The image's home should be one of them.
 * Returns when the socket listens. One front end at a time; when it goes away the next may connect.
 */
VARVE_API int varve_export_vhost_user_blk(struct varve_export **ret_export, struct varve_image *image,
					  const struct varve_vhost_user_blk_options *opts, struct varve_queue *control,
					  struct varve_queue *const *queues, unsigned nr_queues,
					  struct varve_error *err);

/*
 * Until varve_export_resume() no request is taken from the guest, whoever is or will be connected; returns when those in
 * flight are done. Nothing is flushed. Does not nest. Any thread that runs none of the queues, one at a time, as resume.
 */
VARVE_API void varve_export_pause(struct varve_export *exp);
VARVE_API void varve_export_resume(struct varve_export *exp);
/*
 * The same for an image with werror=stop (enospc), whose requests may wait until it is resumed: if an error has stopped it, or does while
 * those in flight are waited for, the export is as before the call, and the result is that negative errno; else 0. If those in flight are
 * not done after ten seconds (their storage is stuck): as before the call, too, and -ETIMEDOUT.
 */
VARVE_API int varve_export_pause_unless_stopped(struct varve_export *exp, struct varve_error *err);

/*
 * Another image takes the place of the one that a paused export serves; that one may then be closed. So an image can be held
 * open for writing only while a machine runs, and be somebody else's at other times: during a live migration two servers serve
 * it, one after the other. A paused export of a writable disk may have an image that is open read-only (then it need not be
 * locked: VARVE_OPEN_FORCE_SHARE), for its length; with such an image varve_export_resume() does nothing. The image's home
 * is one of the export's queues. If the length is another one, the front end is told. On failure the old image stays.
 */
VARVE_API int varve_export_set_image(struct varve_export *exp, struct varve_image *image, struct varve_error *err);

/*
 * What the export has done, as one JSON object: for each virtqueue the requests of each kind, with their latencies.
 * *ret_json: the caller frees it. Any thread that runs none of the queues, not while the export is being stopped.
 */
VARVE_API int varve_export_stats(struct varve_export *exp, char **ret_json, struct varve_error *err);

/*
 * A virtual machine monitor can make the file of its memory shorter, and whoever touches what is gone gets SIGBUS. While
 * a front end is connected, a handler of the library's replaces such a page, and the device is given up until it is reset.
 * Other faults go to the handler that was there before. A program that installs one later passes on what is not its own
 * to the one before; or it sets own_sigbus, for all its exports, and calls this from its handler (with si_addr, for si_code
 * BUS_ADRERR): true, the fault was one of those and is seen to, so return. Async-signal-safe.
 */
VARVE_API bool varve_handle_sigbus(void *address);

/*
 * Another process goes on with the export's socket: a duplicate of its descriptor, which the caller closes, or a negative errno.
 * Front ends that come wait for whoever accepts them first. Any thread that runs none of the queues.
 */
VARVE_API int varve_export_socket(struct varve_export *exp);
/*
 * How many file descriptors the process will have open for a front end that is still to come (its connection, three for each
 * virtqueue, its back-end channel); 0 if one is connected. So that a server of many can tell, when it starts, whether RLIMIT_NOFILE
 * lets it serve them all. As varve_export_socket().
 */
VARVE_API unsigned varve_export_descriptors_to_come(struct varve_export *exp);
/* When the export is stopped the name of its socket stays: somebody else listens there. As varve_export_pause(). */
VARVE_API void varve_export_leave_socket(struct varve_export *exp);

/* Stops: no new requests, waits for those in flight, flushes, removes the socket. */
VARVE_API int varve_export_stop(struct varve_export *exp, struct varve_error *err);

/* ---- break points -------------------------------------------------------------------------------------- */

/*
 * For tests, of an image that stands on a node of driver blkdebug (-ENOTSUP if it does not). The next request that meets the
 * event stops there, under the name tag, once; the log says so (VARVE_LOG_INFO). Waiting for a request that has stopped, as
 * synchronous calls do, never ends: use varve_submit_*() and varve_queue_reap().
 */
VARVE_API int varve_debug_break(struct varve_image *image, const char *event, const char *tag, struct varve_error *err);
/* What has stopped under the tag, or would, does not. -ENOENT: there is none. */
VARVE_API int varve_debug_remove_break(struct varve_image *image, const char *tag, struct varve_error *err);
/* What has stopped under the tag goes on; tag NULL: all that has stopped, and nothing stops any more. */
VARVE_API int varve_debug_resume(struct varve_image *image, const char *tag, struct varve_error *err);
/* 1: something has stopped under the tag; 0. */
VARVE_API int varve_debug_is_suspended(struct varve_image *image, const char *tag, struct varve_error *err);

/* ---- log ---------------------------------------------------------------------------------------------- */

enum varve_log_level { VARVE_LOG_ERROR, VARVE_LOG_WARNING, VARVE_LOG_INFO, VARVE_LOG_DEBUG };

/*
 * Where log lines go: once for the whole process, before other calls. The default is nowhere. The function may
 * be called by any thread of the library; it must not call back into it.
 */
VARVE_API void varve_set_log(void (*fn)(void *user_data, enum varve_log_level level, const char *line),
			     void *user_data);

#ifdef __cplusplus
}
#endif

#endif
