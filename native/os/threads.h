// Threads with names, so that an operator sees in top who takes the processor; and rests, for those
// that share it.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <thread>

#include "os/clock.h"

namespace falcon {

// Of the calling thread; at most 15 characters.
void NameThread(const std::string& name);

// A thread that does its work when others leave it a processor: not a realtime one even if the one
// that calls is, and not interrupted by signals, which are for the threads that were there before.
[[nodiscard]] std::thread StartOrdinaryThread(const std::string& name, std::function<void()> run);

// For long work beside threads that matter more: half of the time is theirs.
class Rests {
 public:
  // Of how many pieces of work there is a rest.
  explicit Rests(size_t every) : every_(every) {}
  // So many pieces are done. True if that was the time for a rest, as long as the work before it.
  bool Did(size_t pieces);

 private:
  size_t every_;
  size_t done_ = 0;
  Nanoseconds began_ = MonotonicNow();
};

}  // namespace falcon
