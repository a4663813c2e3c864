// Source and target of a state transfer against each other, over the simulated network.
#include <stdlib.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "fabric/sim.h"
#include "os/clock.h"
#include "pages/guest_memory.h"
#include "plane/transfer.h"
#include "plane/transfer_parts.h"

namespace {

using falcon::GuestMemory;
using falcon::kPageBytes;
using falcon::TransferNews;
using News = std::vector<TransferNews>;

constexpr size_t kPages = 64;

struct Session {
  Session() {
    char name[] = "/dev/shm/falcon-session-XXXXXX";
    CHECK(mkdtemp(name) != nullptr);
    directory = name;
    CHECK(GuestMemory::Create(Path("source.ram"), kPages * kPageBytes, &source_ram).ok());
    CHECK(GuestMemory::Create(Path("target.ram"), kPages * kPageBytes, &target_ram).ok());
    CHECK(falcon::WriteFile(Path("state"), {}).ok());
    for (falcon::PeerId member : {0, 1}) {
      fabrics[member] = network.MakeFabric(member);
      CHECK(fabrics[member]->AddRegion(0, 4096).ok());
    }
    CHECK(fabrics[0]->Connect(1, 1, fabrics[1]->Descriptor()).ok());
    CHECK(fabrics[1]->Connect(0, 1, fabrics[0]->Descriptor()).ok());
  }
  ~Session() {
    if (source != nullptr) source->End();
    if (target != nullptr) target->End();
    // What is done aside has the sessions until it is done.
    aside.reset();
    source.reset();
    target.reset();
    for (const char* name : {"source.ram", "target.ram", "state", "loaded"})
      unlink(Path(name).c_str());
    rmdir(directory.c_str());
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  [[nodiscard]] std::string Path(const std::string& name) const { return directory + "/" + name; }

  void Open() {
    falcon::TransferOptions options;
    options.session = 1;
    options.ram_bytes = kPages * kPageBytes;
    options.key = falcon::MakeDigestKey();
    options.source = true;
    options.peer = 1;
    options.ram_path = Path("source.ram");
    options.inbox_path = Path("source.inbox");
    options.state_path = Path("state");
    source = falcon::MakeTransferSource(options, fabrics[0].get(), aside.get());
    std::string inbox, ram;
    CHECK(source->Prepare().ok() && source->Open(&inbox, &ram).ok());
    options.source = false;
    options.peer = 0;
    options.ram_path = Path("target.ram");
    options.inbox_path = Path("target.inbox");
    options.state_path = Path("loaded");
    options.grant = inbox;
    target = falcon::MakeTransferTarget(options, fabrics[1].get(), aside.get(), nullptr);
    CHECK(target->Prepare().ok() && target->Open(&inbox, &ram).ok());
    CHECK(source->Attach(inbox, ram).ok());
  }

  // Until the source tells something; with `deliver` what it posts is delivered, too.
  [[nodiscard]] bool Drive(TransferNews::Kind kind, const std::function<bool()>& deliver) {
    const falcon::Nanoseconds give_up = falcon::MonotonicNow() + 20 * falcon::kSecond;
    while (falcon::MonotonicNow() < give_up) {
      News told;
      source->Poll(falcon::MonotonicNow(), &told);
      target->Poll(falcon::MonotonicNow(), &heard);
      for (const TransferNews& news : told) {
        if (news.kind == kind) return true;
        if (news.kind == TransferNews::Kind::kFailed) return false;
      }
      network.DeliverAll(1, 0);
      if (deliver()) network.DeliverAll(0, 1);
      fabrics[0]->Poll();
      fabrics[1]->Poll();
    }
    return false;
  }

  static void Write(GuestMemory& memory, size_t page, int what) {
    std::memset(memory.ram().data() + page * kPageBytes, what, kPageBytes);
  }
  [[nodiscard]] bool TargetHas(size_t page, int what) const {
    const auto bytes = target_ram.ram().subspan(page * kPageBytes, kPageBytes);
    for (const std::byte byte : bytes) {
      if (byte != static_cast<std::byte>(what)) return false;
    }
    return true;
  }

  std::string directory;
  GuestMemory source_ram, target_ram;
  falcon::SimNetwork network{{.lazy_completions = true}};
  std::unique_ptr<falcon::Fabric> fabrics[2];
  std::unique_ptr<falcon::TransferSource> source;
  std::unique_ptr<falcon::TransferTarget> target;
  falcon::TransferBases bases;
  std::unique_ptr<falcon::Aside> aside = std::make_unique<falcon::Aside>(true);
  News heard;
};

const auto kAlways = [] { return true; };

// Changes begin to be noted only after the session was opened: what the guest has touched in
// between, for the first time, is among the pages of the first round.
TEST(a_page_touched_after_opening_is_not_missed) {
  Session session;
  Session::Write(session.source_ram, 3, 1);
  session.Open();
  Session::Write(session.source_ram, 7, 2);
  session.source->Round(1, falcon::RoundPages::kResident, false, &session.bases);
  REQUIRE(session.Drive(TransferNews::Kind::kRound, kAlways));
  session.network.DeliverEverything();
  CHECK(session.TargetHas(3, 1));
  CHECK(session.TargetHas(7, 2));
}

// Both sides' work slows guests down that run: it takes its time until one of them stands still.
TEST(both_sides_are_patient_while_the_guest_runs) {
  Session session;
  Session::Write(session.source_ram, 3, 1);
  session.Open();
  CHECK(session.source->patient() && session.target->patient());
  for (const bool still : {false, true}) {
    session.source->Round(still ? 2 : 1, falcon::RoundPages::kResident, still, &session.bases);
    REQUIRE(session.Drive(TransferNews::Kind::kRound, kAlways));
    CHECK(session.source->patient() == !still);
    CHECK(session.target->patient() == !still);
  }
}

// The source's guest goes on when the state is told to be sent, and writes to its pages. What was
// posted of them before must have left by then.
TEST(the_state_is_sent_only_when_all_pages_have_left) {
  Session session;
  for (size_t page = 0; page < kPages; ++page) Session::Write(session.source_ram, page, 1);
  session.Open();
  session.source->Round(1, falcon::RoundPages::kResident, true, &session.bases);
  // The question is delivered; the pages stay in the queue.
  const auto question = [&] {
    return session.network.PendingOfRegion(0, 1, falcon::kRamRegion) == 0;
  };
  REQUIRE(session.Drive(TransferNews::Kind::kRound, question));
  REQUIRE(session.network.PendingOfRegion(0, 1, falcon::kRamRegion) > 0);
  REQUIRE(session.source->Send(5, 2, session.Path("state"), {}).ok());
  News told;
  for (int i = 0; i < 100; ++i) session.source->Poll(falcon::MonotonicNow(), &told);
  CHECK(told.empty());
  if (told.empty()) CHECK(session.Drive(TransferNews::Kind::kSent, kAlways));
  for (size_t page = 0; page < kPages; ++page) Session::Write(session.source_ram, page, 9);
  session.network.DeliverEverything();
  size_t right = 0;
  for (size_t page = 0; page < kPages; ++page) right += session.TargetHas(page, 1) ? 1 : 0;
  CHECK(right == kPages);
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
