// A folder for one reactor's log and shared memory, gone with the test.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "os/check.h"

namespace falcon::test {

struct Place {
  Place() {
    root = std::filesystem::temp_directory_path() / "falcon-test-XXXXXX";
    FALCON_CHECK(mkdtemp(root.data()) != nullptr);
    std::filesystem::create_directory(root + "/wal");
  }
  ~Place() { std::filesystem::remove_all(root); }
  std::string root;
};

}  // namespace falcon::test
