// Threads with names, so that an operator sees in top who takes the processor.
#pragma once

#include <functional>
#include <string>
#include <thread>

namespace falcon {

// Of the calling thread; at most 15 characters.
void NameThread(const std::string& name);

// A thread that does its work when others leave it a processor: not a realtime one even if the one
// that calls is, and not interrupted by signals, which are for the threads that were there before.
[[nodiscard]] std::thread StartOrdinaryThread(const std::string& name, std::function<void()> run);

}  // namespace falcon
