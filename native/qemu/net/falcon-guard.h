/*
 * What must not happen to a machine while falcond has it
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef NET_FALCON_GUARD_H
#define NET_FALCON_GUARD_H

/*
 * One more port: migration and snapshots are refused until as many have gone.
 * Returns false with @errp set if the machine must stay migratable.
 */
bool falcon_guard_add(Error **errp);

void falcon_guard_remove(void);

#endif /* NET_FALCON_GUARD_H */
