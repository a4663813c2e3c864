/*
 * One end of a ring in the memory shared with falcond
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/iov.h"
#include "falcon-ring.h"

typedef struct FalconRecordHeader {
    uint32_t length;
    uint32_t flags;
} FalconRecordHeader;

QEMU_BUILD_BUG_ON(sizeof(FalconRecordHeader) != FALCON_RING_RECORD_HEADER);

#define RECORD_ALIGN 8

static uint64_t record_bytes(size_t size)
{
    return ROUND_UP(sizeof(FalconRecordHeader) + size, RECORD_ALIGN);
}

void falcon_ring_init(FalconRingEnd *end, const char *name, FalconRing *shared,
                      uint8_t *bytes, uint64_t capacity, uint64_t position,
                      bool producer)
{
    end->name = name;
    end->shared = shared;
    end->bytes = bytes;
    end->capacity = capacity;
    end->position = position;
    end->frames = producer ? qatomic_read(&shared->produced_frames)
                           : qatomic_read(&shared->consumed_frames);
}

static uint64_t checked_used(const FalconRingEnd *end, uint64_t tail,
                             uint64_t head)
{
    uint64_t used = tail - head;

    if (used > end->capacity || !QEMU_IS_ALIGNED(tail, RECORD_ALIGN) ||
        !QEMU_IS_ALIGNED(head, RECORD_ALIGN)) {
        return UINT64_MAX;
    }
    return used;
}

uint64_t falcon_ring_used(const FalconRingEnd *end)
{
    /* The head first: it can only have come closer to the tail read later. */
    uint64_t head = qatomic_load_acquire(&end->shared->head);
    uint64_t tail = qatomic_load_acquire(&end->shared->tail);

    return checked_used(end, tail, head);
}

/* As the producer sees it: the acquire orders our writes after its reads. */
static uint64_t producer_used(const FalconRingEnd *end)
{
    return checked_used(end, end->position,
                        qatomic_load_acquire(&end->shared->head));
}

/*
 * A record never wraps, so what is left before the end of the ring is skipped
 * when the record does not fit there.
 */
static uint64_t skipped_bytes(const FalconRingEnd *end, uint64_t record)
{
    uint64_t left = end->capacity - (end->position & (end->capacity - 1));

    return left < record ? left : 0;
}

static FalconRingResult reserve(const FalconRingEnd *end, uint64_t record)
{
    uint64_t used = producer_used(end);

    if (used == UINT64_MAX) {
        return FALCON_RING_CORRUPT;
    }
    return end->capacity - used < skipped_bytes(end, record) + record
           ? FALCON_RING_NOT_NOW : FALCON_RING_DONE;
}

FalconRingResult falcon_ring_has_room(const FalconRingEnd *end)
{
    return reserve(end, record_bytes(FALCON_FRAME_MAX_BYTES));
}

static void write_header(FalconRingEnd *end, uint32_t length)
{
    FalconRecordHeader header = { .length = length };
    uint64_t offset = end->position & (end->capacity - 1);

    memcpy(end->bytes + offset, &header, sizeof(header));
}

FalconRingResult falcon_ring_produce(FalconRingEnd *end,
                                     const struct iovec *iov, int iovcnt,
                                     size_t size)
{
    uint64_t record = record_bytes(size);
    uint64_t skipped = skipped_bytes(end, record);
    uint64_t offset;
    FalconRingResult result;

    assert(size > 0 && size <= FALCON_FRAME_MAX_BYTES);

    result = reserve(end, record);
    if (result != FALCON_RING_DONE) {
        return result;
    }

    if (skipped) {
        write_header(end, FALCON_RING_WRAP);
        end->position += skipped;
    }
    write_header(end, size);
    offset = (end->position & (end->capacity - 1)) + sizeof(FalconRecordHeader);
    iov_to_buf(iov, iovcnt, 0, end->bytes + offset, size);

    end->position += record;
    end->frames++;
    qatomic_set(&end->shared->produced_frames, end->frames);
    qatomic_store_release(&end->shared->tail, end->position);
    return FALCON_RING_DONE;
}

static void publish_head(FalconRingEnd *end, uint64_t bytes)
{
    end->position += bytes;
    qatomic_set(&end->shared->consumed_frames, end->frames);
    qatomic_store_release(&end->shared->head, end->position);
}

FalconRingResult falcon_ring_peek(FalconRingEnd *end, uint8_t *frame,
                                  size_t *size)
{
    uint64_t tail = qatomic_load_acquire(&end->shared->tail);
    uint64_t used = checked_used(end, tail, end->position);
    uint64_t offset = end->position & (end->capacity - 1);
    FalconRecordHeader header;

    if (used == UINT64_MAX) {
        return FALCON_RING_CORRUPT;
    }
    if (used == 0) {
        return FALCON_RING_NOT_NOW;
    }

    memcpy(&header, end->bytes + offset, sizeof(header));
    if (header.length == FALCON_RING_WRAP) {
        /* A mark is published together with the record that follows it. */
        if (end->capacity - offset >= used) {
            return FALCON_RING_CORRUPT;
        }
        used -= end->capacity - offset;
        publish_head(end, end->capacity - offset);
        offset = 0;
        memcpy(&header, end->bytes, sizeof(header));
    }

    if (header.length == 0 || header.length > FALCON_FRAME_MAX_BYTES ||
        record_bytes(header.length) > MIN(used, end->capacity - offset)) {
        return FALCON_RING_CORRUPT;
    }
    memcpy(frame, end->bytes + offset + sizeof(header), header.length);
    *size = header.length;
    return FALCON_RING_DONE;
}

void falcon_ring_consume(FalconRingEnd *end, size_t size)
{
    end->frames++;
    publish_head(end, record_bytes(size));
}
