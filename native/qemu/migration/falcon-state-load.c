/*
 * Reading the file of falcon-save-state: all of it is examined before the
 * machine is touched.  Its format is described in falcon-state.c.
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "cpu.h"
#include "exec/exec-all.h"
#include "exec/ram_addr.h"
#include "hw/boards.h"
#include "io/channel-buffer.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/rcu.h"
#include "sysemu/cpus.h"
#include "sysemu/runstate.h"
#include "sysemu/tcg.h"
#include "falcon.h"
#include "falcon-state.h"
#include "qemu-file.h"
#include "ram.h"
#include "savevm.h"

/* What is too short reads as zeros and is remembered as short. */

typedef struct Reader {
    const uint8_t *at;
    size_t left;
    bool is_short;
} Reader;

static const uint8_t *get_bytes(Reader *in, size_t size)
{
    const uint8_t *at = in->at;

    if (in->left < size) {
        in->is_short = true;
        in->left = 0;
        return NULL;
    }
    in->at += size;
    in->left -= size;
    return at;
}

static uint32_t get_u32(Reader *in)
{
    const uint8_t *at = get_bytes(in, 4);

    return at ? ldl_le_p(at) : 0;
}

static uint64_t get_u64(Reader *in)
{
    const uint8_t *at = get_bytes(in, 8);

    return at ? ldq_le_p(at) : 0;
}

static void get_string(Reader *in, char text[static STRING_MAX + 1])
{
    uint32_t len = get_u32(in);
    const uint8_t *at = NULL;

    if (len <= STRING_MAX) {
        at = get_bytes(in, len);
    } else {
        in->is_short = true;
        in->left = 0;
    }
    if (at) {
        memcpy(text, at, len);
    }
    text[at ? len : 0] = '\0';
}

static bool check_header(const uint8_t *buf, size_t size, Error **errp)
{
    uint32_t version;

    if (size < STATE_HEADER_BYTES || memcmp(buf, STATE_MAGIC, 8)) {
        error_setg(errp, FALCON_STATE_INVALID "this is no file of "
                   "falcon-save-state");
        return false;
    }
    version = ldl_le_p(buf + 8);
    if (version != STATE_VERSION) {
        error_setg(errp, FALCON_STATE_INVALID "the file has version %u, not %u",
                   version, STATE_VERSION);
        return false;
    }
    if (ldq_le_p(buf + STATE_CHECKED_FROM) != size) {
        error_setg(errp, FALCON_STATE_INVALID "the file has %zu bytes, but %"
                   PRIu64 " were written", size,
                   (uint64_t)ldq_le_p(buf + STATE_CHECKED_FROM));
        return false;
    }
    if (ldl_le_p(buf + STATE_CHECKSUM_AT) !=
        falcon_state_checksum(buf + STATE_CHECKED_FROM,
                              size - STATE_CHECKED_FROM)) {
        error_setg(errp, FALCON_STATE_INVALID "the checksum is wrong");
        return false;
    }
    return true;
}

static bool check_machine(Reader *in, Error **errp)
{
    RAMBlock *main_ram = falcon_main_ram(errp);
    const char *own = MACHINE_GET_CLASS(current_machine)->name;
    char name[STRING_MAX + 1];
    uint32_t cpus;
    uint64_t bytes;

    if (!main_ram) {
        return false;
    }
    get_string(in, name);
    cpus = get_u32(in);
    bytes = get_u64(in);
    if (strcmp(name, own) || cpus != current_machine->smp.cpus ||
        bytes != main_ram->used_length) {
        error_setg(errp, FALCON_STATE_INVALID "the file is of a machine %s "
                   "with %u processors and %" PRIu64 " bytes, this is %s with "
                   "%u and %" PRIu64, name, cpus, bytes, own,
                   current_machine->smp.cpus, (uint64_t)main_ram->used_length);
        return false;
    }
    return true;
}

typedef struct SectionSearch {
    const char *idstr;
    uint32_t instance_id;
    uint32_t version_id;
    bool found;
    uint32_t mandatory;
    GHashTable *seen;
    const char *missing;
} SectionSearch;

static bool match_section(const DeviceSection *section, void *opaque)
{
    SectionSearch *search = opaque;

    search->found = section->instance_id == search->instance_id &&
                    section->version_id == search->version_id &&
                    !strcmp(section->idstr, search->idstr);
    return !search->found;
}

static char *section_key(const char *idstr, uint32_t instance_id)
{
    return g_strdup_printf("%s#%u", idstr, instance_id);
}

