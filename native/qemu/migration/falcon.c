/*
 * QMP commands for falcond: what this machine is, and its state as a file
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/ram_addr.h"
#include "net/falcon.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-falcon.h"
#include "qapi/qapi-commands-run-state.h"
#include "qemu/error-report.h"
#include "qemu/rcu.h"
#include "qemu/units.h"
#include "falcon.h"
#include "ram.h"
#include "savevm.h"
#include "trace.h"

/* Device state takes kilobytes; the rest is ROMs, tables and video memory. */
#define STATE_LIMIT_BYTES (256 * MiB)

bool falcon_write_file(const char *path, const void *buf, size_t size,
                       Error **errp)
{
    int fd = qemu_create(path, O_WRONLY | O_TRUNC | O_BINARY, 0600, errp);
    bool written;

    if (fd < 0) {
        return false;
    }
    written = qemu_write_full(fd, buf, size) == size;
    if (!written) {
        error_setg_errno(errp, errno, "cannot write '%s'", path);
    }
    /* Errors of memory file systems come with the write. */
    qemu_close(fd);
    return written;
}

static bool read_full(int fd, uint8_t *buf, size_t size)
{
    while (size > 0) {
        ssize_t len = TEMP_FAILURE_RETRY(read(fd, buf, size));

        if (len <= 0) {
            return false;
        }
        buf += len;
        size -= len;
    }
    return true;
}

uint8_t *falcon_read_file(const char *path, size_t limit, size_t *size,
                          Error **errp)
{
    int fd = qemu_open(path, O_RDONLY | O_BINARY | O_NONBLOCK, errp);
    uint8_t *buf = NULL;
    struct stat st;

    if (fd < 0) {
        return NULL;
    }
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        error_setg(errp, FALCON_STATE_INVALID "'%s' is no file", path);
    } else if (st.st_size > limit) {
        error_setg(errp, FALCON_STATE_INVALID "'%s' has %" PRId64 " bytes, "
                   "more than %zu", path, (int64_t)st.st_size, limit);
    } else {
        *size = st.st_size;
        buf = g_malloc(*size + 1);
        if (!read_full(fd, buf, *size)) {
            error_setg(errp, FALCON_STATE_INVALID "'%s' cannot be read", path);
            g_free(buf);
            buf = NULL;
        }
    }
    qemu_close(fd);
    return buf;
}

static RunState run_state(void)
{
    g_autoptr(StatusInfo) info = qmp_query_status(&error_abort);

    return info->status;
}

static bool check_paused(Error **errp)
{
    RunState state = run_state();

    if (state != RUN_STATE_PAUSED && state != RUN_STATE_PRELAUNCH) {
        error_setg(errp, FALCON_WRONG_STATE "the guest is not paused but '%s'",
                   RunState_str(state));
        return false;
    }
    if (qemu_savevm_state_blocked(errp)) {
        error_prepend(errp, FALCON_WRONG_STATE);
        return false;
    }
    return true;
}

static FalconStateSize *state_size(uint64_t bytes)
{
    FalconStateSize *result = g_new0(FalconStateSize, 1);

    result->bytes = bytes;
    return result;
}

FalconStateSize *qmp_falcon_save_state(const char *path, Error **errp)
{
    g_autoptr(GByteArray) state = NULL;

    if (!check_paused(errp)) {
        return NULL;
    }
    state = falcon_state_pack(errp);
    if (!state || !falcon_write_file(path, state->data, state->len, errp)) {
        return NULL;
    }
    trace_falcon_state_saved(state->len);
    return state_size(state->len);
}

/*
 * A device can refuse its state when others have been loaded already.  So the
 * machine's own state is kept, and taken back then.
 */
static bool load_or_take_back(const uint8_t *buf, size_t size, Error **errp)
{
    g_autoptr(GByteArray) own = falcon_state_pack(errp);
    Error *err = NULL;
    bool touched;

    if (!own) {
        return false;
    }
    if (falcon_state_unpack(buf, size, &touched, errp)) {
        return true;
    }
    if (touched && !falcon_state_unpack(own->data, own->len, &touched, &err)) {
        error_reportf_err(err, "falcon: cannot take back the guest's own "
                          "state, exiting: ");
        exit(EXIT_FAILURE);
    }
    return false;
}

FalconStateSize *qmp_falcon_load_state(const char *path, Error **errp)
{
    g_autofree uint8_t *buf = NULL;
    size_t size;

    if (!check_paused(errp)) {
        return NULL;
    }
    buf = falcon_read_file(path, STATE_LIMIT_BYTES, &size, errp);
    if (!buf || !load_or_take_back(buf, size, errp)) {
        return NULL;
    }
    trace_falcon_state_loaded(size);
    return state_size(size);
}

void qmp_falcon_restart_rings(Error **errp)
{
    if (check_paused(errp)) {
        falcon_restart_rings();
    }
}

static FalconRamBlockList *ram_blocks(void)
{
    RAMBlock *main_ram = falcon_main_ram(NULL);
    FalconRamBlockList *list = NULL;
    RAMBlock *rb;

    RCU_READ_LOCK_GUARD();
    RAMBLOCK_FOREACH_MIGRATABLE(rb) {
        FalconRamBlock *block = g_new0(FalconRamBlock, 1);

        block->idstr = g_strdup(rb->idstr);
        block->bytes = rb->used_length;
        block->main = rb == main_ram;
        QAPI_LIST_PREPEND(list, block);
    }
    return list;
}

FalconInfo *qmp_query_falcon(Error **errp)
{
    FalconInfo *info = g_new0(FalconInfo, 1);

    info->ports = falcon_port_infos();
    info->attached = info->ports != NULL;
    info->status = run_state();
    info->dirty_log = falcon_dirty_log_active();
    info->ram_blocks = ram_blocks();
    return info;
}
