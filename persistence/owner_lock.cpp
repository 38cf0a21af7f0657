// The owner lock: fcntl(F_OFD_SETLK).
#include "persistence/owner_lock.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <system_error>

namespace mneme::store {
namespace {

std::string reason(int error) {
  return std::generic_category().message(error);
}

// "process 12 on host \"h\"", as the holder wrote it; it may just be about to.
std::string holder(int descriptor) {
  std::array<char, 300> text{};
  const ssize_t n = pread(descriptor, text.data(), text.size(), 0);
  const std::string line(text.data(), n > 0 ? static_cast<std::size_t>(n) : 0);
  const std::size_t space = line.find(' ');
  const std::size_t end = line.find('\n');
  if (space == std::string::npos || end == std::string::npos || end < space) return "another owner";
  return "process " + excerpt(line.substr(0, space), 20) + " on host " +
         excerpt(line.substr(space + 1, end - space - 1));
}

}  // namespace

std::filesystem::path lock_path(const std::filesystem::path& store) {
  return store.string() + "-lock";
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

OwnerLock::OwnerLock(const std::filesystem::path& store) {
  const std::string path = lock_path(store).string();
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (descriptor_ < 0)
    throw Error(errc::store_unavailable, "cannot open the lock file " + json_quoted(path) + ": " + reason(errno));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  if (fcntl(descriptor_, F_OFD_SETLK, &lock) != 0) {
    const int error = errno;
    const std::string who = holder(descriptor_);
    ::close(descriptor_);
    if (error == EAGAIN || error == EACCES)
      throw Error(errc::agent_locked, "store " + json_quoted(store.string()) + " is in use by " + who);
    throw Error(errc::store_unsupported, "cannot lock " + json_quoted(path) + ": " + reason(error));
  }
  // For the message of whoever comes next; the lock holds without it.
  const std::string line = std::to_string(getpid()) + ' ' + host_name() + '\n';
  [[maybe_unused]] const bool named =
      ftruncate(descriptor_, 0) == 0 && pwrite(descriptor_, line.data(), line.size(), 0) > 0;
}

OwnerLock::~OwnerLock() {
  ::close(descriptor_);
}

}  // namespace mneme::store