static bool find_missing(const DeviceSection *section, void *opaque)
{
    SectionSearch *search = opaque;
    g_autofree char *key = section_key(section->idstr, section->instance_id);

    if (section->always && !g_hash_table_contains(search->seen, key)) {
        search->missing = section->idstr;
        return false;
    }
    return true;
}

/* All sections of the file are ours, and no device of ours is without one. */
static bool check_sections(Reader *in, Error **errp)
{
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal,
                                                       g_free, NULL);
    SectionSearch search = { .seen = seen };
    uint32_t count = get_u32(in);
    char idstr[STRING_MAX + 1];

    while (count-- && !in->is_short) {
        get_string(in, idstr);
        search.idstr = idstr;
        search.instance_id = get_u32(in);
        search.version_id = get_u32(in);
        if (in->is_short) {
            break;
        }
        qemu_savevm_foreach_device_section(match_section, &search);
        if (!search.found) {
            error_setg(errp, FALCON_STATE_INVALID "the file has a device "
                       "'%s' %u of version %u, this machine does not", idstr,
                       search.instance_id, search.version_id);
            return false;
        }
        if (!g_hash_table_add(seen, section_key(idstr, search.instance_id))) {
            error_setg(errp, FALCON_STATE_INVALID "the file has the device "
                       "'%s' %u twice", idstr, search.instance_id);
            return false;
        }
    }
    qemu_savevm_foreach_device_section(find_missing, &search);
    if (search.missing && !in->is_short) {
        error_setg(errp, FALCON_STATE_INVALID "the file has no device '%s'",
                   search.missing);
        return false;
    }
    return true;
}

/* A block of the file, and where its pages are. */
typedef struct LoadedBlock {
    RAMBlock *rb;
    uint64_t bytes;
    uint32_t pages;
    const uint8_t *page_list;
} LoadedBlock;

#define LISTED_PAGE_BYTES (4 + PAGE_BYTES)

static bool check_block(Reader *in, const RAMBlock *main_ram, GArray *blocks,
                        Error **errp)
{
    char idstr[STRING_MAX + 1];
    LoadedBlock block = {};
    int64_t before = -1;
    uint32_t i;

    get_string(in, idstr);
    block.bytes = get_u64(in);
    block.pages = get_u32(in);
    block.page_list = get_bytes(in, (uint64_t)block.pages * LISTED_PAGE_BYTES);
    if (in->is_short) {
        return true;
    }
    block.rb = qemu_ram_block_by_name(idstr);
    if (!block.rb || block.rb == main_ram ||
        !qemu_ram_is_migratable(block.rb)) {
        error_setg(errp, FALCON_STATE_INVALID "the file has memory '%s', this "
                   "machine does not", idstr);
        return false;
    }
    for (i = 0; i < blocks->len; i++) {
        if (g_array_index(blocks, LoadedBlock, i).rb == block.rb) {
            error_setg(errp, FALCON_STATE_INVALID "the file has memory '%s' "
                       "twice", idstr);
            return false;
        }
    }
    if (!QEMU_IS_ALIGNED(block.bytes, PAGE_BYTES) ||
        (block.bytes != block.rb->used_length &&
         (!(block.rb->flags & RAM_RESIZEABLE) ||
          block.bytes > block.rb->max_length))) {
        error_setg(errp, FALCON_STATE_INVALID "memory '%s' has %" PRIu64
                   " bytes in the file and %" PRIu64 " here", idstr,
                   block.bytes, (uint64_t)block.rb->used_length);
        return false;
    }
    for (i = 0; i < block.pages; i++) {
        uint32_t page = ldl_le_p(block.page_list +
                                 (size_t)i * LISTED_PAGE_BYTES);

        if (page <= before || page >= block.bytes / PAGE_BYTES) {
            error_setg(errp, FALCON_STATE_INVALID "memory '%s' has no page %u "
                       "at that place", idstr, page);
            return false;
        }
        before = page;
    }
    g_array_append_val(blocks, block);
    return true;
}

static bool check_blocks(Reader *in, GArray *blocks, Error **errp)
{
    RAMBlock *main_ram = falcon_main_ram(errp);
    uint32_t count = get_u32(in);
    uint32_t own = 0;
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    while (count-- && !in->is_short) {
        if (!check_block(in, main_ram, blocks, errp)) {
            return false;
        }
    }
    RAMBLOCK_FOREACH_MIGRATABLE(rb) {
        own += rb != main_ram;
    }
    if (blocks->len != own && !in->is_short) {
        error_setg(errp, FALCON_STATE_INVALID "the file has %u memory blocks, "
                   "this machine %u", blocks->len, own);
        return false;
    }
    return true;
}

