/* SPDX-License-Identifier: MIT */
/*
 * aio/fiber_switch.c - switching stacks, and what sanitizers and valgrind must be told about it
 *
 * Owns:    the memory of the stacks, with a page below that faults.
 * Assumes: a context is entered and left by one thread at a time; code on it does not unwind past its entry.
 * Never:   makes a system call to switch (except with ucontext, where there is no assembly for the machine).
 *
 * A function call has already saved what the caller wants kept, so a switch keeps only the registers that the
 * ABI gives to the callee, and the control words of the floating-point unit.
 *
 * Shadow stacks: the assembly returns to an address that the processor's second stack does not hold. Code
 * built with -fcf-protection=return (or full) promises that this never happens, so such a build takes
 * ucontext, which the C library makes right at the price of a system call. To have both speed and indirect
 * branch tracking, build with -fcf-protection=branch. On aarch64 the same holds for guarded control stacks.
 */
#include "config.h"

#include "aio/fiber_switch.h"

#ifdef HAVE_VALGRIND
#include <valgrind/valgrind.h>
#endif

bool runs_on_valgrind(void)
{
#ifdef HAVE_VALGRIND
	return RUNNING_ON_VALGRIND;
#else
	return false;
#endif
}

#ifndef VARVE_FIBER_THREAD

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "aio/fiber.h"
#include "base/sanitizer.h"

/* ---- what watches us ---- */

#if WITH_TSAN
#error "ThreadSanitizer sees fibers as one thread: configure with -Dfiber=thread"
#endif

#if WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define STACK_LEN (4 * (size_t)FIBER_STACK_LEN) /* frames grow by their red zones */
#else
#define STACK_LEN ((size_t)FIBER_STACK_LEN)
#endif

/* ---- which way to switch ---- */

#if defined(__CET__) && (__CET__ & 2)
#define FIBER_UCONTEXT
#elif defined(__ARM_FEATURE_GCS_DEFAULT)
#define FIBER_UCONTEXT
#elif !defined(__x86_64__) && !defined(__aarch64__)
#define FIBER_UCONTEXT
#elif defined(__ILP32__)
#define FIBER_UCONTEXT
#endif

#ifdef FIBER_UCONTEXT
#include <ucontext.h>
#endif

struct fiber_ctx {
	char *stack; /* lowest usable byte, above the guard page */
	size_t guard_len;
	void (*entry)(void *arg);
	void *arg;
#ifdef FIBER_UCONTEXT
	ucontext_t here, loop;
#else
	void *sp;      /* of the context, while the loop runs */
	void *loop_sp; /* of the loop, while the context runs */
#endif
#if WITH_ASAN
	void *fake, *loop_fake;
	const void *loop_stack;
	size_t loop_stack_len;
#endif
#ifdef HAVE_VALGRIND
	unsigned valgrind_id;
#endif
};

/* ---- the switch ---- */

#ifndef FIBER_UCONTEXT

/* Saves the registers on the current stack and its pointer in *save_sp, then takes up the stack load_sp. */
void varve_fiber_switch(void **save_sp, void *load_sp);

/* Where a new stack begins: calls the function in a saved register with an argument in another. */
void varve_fiber_begin(void);
#endif

#if !defined(FIBER_UCONTEXT) && defined(__x86_64__)

/*
 * It jumps to the return address: a ret would be predicted to go where this function was called from, which
 * is always wrong. The control words are loaded only when they differ, since loading them stalls. Together a
 * third of the time.
 */
/* clang-format off */
__asm__(".pushsection .text\n"
	".p2align 4\n"
	".globl varve_fiber_switch\n"
	".hidden varve_fiber_switch\n"
	".type varve_fiber_switch, @function\n"
	"varve_fiber_switch:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	subq $8, %rsp\n"
	"	.cfi_def_cfa_offset 64\n"
	"	stmxcsr (%rsp)\n"
	"	fnstcw 4(%rsp)\n"
	"	movl (%rsp), %eax\n"
	"	movzwl 4(%rsp), %ecx\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	cmpl (%rsp), %eax\n"
	"	jne 2f\n"
	"1:	cmpw 4(%rsp), %cx\n"
	"	jne 3f\n"
	"4:	addq $8, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	.cfi_def_cfa_offset 8\n"
	"	popq %rcx\n"
	"	.cfi_def_cfa_offset 0\n"
	"	.cfi_register rip, rcx\n"
	"	notrack jmp *%rcx\n"
	"2:	.cfi_def_cfa_offset 64\n"
	"	.cfi_restore rip\n"
	"	ldmxcsr (%rsp)\n"
	"	jmp 1b\n"
	"3:	fldcw 4(%rsp)\n"
	"	jmp 4b\n"
	"	.cfi_endproc\n"
	".size varve_fiber_switch, . - varve_fiber_switch\n"
	".p2align 4\n"
	".globl varve_fiber_begin\n"
	".hidden varve_fiber_begin\n"
	".type varve_fiber_begin, @function\n"
	"varve_fiber_begin:\n"
	"	.cfi_startproc\n"
	"	.cfi_undefined rip\n" /* debuggers end their backtrace here */
	"	endbr64\n"
	"	movq %r12, %rdi\n"
	"	callq *%r13\n"
	"	ud2\n"
	"	.cfi_endproc\n"
	".size varve_fiber_begin, . - varve_fiber_begin\n"
	".popsection\n");
