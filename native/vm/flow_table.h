// Flows: one client, 2f+1 guests (DESIGN section 7).
//
// Each guest's TCP stack picks its own initial sequence number, so the client's acknowledgements
// fit only the guest it talks to. Every replica keeps a flow table that translates between wire
// space (what the client sees) and guest space. The table is a state machine driven by one thread:
// frames and time come in, frames go out through a sink, it never waits and allocates nothing per
// frame (everything it needs is allocated, bounded, when it is made).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "os/clock.h"
#include "os/status.h"
#include "vm/output_mask.h"

namespace falcon {

using Frame = std::span<const std::byte>;

// What of the guest's output is compared between replicas (vm/output_book.h).
struct OutputOptions {
  size_t queue_bytes = 4096;
  uint32_t compare_every = 16;        // hashes of a flow between two checks
  Nanoseconds check_after = kSecond;  // at the latest, if there was new output
  Nanoseconds wait = 2 * kSecond;     // for a guest that has not come so far, until it is late
  std::vector<OutputMask> masks;
};

struct FlowOptions {
  uint8_t vm_mac[6] = {};
  size_t max_flows = 4096;
  size_t max_half_open = 1024;
  size_t max_neighbours = 256;
  size_t retain_bytes_per_flow = 256 << 10;  // output that the client has not acknowledged
  size_t retain_bytes = 16 << 20;            // of all flows
  size_t hold_bytes_per_flow = 512 << 10;    // input that this guest has not acknowledged
  size_t hold_bytes = 32 << 20;              // of all flows
  Nanoseconds handshake_hold = 3 * kSecond;  // how long a delivery waits for this guest's SYN-ACK
  Nanoseconds reoffer_after =
      20 * kMillisecond;  // unacknowledged input is offered to the guest again, with back-off
  Nanoseconds closed_linger =
      60 * kSecond;  // how long a closed flow's entry is kept for late segments
  Nanoseconds idle_timeout = 24 * 3600 * kSecond;
  OutputOptions output;
  uint64_t hash_seed =
      0;  // random per process, so that nobody can aim at a bucket; decides nothing else
};

// Where the table's frames go. A frame is valid during the call only. Called from inside Deliver,
// FromGuest, TakeOver, GuestWritable and Tick, never re-entrantly; ToWire also from inside Admit
// (the challenge to a SYN on a live flow).
class FlowSink {
 public:
  virtual ~FlowSink() = default;
  // To this replica's own guest. Returns false if the deliver ring is full: the table keeps what it
  // may (held input) or counts it as dropped_to_guest.
  virtual bool ToGuest(Frame frame) = 0;
  // To the network, in wire space; the caller decides by role, lease and gate whether it leaves.
  virtual void ToWire(Frame frame) = 0;
};

struct OutputApplication;

enum class FlowRole : uint8_t { kBackup, kPrimary };

enum class Admission : uint8_t {
  kPropose,   // propose the normalised frame
  kNotForUs,  // other unicast destination, our own source address, runt, too long: drop
  kHold,      // may not be proposed now: drop, TCP repeats it (an ACK that does not fit the SYN-ACK
              // this primary released)
};

// Why a flow of this replica no longer equals the primary's; healed by state transfer.
enum class FlowDivergence : uint8_t { kNone, kNoSynAck, kHoldBound, kReset };

// An open connection as every replica should have it, whatever numbers its guest counts by.
// Compared as bytes.
struct FlowFacts {
  std::array<uint8_t, 16> client, vm;
  uint16_t client_port, vm_port;
  uint32_t client_iss, wire_iss;  // as the log defines them
  uint32_t client_ack;            // the highest of the log
  uint32_t said;                  // how far this guest's output has come, in wire space
  uint32_t diverged;              // FlowDivergence
};
static_assert(sizeof(FlowFacts) == 56);

struct FlowCounters {
  uint64_t frames_admitted = 0, frames_refused = 0;
  uint64_t frames_delivered = 0;  // log frames taken by Deliver
  uint64_t frames_to_guest = 0;   // frames made for the guest, re-offers and local ACKs included
  uint64_t frames_from_guest = 0, frames_to_wire = 0;
  uint64_t reoffered = 0, local_acks = 0, clamped_acks = 0, held = 0;
  uint64_t neighbour_answers = 0;
  uint64_t retained_resent = 0, retain_dropped = 0;
  uint64_t flows = 0, half_open = 0, flows_opened = 0, flows_closed = 0, evicted_half_open = 0,
           refused_full = 0;
  uint64_t diverged = 0;     // flows counted as diverged
  uint64_t output_gaps = 0;  // segments of the guest that came before their predecessors
  uint64_t malformed = 0, dropped_to_guest = 0;
  uint64_t retained_bytes = 0, held_bytes = 0;  // now
};

class FlowTable {
 public:
  virtual ~FlowTable() = default;