/* Returns false if the block could not be made as long as it must be. */
static bool load_block(const LoadedBlock *block, Error **errp)
{
    static const uint8_t zeros[PAGE_BYTES];
    uint32_t listed = 0;
    uint32_t i;

    if (qemu_ram_resize(block->rb, block->bytes, errp) < 0) {
        return false;
    }
    for (i = 0; i < block->bytes / PAGE_BYTES; i++) {
        const uint8_t *entry = block->page_list +
                               (size_t)listed * LISTED_PAGE_BYTES;
        uint8_t *page = block->rb->host + (size_t)i * PAGE_BYTES;
        const uint8_t *want = zeros;

        if (listed < block->pages && ldl_le_p(entry) == i) {
            want = entry + 4;
            listed++;
        }
        /* Most pages are the same on all replicas. */
        if (memcmp(page, want, PAGE_BYTES)) {
            memcpy(page, want, PAGE_BYTES);
        }
    }
    return true;
}

static bool load_devices(const uint8_t *buf, size_t size, Error **errp)
{
    QIOChannelBuffer *ioc = qio_channel_buffer_new(size);
    QEMUFile *f;
    int ret;

    memcpy(ioc->data, buf, size);
    ioc->usage = size;
    f = qemu_file_new_input(QIO_CHANNEL(ioc));
    object_unref(OBJECT(ioc));
    ret = qemu_load_device_state(f);
    qemu_fclose(f);
    if (ret < 0) {
        error_setg(errp, FALCON_STATE_INVALID "the state of a device was "
                   "refused (%d), see QEMU's messages", ret);
        return false;
    }
    return true;
}

static void nothing(CPUState *cpu, run_on_cpu_data data)
{
}

/* Memory has changed behind what was translated from it. */
static void drop_translated_code(void)
{
    if (tcg_enabled()) {
        tb_flush(first_cpu);
        /* The flush is in a queue; when this is through it has been done. */
        run_on_cpu(first_cpu, nothing, RUN_ON_CPU_NULL);
    }
}

/*
 * Subsections that the source did not need are not in the file: they stand for
 * what a device has after a reset.  It is a reset that leaves the main RAM
 * alone.
 */
static bool load_all(const GArray *blocks, const uint8_t *devices, size_t size,
                     Error **errp)
{
    guint i;

    qemu_system_reset(SHUTDOWN_CAUSE_SNAPSHOT_LOAD);
    for (i = 0; i < blocks->len; i++) {
        if (!load_block(&g_array_index(blocks, LoadedBlock, i), errp)) {
            return false;
        }
    }
    cpu_synchronize_all_pre_loadvm();
    if (!load_devices(devices, size, errp)) {
        return false;
    }
    drop_translated_code();
    return true;
}

/* qemu_save_device_state() begins with it; QEMU's loader is behind it. */
static const uint8_t *get_devices(Reader *in, size_t *size, Error **errp)
{
    uint64_t bytes = get_u64(in);
    const uint8_t *at = get_bytes(in, bytes);

    if (in->is_short || in->left > 0 || bytes < 8 ||
        ldl_be_p(at) != QEMU_VM_FILE_MAGIC ||
        ldl_be_p(at + 4) != QEMU_VM_FILE_VERSION) {
        error_setg(errp, FALCON_STATE_INVALID "the file is not well formed");
        return NULL;
    }
    *size = bytes - 8;
    return at + 8;
}

bool falcon_state_unpack(const uint8_t *buf, size_t size, bool *touched,
                         Error **errp)
{
    g_autoptr(GArray) blocks = g_array_new(false, false, sizeof(LoadedBlock));
    Reader in = { .at = buf, .left = size };
    const uint8_t *devices;
    size_t device_bytes;

    *touched = false;
    if (!check_header(buf, size, errp)) {
        return false;
    }
    get_bytes(&in, STATE_HEADER_BYTES);
    if (!check_machine(&in, errp) || !check_sections(&in, errp) ||
        !check_blocks(&in, blocks, errp)) {
        return false;
    }
    devices = get_devices(&in, &device_bytes, errp);
    if (!devices) {
        return false;
    }
    *touched = true;
    return load_all(blocks, devices, device_bytes, errp);
}
