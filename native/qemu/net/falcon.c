/*
 * Falcon ports: a tap whose frames go through falcond
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * All replicas of a virtual machine must see the same frames in the same
 * order.  So a frame that the network sends does not go to the NIC: it goes
 * into the ingress ring, falcond has it ordered by a log that the replicas
 * share, and what comes back in the deliver ring is what the guest sees.  What
 * the guest sends goes into the egress ring, and falcond decides whether the
 * network hears it.
 *
 * A full ring stops its source and loses nothing: reading from the tap stops,
 * or the frame stays in QEMU's queue in front of the NIC's transmitter.  A NIC
 * that cannot take a frame stops the deliver ring, whose head moves only after
 * the NIC has accepted the frame; so head == tail tells falcond that the guest
 * has been given everything.
 *
 * Without its falcond a replica must be silent: QEMU exits when the socket
 * ends, and when the shared memory is not what it should be.
 *
 * Everything here runs under the big QEMU lock.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "net/eth.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"
#include "qemu/queue.h"
#include "qemu/sockets.h"
#include "qemu/thread.h"
#include "sysemu/runstate.h"
#include "falcon.h"
#include "falcon-connect.h"
#include "falcon-guard.h"
#include "falcon-ring.h"
#include "trace.h"

/* As many frames per callback as tap_send() moves, for the same reason. */
#define FALCON_BURST_FRAMES 50
#define FALCON_EXIT_LIMIT_S 3

QEMU_BUILD_BUG_ON(FALCON_FRAME_MAX_BYTES < NET_BUFSIZE);

struct FalconPort {
    NetClientState *nc;
    FalconTapPoll *tap_poll;
    FalconConnection conn;
    FalconRingEnd ingress;
    FalconRingEnd deliver;
    FalconRingEnd egress;
    QEMUBH *deliver_bh;
    VMChangeStateEntry *vm_state;
    bool running;
    bool ingress_blocked;
    bool egress_blocked;
    bool deliver_blocked;       /* the NIC's queue holds frame[] for now */
    size_t frame_bytes;         /* of the record that frame[] came from */
    uint8_t frame[FALCON_FRAME_MAX_BYTES];
    QLIST_ENTRY(FalconPort) next;
};

static QLIST_HEAD(, FalconPort) falcon_ports =
    QLIST_HEAD_INITIALIZER(falcon_ports);

static FalconPort *falcon_find(NetClientState *nc)
{
    FalconPort *port;

    QLIST_FOREACH(port, &falcon_ports, next) {
        if (port->nc == nc) {
            return port;
        }
    }
    return NULL;
}

static void *falcon_exit_limit(void *opaque)
{
    g_usleep(FALCON_EXIT_LIMIT_S * G_USEC_PER_SEC);
    _exit(EXIT_FAILURE);
}

/*
 * Stopping the guest may wait for a disk, and a replica must not wait for a
 * disk before it goes: a thread of its own bounds the time that it takes.
 */
static G_NORETURN void falcon_exit(void)
{
    QemuThread limit;

    qemu_thread_create(&limit, "falcon-exit", falcon_exit_limit, NULL,
                       QEMU_THREAD_DETACHED);
    if (runstate_is_running()) {
        vm_stop(RUN_STATE_IO_ERROR);
    }
    exit(EXIT_FAILURE);
}

static G_NORETURN void falcon_corrupt(FalconPort *port,
                                      const FalconRingEnd *end)
{
    error_report("falcon: netdev '%s': the %s ring is corrupt at byte %" PRIu64
                 ", exiting", port->nc->name, end->name, end->position);
    falcon_exit();
}

/* Doorbells */

static void falcon_ring_doorbell(FalconPort *port)
{
    const uint64_t one = 1;
    ssize_t len = TEMP_FAILURE_RETRY(write(port->conn.to_falcond, &one,
                                           sizeof(one)));

    /* EAGAIN means that it has been ringing for very long already. */
    if (len < 0 && errno != EAGAIN) {
        error_report("falcon: netdev '%s': cannot ring falcond: %s, exiting",
                     port->nc->name, strerror(errno));
        falcon_exit();
    }
}

