#include "plane/reactor.h"

#include <sched.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "fabric/shm.h"
#include "fabric/tcp.h"
#include "os/check.h"
#include "os/realtime.h"
#include "os/tap.h"
#include "os/threads.h"

namespace falcon {
namespace {

constexpr Nanoseconds kPublishInterval = kMillisecond;
constexpr Nanoseconds kStall = 10 * kMillisecond;
// A reactor that never sleeps hears no descriptor.
constexpr Nanoseconds kVmLookInterval = 20 * kMillisecond;
constexpr int kTapFramesPerRound = 64;
// A reactor that never sleeps lets others run when it has found nothing for so long: longer than
// most answers take, so that who has a processor of its own does not lose it while it waits for
// one, and far shorter than a time slice (3 to 8 ms), which whoever shares its processor would
// otherwise wait for; the peer that it waits for may be that one.
constexpr Nanoseconds kBusyYield = 100 * kMicrosecond;

}  // namespace

class Reactor::MonotonicClock final : public Clock {
 public:
  Nanoseconds Now() override { return MonotonicNow(); }
};

class Reactor::TapWire final : public WireSink {
 public:
  explicit TapWire(const UniqueFd* tap) : tap_(tap) {}
  bool Write(Frame frame) override {
    if (!tap_->valid()) return false;
    ssize_t wrote = 0;
    do {
      wrote = write(tap_->get(), frame.data(), frame.size());
    } while (wrote < 0 && errno == EINTR);
    return wrote == static_cast<ssize_t>(frame.size());
  }

 private:
  const UniqueFd* tap_;
};

Reactor::Reactor() = default;
Reactor::~Reactor() {
  Stop();
  // A fabric may send from the log's memory, so it goes before the plane; and what sessions hold of
  // the fabric before that.
  if (plane_ != nullptr) plane_->EndSessions();
  fabric_.reset();
}

Status Reactor::Open(const ReactorOptions& options) {
  FALCON_CHECK(plane_ == nullptr);
  options_ = options;
  storage_ = MakePosixStorage();
  if (Status s = OpenWal(*storage_, options.wal, &recovered_, &wal_); !s.ok()) return s;
  if (Status s = OpenFabric(); !s.ok()) return s;
  if (Status s = fabric_->AddRegion(0, DataPlane::RegionBytes(options.plane)); !s.ok()) return s;
  if (!options.tap.empty()) {
    if (Status s = OpenTap(options.tap, &tap_); !s.ok()) return s;
  }
  if (options.vm) {
    if (Status s = rings_.Make(options.vm_ring_bytes); !s.ok()) return s;
    if (!options.builtin) {
      if (Status s = link_.Listen(options.vm_socket, &rings_); !s.ok()) return s;
    }
  }
  clock_ = std::make_unique<MonotonicClock>();
  wire_ = std::make_unique<TapWire>(&tap_);
  plane_ = std::make_unique<DataPlane>(options.plane, clock_.get(), fabric_.get(), wal_.get(),
                                       recovered_, options.vm ? &rings_ : nullptr, wire_.get());
  if (verbs_ != nullptr) {
    if (Status s = verbs_->AddSource(plane_->log_memory()); !s.ok()) return s;
  }
  if (options.vm && options.builtin) {
    plane_->SetBuiltin(&builtin_);
    builtin_.Attach(&rings_);
    tap_ingress_.Attach(rings_.shm(), FALCON_RING_INGRESS, rings_.to_falcond_fd());
  }
  PublishDescriptor();
  epoll_.Reset(epoll_create1(EPOLL_CLOEXEC));
  command_bell_.Reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_.valid() || !command_bell_.valid()) return {"INTERNAL", ErrnoText("epoll", errno)};
  connector_ = std::make_unique<Connector>(
      [this](PeerId peer, std::string_view descriptor) {
        return fabric_->Prepare(peer, descriptor);
      },
      [this](const Connector::Request& request, const Status& status) {
        Post([this, request, status](DataPlane& plane) {
          if (!status.ok()) return plane.NotConnected(request.peer, status);
          // Before the failure is told: a new attempt has to bring what peers need then.
          if (!plane.Connect(request.peer, request.connection, request.descriptor).ok())
            PublishDescriptor();
        });
      });
  for (int fd : {command_bell_.get(), fabric_->wake_fd()}) {
    if (Status s = Watch(fd); !s.ok()) return s;
  }
  if (!options.vm) return Ok();
  if (Status s = Watch(rings_.to_falcond_fd()); !s.ok()) return s;
  return Watch(options.builtin ? tap_.get() : link_.listen_fd());
}

