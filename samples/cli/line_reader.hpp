// Lines of a file or of standard input, with a bound on their length, that Ctrl-C can end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace cli {

// The longest line that is kept: an event body of 1 MiB with every byte escaped fits.
constexpr std::size_t kMaxLineBytes = std::size_t{8} << 20U;

struct Line {
  std::uint64_t number = 0;  // 1, 2, 3, ...
  std::string text;          // without its newline; of an over-long line the first kMaxLineBytes bytes
  bool over_long = false;
};

class LineReader {
 public:
  // "-" is standard input. stop_fd: reading ends when it becomes readable; -1: never. Throws invalid_argument naming
  // the file.
  explicit LineReader(const std::string& path, int stop_fd = -1);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // Empty: the end of the file, or stopped. Throws invalid_argument naming the file if it cannot be read.
  std::optional<Line> next();

  std::uint64_t bytes_read() const noexcept { return bytes_read_; }    // up to the end of the last line given
  std::uint64_t total_bytes() const noexcept { return total_bytes_; }  // 0: not known (a pipe, a terminal)

 private:
  bool fill();  // false: the end, or stopped

  std::string name_;
  int fd_ = -1, stop_fd_ = -1;
  bool stopped_ = false;
  std::string buffer_;
  std::size_t begin_ = 0;  // buffer_[begin_..) is not yet given out
  std::uint64_t line_ = 0, bytes_read_ = 0, total_bytes_ = 0;
};

}  // namespace cli
