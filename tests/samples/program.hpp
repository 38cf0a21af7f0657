// Running programs from a test: input in, output and end out, and signals in the middle.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

namespace mneme::test {

// A directory of its own under the system's temporary directory, removed at the end.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::filesystem::path& dir() const noexcept { return dir_; }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  // Writes a file and returns its path.
  std::string write(const std::string& name, const std::string& text) const;

 private:
  std::filesystem::path dir_;
};

struct Outcome {
  int code = -1;   // exit code; -1 if a signal ended it
  int signal = 0;  // that signal; 0: it exited
  std::string out, err;
};

using Arguments = std::vector<std::string>;

// A running program. Its standard input is a pipe.
class Program {
 public:
  // argv[0] is the path of the program. Throws std::runtime_error if it cannot be started.
  Program(const Scratch& scratch, const Arguments& argv);
  ~Program();  // kills it if it still runs
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void write(const std::string& text);
  void close_input();
  void signal(int number) const;
  bool running();
  std::string out() const;  // so far
  // Waits until standard output contains the text; false if the program ended first, or after 60 s.
  bool wait_for_output(const std::string& text);
  // Closes the input and waits for the end.
  Outcome finish();

 private:
  void reap(int options);

  std::filesystem::path out_path_, err_path_;
  pid_t child_ = -1;
  int input_ = -1;
  int status_ = 0;
};

// Runs a program to its end.
Outcome run(const Scratch& scratch, const Arguments& argv, const std::string& input = {});

// The value of "name=value" in a line of such pairs; -1 where it is missing.
double figure(const std::string& text, const std::string& name);

}  // namespace mneme::test