  // ---- primary, before a frame is proposed
  // Looks at a frame from the network. On kPropose the frame to propose is in `normalised`
  // (capacity at least frame.size(); its length is written to *length): SYN options that carry
  // per-stack state are taken out, the checksum is right again. Also used, with role kBackup, to
  // normalise frames for the pool of unproposed frames (then never kHold; a SYN that a primary
  // would have challenged is kNotForUs).
  virtual Admission Admit(Frame frame, std::span<std::byte> normalised, size_t* length,
                          Nanoseconds now) = 0;

  // ---- every replica
  // Takes the next committed frame, in log order, and offers it to this replica's guest as it can
  // take it.
  virtual void Deliver(Frame frame, Nanoseconds now) = 0;
  // Takes a frame that this replica's guest sent. Calls ToWire with what the client expects. On a
  // backup it also retains unacknowledged payload, and answers the guest's neighbour questions
  // through ToGuest.
  virtual void FromGuest(Frame frame, Nanoseconds now) = 0;
  // Re-offers, local ACKs, expiry. Returns the next time that it wants to be called (at most now +
  // 1 s).
  virtual Nanoseconds Tick(Nanoseconds now) = 0;
  // The sink can take frames again after ToGuest returned false.
  virtual void GuestWritable(Nanoseconds now) = 0;

  virtual void SetRole(FlowRole role) = 0;
  // The gate of this new primary has just opened: sends retained, unacknowledged output of every
  // flow through ToWire at once (SYN-ACKs of half-open flows included).
  virtual void TakeOver(Nanoseconds now) = 0;

  // Forgets everything (the guest starts anew).
  virtual void Reset() = 0;

  // ---- comparing outputs (vm/output_check.h)
  // On the primary: appends the payload of a check of what is due, and what was said before each of
  // its positions (2 bytes of length, bytes). False: nothing is due.
  virtual bool CollectChecks(uint16_t self, Nanoseconds now, std::vector<std::byte>* payload,
                             std::vector<std::byte>* tails) = 0;
  // Takes a check of the log, at its place in the order of Deliver.
  virtual void TakeCheck(uint64_t op, std::span<const std::byte> payload, Nanoseconds now) = 0;
  [[nodiscard]] virtual bool HasVerdicts() const = 0;
  // VerdictRecords with their tails, each told once.
  virtual void TakeVerdicts(std::vector<std::byte>* out) = 0;
  [[nodiscard]] virtual std::span<const OutputApplication> Applications() const = 0;

  // ---- state transfer: a guest that became a byte-for-byte copy of another's goes on with a copy
  // of that replica's table.
  // Appends the whole state: flows, what is held and retained, neighbours, SYNs under way. Role and
  // counters are the replica's own and not part of it; times are relative to `now`.
  virtual void Save(std::vector<std::byte>* out, Nanoseconds now) = 0;
  // Takes the place of everything that this table has. The bytes may come from anywhere: they are
  // checked as a whole first, and with FLOW_STATE nothing has changed. A table that does not serve
  // itself takes what a primary's client was to repeat upon itself. Calls no sink.
  [[nodiscard]] virtual Status Load(std::span<const std::byte> state, Nanoseconds now) = 0;

  // Appends the connections that are open and known to the log. Half-open and closed ones stay or
  // go by each replica's own clock.
  virtual void Facts(std::vector<FlowFacts>* out) const = 0;

  [[nodiscard]] virtual FlowCounters counters() const = 0;
};

std::unique_ptr<FlowTable> MakeFlowTable(const FlowOptions& options, FlowSink* sink);

}  // namespace falcon
