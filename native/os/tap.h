// A tap device: frames in and out of this host's network.
#pragma once

#include <string>

#include "os/status.h"
#include "os/unique_fd.h"

namespace falcon {

// Opens (and makes, if it is not there) the tap `name` of this network namespace: one queue, whole
// Ethernet frames without headers of the kernel's own, not blocking. Errors: TAP_OPEN.
Status OpenTap(const std::string& name, UniqueFd* tap);

}  // namespace falcon
