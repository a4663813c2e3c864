/*
 * Falcon's dirty log: which pages of the main RAM were written
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Replicas that were equal at one moment differ later only in pages that one
 * of them has written since.  falcond asks for those pages while the guest
 * runs, again and again, so a page that is written in every round must be
 * seen in every round.
 *
 * Under TCG a page is seen when its first write takes the slow path.  A vCPU
 * whose TLB knows the page as dirty takes the fast path, so clearing the log
 * must be followed by a flush of all TLBs.  It is the vCPUs themselves that
 * flush them, and they are waited for: then no vCPU can be in the middle of a
 * slow path, between setting the bit and entering the page into its TLB as
 * dirty, and whatever the pages that are reported were written with is in
 * memory when the command returns.
 *
 * Everything here runs under the big QEMU lock.
 */

#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/ram_addr.h"
#include "exec/ramlist.h"
#include "hw/boards.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-falcon.h"
#include "qemu/bitops.h"
#include "qemu/rcu.h"
#include "sysemu/tcg.h"
#include "falcon.h"
#include "trace.h"

/* The file has words of 64 bits, and words are taken out of the log whole. */
QEMU_BUILD_BUG_ON(BITS_PER_LONG != 64);
QEMU_BUILD_BUG_ON(DIRTY_MEMORY_BLOCK_SIZE % BITS_PER_LONG);

static bool dirty_log_active;

RAMBlock *falcon_main_ram(Error **errp)
{
    RAMBlock *rb = current_machine->ram ? current_machine->ram->ram_block
                                        : NULL;

    if (!rb || !rb->host) {
        error_setg(errp, FALCON_WRONG_STATE "the machine has no memory "
                   "backend");
        return NULL;
    }
    return rb;
}

bool falcon_dirty_log_active(void)
{
    return dirty_log_active;
}

static void flush_tlb(CPUState *cpu, run_on_cpu_data data)
{
    tlb_flush(cpu);
}

/*
 * Move the log of @rb, which is @words long, to @bitmap, and have later writes
 * logged again.  Returns the number of pages.
 */
static uint64_t take_log(RAMBlock *rb, uint64_t *bitmap, size_t words)
{
    unsigned long page = rb->offset >> TARGET_PAGE_BITS;
    uint64_t pages = 0;
    CPUState *cpu;
    size_t i;

    memory_global_dirty_log_sync();
    WITH_RCU_READ_LOCK_GUARD() {
        unsigned long *const *blocks = qatomic_rcu_read(
            &ram_list.dirty_memory[DIRTY_MEMORY_MIGRATION])->blocks;

        for (i = 0; i < words; i++, page += BITS_PER_LONG) {
            unsigned long *word = blocks[page / DIRTY_MEMORY_BLOCK_SIZE] +
                BIT_WORD(page % DIRTY_MEMORY_BLOCK_SIZE);
            uint64_t bits = qatomic_read(word) ? qatomic_xchg(word, 0) : 0;

            pages += ctpop64(bits);
            bitmap[i] = cpu_to_le64(bits);
        }
    }
    /* KVM does not look for further writes before it is told of this. */
    memory_region_clear_dirty_bitmap(rb->mr, 0, rb->used_length);
    if (tcg_enabled()) {
        CPU_FOREACH(cpu) {
            run_on_cpu(cpu, flush_tlb, RUN_ON_CPU_NULL);
        }
    }
    return pages;
}

/* Nobody has seen these pages, so they are not clean yet. */
static void give_back(RAMBlock *rb, const uint64_t *bitmap, size_t words)
{
    size_t page;

    for (page = 0; page < words * BITS_PER_LONG; page++) {
        if (le64_to_cpu(bitmap[page / 64]) & BIT_ULL(page % 64)) {
            cpu_physical_memory_set_dirty_range(
                rb->offset + ((ram_addr_t)page << TARGET_PAGE_BITS),
                TARGET_PAGE_SIZE, 1 << DIRTY_MEMORY_MIGRATION);
        }
    }
}

/* The length of the log of @rb in words. */
static size_t log_words(const RAMBlock *rb)
{
    return (rb->used_length >> TARGET_PAGE_BITS) / BITS_PER_LONG;
}

static RAMBlock *loggable_ram(Error **errp)
{
    RAMBlock *rb = falcon_main_ram(errp);

    if (!rb) {
        return NULL;
    }
    if (!QEMU_IS_ALIGNED(rb->used_length | rb->offset,
                         (ram_addr_t)BITS_PER_LONG << TARGET_PAGE_BITS)) {
        error_setg(errp, FALCON_WRONG_STATE "the machine's memory is no "
                   "multiple of 64 pages");
        return NULL;
    }
    return rb;
}

void qmp_falcon_dirty_start(Error **errp)
{
    RAMBlock *rb = loggable_ram(errp);
    g_autofree uint64_t *before = NULL;

    if (!rb) {
        return;
    }
    if (dirty_log_active) {
        error_setg(errp, FALCON_WRONG_STATE "the dirty log is on");
        return;
    }
    if (!migration_is_idle()) {
        error_setg(errp, FALCON_WRONG_STATE "a migration uses the dirty log");
        return;
    }
    memory_global_dirty_log_start(GLOBAL_DIRTY_FALCON);
    dirty_log_active = true;
    /* What was written before does not count. */
    before = g_new(uint64_t, log_words(rb));
    take_log(rb, before, log_words(rb));
    trace_falcon_dirty_start(rb->idstr, rb->used_length);
}

void qmp_falcon_dirty_stop(Error **errp)
{
    if (!dirty_log_active) {
        error_setg(errp, FALCON_WRONG_STATE "the dirty log is off");
        return;
    }
    dirty_log_active = false;
    memory_global_dirty_log_stop(GLOBAL_DIRTY_FALCON);
    trace_falcon_dirty_stop();
}

FalconDirtyPages *qmp_falcon_dirty_collect(const char *path, Error **errp)
{
    g_autofree uint64_t *bitmap = NULL;
    FalconDirtyPages *result;
    RAMBlock *rb;
    size_t words;
    uint64_t pages;

    if (!dirty_log_active) {
        error_setg(errp, FALCON_WRONG_STATE "the dirty log is off");
        return NULL;
    }
    rb = loggable_ram(errp);
    if (!rb) {
        return NULL;
    }
    words = log_words(rb);
    bitmap = g_new(uint64_t, words);
    pages = take_log(rb, bitmap, words);
    trace_falcon_dirty_collect(pages);
    if (!falcon_write_file(path, bitmap, words * sizeof(*bitmap), errp)) {
        give_back(rb, bitmap, words);
        return NULL;
    }
    result = g_new0(FalconDirtyPages, 1);
    result->pages = pages;
    result->total = rb->used_length >> TARGET_PAGE_BITS;
    return result;
}
