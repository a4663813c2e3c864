/*
 * The hand-shake with falcond
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FALCON_CONNECT_H
#define NET_FALCON_CONNECT_H

#include "net/falcon-ring-layout.h"

/* What falcond has handed over, checked; all of it belongs to the receiver. */
typedef struct FalconConnection {
    int sock;
    int to_falcond;             /* eventfd that QEMU rings */
    int to_qemu;                /* eventfd that falcond rings */
    FalconShm *shm;
    uint64_t shm_bytes;
    uint64_t offset[FALCON_RING_COUNT];
    uint64_t capacity[FALCON_RING_COUNT];
    uint64_t tail[FALCON_RING_COUNT];
    uint64_t head[FALCON_RING_COUNT];
} FalconConnection;

/*
 * Connect to the falcond that listens on @path.  Blocks for at most five
 * seconds.  Returns 0, or -1 with @errp set and nothing left open.
 */
int falcon_connect(FalconConnection *conn, const char *path, Error **errp);

void falcon_disconnect(FalconConnection *conn);

#endif /* NET_FALCON_CONNECT_H */