/* clang-format on */

/* From the stack pointer up, as varve_fiber_switch() leaves it. */
struct saved {
	uint32_t mxcsr;
	uint32_t fpu_cw; /* 16 bits */
	uint64_t r15, r14, r13, r12, rbx, rbp;
	uint64_t return_to;
	uint64_t pad[2]; /* the stack pointer at varve_fiber_begin: a multiple of 16, as this struct is */
};

static void saved_init(struct saved *s, void (*fn)(void *arg), void *arg)
{
	*s = (struct saved){
		.mxcsr = 0x1f80,  /* the ABI's initial values: no exceptions, */
		.fpu_cw = 0x037f, /* round to nearest, extended precision */
		.r12 = (uintptr_t)arg,
		.r13 = (uintptr_t)fn,
		.return_to = (uintptr_t)varve_fiber_begin,
	};
}

#elif !defined(FIBER_UCONTEXT) && defined(__aarch64__)

/* clang-format off */
__asm__(".pushsection .text\n"
	".p2align 4\n"
	".globl varve_fiber_switch\n"
	".hidden varve_fiber_switch\n"
	".type varve_fiber_switch, %function\n"
	"varve_fiber_switch:\n"
	"	.cfi_startproc\n"
	"	hint #34\n" /* bti c */
	"	sub sp, sp, #176\n"
	"	.cfi_def_cfa_offset 176\n"
	"	stp x19, x20, [sp, #0]\n"
	"	stp x21, x22, [sp, #16]\n"
	"	stp x23, x24, [sp, #32]\n"
	"	stp x25, x26, [sp, #48]\n"
	"	stp x27, x28, [sp, #64]\n"
	"	stp x29, x30, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]\n"
	"	stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]\n"
	"	stp d14, d15, [sp, #144]\n"
	"	mrs x9, fpcr\n"
	"	str x9, [sp, #160]\n"
	"	mov x9, sp\n"
	"	str x9, [x0]\n"
	"	mov sp, x1\n"
	"	ldr x9, [sp, #160]\n"
	"	msr fpcr, x9\n"
	"	ldp x19, x20, [sp, #0]\n"
	"	ldp x21, x22, [sp, #16]\n"
	"	ldp x23, x24, [sp, #32]\n"
	"	ldp x25, x26, [sp, #48]\n"
	"	ldp x27, x28, [sp, #64]\n"
	"	ldp x29, x30, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]\n"
	"	ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]\n"
	"	ldp d14, d15, [sp, #144]\n"
	"	add sp, sp, #176\n"
	"	.cfi_def_cfa_offset 0\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size varve_fiber_switch, . - varve_fiber_switch\n"
	".p2align 4\n"
	".globl varve_fiber_begin\n"
	".hidden varve_fiber_begin\n"
	".type varve_fiber_begin, %function\n"
	"varve_fiber_begin:\n"
	"	.cfi_startproc\n"
	"	.cfi_undefined x30\n"
	"	hint #34\n"
	"	mov x0, x19\n"
	"	blr x20\n"
	"	brk #1\n"
	"	.cfi_endproc\n"
	".size varve_fiber_begin, . - varve_fiber_begin\n"
	".popsection\n");
/* clang-format on */

struct saved {
	uint64_t x19, x20, x21_to_x28[8], x29, x30;
	uint64_t d8_to_d15[8];
	uint64_t fpcr, pad;
};

static void saved_init(struct saved *s, void (*fn)(void *arg), void *arg)
{
	*s = (struct saved){
		.x19 = (uintptr_t)arg,
		.x20 = (uintptr_t)fn,
		.x30 = (uintptr_t)varve_fiber_begin,
	};
}
#endif

