// Maps or reads a file, watching that it does not change meanwhile.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <new>
#include <string>
#include <utility>

#include "runtime/model/gguf.hpp"

namespace mneme::model {
namespace {

constexpr std::align_val_t kOwnedAlignment{64};

[[noreturn]] void fail(errc code, const std::filesystem::path& path, const std::string& what) {
  throw Error(code, "model file " + json_quoted(path.string()) + ": " + what);
}

std::string error_text(int error) {
  return std::generic_category().message(error);
}

class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail(errc::model_not_found, path_, "cannot be opened: " + error_text(errno));
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const noexcept { return fd_; }

  FileStamp stamp() const {
    struct stat info {};
    if (::fstat(fd_, &info) != 0) fail(errc::model_not_found, path_, "cannot be examined: " + error_text(errno));
    if (!S_ISREG(info.st_mode)) fail(errc::model_not_found, path_, "is not a regular file");
    constexpr std::int64_t kNanosecondsPerSecond = 1'000'000'000;
    return {info.st_dev, info.st_ino, static_cast<std::uint64_t>(info.st_size),
            static_cast<std::int64_t>(info.st_mtim.tv_sec) * kNanosecondsPerSecond + info.st_mtim.tv_nsec};
  }

  void require_unchanged(const FileStamp& before) const {
    if (stamp() != before) fail(errc::model_corrupt, path_, "changed while it was opened");
  }

 private:
  const std::filesystem::path& path_;
  int fd_;
};

}  // namespace

FileBytes FileBytes::map(const std::filesystem::path& path, FileStamp& stamp) {
  const Descriptor file(path);
  stamp = file.stamp();
  if (stamp.size == 0) return {};
  void* data = ::mmap(nullptr, stamp.size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) fail(errc::out_of_memory, path, "cannot be mapped: " + error_text(errno));
  FileBytes mapped(Kind::mapped, static_cast<std::byte*>(data), stamp.size);
  file.require_unchanged(stamp);
  return mapped;
}

FileBytes FileBytes::read(const std::filesystem::path& path, FileStamp& stamp) {
  const Descriptor file(path);
  stamp = file.stamp();
  FileBytes owned = allocate(stamp.size);
  for (std::size_t done = 0; done < stamp.size;) {
    const ssize_t n = ::read(file.get(), owned.data_ + done, stamp.size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(errc::model_corrupt, path, "cannot be read: " + error_text(errno));
    if (n == 0) fail(errc::model_corrupt, path, "changed while it was read");
    done += static_cast<std::size_t>(n);
  }
  file.require_unchanged(stamp);
  return owned;
}

FileBytes FileBytes::copy(std::span<const std::byte> bytes) {
  FileBytes owned = allocate(bytes.size());
  if (!bytes.empty()) std::memcpy(owned.data_, bytes.data(), bytes.size());
  return owned;
}

FileBytes FileBytes::allocate(std::size_t size) {
  void* data = ::operator new(size, kOwnedAlignment, std::nothrow);
  if (data == nullptr)
    throw Error(errc::out_of_memory, "no memory for a model file of " + std::to_string(size) + " bytes");
  return {Kind::owned, static_cast<std::byte*>(data), size};
}

FileBytes::FileBytes(FileBytes&& other) noexcept
    : kind_(std::exchange(other.kind_, Kind::none)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

FileBytes& FileBytes::operator=(FileBytes&& other) noexcept {
  std::swap(kind_, other.kind_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void FileBytes::drop_pages() const noexcept {
  if (kind_ == Kind::mapped) ::madvise(data_, size_, MADV_DONTNEED);  // a wish
}

FileBytes::~FileBytes() {
  if (kind_ == Kind::mapped) ::munmap(data_, size_);
  if (kind_ == Kind::owned) ::operator delete(data_, kOwnedAlignment);
}

}  // namespace mneme::model
