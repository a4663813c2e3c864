// The guest of a simulated replica: the built-in service with a memory. It writes pages as it takes
// frames, at places and with contents that follow from the frames alone, as a service's data does;
// and others by noise of its own, as an operating system's do, which no other replica's guest
// shares. It keeps its own dirty log, as QEMU does: what others write to the memory is not in it.
#pragma once

#include <cstdint>
#include <string>

#include "os/status.h"
#include "pages/guest_memory.h"
#include "pages/page_set.h"
#include "vm/builtin_service.h"

namespace falcon::addon {

class SimGuest {
 public:
  BuiltinService& service() { return service_; }
  [[nodiscard]] const BuiltinService& service() const { return service_; }

  // A new guest with a new memory, in a file that must not exist. Errors: GUEST_MEMORY.
  Status Start(const std::string& path, size_t pages, uint64_t seed);
  // No guest is there; its file is left to whoever named it.
  void Stop();
  // While it stands still it takes no frame and writes no page.
  void Run(bool run) { running_ = run; }
  // What happens in one step. Returns frames taken.
  int Poll();

  // Pages count as clean from now on.
  void LogDirty() { dirty_ = PageSet(memory_.pages()); }
  // The pages written since the last call, as bytes; they count as clean then.
  [[nodiscard]] PageSet TakeDirty();

 private:
  void WritePage(size_t page, uint64_t word, uint64_t value);
  uint64_t Noise();

  BuiltinService service_;
  GuestMemory memory_;
  PageSet dirty_;
  bool running_ = false;
  uint64_t noise_ = 0;  // state of the generator
};

}  // namespace falcon::addon
