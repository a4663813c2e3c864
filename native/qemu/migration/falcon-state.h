/*
 * The file of falcon-save-state: what its writer and its reader share
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_FALCON_STATE_H
#define MIGRATION_FALCON_STATE_H

#define STATE_MAGIC "FALCVMST"
#define STATE_VERSION 1
#define STATE_HEADER_BYTES 24
#define STATE_CHECKSUM_AT 12
#define STATE_CHECKED_FROM 16
#define STRING_MAX 255
#define PAGE_BYTES 4096

/* CRC32C */
uint32_t falcon_state_checksum(const uint8_t *data, size_t len);

#endif /* MIGRATION_FALCON_STATE_H */
