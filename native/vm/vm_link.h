// The unix socket on which QEMU attaches to its falcond: the hand-shake of vm/ring_layout.h, and
// the watch for the other side's death. Never blocks; the reactor sleeps on its descriptors.
#pragma once

#include <string>

#include "os/status.h"
#include "os/unique_fd.h"
#include "vm/vm_rings.h"

namespace falcon {

class VmLink {
 public:
  enum class Happened { kNothing, kAttached, kDetached, kRefused };

  ~VmLink();
  // Listens on `path` (mode 0600, an old socket file is replaced). Errors: VM_LINK.
  Status Listen(const std::string& path, VmRings* rings);
  // Accepts, answers, notices the end. Call when a descriptor is readable.
  Happened Poll();
  // Lets one QEMU attach, or none. A QEMU that comes while none is expected is refused as busy.
  void Expect(bool expected) { expected_ = expected; }
  [[nodiscard]] bool attached() const { return attached_; }
  [[nodiscard]] int listen_fd() const { return listener_.get(); }
  [[nodiscard]] int connection_fd() const { return connection_.get(); }

 private:
  Happened Accept();
  Happened Answer();

  std::string path_;
  VmRings* rings_ = nullptr;
  UniqueFd listener_;
  UniqueFd connection_;
  bool attached_ = false;
  bool expected_ = false;
};

}  // namespace falcon
