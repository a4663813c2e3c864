/*
 * What must not happen to a machine while falcond has it
 *
 * Copyright (c) 2026 The Falcon authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/blocker.h"
#include "qapi/error.h"
#include "falcon.h"
#include "falcon-guard.h"

/* The code that the messages start with is part of the interface. */
#define FALCON_PROTECTED "falcon: GUEST_PROTECTED: "

static unsigned int guarded_ports;
static Error *blocker;

bool falcon_guard_add(Error **errp)
{
    if (guarded_ports == 0) {
        error_setg(&blocker, FALCON_PROTECTED "the guest is attached to "
                   "falcond, which moves its state by itself");
        if (migrate_add_blocker(blocker, errp) < 0) {
            error_free(blocker);
            blocker = NULL;
            return false;
        }
    }
    guarded_ports++;
    return true;
}

void falcon_guard_remove(void)
{
    assert(guarded_ports > 0);
    if (--guarded_ports == 0) {
        migrate_del_blocker(blocker);
        error_free(blocker);
        blocker = NULL;
    }
}

bool falcon_refuses(const char *what, Error **errp)
{
    if (guarded_ports == 0) {
        return false;
    }
    error_setg(errp, FALCON_PROTECTED "no %s while the guest is attached to "
               "falcond", what);
    return true;
}
