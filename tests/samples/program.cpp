#include "tests/samples/program.hpp"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "tests/support/reference.hpp"

namespace mneme::test {

namespace fs = std::filesystem;

Scratch::Scratch() {
  std::string name = (fs::temp_directory_path() / "mneme-samples-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary directory");
  dir_ = name;
}

Scratch::~Scratch() {
  std::error_code ignored;
  fs::remove_all(dir_, ignored);
}

std::string Scratch::write(const std::string& name, const std::string& text) const {
  std::ofstream(dir_ / name, std::ios::binary) << text;
  return path(name);
}

Program::Program(const Scratch& scratch, const Arguments& argv) {
  ::signal(SIGPIPE, SIG_IGN);  // a program that ends early is seen by how it ended
  static std::atomic<int> count = 0;
  const std::string stem = "program" + std::to_string(++count);
  out_path_ = scratch.dir() / (stem + ".out");
  err_path_ = scratch.dir() / (stem + ".err");
  const int out = ::open(out_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const int err = ::open(err_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  int pipe_fds[2];
  if (out < 0 || err < 0 || ::pipe2(pipe_fds, O_CLOEXEC) != 0) throw std::runtime_error("no files for a program");
  std::vector<char*> pointers;
  for (const std::string& argument : argv) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  child_ = ::fork();
  if (child_ == 0) {
    ::signal(SIGPIPE, SIG_DFL);
    ::dup2(pipe_fds[0], STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(err, STDERR_FILENO);
    if (::chdir(scratch.dir().c_str()) == 0) ::execv(pointers[0], pointers.data());
    ::_exit(127);
  }
  ::close(pipe_fds[0]);
  ::close(out);
  ::close(err);
  input_ = pipe_fds[1];
  if (child_ < 0) throw std::runtime_error("no process for " + argv[0]);
}

Program::~Program() {
  close_input();
  if (!running()) return;
  signal(SIGKILL);
  reap(0);
}

void Program::write(const std::string& text) {
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t written = ::write(input_, text.data() + done, text.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return;  // the program no longer reads; how it ended tells why
    done += static_cast<std::size_t>(written);
  }
}

void Program::close_input() {
  if (input_ >= 0) ::close(input_);
  input_ = -1;
}

void Program::signal(int number) const {
  if (child_ > 0) ::kill(child_, number);
}

void Program::reap(int options) {
  if (child_ > 0 && ::waitpid(child_, &status_, options) == child_) child_ = -1;
}

bool Program::running() {
  reap(WNOHANG);
  return child_ > 0;
}

std::string Program::out() const {
  return read_file(out_path_);
}

bool Program::wait_for_output(const std::string& text) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (std::chrono::steady_clock::now() < give_up) {
    const bool alive = running();
    if (out().find(text) != std::string::npos) return true;
    if (!alive) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

Outcome Program::finish() {
  close_input();
  reap(0);
  Outcome outcome;
  if (WIFEXITED(status_)) outcome.code = WEXITSTATUS(status_);
  if (WIFSIGNALED(status_)) outcome.signal = WTERMSIG(status_);
  outcome.out = read_file(out_path_);
  outcome.err = read_file(err_path_);
  return outcome;
}

Outcome run(const Scratch& scratch, const Arguments& argv, const std::string& input) {
  Program program(scratch, argv);
  program.write(input);
  return program.finish();
}

double figure(const std::string& text, const std::string& name) {
  const std::size_t at = (" " + text).find(" " + name + "=");
  const std::size_t line_start = text.find("\n" + name + "=");
  const std::size_t begin = at != std::string::npos ? at : line_start == std::string::npos ? at : line_start + 1;
  if (begin == std::string::npos) return -1;
  return std::strtod(text.c_str() + begin + name.size() + 1, nullptr);
}

}  // namespace mneme::test
