// One peer's connection: its queue pair and completion queues, the book of what was posted, and the
// ring through which bytes go that are not registered.
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "fabric/verbs_objects.h"
#include "os/clock.h"

namespace falcon {

// Work requests that the fabric posts for itself: sleep words, wakes, probes.
// Every half of them asks for a completion.
inline constexpr uint32_t kVerbsControlSlots = 128;
inline constexpr uint32_t kVerbsReceives = 64;
// Wakes on their way; half of the receives, so that none meets a peer without one.
inline constexpr uint16_t kVerbsMaxWakes = kVerbsReceives / 2;

// A completion is asked for after so many bytes, too: a queue of big writes would seem to stand
// still.
inline constexpr size_t kVerbsSignalBytes = 1 << 20;

// Where the peer keeps the number of the connection that it has to us, and where we read it to.
struct VerbsProbe {
  uint64_t connection = 0;  // what is to be found there
  uint64_t remote = 0;
  uint32_t rkey = 0;
  uint32_t lkey = 0;
  std::byte* into = nullptr;
};

// Memory that may be sent from as it is.
struct VerbsSource {
  std::span<const std::byte> memory;
  uint32_t lkey;
};

class VerbsPeer {
 public:
  // Makes the queue pair. Errors: VERBS_OPEN.
  Status Make(const VerbsOptions& options, const VerbsDevice& device, ibv_comp_channel* channel,
              VerbsCounters* counters);

  // Errors: FABRIC_CONNECT, FABRIC_REGION; it is down then.
  Status Connect(const VerbsMember& peer, const VerbsRoute& route, const VerbsProbe& probe);
  void Disconnect();
  // As if the device no longer reset the queue pair; for tests.
  void Spoil() { spoiled_ = true; }
  [[gnu::cold, gnu::noinline]] void Break(std::string because);
  // A region that comes or goes while connected.
  void SetRegion(RegionId region, const VerbsMemory& memory) { member_.regions[region] = memory; }

  // A write of the user's, already checked against the peer's region. Errors: FABRIC_BUSY,
  // FABRIC_DOWN.
  Status Write(uint64_t remote, uint32_t rkey, std::span<const std::span<const std::byte>> pieces,
               size_t bytes, std::span<const VerbsSource> sources);
  Status Read(uint64_t remote, uint32_t rkey, std::span<std::byte> into);

  // Posts of the fabric's own; false: no room now, or broken.
  bool PostWord(uint64_t remote, uint32_t rkey, uint64_t word);
  bool PostWake();

  int PollSends();
  int PollReceives();  // wakes that came in
  // Asks for completions that nobody asked for, and breaks what does not move. Wanted after the
  // queues were polled, while there is something on its way or unproved.
  [[nodiscard]] bool busy() const {
    return state_ == PeerState::kUp && (free_ != next_ || proved_ != posted_);
  }
  void Tend(Nanoseconds now);
  // A completion is due, or somebody waits for one.
  [[nodiscard]] bool awaits() const { return signaled_until_ > free_ || completed_ < wanted_; }
  // Somebody waits for what is posted now; probes if nothing on its way tells of it.
  [[gnu::noinline]] void RequestCompletion();
  // Asks for an event with the next wake, and with the next completion if one is due.
  void Arm();

  [[nodiscard]] PeerState state() const { return state_; }
  [[nodiscard]] const std::string& because() const { return because_; }
  [[nodiscard]] bool owns(const ibv_cq* queue) const {
    return queue == sends_.get() || queue == receives_.get();
  }
  [[nodiscard]] ibv_qp* pair() const { return pair_.get(); }
  [[nodiscard]] uint64_t posted() const { return posted_; }
  [[nodiscard]] uint64_t completed() const { return completed_; }
  [[nodiscard]] uint32_t inline_bytes() const { return inline_bytes_; }
  [[nodiscard]] const VerbsMember& member() const { return member_; }
  [[nodiscard]] uint16_t wakes_taken() const { return wakes_taken_; }

  // Of the sleeping rules, kept by the fabric; reset with the connection.
  struct Sleep {
    bool dirty = false;     // written since we last rang
    bool asleep = false;    // said so, and was not rung since
    bool rang_us = false;   // since we last said that we sleep
    uint64_t observed = 0;  // number of the sleep that `asleep` is about
    uint16_t wakes_sent = 0;
    uint16_t wakes_taken = 0;  // by the peer, as it said
  } sleep;

 private:
  enum class Kind : uint8_t { kUser, kRead, kControl, kProbe };
  struct Slot {
    Kind kind = Kind::kControl;
    uint64_t staging_end = 0;  // the ring is free up to here once this is done
    std::span<std::byte> into;
    const std::byte* staged = nullptr;
  };
  struct Large {  // a buffer of its own for what the ring cannot take
    uint64_t slot;
    VerbsBuffer buffer;
  };

  Status MakePair();
  Status PostReceives();
  Status Usable();
  [[gnu::noinline]] Status Stage(size_t bytes, std::byte** at, uint32_t* lkey);
  Status Gather(std::span<const std::span<const std::byte>> pieces, size_t bytes,
                std::span<const VerbsSource> sources, std::span<ibv_sge> gathered, int* count);
  // `bytes` count only for asking for completions.
  Status Post(ibv_send_wr* request, const Slot& slot, size_t bytes, bool signaled);
  bool PostControl(ibv_send_wr* request, const Slot& slot, bool signaled);
  bool PostReceive();
  void PostProbe();
  void TakeProbe();
  bool Stalled(Nanoseconds now);
  bool IsQuiet(Nanoseconds now);
  [[nodiscard]] bool IsAwaited() const;
  void Retire(uint64_t through);
  void ForgetPosts();
  void DrainQueues();

  const VerbsOptions* options_ = nullptr;
  const VerbsDevice* device_ = nullptr;
  VerbsCounters* counters_ = nullptr;
  PeerState state_ = PeerState::kDown;
  std::string because_;
  VerbsMember member_{};

  // Slots are numbered without end; [free_, next_) are on their way.
  std::vector<Slot> slots_;
  uint64_t next_ = 0;
  uint64_t free_ = 0;
  uint64_t signaled_until_ = 0;  // the slot after the last that asked for a completion
  uint32_t control_ = 0;         // of these, the fabric's own
  uint32_t control_unsignaled_ = 0;
  uint64_t posted_ = 0;  // the user's
  uint64_t completed_ = 0;
  uint64_t wanted_ = 0;  // somebody waits until so many are completed
  uint32_t inline_bytes_ = 0;
  uint16_t wakes_taken_ = 0;
  uint64_t quiet_slot_ = 0;  // nothing was posted behind it since quiet_since_
  Nanoseconds quiet_since_ = 0;
  size_t unsignaled_bytes_ = 0;
  Nanoseconds stall_ = 0;
  Nanoseconds waiting_since_ = 0;  // a completion is due, and none has come; 0: not looked yet
  bool spoiled_ = false;
  VerbsProbe probe_;
  bool probing_ = false;
  uint64_t proving_ = 0;            // of the user's posts, these are before the probe on its way
  uint64_t proved_ = 0;             // and these before the last that was answered
  Nanoseconds unproved_since_ = 0;  // 0: not looked yet

  // The staging ring: positions without end.
  uint64_t staged_until_ = 0;
  uint64_t staged_from_ = 0;
  uint64_t staged_signaled_ = 0;

  // Destroyed from the bottom: the queue pair before its queues, these before the memory.
  VerbsBuffer staging_;
  std::deque<Large> large_;
  VerbsQueue sends_;
  VerbsQueue receives_;
  VerbsPair pair_;
};

}  // namespace falcon
