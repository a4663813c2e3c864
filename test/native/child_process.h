// Another process for tests of what happens when one dies.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "os/unique_fd.h"

namespace falcon::test {

// A child process that runs `body` and exits with its result; descriptors go through pipes.
class Child {
 public:
  explicit Child(const std::function<int(int from_parent, int to_parent)>& body) {
    int down[2];
    int up[2];
    if (pipe2(down, O_CLOEXEC) != 0 || pipe2(up, O_CLOEXEC) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      close(down[1]);
      close(up[0]);
      alarm(60);  // whatever happens, it ends
      _exit(body(down[0], up[1]));
    }
    close(down[0]);
    close(up[1]);
    to_.Reset(down[1]);
    from_.Reset(up[0]);
  }
  ~Child() {
    if (pid_ > 0) Kill();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int to() const { return to_.get(); }
  [[nodiscard]] int from() const { return from_.get(); }
  void Kill() {
    kill(pid_, SIGKILL);
    Wait();
  }
  // Its exit code; -1 if it was killed.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd to_;
  UniqueFd from_;
};

// Short of PIPE_BUF, so that one write is one read.
inline bool Tell(int fd, const std::string& text) {
  return write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

inline std::string Hear(int fd) {
  char text[4096];
  pollfd wait{fd, POLLIN, 0};
  if (poll(&wait, 1, 20000) != 1) return {};
  const ssize_t got = read(fd, text, sizeof text);
  return got > 0 ? std::string(text, static_cast<size_t>(got)) : std::string();
}

}  // namespace falcon::test
