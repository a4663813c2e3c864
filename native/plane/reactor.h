// The thread that drives a data plane: it loops over PollOnce, spins for a while when there is
// nothing to do, then arms the doorbells, looks once more and sleeps on file descriptors with a
// bound.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/verbs.h"
#include "log/wal.h"
#include "os/status.h"
#include "os/unique_fd.h"
#include "plane/connector.h"
#include "plane/data_plane.h"
#include "plane/load.h"
#include "vm/builtin_service.h"
#include "vm/vm_link.h"

namespace falcon {

struct ReactorOptions {
  PlaneOptions plane;
  WalOptions wal;
  std::string fabric = "shm";  // or "tcp", "verbs"
  std::string shm_directory;
  std::string shm_name;
  std::string fabric_address;  // tcp: where peers reach this replica
  VerbsOptions verbs;
  bool vm = true;         // false: a witness
  bool builtin = false;   // the built-in service instead of QEMU
  std::string vm_socket;  // QEMU attaches here
  std::string tap;        // empty: none
  uint64_t vm_ring_bytes = 1 << 20;
  bool busy = false;  // never sleep
  Nanoseconds spin = 10 * kMicrosecond;
  bool realtime = false;  // the reactor's thread; the log's has an option of its own
};

enum class VmHappened : uint8_t { kAttached, kDetached, kRefused };

class Reactor {
 public:
  // Called from the reactor thread when events or VM events are waiting; must be quick.
  using Notify = std::function<void()>;

  Reactor();
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // Opens the log, the fabric, the tap and the VM's socket; nothing runs yet.
  Status Open(const ReactorOptions& options);
  [[nodiscard]] const RecoveredLog& recovered() const { return recovered_; }
  // What peers need to reach this replica; another one after some failures to connect.
  [[nodiscard]] std::string descriptor();
  [[nodiscard]] int tap_fd() const { return tap_.get(); }

  Status Start(Notify notify);
  void Stop();  // idempotent; the log is drained and everything closed

  // Which RDMA port carries the log; nothing on another fabric.
  [[nodiscard]] const std::optional<VerbsLink>& link() const { return rdma_link_; }
  // DataPlane::Connect, on the reactor thread, once that is prepared. A failure is an event.
  void Connect(PeerId peer, uint64_t connection, std::string descriptor);
  // Runs `command` on the reactor thread soon, in the order of the calls.
  void Post(std::function<void(DataPlane&)> command);
  // The deciding thread is alive.
  void Tick() { tick_at_.store(MonotonicNow(), std::memory_order_relaxed); }
  // Lets one QEMU attach to rings made empty.
  void ExpectVm();
  void StartLoad(const LoadOptions& load);

  // Takes what has happened since the last call.
  void TakeEvents(std::vector<PlaneEvent>* events, std::vector<VmHappened>* vm);
  void TakeSnapshot(PlaneSnapshot* snapshot, LoadResult* load);

 private:
  class TapWire;
  class MonotonicClock;

  Status OpenFabric();
  Status OpenVerbs();
  void Run();
  bool Due();
  int Round(Nanoseconds now);
  int RunCommands();
  void PollVm();
  int PollTap();
  void Publish(Nanoseconds now);
  void PublishDescriptor();
  void Sleep(Nanoseconds until);
  void NoteStall(Nanoseconds late);
  Status Watch(int fd);

  ReactorOptions options_;
  std::unique_ptr<Storage> storage_;
  RecoveredLog recovered_;
  std::unique_ptr<Clock> clock_;
  std::unique_ptr<WireSink> wire_;
  UniqueFd tap_;
  VmRings rings_;
  VmLink link_;
  BuiltinService builtin_;
  RingProducer tap_ingress_;  // `vm: none` reads the tap itself
  std::unique_ptr<Fabric> fabric_;
  std::unique_ptr<Wal> wal_;
  std::unique_ptr<DataPlane> plane_;
  std::unique_ptr<Load> load_;
  VerbsFabric* verbs_ = nullptr;  // the fabric, if it is that one
  std::optional<VerbsLink> rdma_link_;
  std::unique_ptr<Connector> connector_;

  UniqueFd epoll_;
  UniqueFd command_bell_;
  std::thread thread_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> sleeping_{false};
  std::atomic<Nanoseconds> tick_at_{0};
  Notify notify_;

  std::mutex commands_mutex_;
  std::vector<std::function<void(DataPlane&)>> commands_;
  std::atomic<bool> commands_waiting_{false};
  std::vector<std::function<void(DataPlane&)>> running_;

  std::mutex published_mutex_;
  std::vector<PlaneEvent> published_events_;
  std::vector<VmHappened> published_vm_;
  PlaneSnapshot published_snapshot_;
  std::string published_descriptor_;
  LoadResult published_load_;
  Nanoseconds next_publish_ = 0;

  bool vm_called_ = true;  // QEMU wants to attach, or has something to say
  Nanoseconds slept_ = 0, stall_max_ = 0;
  uint64_t stalls_ = 0;
};

}  // namespace falcon