/* After a publication: wake falcond up if its @waiting word says so. */
static void falcon_wake(FalconPort *port, uint32_t *waiting)
{
    /* Pairs with the barrier of a falcond that arms its word and looks again */
    smp_mb();
    if (qatomic_read(waiting) && qatomic_xchg(waiting, 0)) {
        falcon_ring_doorbell(port);
    }
}

/* Before a second look at a ring and going to sleep. */
static void falcon_arm(uint32_t *waiting)
{
    qatomic_set(waiting, 1);
    /* Pairs with the barrier of a falcond that publishes and looks here */
    smp_mb();
}

/* Ingress: tap to falcond */

static void falcon_update_tap(FalconPort *port)
{
    port->tap_poll(port->nc, port->running && !port->ingress_blocked);
}

static bool falcon_ingress_has_room(FalconPort *port)
{
    FalconRingResult result = falcon_ring_has_room(&port->ingress);

    if (result == FALCON_RING_CORRUPT) {
        falcon_corrupt(port, &port->ingress);
    }
    return result == FALCON_RING_DONE;
}

bool falcon_ingress_ready(FalconPort *port)
{
    uint32_t *waiting = &port->ingress.shared->producer_waiting;

    if (falcon_ingress_has_room(port)) {
        return true;
    }
    falcon_arm(waiting);
    if (falcon_ingress_has_room(port)) {
        qatomic_set(waiting, 0);
        return true;
    }
    trace_falcon_ingress_full(port->nc->name, port->ingress.frames);
    port->ingress_blocked = true;
    falcon_update_tap(port);
    return false;
}

void falcon_ingress(FalconPort *port, const uint8_t *buf, size_t size)
{
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = size };

    /* The caller has looked for room, and room only grows. */
    if (falcon_ring_produce(&port->ingress, &iov, 1, size) !=
        FALCON_RING_DONE) {
        falcon_corrupt(port, &port->ingress);
    }
    falcon_wake(port, &port->ingress.shared->consumer_waiting);
}

static void falcon_ingress_retry(FalconPort *port)
{
    if (!port->ingress_blocked || !port->running) {
        return;
    }
    if (falcon_ingress_ready(port)) {
        port->ingress_blocked = false;
        falcon_update_tap(port);
    }
}

/* Egress: guest to falcond */

static bool falcon_egress_try(FalconPort *port, const struct iovec *iov,
                              int iovcnt, size_t size)
{
    FalconRingResult result = falcon_ring_produce(&port->egress, iov, iovcnt,
                                                  size);

    if (result == FALCON_RING_CORRUPT) {
        falcon_corrupt(port, &port->egress);
    }
    return result == FALCON_RING_DONE;
}

ssize_t falcon_egress(FalconPort *port, const struct iovec *iov, int iovcnt)
{
    uint32_t *waiting = &port->egress.shared->producer_waiting;
    size_t size = iov_size(iov, iovcnt);

    if (size == 0) {
        return -1;
    }
    if (size > FALCON_FRAME_MAX_BYTES) {
        error_report("falcon: netdev '%s': the guest sent a frame of %zu "
                     "bytes, more than %u, exiting", port->nc->name, size,
                     FALCON_FRAME_MAX_BYTES);
        falcon_exit();
    }

    if (!falcon_egress_try(port, iov, iovcnt, size)) {
        falcon_arm(waiting);
        if (!falcon_egress_try(port, iov, iovcnt, size)) {
            trace_falcon_egress_full(port->nc->name, port->egress.frames);
            port->egress_blocked = true;
            return 0;
        }
        qatomic_set(waiting, 0);
    }
    falcon_wake(port, &port->egress.shared->consumer_waiting);
    return size;
}

static void falcon_egress_retry(FalconPort *port)
{
    if (port->egress_blocked) {
        port->egress_blocked = false;
        qemu_flush_queued_packets(port->nc);
    }
}

/* Deliver: falcond to guest */

static void falcon_delivered(FalconPort *port)
{
    falcon_ring_consume(&port->deliver, port->frame_bytes);
    falcon_wake(port, &port->deliver.shared->producer_waiting);
}

/*
 * The NIC has taken the frame that it was not ready for.  Or, with @len 0 or
 * less, it has not: a guest that stops has QEMU force queued frames upon its
 * NICs, ready or not, and drop what they refuse.  Then the frame is still ours,
 * to be sent again when the guest runs.
 */
