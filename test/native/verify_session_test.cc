// Both sides of a verification against each other, over the simulated network.
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/sim.h"
#include "os/clock.h"
#include "pages/guest_memory.h"
#include "plane/transfer_parts.h"
#include "plane/verify.h"

namespace {

using namespace falcon;

constexpr size_t kPages = 64;

FlowFacts Flow(uint16_t client_port, uint32_t said) {
  FlowFacts facts{};
  facts.client_port = client_port;
  facts.vm_port = 6379;
  facts.said = said;
  return facts;
}

std::vector<std::byte> Bytes(const std::string& text) {
  std::vector<std::byte> bytes(text.size());
  std::memcpy(bytes.data(), text.data(), text.size());
  return bytes;
}

struct Side {
  GuestMemory ram;
  std::unique_ptr<Fabric> fabric;
  std::unique_ptr<VerifySession> session;
  PlaneFacts facts;
  std::vector<TransferNews> news;

  [[nodiscard]] bool Told(TransferNews::Kind kind) const {
    for (const TransferNews& one : news)
      if (one.kind == kind) return true;
    return false;
  }
};

struct Two {
  Two() {
    char name[] = "/dev/shm/falcon-verify-XXXXXX";
    CHECK(mkdtemp(name) != nullptr);
    directory = name;
    for (PeerId i : {0, 1}) {
      Side& s = side[i];
      CHECK(GuestMemory::Create(Path("ram", i), kPages * kPageBytes, &s.ram).ok());
      CHECK(WriteFile(Path("state", i), Bytes("devices of " + std::to_string(i))).ok());
      s.fabric = network.MakeFabric(i);
      CHECK(s.fabric->AddRegion(0, 4096).ok());
      std::memset(s.ram.ram().data(), 7, 8 * kPageBytes);
    }
    CHECK(side[0].fabric->Connect(1, 1, side[1].fabric->Descriptor()).ok());
    CHECK(side[1].fabric->Connect(0, 1, side[0].fabric->Descriptor()).ok());
  }
  ~Two() {
    for (PeerId i : {0, 1}) {
      if (side[i].session != nullptr) side[i].session->End();
      side[i].session.reset();
      unlink(Path("ram", i).c_str());
      unlink(Path("state", i).c_str());
    }
    CHECK(rmdir(directory.c_str()) == 0);
  }
  Two(const Two&) = delete;
  Two& operator=(const Two&) = delete;

  [[nodiscard]] std::string Path(const std::string& name, PeerId i) const {
    return directory + "/" + name + std::to_string(i);
  }

  void Open() {
    TransferOptions options;
    options.session = 9;
    options.verify = true;
    options.ram_bytes = kPages * kPageBytes;
    options.key = MakeDigestKey();
    options.digest_threads = 0;
    options.source = true;
    options.peer = 1;
    options.ram_path = Path("ram", 0);
    options.inbox_path = Path("inbox", 0);
    side[0].session = MakeVerifySession(options, side[0].fabric.get(), &aside);
    std::string inbox, ram;
    CHECK(side[0].session->Prepare().ok() && side[0].session->Open(&inbox, &ram).ok());
    CHECK(ram.empty());
    options.source = false;
    options.peer = 0;
    options.ram_path = Path("ram", 1);
    options.inbox_path = Path("inbox", 1);
    options.grant = inbox;
    std::string nothing;
    side[1].session = MakeVerifySession(options, side[1].fabric.get(), &aside);
    CHECK(side[1].session->Prepare().ok() && side[1].session->Open(&nothing, &ram).ok());
    // The target opens nothing of its own, its memory least of all.
    CHECK(nothing.empty() && ram.empty());
    CHECK(access(Path("inbox", 1).c_str(), F_OK) != 0);
  }

  void Poll() {
    for (int round = 0; round < 50; ++round) {
      for (Side& s : side) {
        s.session->Poll(MonotonicNow(), &s.news);
        s.fabric->Poll();
      }
      network.DeliverEverything();
    }
  }

  // Both are looked at while they run.
  void Look() {
    Open();
    for (Side& s : side) s.session->Look();
    Poll();
    for (Side& s : side) {
      CHECK(s.Told(TransferNews::Kind::kTaken));
      s.news.clear();
    }
  }

  // What the source is told; null if that does not come.
  [[nodiscard]] const std::byte* Compare(Op there = 17) {
    if (side[0].session == nullptr) Look();
    CHECK(side[0].session->Take(17, Path("state", 0), side[0].facts).ok());
    CHECK(side[1].session->Take(there, Path("state", 1), side[1].facts).ok());
    Poll();
    // Nothing is said before the guest that it is about goes on.
    CHECK(side[0].Told(TransferNews::Kind::kTaken) && side[1].Told(TransferNews::Kind::kTaken));
    CHECK(!side[1].Told(TransferNews::Kind::kSent));
    side[1].session->GoesOn(3 * kMillisecond);
    side[0].session->GoesOn(kMillisecond);
    Poll();
    if (!side[0].Told(TransferNews::Kind::kVerified)) return nullptr;
    CHECK(side[1].Told(TransferNews::Kind::kSent));
    const auto bytes = side[0].session->report();
    std::memcpy(&report, bytes.data(), sizeof report);
    return bytes.data() + sizeof report;
  }

