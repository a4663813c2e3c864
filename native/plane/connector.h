// Prepares connections before the reactor makes them.
//
// On RoCE a queue pair can be brought up only when the kernel knows the peer's Ethernet address,
// and the kernel waits a second for a peer that does not answer; with shm the peer's memory is
// mapped, which takes 5 to 10 ms. The reactor must not wait: it owes heartbeats. So each peer has a
// thread here that waits in its place, and a peer that is gone delays nobody else.
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "fabric/fabric.h"
#include "os/status.h"

namespace falcon {

class Connector {
 public:
  struct Request {
    PeerId peer = 0;
    uint64_t connection = 0;
    std::string descriptor;
  };
  // May take its time. Called by several threads at once.
  using Prepare = std::function<Status(PeerId peer, std::string_view descriptor)>;
  // Called once for each request, in the order of the requests of a peer but for those that a later
  // one has replaced; may run on any thread.
  using Done = std::function<void(const Request& request, const Status& status)>;

  Connector(Prepare prepare, Done done) : prepare_(std::move(prepare)), done_(std::move(done)) {}
  ~Connector();  // waits for what is under way; the rest is forgotten
  Connector(const Connector&) = delete;
  Connector& operator=(const Connector&) = delete;

  // A request takes the place of an earlier one of the same peer, which ends with FABRIC_CONNECT.
  void Submit(Request request);

 private:
  struct Worker {
    std::thread thread;
    std::optional<Request> waiting;
  };
  void Run(Worker& worker);

  const Prepare prepare_;
  const Done done_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  std::array<Worker, kMaxMembers> workers_;
};

}  // namespace falcon