static void falcon_deliver_completed(NetClientState *nc, ssize_t len)
{
    FalconPort *port = falcon_find(nc);

    assert(port && port->deliver_blocked);
    port->deliver_blocked = false;
    if (len > 0) {
        falcon_delivered(port);
    }
    qemu_bh_schedule(port->deliver_bh);
}

static ssize_t falcon_send_to_nic(FalconPort *port)
{
    uint8_t min_pkt[ETH_ZLEN];
    size_t min_pktsz = sizeof(min_pkt);
    const uint8_t *buf = port->frame;
    size_t size = port->frame_bytes;

    if (net_peer_needs_padding(port->nc) &&
        eth_pad_short_frame(min_pkt, &min_pktsz, buf, size)) {
        buf = min_pkt;
        size = min_pktsz;
    }
    return qemu_send_packet_async(port->nc, buf, size,
                                  falcon_deliver_completed);
}

static bool falcon_deliver_peek(FalconPort *port)
{
    FalconRingResult result = falcon_ring_peek(&port->deliver, port->frame,
                                               &port->frame_bytes);

    if (result == FALCON_RING_CORRUPT) {
        falcon_corrupt(port, &port->deliver);
    }
    return result == FALCON_RING_DONE;
}

/* Is there a frame?  If not, falcond has been asked to ring for the next. */
static bool falcon_deliver_next(FalconPort *port)
{
    uint32_t *waiting = &port->deliver.shared->consumer_waiting;

    if (falcon_deliver_peek(port)) {
        return true;
    }
    falcon_arm(waiting);
    if (falcon_deliver_peek(port)) {
        qatomic_set(waiting, 0);
        return true;
    }
    return false;
}

static void falcon_deliver(void *opaque)
{
    FalconPort *port = opaque;
    int frames;

    if (!port->running || port->deliver_blocked) {
        return;
    }
    for (frames = 0; frames < FALCON_BURST_FRAMES; frames++) {
        if (!falcon_deliver_next(port)) {
            return;
        }
        if (falcon_send_to_nic(port) == 0) {
            trace_falcon_deliver_blocked(port->nc->name, port->deliver.frames);
            port->deliver_blocked = true;
            return;
        }
        falcon_delivered(port);
    }
    qemu_bh_schedule(port->deliver_bh);
}

/* Events */

static void falcon_doorbell(void *opaque)
{
    FalconPort *port = opaque;
    uint64_t count;
    ssize_t len = TEMP_FAILURE_RETRY(read(port->conn.to_qemu, &count,
                                          sizeof(count)));

    if (len < 0 && errno != EAGAIN) {
        error_report("falcon: netdev '%s': cannot read the doorbell: %s, "
                     "exiting", port->nc->name, strerror(errno));
        falcon_exit();
    }
    falcon_ingress_retry(port);
    falcon_egress_retry(port);
    falcon_deliver(port);
}

static void falcon_socket_event(void *opaque)
{
    FalconPort *port = opaque;
    char byte;
    ssize_t len = TEMP_FAILURE_RETRY(recv(port->conn.sock, &byte, 1, 0));

    if (len < 0 && errno == EAGAIN) {
        return;
    }
    trace_falcon_gone(port->nc->name, len);
    error_report("falcon: netdev '%s': falcond %s, exiting", port->nc->name,
                 len > 0 ? "broke the protocol" : "is gone");
    falcon_exit();
}

static void falcon_set_running(FalconPort *port, bool running)
{
    trace_falcon_vm_state(port->nc->name, running);
    port->running = running;
    falcon_update_tap(port);
    if (running) {
        /* The doorbell may have rung in vain while the guest was stopped. */
        falcon_ingress_retry(port);
        falcon_egress_retry(port);
        qemu_bh_schedule(port->deliver_bh);
    }
}

static void falcon_vm_state(void *opaque, bool running, RunState state)
{
    falcon_set_running(opaque, running);
}

/* Life */

