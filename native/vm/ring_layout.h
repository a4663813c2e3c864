/*
 * Shared memory between a falcond and its QEMU: the layout of the rings and of the hand-shake.
 *
 * This header is plain C11, included by falcond (C++) and copied into QEMU's tree by the build.
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later OR Apache-2.0
 *
 * Three byte rings, each with one producer and one consumer:
 *   ingress  QEMU -> falcond   frames that the network sent (tap_send)
 *   deliver  falcond -> QEMU   frames that the guest is to see
 *   egress   QEMU -> falcond   frames that the guest sent (tap_receive)
 *
 * `tail` counts the bytes ever produced and `head` the bytes ever consumed; both only grow. A
 * record is an 8-byte header { uint32 length; uint32 flags } and the frame, padded to 8 bytes. A
 * record never wraps: if it does not fit before the end of the ring, the producer writes a header
 * with FALCON_RING_WRAP as its length and goes on at the start.
 *
 * Doorbells are eventfds, one per direction. A side that is going to sleep sets its `waiting` word,
 * looks at the ring once more (with a sequentially consistent fence between) and sleeps. A side
 * that has published looks (after such a fence) whether the other side's word is set, and if so
 * clears it and rings.
 */
#ifndef FALCON_RING_LAYOUT_H
#define FALCON_RING_LAYOUT_H

#include <stdint.h>

#define FALCON_SHM_MAGIC 0x314d48534e434c46ULL /* "FLCNSHM1" */
#define FALCON_LAYOUT_VERSION 1u
#define FALCON_RING_WRAP 0xffffffffu
#define FALCON_RING_RECORD_HEADER 8u
#define FALCON_FRAME_MAX_BYTES 69632u /* QEMU's NET_BUFSIZE: 4096 + 65536 */
#define FALCON_CONTROL_BYTES 4096u

enum {
  FALCON_RING_INGRESS = 0,
  FALCON_RING_DELIVER = 1,
  FALCON_RING_EGRESS = 2,
  FALCON_RING_COUNT = 3
};

/* One cache line per writer, so that the two sides do not fight over lines. */
typedef struct FalconRing {
  /* written by the producer */
  uint64_t tail; /* bytes produced */
  uint64_t produced_frames;
  uint32_t producer_waiting; /* 1: ring the producer when space appears */
  uint32_t pad0[11];
  /* written by the consumer */
  uint64_t head; /* bytes consumed */
  uint64_t consumed_frames;
  uint32_t consumer_waiting; /* 1: ring the consumer when data appears */
  uint32_t pad1[11];
  /* fixed when the memory is made */
  uint64_t offset;   /* of the ring's bytes from the start of the memory */
  uint64_t capacity; /* bytes, a power of two, at least 4 * FALCON_FRAME_MAX_BYTES */
  uint64_t pad2[6];
} FalconRing;

typedef struct FalconShm {
  uint64_t magic;
  uint32_t version;
  uint32_t control_bytes; /* FALCON_CONTROL_BYTES: where the rings' bytes may start */
  uint64_t total_bytes;
  uint64_t pad[5];
  FalconRing ring[FALCON_RING_COUNT];
} FalconShm;

/*
 * The hand-shake, over the SOCK_STREAM unix socket that falcond listens on: QEMU connects and sends
 * a FalconHello; falcond answers with a FalconWelcome and, if status is 0, three descriptors
 * (SCM_RIGHTS): the memory, the eventfd that QEMU rings, the eventfd that falcond rings. The socket
 * stays open for as long as both live: its end is how each side learns of the other's death.
 * Nothing else is sent on it.
 */
#define FALCON_HELLO_MAGIC 0x4f4c4548u   /* "HELO" */
#define FALCON_WELCOME_MAGIC 0x434c4557u /* "WELC" */

enum {
  FALCON_STATUS_OK = 0,
  FALCON_STATUS_VERSION = 1, /* layout versions differ; version says which one falcond speaks */
  FALCON_STATUS_BUSY = 2,    /* another QEMU is attached */
};

typedef struct FalconHello {
  uint32_t magic;
  uint32_t version;
  uint32_t pid;
  uint32_t reserved;
} FalconHello;

typedef struct FalconWelcome {
  uint32_t magic;
  uint32_t version;
  uint32_t status;
  uint32_t reserved;
  uint64_t total_bytes;
} FalconWelcome;

#endif /* FALCON_RING_LAYOUT_H */
