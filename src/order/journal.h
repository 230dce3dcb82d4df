/* SPDX-License-Identifier: MIT */
/*
 * order/journal.h - what is queued, kept where it outlives the process
 *
 * A guest is told that its write is done when the data is in the kernel and the metadata in the queue. If the process
 * is killed, the kernel still has the data; the queue would be gone. So every put is also copied into a file of shared
 * memory (on tmpfs: it does not outlive a power cut, and must not, for then only flushed data counts). Whoever opens
 * the image next finds it, writes out what was queued, section by section as the queue would have done, and goes on.
 *
 *     header | table of segments | segment | segment | ... | things to be done     each segment: record, record, ..., rest of older use
 *
 * A record is one put, or a part of it that ends at a sector. It becomes valid by its sequence number, which is written
 * last; numbers go up by one from record to record. A segment is used again when all its sections are durable.
 *
 *   killed while a record is copied     its number is not there: the put did not happen, nobody was told that it did
 *   killed between parts of one put     the first parts happened: what a power cut may leave of a put as well
 *   a number with the wrong checksum, or fewer records than the header counts: no kill does that. Damaged, refused
 *
 * No system call on the way of a put, except when memory is used for the first time.
 *
 *   journal.c       the copy, and reading it back: memory only
 *   journal_todo.c  what is to be done later, beside the records
 *   journal_file.c  the file: its name, lock, owner, and whose it is
 *   recover.c       what was left behind is written out; a queue begins to keep a journal
 */
#ifndef VARVE_ORDER_JOURNAL_H
#define VARVE_ORDER_JOURNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/math.h"
#include "order/order.h"

#define JOURNAL_VERSION 4
#define JOURNAL_SEGMENT_LEN KiB(256)
#define JOURNAL_SEGMENTS 512
#define JOURNAL_AT_FIRST 4 /* segments that have memory from the beginning: enough to go on with when there is no more */
#define JOURNAL_FIRST KiB(16) /* where segments begin */
#define JOURNAL_TODO (JOURNAL_FIRST + JOURNAL_SEGMENTS * JOURNAL_SEGMENT_LEN) /* behind the segments */
#define JOURNAL_TODO_MAX 65536u
#define JOURNAL_TODO_STEP 2048u /* memory is taken for so many at once */
#define JOURNAL_LEN (JOURNAL_TODO + JOURNAL_TODO_MAX * sizeof(struct journal_todo))
#define JOURNAL_NAME_MAX 1024

/* Whose state it is. Written once, before the file has its name; covered by header_sum. */
struct journal_owner {
	uint8_t boot_id[16];  /* what was queued before a reboot is void */
	uint64_t file_id[2];  /* as in struct node */
	uint64_t file_birth;
	uint64_t data_id[2], data_birth; /* of the file that is synced with it (order_sync_too()); 0: there is none */
	uint64_t mark;	      /* what the image's header says while this is its journal, see ORDER_MARK_BITS */
	uint64_t pid;
	char name[JOURNAL_NAME_MAX]; /* of the image, for messages */
	char data_name[JOURNAL_NAME_MAX];
};

/* In the machine's own byte order: nobody but a process of the same boot may read it. */
struct journal_header {
	char magic[8]; /* "VARVEJNL" */
	uint32_t version, header_len;
	uint64_t key; /* random; goes into the sums, so that no bytes of a guest look like a record */
	struct journal_owner owner;
	uint64_t header_sum; /* of everything before */

	/* from here on it changes */
	_Atomic uint64_t next_seq; /* of the record to come; what is before it must be there */
	_Atomic uint64_t durable;  /* sections up to this one are on disk */
	_Atomic uint64_t error;	   /* errno that syncs of the image's file fail with; 0: none has failed, or all is well again */
	_Atomic uint64_t data_error; /* the same of the other file */
	_Atomic uint64_t file_len, data_len; /* of the two files: at least so long when the last record was made (node_note_len()) */
	_Atomic uint64_t nr_todo; /* of the things to be done, those from here on were never used */
	_Atomic uint64_t notes[ORDER_NOTES]; /* the format's own, see order_note() */
};

struct journal_segment {
	_Atomic uint64_t first; /* sequence number of its first record, with a tag; 0: unused */
	_Atomic uint64_t end;	/* behind its last one; 0: it is still being filled */
};

struct journal_record {
	_Atomic uint64_t seq; /* written last */
	uint64_t sum;
	uint64_t section, off;
	uint64_t len;
	uint8_t bytes[]; /* the next record begins at a multiple of 8 */
};

