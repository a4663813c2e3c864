/*
 * The file of falcon-save-state
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * All numbers are little-endian.
 *
 *   magic           8 bytes, "FALCVMST"
 *   version         u32
 *   checksum        u32, CRC32C of all that follows
 *   length          u64, of the whole file
 *   machine         string, name of the machine type
 *   cpus            u32
 *   main RAM bytes  u64
 *   sections        u32, then of each: string idstr, u32 instance, u32 version
 *   blocks          u32, then of each: string idstr, u64 bytes, u32 pages,
 *                   then of each page: u32 index, its bytes
 *   devices         u64, then as many bytes: QEMU's own device state
 *
 * A string is u32 and as many bytes.  Pages that are not listed are zero.
 * Blocks go by name: hosts may list them in different order.  The sections say
 * what the devices' state is about, so that a file of another machine is known
 * before any device has been touched.
 */

#include "qemu/osdep.h"
#include "hw/boards.h"
#include "io/channel-buffer.h"
#include "migration/global_state.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/crc32c.h"
#include "qemu/cutils.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "falcon.h"
#include "falcon-state.h"
#include "qemu-file.h"
#include "ram.h"
#include "savevm.h"
#ifdef __x86_64__
#include <nmmintrin.h>
#endif

QEMU_BUILD_BUG_ON(sizeof(STATE_MAGIC) - 1 != 8);

#ifdef __x86_64__
__attribute__((target("sse4.2")))
static uint32_t checksum_by_instruction(const uint8_t *data, size_t len)
{
    uint64_t crc = 0xffffffff;

    for (; len >= 8; len -= 8, data += 8) {
        crc = _mm_crc32_u64(crc, ldq_le_p(data));
    }
    for (; len; len--, data++) {
        crc = _mm_crc32_u8(crc, *data);
    }
    return ~(uint32_t)crc;
}
#endif

/*
 * The guest stands still meanwhile, and QEMU's own crc32c takes a byte at a
 * time.
 */
uint32_t falcon_state_checksum(const uint8_t *data, size_t len)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("sse4.2")) {
        return checksum_by_instruction(data, len);
    }
#endif
    return crc32c(0xffffffff, data, len);
}

static void put_u32(GByteArray *out, uint32_t value)
{
    value = cpu_to_le32(value);
    g_byte_array_append(out, (const uint8_t *)&value, sizeof(value));
}

static void put_u64(GByteArray *out, uint64_t value)
{
    value = cpu_to_le64(value);
    g_byte_array_append(out, (const uint8_t *)&value, sizeof(value));
}

static void put_string(GByteArray *out, const char *text)
{
    size_t len = strlen(text);

    assert(len <= STRING_MAX);
    put_u32(out, len);
    g_byte_array_append(out, (const uint8_t *)text, len);
}

typedef struct SectionList {
    GByteArray *out;
    uint32_t count;
} SectionList;

static bool put_section(const DeviceSection *section, void *opaque)
{
    SectionList *list = opaque;

    if (section->needed) {
        put_string(list->out, section->idstr);
        put_u32(list->out, section->instance_id);
        put_u32(list->out, section->version_id);
        list->count++;
    }
    return true;
}

static void put_sections(GByteArray *out)
{
    SectionList list = { .out = out };
    uint32_t at = out->len;

    put_u32(out, 0);
    qemu_savevm_foreach_device_section(put_section, &list);
    stl_le_p(out->data + at, list.count);
}

static void put_block(GByteArray *out, RAMBlock *rb)
{
    uint32_t pages = 0;
    uint32_t at, i;

    assert(QEMU_IS_ALIGNED(rb->used_length, PAGE_BYTES));
    put_string(out, rb->idstr);
    put_u64(out, rb->used_length);
    at = out->len;
    put_u32(out, 0);
    for (i = 0; i < rb->used_length / PAGE_BYTES; i++) {
        const uint8_t *page = rb->host + (size_t)i * PAGE_BYTES;

        if (!buffer_is_zero(page, PAGE_BYTES)) {
            put_u32(out, i);
            g_byte_array_append(out, page, PAGE_BYTES);
            pages++;
        }
    }
    stl_le_p(out->data + at, pages);
}

static void put_blocks(GByteArray *out, const RAMBlock *main_ram)
{
    uint32_t at = out->len;
    uint32_t count = 0;
    RAMBlock *rb;

    put_u32(out, 0);
    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_MIGRATABLE(rb) {
        if (rb != main_ram) {
            put_block(out, rb);
            count++;
        }
    }
    stl_le_p(out->data + at, count);
}

static bool put_devices(GByteArray *out, Error **errp)
{
    QIOChannelBuffer *ioc = qio_channel_buffer_new(64 * KiB);
    QEMUFile *f = qemu_file_new_output(QIO_CHANNEL(ioc));
    int ret = qemu_save_device_state(f);

    qemu_fflush(f);
    if (!ret) {
        ret = qemu_file_get_error(f);
    }
    if (ret) {
        error_setg(errp, FALCON_WRONG_STATE "a device's state cannot be "
                   "saved (%d)", ret);
    } else {
        put_u64(out, ioc->usage);
        g_byte_array_append(out, ioc->data, ioc->usage);
    }
    object_unref(OBJECT(ioc));
    qemu_fclose(f);
    return !ret;
}

GByteArray *falcon_state_pack(Error **errp)
{
    RAMBlock *main_ram = falcon_main_ram(errp);
    GByteArray *out;

    if (!main_ram) {
        return NULL;
    }
    /* A part of QEMU's device state; what loads it does not look at it. */
    global_state_store_running();
    out = g_byte_array_new();
    g_byte_array_append(out, (const uint8_t *)STATE_MAGIC, 8);
    put_u32(out, STATE_VERSION);
    put_u32(out, 0);
    put_u64(out, 0);

    put_string(out, MACHINE_GET_CLASS(current_machine)->name);
    put_u32(out, current_machine->smp.cpus);
    put_u64(out, main_ram->used_length);
    put_sections(out);
    put_blocks(out, main_ram);
    if (!put_devices(out, errp)) {
        g_byte_array_free(out, true);
        return NULL;
    }
    stq_le_p(out->data + STATE_CHECKED_FROM, out->len);
    stl_le_p(out->data + STATE_CHECKSUM_AT,
             falcon_state_checksum(out->data + STATE_CHECKED_FROM,
                                   out->len - STATE_CHECKED_FROM));
    return out;
}
