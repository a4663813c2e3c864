// Looking peers up beside the reactor: nobody waits for somebody else's peer, and every request
// ends once.
#include "plane/connector.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "os/clock.h"

namespace {

using namespace falcon;

// Descriptors that begin with "hang" are not found before Release.
class Lab {
 public:
  Status Prepare(std::string_view descriptor) {
    ++begun;
    while (descriptor.starts_with("hang") && !released_) usleep(1000);
    if (descriptor.ends_with("nobody")) return {"FABRIC_CONNECT", "nobody answers"};
    return Ok();
  }
  void Note(const Connector::Request& request, const Status& status) {
    const std::lock_guard lock(mutex_);
    ended_.push_back(std::to_string(request.peer) + "." + std::to_string(request.connection) + " " +
                     status.code());
  }
  std::vector<std::string> ended() {
    const std::lock_guard lock(mutex_);
    return ended_;
  }
  bool Until(size_t count) {
    for (int i = 0; i < 5000 && ended().size() < count; ++i) usleep(1000);
    return ended().size() == count;
  }
  bool UntilBegun(int count) {
    for (int i = 0; i < 5000 && begun < count; ++i) usleep(1000);
    return begun >= count;
  }
  void Release() { released_ = true; }

  std::atomic<int> begun{0};
  std::unique_ptr<Connector> connector = std::make_unique<Connector>(
      [this](PeerId /*peer*/, std::string_view descriptor) { return Prepare(descriptor); },
      [this](const Connector::Request& request, const Status& status) { Note(request, status); });

 private:
  std::mutex mutex_;
  std::vector<std::string> ended_;
  std::atomic<bool> released_{false};
};

using Strings = std::vector<std::string>;

TEST(a_peer_that_does_not_answer_delays_nobody_else) {
  Lab lab;
  const Nanoseconds from = MonotonicNow();
  lab.connector->Submit({1, 10, "hang"});
  REQUIRE(lab.UntilBegun(1));
  lab.connector->Submit({2, 11, "here"});
  lab.connector->Submit({3, 12, "nobody"});
  REQUIRE(lab.Until(2));
  Strings ended = lab.ended();
  std::sort(ended.begin(), ended.end());
  CHECK(ended == Strings({"2.11 OK", "3.12 FABRIC_CONNECT"}));
  CHECK(MonotonicNow() - from < 4 * kSecond);
  lab.Release();
  REQUIRE(lab.Until(3));
  CHECK(lab.ended().back() == "1.10 OK");
}

// A peer that restarts again and again leaves one request behind, and all of them are told.
TEST(a_newer_request_takes_the_place_of_older_ones) {
  Lab lab;
  lab.connector->Submit({1, 10, "hang"});
  REQUIRE(lab.UntilBegun(1));
  lab.connector->Submit({1, 11, "here"});
  lab.connector->Submit({1, 12, "here"});
  CHECK(lab.ended() == Strings({"1.11 FABRIC_CONNECT"}));
  lab.Release();
  REQUIRE(lab.Until(3));
  CHECK(lab.ended() == Strings({"1.11 FABRIC_CONNECT", "1.10 FABRIC_CONNECT", "1.12 OK"}));
  CHECK(lab.begun == 2);
}

TEST(the_end_waits_for_what_is_under_way_and_tells_nobody) {
  Lab lab;
  lab.connector->Submit({1, 10, "hang"});
  REQUIRE(lab.UntilBegun(1));
  lab.connector->Submit({1, 11, "here"});
  std::thread release([&] {
    usleep(20000);
    lab.Release();
  });
  lab.connector.reset();
  release.join();
  CHECK(lab.ended().empty());
  CHECK(lab.begun == 1);
}

}  // namespace

int main(int argc, char** argv) { return falcon::test::Main(argc, argv); }
