// Work that is given away: in order, on a thread of its own, and all of it.
#include "os/aside.h"

#include <sched.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "os/clock.h"
#include "os/realtime.h"

namespace {

using falcon::Aside;
using falcon::AsideTicket;

bool Wait(const AsideTicket& ticket) {
  const falcon::Nanoseconds give_up = falcon::MonotonicNow() + 20 * falcon::kSecond;
  while (!ticket.done() && falcon::MonotonicNow() < give_up) std::this_thread::yield();
  return ticket.done();
}

// Tells on which thread it was destroyed.
struct Fragile {
  explicit Fragile(std::atomic<std::thread::id>* told) : told(told) {}
  ~Fragile() { told->store(std::this_thread::get_id()); }
  Fragile(const Fragile&) = delete;
  Fragile& operator=(const Fragile&) = delete;
  std::atomic<std::thread::id>* told;
};

TEST(work_is_done_in_order_on_another_thread) {
  Aside aside(true);
  std::vector<int> order;
  std::thread::id where;
  aside.Do([&] {
    where = std::this_thread::get_id();
    order.push_back(1);
  });
  aside.Do([&] { order.push_back(2); });
  REQUIRE(Wait(aside.Do([&] { order.push_back(3); })));
  CHECK((order == std::vector<int>{1, 2, 3}));
  CHECK(where != std::this_thread::get_id());
  CHECK(!AsideTicket().done());
}

TEST(who_gives_work_does_not_wait_for_it) {
  std::atomic<bool> go{false};
  {
    Aside aside(true);
    const AsideTicket first = aside.Do([&] { go.wait(false); });
    const AsideTicket second = aside.Do([] {});
    CHECK(!first.done() && !second.done());
    go.store(true);
    go.notify_all();
    CHECK(Wait(second) && first.done());
  }
}

TEST(what_work_holds_has_gone_when_it_is_done) {
  Aside aside(true);
  std::atomic<std::thread::id> destroyed{std::thread::id()};
  REQUIRE(Wait(aside.Do([held = std::make_shared<Fragile>(&destroyed)] {})));
  CHECK(destroyed.load() != std::thread::id());
  CHECK(destroyed.load() != std::this_thread::get_id());
  destroyed.store(std::thread::id());
  aside.Destroy(std::make_unique<Fragile>(&destroyed));
  aside.Destroy(std::unique_ptr<Fragile>());
  REQUIRE(Wait(aside.Do([] {})));
  CHECK(destroyed.load() != std::thread::id());
  CHECK(destroyed.load() != std::this_thread::get_id());
}

TEST(all_that_was_given_is_done_before_the_end) {
  std::atomic<int> done{0};
  {
    Aside aside(true);
    for (int i = 0; i < 1000; ++i) aside.Do([&] { done.fetch_add(1); });
  }
  CHECK(done.load() == 1000);
}

TEST(without_a_thread_it_is_done_at_once) {
  Aside aside(false);
  std::thread::id where;
  CHECK(aside.Do([&] { where = std::this_thread::get_id(); }).done());
  CHECK(where == std::this_thread::get_id());
  std::atomic<std::thread::id> destroyed{std::thread::id()};
  aside.Destroy(std::make_unique<Fragile>(&destroyed));
  CHECK(destroyed.load() == std::this_thread::get_id());
}

// Mapping a guest's memory is nothing that others would have to stand back for.
TEST(the_thread_is_ordinary) {
  std::thread([] {
    const bool realtime = falcon::MakeRealtime(falcon::RealtimePriority::kDataPath);
    if (!realtime) std::printf("# no permission for realtime threads: from an ordinary one\n");
    Aside aside(true);
    int policy = -1;
    REQUIRE(Wait(aside.Do([&] { policy = sched_getscheduler(0); })));
    CHECK(policy == SCHED_OTHER);
  }).join();
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