  std::string directory;
  SimNetwork network{{.lazy_completions = true}};
  Aside aside{false};
  Side side[2];
  VerifyReport report{};
};

TEST(equal_guests_are_equal) {
  Two two;
  for (Side& s : two.side) s.facts.flows = {Flow(2, 40), Flow(1, 30)};
  std::swap(two.side[1].facts.flows[0], two.side[1].facts.flows[1]);
  // A page of zeros is no other than one that was never touched.
  std::memset(two.side[1].ram.ram().data() + 20 * kPageBytes, 0, kPageBytes);
  const std::byte* rest = two.Compare();
  REQUIRE(rest != nullptr);
  CHECK(two.report.pages == 8 && two.report.differing == 0 && two.report.listed == 0);
  CHECK(two.report.flows == 2 && two.report.flows_differing == 0);
  CHECK(two.report.service == 0);
  CHECK(two.report.stood_ns == 3 * kMillisecond);
  CHECK(two.report.device_bytes[0] == 12 && two.report.device_bytes[1] == 12);
  CHECK(std::memcmp(rest, "devices of 0devices of 1", 24) == 0);
}

TEST(one_byte_is_found_at_its_page) {
  Two two;
  two.side[1].ram.ram()[5 * kPageBytes + 4095] = std::byte{8};
  const std::byte* rest = two.Compare();
  REQUIRE(rest != nullptr);
  uint64_t page = 0;
  std::memcpy(&page, rest, sizeof page);
  CHECK(two.report.pages == 8 && two.report.differing == 1 && two.report.listed == 1);
  CHECK(page == 5);
  CHECK(two.side[1].ram.ram()[5 * kPageBytes + 4095] == std::byte{8});
  CHECK(two.side[0].ram.ram()[5 * kPageBytes + 4095] == std::byte{7});
}

TEST(pages_that_one_side_alone_has_differ_and_the_first_are_listed) {
  Two two;
  std::memset(two.side[0].ram.ram().data() + 10 * kPageBytes, 1, 20 * kPageBytes);
  std::memset(two.side[1].ram.ram().data() + 40 * kPageBytes, 1, kPageBytes);
  const std::byte* rest = two.Compare();
  REQUIRE(rest != nullptr);
  CHECK(two.report.pages == 29 && two.report.differing == 21);
  REQUIRE(two.report.listed == kListedPagesMax);
  for (uint64_t i = 0; i < kListedPagesMax; ++i) {
    uint64_t page = 0;
    std::memcpy(&page, rest + i * sizeof page, sizeof page);
    CHECK(page == 10 + i);
  }
}

// Changed, and told; touched for the first time, and not told; zero again.
TEST(what_changes_after_the_first_look_is_seen) {
  Two two;
  two.Look();
  PageSet changed(kPages);
  changed.Set(3);
  changed.Set(4);
  changed.Set(60);  // a hole still
  two.side[1].ram.ram()[3 * kPageBytes] = std::byte{9};
  std::memset(two.side[1].ram.ram().data() + 4 * kPageBytes, 0, kPageBytes);
  two.side[1].session->Changed(changed);
  std::memset(two.side[1].ram.ram().data() + 30 * kPageBytes, 5, kPageBytes);
  const std::byte* rest = two.Compare();
  REQUIRE(rest != nullptr);
  CHECK(two.report.pages == 9 && two.report.differing == 3);
  REQUIRE(two.report.listed == 3);
  uint64_t pages[3];
  std::memcpy(pages, rest, sizeof pages);
  CHECK(pages[0] == 3 && pages[1] == 4 && pages[2] == 30);
}

TEST(flows_service_and_waiting_frames) {
  Two two;
  two.side[0].facts = {{Flow(1, 30), Flow(2, 40), Flow(3, 50)}, 2, Bytes("one")};
  two.side[1].facts = {{Flow(1, 30), Flow(2, 41), Flow(4, 50)}, 0, Bytes("two")};
  REQUIRE(two.Compare() != nullptr);
  CHECK(two.report.flows == 4 && two.report.flows_differing == 3);
  CHECK(two.report.frames_waiting[0] == 2 && two.report.frames_waiting[1] == 0);
  CHECK(two.report.service == 2);
}

TEST(guests_behind_two_entries_are_not_compared) {
  Two two;
  CHECK(two.Compare(18) == nullptr);
  REQUIRE(two.side[0].Told(TransferNews::Kind::kFailed));
  CHECK(two.side[0].news.back().why.rfind("SYNC_PEER", 0) == 0);
}

TEST(a_record_that_is_none_is_refused) {
  for (uint32_t seed = 1; seed <= 300; ++seed) {
    Two two;
    two.Look();
    REQUIRE(two.side[0].session->Take(17, two.Path("state", 0), {}).ok());
    two.Poll();
    two.side[0].session->GoesOn(1);
    // Numbers that mean nothing, some of them small, in a record whose checksum is right.
    std::vector<std::byte> record(seed % 3 == 0 ? 8 * (seed % 11) : 48 + 8 + 16 * (seed % 9));
    uint32_t x = seed * 2654435761U;
    for (std::byte& byte : record) {
      x = x * 1664525U + 1013904223U;
      byte = (x >> 28) < 13 ? std::byte{0} : static_cast<std::byte>(x >> 20);
    }
    if (record.size() > 8) record[0] = std::byte{17};
    InboxWriter writer(two.side[1].fabric.get(), 0, kInboxRegion);
    writer.Start(9, InboxKind::kFindings, 1, record);
    int done = 0;
    REQUIRE(writer.Step(1 << 20, &done).ok());
    two.Poll();
    CHECK(two.side[0].Told(TransferNews::Kind::kFailed) ||
          two.side[0].Told(TransferNews::Kind::kVerified));
  }
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
