#include "os/tap.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>

namespace falcon {

Status OpenTap(const std::string& name, UniqueFd* tap) {
  ifreq request{};
  if (name.empty() || name.size() >= sizeof request.ifr_name)
    return {"TAP_OPEN", "bad tap name: " + name};
  UniqueFd fd(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return {"TAP_OPEN", ErrnoText("open /dev/net/tun", errno)};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  std::memcpy(request.ifr_name, name.c_str(), name.size() + 1);
  if (ioctl(fd.get(), TUNSETIFF, &request) != 0)
    return {"TAP_OPEN", ErrnoText("attach to tap " + name, errno)};
  *tap = std::move(fd);
  return Ok();
}

}  // namespace falcon