Status Reactor::OpenFabric() {
  const PeerId self = options_.plane.self;
  if (options_.fabric == "shm")
    return MakeShmFabric({options_.shm_directory, options_.shm_name, self}, &fabric_);
  if (options_.fabric == "tcp") {
    TcpFabricOptions tcp;
    tcp.address = options_.fabric_address;
    return MakeTcpFabric(tcp, self, &fabric_);
  }
  if (options_.fabric == "verbs") return OpenVerbs();
  return {"FABRIC_UNKNOWN", options_.fabric};
}

Status Reactor::OpenVerbs() {
  if (Status s = MakeVerbsFabric(options_.verbs, options_.plane.self, &fabric_); !s.ok()) {
    return {s.code(), s.detail() +
                          "; ibv_devinfo lists devices and ports (rdma.device, port and "
                          "gidIndex of the node choose), and rdma link add NAME type rxe "
                          "netdev DEVICE makes one of an ordinary network device"};
  }
  verbs_ = static_cast<VerbsFabric*>(fabric_.get());
  rdma_link_ = verbs_->link();
  return Ok();
}

void Reactor::Connect(PeerId peer, uint64_t connection, std::string descriptor) {
  // What the earlier connection would still say is nobody's word any more.
  Post([peer](DataPlane& plane) { plane.Disconnect(peer); });
  connector_->Submit({peer, connection, std::move(descriptor)});
}

Status Reactor::Watch(int fd) {
  if (fd < 0) return Ok();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0 && errno != EEXIST) {
    return {"INTERNAL", ErrnoText("epoll_ctl", errno)};
  }
  return Ok();
}

Status Reactor::Start(Notify notify) {
  FALCON_CHECK(plane_ != nullptr && !thread_.joinable());
  notify_ = std::move(notify);
  if (Status s = wal_->StartThread(); !s.ok()) return s;
  // It has no descriptor before it has a thread.
  if (Status s = Watch(wal_->wake_fd()); !s.ok()) return s;
  Tick();
  thread_ = std::thread([this] { Run(); });
  return Ok();
}

void Reactor::Stop() {
  connector_.reset();
  stop_.store(true, std::memory_order_release);
  if (thread_.joinable()) {
    RingDoorbell(command_bell_.get());
    thread_.join();
  }
  if (wal_ != nullptr) wal_->StopThread();
  notify_ = nullptr;
}

void Reactor::Post(std::function<void(DataPlane&)> command) {
  {
    const std::lock_guard lock(commands_mutex_);
    commands_.push_back(std::move(command));
  }
  commands_waiting_.store(true, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst)) RingDoorbell(command_bell_.get());
}

void Reactor::ExpectVm() {
  Post([this](DataPlane& plane) {
    rings_.Reset();
    plane.AttachRings();
    if (options_.builtin) {
      builtin_.Attach(&rings_);
      tap_ingress_.Attach(rings_.shm(), FALCON_RING_INGRESS, rings_.to_falcond_fd());
    } else {
      link_.Expect(true);
    }
  });
}

void Reactor::StartLoad(const LoadOptions& load) {
  Post([this, load](DataPlane&) { load_ = std::make_unique<Load>(load); });
}

int Reactor::RunCommands() {
  if (!commands_waiting_.load(std::memory_order_relaxed)) return 0;
  commands_waiting_.store(false, std::memory_order_seq_cst);
  {
    const std::lock_guard lock(commands_mutex_);
    running_.swap(commands_);
  }
  const int ran = static_cast<int>(running_.size());
  for (auto& command : running_) command(*plane_);
  running_.clear();
  return ran;
}

void Reactor::PollVm() {
  const VmLink::Happened happened = link_.Poll();
  if (happened == VmLink::Happened::kNothing) return;
  if (happened == VmLink::Happened::kAttached) {
    if (Status s = Watch(link_.connection_fd()); !s.ok()) return;
  }
  const std::lock_guard lock(published_mutex_);
  published_vm_.push_back(happened == VmLink::Happened::kAttached   ? VmHappened::kAttached
                          : happened == VmLink::Happened::kDetached ? VmHappened::kDetached
                                                                    : VmHappened::kRefused);
  next_publish_ = 0;
}

// `vm: none` has no QEMU that reads the tap.
int Reactor::PollTap() {
  if (!tap_.valid()) return 0;
  int frames = 0;
  alignas(8) static thread_local std::byte buffer[FALCON_FRAME_MAX_BYTES];
  while (frames < kTapFramesPerRound && tap_ingress_.HasSpace(FALCON_FRAME_MAX_BYTES)) {
    const ssize_t got = read(tap_.get(), buffer, sizeof buffer);
    if (got <= 0) break;
    FALCON_CHECK(tap_ingress_.Push({buffer, static_cast<size_t>(got)}));
    ++frames;
  }
  tap_ingress_.Ring();
  return frames;
}