static void falcon_init_ring(FalconPort *port, FalconRingEnd *end, int index,
                             const char *name, bool producer)
{
    FalconConnection *conn = &port->conn;

    falcon_ring_init(end, name, &conn->shm->ring[index],
                     (uint8_t *)conn->shm + conn->offset[index],
                     conn->capacity[index],
                     producer ? conn->tail[index] : conn->head[index],
                     producer);
}

FalconPort *falcon_attach(NetClientState *nc, const char *path,
                          FalconTapPoll *tap_poll, Error **errp)
{
    FalconPort *port;

    if (!falcon_guard_add(errp)) {
        return NULL;
    }
    port = g_new0(FalconPort, 1);
    if (falcon_connect(&port->conn, path, errp) < 0) {
        g_free(port);
        falcon_guard_remove();
        return NULL;
    }
    port->nc = nc;
    port->tap_poll = tap_poll;
    falcon_init_ring(port, &port->ingress, FALCON_RING_INGRESS, "ingress",
                     true);
    falcon_init_ring(port, &port->deliver, FALCON_RING_DELIVER, "deliver",
                     false);
    falcon_init_ring(port, &port->egress, FALCON_RING_EGRESS, "egress", true);
    QLIST_INSERT_HEAD(&falcon_ports, port, next);

    /*
     * Not in the context that block layer code polls while it waits: a NIC
     * must not receive in the middle of a synchronous disk request.
     */
    port->deliver_bh = aio_bh_new(iohandler_get_aio_context(), falcon_deliver,
                                  port);
    port->vm_state = qemu_add_vm_change_state_handler(falcon_vm_state, port);
    qemu_set_fd_handler(port->conn.to_qemu, falcon_doorbell, NULL, port);
    qemu_set_fd_handler(port->conn.sock, falcon_socket_event, NULL, port);

    trace_falcon_attached(nc->name, path, port->conn.shm_bytes);
    falcon_set_running(port, runstate_is_running());
    return port;
}

void falcon_detach(FalconPort *port)
{
    if (!port) {
        return;
    }
    qemu_set_fd_handler(port->conn.sock, NULL, NULL, NULL);
    qemu_set_fd_handler(port->conn.to_qemu, NULL, NULL, NULL);
    qemu_del_vm_change_state_handler(port->vm_state);
    qemu_bh_delete(port->deliver_bh);
    QLIST_REMOVE(port, next);
    falcon_disconnect(&port->conn);
    g_free(port);
    falcon_guard_remove();
}

static void falcon_restart_ring(FalconRingEnd *end, bool producer)
{
    falcon_ring_init(end, end->name, end->shared, end->bytes, end->capacity, 0,
                     producer);
}

void falcon_restart_rings(void)
{
    FalconPort *port;

    QLIST_FOREACH(port, &falcon_ports, next) {
        assert(!port->running);
        /* What the guest of before has sent is nobody's any more. */
        if (port->nc->peer) {
            qemu_purge_queued_packets(port->nc->peer);
        }
        port->egress_blocked = false;
        falcon_restart_ring(&port->deliver, false);
        falcon_restart_ring(&port->egress, true);
    }
}

bool falcon_is_attached(NetClientState *nc)
{
    return falcon_find(nc) != NULL;
}

static FalconRingInfo *falcon_ring_info(const FalconRingEnd *end)
{
    FalconRingInfo *info = g_new0(FalconRingInfo, 1);

    info->produced_frames = qatomic_read(&end->shared->produced_frames);
    info->consumed_frames = qatomic_read(&end->shared->consumed_frames);
    info->used_bytes = MIN(falcon_ring_used(end), end->capacity);
    info->capacity = end->capacity;
    return info;
}

FalconPortInfoList *falcon_port_infos(void)
{
    FalconPortInfoList *list = NULL;
    FalconPort *port;

    QLIST_FOREACH(port, &falcon_ports, next) {
        FalconPortInfo *info = g_new0(FalconPortInfo, 1);

        info->id = g_strdup(port->nc->name);
        info->running = port->running;
        info->layout_version = FALCON_LAYOUT_VERSION;
        info->ingress = falcon_ring_info(&port->ingress);
        info->deliver = falcon_ring_info(&port->deliver);
        info->egress = falcon_ring_info(&port->egress);
        QAPI_LIST_PREPEND(list, info);
    }
    return list;
}
