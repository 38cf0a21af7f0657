#include "samples/cli/line_reader.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mneme/error.hpp>

namespace cli {

LineReader::LineReader(const std::string& path, int stop_fd)
    : name_(path == "-" ? "standard input" : path), stop_fd_(stop_fd) {
  fd_ = path == "-" ? STDIN_FILENO : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status {};
  if (fd_ < 0 || ::fstat(fd_, &status) != 0) {
    throw mneme::Error(mneme::errc::invalid_argument, name_ + " cannot be opened: " + std::strerror(errno));
  }
  if (S_ISREG(status.st_mode)) total_bytes_ = static_cast<std::uint64_t>(status.st_size);
}

LineReader::~LineReader() {
  if (fd_ > STDIN_FILENO) ::close(fd_);
}

bool LineReader::fill() {
  pollfd ready[2] = {{fd_, POLLIN, 0}, {stop_fd_, POLLIN, 0}};
  while (::poll(ready, 2, -1) < 0) {
    if (errno != EINTR) throw mneme::Error(mneme::errc::invalid_argument, name_ + ": " + std::strerror(errno));
  }
  if (ready[1].revents != 0) {
    stopped_ = true;
    return false;
  }
  buffer_.erase(0, begin_);
  begin_ = 0;
  char chunk[65536];
  ssize_t got = 0;
  while ((got = ::read(fd_, chunk, sizeof chunk)) < 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    throw mneme::Error(mneme::errc::invalid_argument, name_ + " cannot be read: " + std::strerror(errno));
  }
  buffer_.append(chunk, static_cast<std::size_t>(got));
  return got > 0;
}

std::optional<Line> LineReader::next() {
  Line line;
  for (std::size_t scanned = 0;;) {
    const std::size_t end = buffer_.find('\n', begin_ + scanned);
    if (end != std::string::npos) {
      line.text.append(buffer_, begin_, end - begin_);
      bytes_read_ += end + 1 - begin_;
      begin_ = end + 1;
      break;
    }
    scanned = buffer_.size() - begin_;
    if (line.text.size() + scanned > kMaxLineBytes) {  // keep the first bytes, drop the rest as it comes
      if (line.text.empty()) line.text.assign(buffer_, begin_, kMaxLineBytes);
      bytes_read_ += scanned;
      begin_ = buffer_.size();
      scanned = 0;
      line.over_long = true;
    }
    if (fill()) continue;
    const std::size_t rest = buffer_.size() - begin_;
    if (stopped_ || (rest == 0 && line.text.empty())) return std::nullopt;
    line.text.append(buffer_, begin_, rest);
    bytes_read_ += rest;
    begin_ = buffer_.size();
    break;
  }
  line.number = ++line_;
  if (line.text.size() > kMaxLineBytes) line.over_long = true;
  if (line.over_long) line.text.resize(kMaxLineBytes);
  return line;
}

}  // namespace cli