int Reactor::Round(Nanoseconds now) {
  int done = RunCommands();
  plane_->Tick(tick_at_.load(std::memory_order_relaxed));
  if (options_.vm && options_.builtin) done += PollTap();
  if (load_ != nullptr) done += load_->Step(*plane_);
  done += plane_->PollOnce(now);
  if (options_.vm && options_.builtin) done += builtin_.Poll();
  if (!plane_->events().empty() || now >= next_publish_) Publish(now);
  return done;
}

// The built-in service and the tap that it has are looked at by rounds alone.
bool Reactor::Due() {
  return options_.builtin || commands_waiting_.load(std::memory_order_relaxed) || plane_->Due();
}

void Reactor::Publish(Nanoseconds now) {
  next_publish_ = now + kPublishInterval;
  bool news = false;
  {
    const std::lock_guard lock(published_mutex_);
    auto& events = plane_->events();
    news = !events.empty() || !published_vm_.empty();
    std::move(events.begin(), events.end(), std::back_inserter(published_events_));
    events.clear();
    plane_->FillSnapshot(&published_snapshot_);
    if (verbs_ != nullptr) published_snapshot_.verbs = verbs_->verbs_counters();
    published_snapshot_.service_frames = builtin_.frames();
    published_snapshot_.service_digest = builtin_.digest();
    published_snapshot_.slept = slept_;
    published_snapshot_.stall_max = stall_max_;
    published_snapshot_.stalls = stalls_;
    if (load_ != nullptr) published_load_ = load_->result();
  }
  if (news && notify_) notify_();
}

void Reactor::Run() {
  NameThread("falcon-reactor");
  if (options_.realtime) MakeRealtime(RealtimePriority::kDataPath);
  Nanoseconds idle_since = 0;
  Nanoseconds next_vm_look = 0;
  Nanoseconds due = MonotonicNow();  // when this round could have begun
  while (!stop_.load(std::memory_order_acquire)) {
    const Nanoseconds now = MonotonicNow();
    NoteStall(now - due);
    due = now;
    if (vm_called_ || now >= next_vm_look) {
      vm_called_ = false;
      PollVm();
      next_vm_look = now + kVmLookInterval;
    }
    if (Due() && Round(now) > 0) {
      idle_since = 0;
      continue;
    }
    if (idle_since == 0) idle_since = now;
    if (now - idle_since < (options_.busy ? kBusyYield : options_.spin)) continue;
    idle_since = 0;
    if (options_.busy) {
      sched_yield();
      continue;
    }
    sleeping_.store(true, std::memory_order_seq_cst);
    const bool work = plane_->ArmWake() || commands_waiting_.load(std::memory_order_seq_cst);
    if (!work && Round(MonotonicNow()) == 0) {
      const Nanoseconds from = MonotonicNow();
      const Nanoseconds until = plane_->NextDeadline(from);
      Sleep(until);
      due = std::min(until, MonotonicNow());
      slept_ += due - from;
    }
    sleeping_.store(false, std::memory_order_relaxed);
    plane_->DisarmWake();
    plane_->BeDue();
  }
}

// A thread that others need within milliseconds: when it was kept from running, an operator should
// see it.
void Reactor::NoteStall(Nanoseconds late) {
  stall_max_ = std::max(stall_max_, late);
  if (late > kStall) ++stalls_;
}

void Reactor::Sleep(Nanoseconds until) {
  const Nanoseconds left = std::max<Nanoseconds>(until - MonotonicNow(), 0);
  const timespec bound{left / kSecond, left % kSecond};
  epoll_event events[8];
  const int ready = epoll_pwait2(epoll_.get(), events, 8, &bound, nullptr);
  for (int i = 0; i < ready; ++i) {
    const int fd = events[i].data.fd;
    if (fd == link_.listen_fd() || fd == link_.connection_fd()) vm_called_ = true;
    if (fd == command_bell_.get() || (options_.vm && fd == rings_.to_falcond_fd()))
      DrainDoorbell(fd);
  }
}

void Reactor::PublishDescriptor() {
  std::string descriptor = fabric_->Descriptor();
  const std::lock_guard lock(published_mutex_);
  published_descriptor_ = std::move(descriptor);
}

std::string Reactor::descriptor() {
  const std::lock_guard lock(published_mutex_);
  return published_descriptor_;
}

void Reactor::TakeEvents(std::vector<PlaneEvent>* events, std::vector<VmHappened>* vm) {
  const std::lock_guard lock(published_mutex_);
  events->swap(published_events_);
  vm->swap(published_vm_);
}

void Reactor::TakeSnapshot(PlaneSnapshot* snapshot, LoadResult* load) {
  const std::lock_guard lock(published_mutex_);
  *snapshot = published_snapshot_;
  *load = published_load_;
}

}  // namespace falcon