/* A thing to be done, see order_todo(). Valid when b is not 0 and the sum is right: who is killed while he stores one leaves none. */
struct journal_todo {
	_Atomic uint64_t b; /* written last */
	uint64_t a, sum, unused;
};

/* A mapped journal that is written to. */
struct journal {
	struct journal_header *h;
	struct journal_segment *segments; /* the table */
	int fd;			   /* -1: plain memory (tests); else the lock hangs on it */
	char *path;
	uint64_t next_seq;
	unsigned current;	   /* segment that is filled; JOURNAL_SEGMENTS: none */
	size_t pos;		   /* in it */
	unsigned nr_used;
	uint64_t used[JOURNAL_SEGMENTS / 64];	  /* bitmaps */
	uint64_t reserved[JOURNAL_SEGMENTS / 64]; /* has memory */
	unsigned nr_reserved;
	uint64_t last_section[JOURNAL_SEGMENTS]; /* the latest of its records */
	uint64_t todo_used[JOURNAL_TODO_MAX / 64];
	unsigned todo_from; /* words of it below are full */
	unsigned todo_memory; /* so many have memory */
};

/* ---- journal.c ---- */

/* Makes an empty journal in map, JOURNAL_LEN bytes of zeroes. */
void journal_format(struct journal *j, void *map, uint64_t key, const struct journal_owner *owner);

/* Room for a put of len bytes. -ENOSPC: there is none; what is queued must be written out first. */
int journal_reserve(struct journal *j, size_t len);
/* After journal_reserve(). */
void journal_put(struct journal *j, uint64_t section, uint64_t off, const void *bytes, size_t len);
/* Sections up to durable are on disk. Before anybody acts on that: their space may belong to somebody else then. */
void journal_retire(struct journal *j, uint64_t durable);

/*
 * Of a dead process's journal: all that it holds is durable, nothing of it is to be written again. True: there are errors in it that
 * somebody has to hear of yet.
 */
bool journal_settle(void *map);

static inline uint64_t journal_used(const struct journal *j)
{
	return j->nr_used * JOURNAL_SEGMENT_LEN;
}

/* Text that follows "state file X: ", or NULL: header and owner's sum are right. */
const char *journal_header_fault(const void *map, size_t len);

/* Is there something in segment i? */
bool journal_segment_used(const void *map, unsigned i);

/*
 * Calls fn for every record that is not durable, in the order of the puts. A negative result of fn ends it. -EUCLEAN: the
 * journal is damaged, *ret_fault says how; fn may have been called before that.
 */
typedef int (*journal_fn)(void *arg, uint64_t section, uint64_t off, const void *bytes, size_t len);
int journal_replay(const void *map, journal_fn fn, void *arg, const char **ret_fault);

/* ---- journal_todo.c: as order_todo() ---- */

unsigned journal_todo_add(struct journal *j, uint64_t a, uint64_t b);
void journal_todo_change(struct journal *j, unsigned nr, uint64_t a, uint64_t b);
void journal_todo_done(struct journal *j, unsigned nr);
/* How many there may be, and the i-th of them; false: there is none, or it was being stored when the process died. */
size_t journal_nr_todo(const void *map);
bool journal_todo_read(const void *map, size_t i, struct order_todo *ret);

/* ---- journal_leftover.c, journal_file.c; these block: for worker threads ---- */

/* Removes what processes have left in a state directory that were killed while they made a journal. */
void journal_sweep(const char *dir);

struct journal_search {
	/* asked */
	const char *dir;
	struct journal_owner owner;
	struct varve_error *err;

	/* found */
	void *map; /* NULL: there is none */
	int fd;
	char *path;
	bool outdated; /* there was one of an earlier boot: told, and removed */
};

/* Fills in who we are: boot, process, and the files of the leaves below `file` and `data` (NULL: there is none). */
int journal_owner_init(struct journal_owner *o, const struct node *file, const struct node *data, struct varve_error *err);
/* Looks for the journal of s->owner's file, locks and maps it, checks whose it is. One of an earlier boot is removed. */
int journal_find(struct journal_search *s);
/*
 * Makes one. It takes the place of one that has nothing in it but errors (journal_settle()), which it inherits; there is no moment
 * without one. -EEXIST: somebody else has made one.
 */
int journal_create(struct journal_search *s, struct journal *j);
/* Ends the use; removes the file if there is nothing in it that anybody will want. */
void journal_unmap(void *map, int fd, char *path, bool remove);
/* journal_todo.c's: memory for the next JOURNAL_TODO_STEP. */
int journal_todo_memory(const struct journal *j);
/* journal.c's: memory for a segment, or back to the system. */
int journal_segment_memory(const struct journal *j, unsigned i, bool give_back);

#endif