/* ---- contexts ---- */

static void switch_to_loop(struct fiber_ctx *c)
{
#ifdef FIBER_UCONTEXT
	swapcontext(&c->here, &c->loop);
#else
	varve_fiber_switch(&c->sp, c->loop_sp);
#endif
}

/* The first and last thing on a new stack. Never returns: nothing is above it. */
static void context_main(void *arg)
{
	struct fiber_ctx *c = arg;

#if WITH_ASAN
	__sanitizer_finish_switch_fiber(NULL, &c->loop_stack, &c->loop_stack_len);
#endif
	c->entry(c->arg);
#if WITH_ASAN
	__sanitizer_start_switch_fiber(NULL, c->loop_stack, c->loop_stack_len); /* NULL: this stack ends */
#endif
	switch_to_loop(c);
	abort();
}

#ifdef FIBER_UCONTEXT
/* makecontext() passes ints. */
static void context_main_split(unsigned high, unsigned low)
{
	context_main((void *)(uintptr_t)((uint64_t)high << 32 | low));
}
#endif

struct fiber_ctx *fiber_ctx_new(void)
{
	struct fiber_ctx *c = calloc(1, sizeof(*c));
	char *p;

	if (!c)
		return NULL;
	c->guard_len = (size_t)sysconf(_SC_PAGESIZE);
	p = mmap(NULL, c->guard_len + STACK_LEN, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (p == MAP_FAILED) {
		free(c);
		return NULL;
	}
	if (mprotect(p, c->guard_len, PROT_NONE) < 0) {
		munmap(p, c->guard_len + STACK_LEN);
		free(c);
		return NULL;
	}
	c->stack = p + c->guard_len;
#ifdef HAVE_VALGRIND
	c->valgrind_id = VALGRIND_STACK_REGISTER(c->stack, c->stack + STACK_LEN - 1);
#endif
	return c;
}

void fiber_ctx_free(struct fiber_ctx *c)
{
	if (!c)
		return;
#ifdef HAVE_VALGRIND
	VALGRIND_STACK_DEREGISTER(c->valgrind_id);
#endif
#if WITH_ASAN
	__asan_unpoison_memory_region(c->stack, STACK_LEN); /* the next mapping here must not inherit it */
#endif
	munmap(c->stack - c->guard_len, c->guard_len + STACK_LEN);
	free(c);
}

void fiber_ctx_prepare(struct fiber_ctx *c, void (*entry)(void *arg), void *arg)
{
	c->entry = entry;
	c->arg = arg;
#if WITH_ASAN
	__asan_unpoison_memory_region(c->stack, STACK_LEN); /* of frames that never returned */
#endif
#ifdef FIBER_UCONTEXT
	getcontext(&c->here);
	c->here.uc_stack.ss_sp = c->stack;
	c->here.uc_stack.ss_size = STACK_LEN;
	c->here.uc_link = NULL;
	makecontext(&c->here, (void (*)(void))context_main_split, 2, (unsigned)((uint64_t)(uintptr_t)c >> 32),
		    (unsigned)(uintptr_t)c);
#else
	struct saved *s = (struct saved *)(c->stack + STACK_LEN - sizeof(*s));

	_Static_assert(sizeof(*s) % 16 == 0, "stacks are aligned to 16 bytes");
	saved_init(s, context_main, c);
	c->sp = s;
#endif
}

void fiber_ctx_enter(struct fiber_ctx *c)
{
#if WITH_ASAN
	__sanitizer_start_switch_fiber(&c->loop_fake, c->stack, STACK_LEN);
#endif
#ifdef FIBER_UCONTEXT
	swapcontext(&c->loop, &c->here);
#else
	varve_fiber_switch(&c->loop_sp, c->sp);
#endif
#if WITH_ASAN
	__sanitizer_finish_switch_fiber(c->loop_fake, NULL, NULL);
#endif
}

void fiber_ctx_leave(struct fiber_ctx *c)
{
#if WITH_ASAN
	__sanitizer_start_switch_fiber(&c->fake, c->loop_stack, c->loop_stack_len);
#endif
	switch_to_loop(c);
#if WITH_ASAN
	/* Another thread may run the queue now: its stack is the one to go back to. */
	__sanitizer_finish_switch_fiber(c->fake, &c->loop_stack, &c->loop_stack_len);
#endif
}

#endif
