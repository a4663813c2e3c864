/*
 * One end of a ring in the memory shared with falcond
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * QEMU owns the tail of the rings that it fills and the head of the ring that
 * it empties.  It keeps these in private memory and only ever publishes them,
 * so that nothing that the other side writes can move them; what the other
 * side owns is read once and checked before it is used.
 */

#ifndef NET_FALCON_RING_H
#define NET_FALCON_RING_H

#include "net/falcon-ring-layout.h"

typedef struct FalconRingEnd {
    const char *name;
    FalconRing *shared;
    uint8_t *bytes;
    uint64_t capacity;
    uint64_t position;          /* our tail or head, in bytes since the start */
    uint64_t frames;            /* produced or consumed through this end */
} FalconRingEnd;

typedef enum FalconRingResult {
    FALCON_RING_DONE,
    FALCON_RING_NOT_NOW,        /* full for a producer, empty for a consumer */
    FALCON_RING_CORRUPT,        /* the shared memory breaks its own rules */
} FalconRingResult;

/*
 * Take over one end of @shared, whose bytes are at @bytes.  @capacity and
 * @position, the tail for a producer and the head for a consumer, are the
 * checked ones; the shared words are not read again.
 */
void falcon_ring_init(FalconRingEnd *end, const char *name, FalconRing *shared,
                      uint8_t *bytes, uint64_t capacity, uint64_t position,
                      bool producer);

/* Bytes between head and tail, or UINT64_MAX if the two make no sense. */
uint64_t falcon_ring_used(const FalconRingEnd *end);

/* Is there room for a frame of any allowed size, wherever the tail stands? */
FalconRingResult falcon_ring_has_room(const FalconRingEnd *end);

/* Copy a frame of @size bytes into the ring and publish it. */
FalconRingResult falcon_ring_produce(FalconRingEnd *end,
                                     const struct iovec *iov, int iovcnt,
                                     size_t size);

/*
 * Copy the oldest frame into @frame, which holds FALCON_FRAME_MAX_BYTES bytes,
 * and leave it in the ring: falcon_ring_consume() takes it out.
 */
FalconRingResult falcon_ring_peek(FalconRingEnd *end, uint8_t *frame,
                                  size_t *size);

/* Give the room of a frame of @size bytes, seen by the last peek, back. */
void falcon_ring_consume(FalconRingEnd *end, size_t size);

#endif /* NET_FALCON_RING_H */
