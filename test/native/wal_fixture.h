// What the tests of the log share: entries in the making, a stupid log to compare with, and a log
// on a simulated disk that can be opened, stopped and opened again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "log/entry.h"
#include "log/segment.h"
#include "log/sim_storage.h"
#include "log/wal.h"

namespace falcon::test {

using Bytes = std::vector<std::byte>;

inline Bytes MakeEntry(View view, Op op, uint32_t previous, size_t payload_bytes) {
  Bytes payload(payload_bytes);
  for (size_t i = 0; i < payload_bytes; ++i)
    payload[i] = static_cast<std::byte>(op * 31 + view * 7 + i);
  Bytes entry(EntryBytes(payload_bytes));
  WriteEntry(entry, view, op, op - 1, EntryKind::kFrame, previous, payload);
  return entry;
}

// The log as a list of everything that was ever appended. The log after the first n appends is what
// a replay of them gives.
class NaiveLog {
 public:
  // The live log, from op 1 on.
  [[nodiscard]] const std::vector<const Bytes*>& live() const { return live_; }
  [[nodiscard]] Op last_op() const { return live_.size(); }
  [[nodiscard]] EntryHeader header(Op op) const { return ReadEntryHeader(*live_[op - 1]); }
  [[nodiscard]] View view_at(Op op) const { return op == 0 ? 0 : header(op).view; }
  [[nodiscard]] uint32_t checksum_at(Op op) const { return op == 0 ? 0 : header(op).checksum; }

  void Put(const Bytes& entry) {
    live_.resize(ReadEntryHeader(entry).op - 1);
    live_.push_back(&entry);
  }

  [[nodiscard]] std::vector<ViewTableRow> Table(Op first_op) const {
    std::vector<ViewTableRow> table;
    // From the base on: the entry before the first.
    for (Op op = std::max<Op>(first_op, 2) - 1; op <= last_op(); ++op) {
      if (table.empty() || header(op).view > table.back().view)
        table.push_back({header(op).view, op});
    }
    return table;
  }

 private:
  std::vector<const Bytes*> live_;
};

inline constexpr size_t kSmallBatch = 132 * 1024;  // just holds the largest entry

inline WalOptions SmallOptions() {
  WalOptions options;
  options.directory = "wal";
  options.segment_bytes = 140 * 1024;
  options.batch_bytes = kSmallBatch;
  options.queue_entries = 1024;
  options.cluster = "test cluster";
  options.node = 2;
  options.salt = 77;
  return options;
}

class Harness {
 public:
  explicit Harness(uint64_t seed = 1, WalOptions wal_options = SmallOptions())
      : options(std::move(wal_options)), storage(seed) {}

  Status Open() {
    wal.reset();
    recovered = {};
    const Status status = OpenWal(storage, options, &recovered, &wal);
    appended_here = 0;
    return status;
  }

  // Appends the next entry of the log behind `after`. False: the queue is full or the log has
  // failed.
  bool AppendAfter(Op after, View view, size_t payload_bytes) {
    history.push_back(MakeEntry(view, after + 1, log.checksum_at(after), payload_bytes));
    if (wal->Append(history.back()) == 0) {
      history.pop_back();
      return false;
    }
    log.Put(history.back());
    ++appended_here;
    return true;
  }
  bool Append(View view, size_t payload_bytes = 100) {
    return AppendAfter(log.last_op(), view, payload_bytes);
  }
  // Writes all that is queued. False if the log failed.
  bool Drain() {
    wal->Flush();
    while (wal->Step() > 0) continue;
    return !wal->failed();
  }
  // One batch for each entry.
  bool AppendAlone(View view, size_t payload_bytes = 100) {
    return Append(view, payload_bytes) && Drain();
  }

  // Entries of the history that are certainly durable: those of earlier runs and of this one.
  [[nodiscard]] size_t durable() const { return history.size() - appended_here + wal->durable(); }

  // The log after the first `count` appends.
  [[nodiscard]] NaiveLog Replay(size_t count) const {
    NaiveLog replayed;
    for (size_t i = 0; i < count; ++i) replayed.Put(history[i]);
    return replayed;
  }

  // Forgets what was appended behind the first `count`.
  void TruncateHistory(size_t count) {
    history.resize(count);
    log = Replay(count);
  }

  // True if what was recovered, and what Read gives, is `expected`.
  [[nodiscard]] bool Holds(const NaiveLog& expected) {
    if (recovered.last_op != expected.last_op()) return false;
    if (recovered.last_view != expected.view_at(expected.last_op())) return false;
    if (recovered.last_checksum != expected.checksum_at(expected.last_op())) return false;
    if (expected.last_op() == 0) return recovered.view_table.empty();
    const auto table = expected.Table(recovered.first_op);
    if (table.size() != recovered.view_table.size()) return false;
    for (size_t i = 0; i < table.size(); ++i) {
      if (table[i].view != recovered.view_table[i].view) return false;
      if (table[i].first_op != recovered.view_table[i].first_op) return false;
    }
    return Reads(expected, recovered.first_op, expected.last_op() + 1);
  }

  [[nodiscard]] bool Reads(const NaiveLog& expected, Op from, Op until, size_t max_bytes = 10000) {
    Bytes wanted;
    for (Op op = from; op < until; ++op) {
      const Bytes& entry = *expected.live()[op - 1];
      wanted.insert(wanted.end(), entry.begin(), entry.end());
    }
    Bytes all;
    for (Op next = from; next < until;) {
      Bytes some;
      const Status status = wal->Read(next, until, max_bytes, &some);
      if (!status.ok() || some.empty()) return false;
      if (some.size() > max_bytes &&
          EntryBytes(ReadEntryHeader(some).payload_length) != some.size())
        return false;
      for (std::span<const std::byte> rest(some); !rest.empty(); ++next) {
        rest = rest.subspan(EntryBytes(ReadEntryHeader(rest).payload_length));
      }
      all.insert(all.end(), some.begin(), some.end());
    }
    return all == wanted;
  }

  // How many appends the recovered log reflects: the smallest count in [least, history] whose
  // replay it holds; -1 if it is the log after no number of appends that may have survived.
  [[nodiscard]] int64_t Matches(size_t least) {
    for (size_t count = least; count <= history.size(); ++count) {
      const NaiveLog expected = Replay(count);
      if (expected.last_op() == recovered.last_op && Holds(expected))
        return static_cast<int64_t>(count);
    }
    return -1;
  }

  WalOptions options;
  SimStorage storage;
  RecoveredLog recovered;
  std::unique_ptr<Wal> wal;
  std::deque<Bytes> history;  // everything appended, in order; entries stay where they are
  NaiveLog log;               // what the log should be with all of it
  size_t appended_here = 0;   // since Open
};

inline std::string LastSegment(const SimStorage& storage) { return storage.Paths().back(); }

}  // namespace falcon::test
