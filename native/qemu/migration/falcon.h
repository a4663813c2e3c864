/*
 * State transfer between the replicas of a virtual machine
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_FALCON_H
#define MIGRATION_FALCON_H

#include "exec/ramblock.h"

/*
 * The codes that error messages of Falcon's commands start with, as in
 * "falcon: GUEST_WRONG_STATE: why".  They are part of the interface.
 */
#define FALCON_WRONG_STATE "falcon: GUEST_WRONG_STATE: "
#define FALCON_STATE_INVALID "falcon: GUEST_STATE_INVALID: "

/*
 * The memory of the machine: the memory backend whose file falcond maps.
 * Returns NULL with @errp set if the machine has none.
 */
RAMBlock *falcon_main_ram(Error **errp);

bool falcon_dirty_log_active(void);

/* Create or truncate the file @path with the @size bytes at @buf. */
bool falcon_write_file(const char *path, const void *buf, size_t size,
                       Error **errp);

/*
 * The whole file @path.  Returns NULL with @errp set if it cannot be read or
 * is larger than @limit bytes; the caller frees what is returned.
 */
uint8_t *falcon_read_file(const char *path, size_t limit, size_t *size,
                          Error **errp);

/* The state of all devices, and all memory but the main RAM, as a file. */
GByteArray *falcon_state_pack(Error **errp);

/*
 * Examine all of @buf before the machine is touched, then load it.  Returns
 * false with @errp set if it was refused; *@touched says whether the machine
 * has been changed by then.
 */
bool falcon_state_unpack(const uint8_t *buf, size_t size, bool *touched,
                         Error **errp);

#endif /* MIGRATION_FALCON_H */
