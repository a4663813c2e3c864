/*
 * Falcon ports: a tap whose frames go through falcond
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FALCON_H
#define NET_FALCON_H

#include "net/net.h"
#include "qapi/qapi-types-falcon.h"

typedef struct FalconPort FalconPort;

/* Tells the tap whether frames may be read from it now. */
typedef void FalconTapPoll(NetClientState *nc, bool enable);

/*
 * Attach @nc to the falcond that listens on the unix socket @path; blocks for
 * at most five seconds.  @tap_poll is called whenever reading from the tap is
 * to start or to stop; at first it is stopped, until the guest runs.
 *
 * Returns NULL with @errp set if there is no usable falcond.  If falcond goes
 * away later, the guest is stopped and QEMU exits with status 1.
 */
FalconPort *falcon_attach(NetClientState *nc, const char *path,
                          FalconTapPoll *tap_poll, Error **errp);

/* Close all that the port has open.  @port may be NULL. */
void falcon_detach(FalconPort *port);

/* Is there room for one more frame of any size from the network? */
bool falcon_ingress_ready(FalconPort *port);

/*
 * Pass a frame that the network sent to falcond.  Only allowed after
 * falcon_ingress_ready() has returned true.
 */
void falcon_ingress(FalconPort *port, const uint8_t *buf, size_t size);

/*
 * Pass a frame that the guest sent to falcond.  Returns its size, or 0 if there
 * is no room: then the queue of the net client is flushed when there is.
 */
ssize_t falcon_egress(FalconPort *port, const struct iovec *iov, int iovcnt);

/* Is @nc attached to a falcond? */
bool falcon_is_attached(NetClientState *nc);

/*
 * Returns true with @errp set if some net client is attached to a falcond:
 * then @what would make this replica differ from the others.
 */
bool falcon_refuses(const char *what, Error **errp);

/*
 * Take deliver and egress rings up from their beginnings, where falcond has
 * made them empty.  Only while the guest does not run.
 */
void falcon_restart_rings(void);

/* The state of all ports; the caller frees it. */
FalconPortInfoList *falcon_port_infos(void);

#endif /* NET_FALCON_H */
