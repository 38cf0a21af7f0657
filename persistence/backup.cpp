// Online backup into a file of its own, then a rename.
#include "persistence/backup.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <system_error>

#include "persistence/location.hpp"

namespace mneme::store {
namespace {

std::string reason(int error) {
  return std::generic_category().message(error);
}

// A new empty file, removed again unless kept.
class PartialFile {
 public:
  explicit PartialFile(std::string path) : path_(std::move(path)) {
    ::unlink(path_.c_str());
    make_empty_file(path_);
  }
  ~PartialFile() {
    ::unlink(path_.c_str());
    ::unlink((path_ + "-journal").c_str());
  }
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

}  // namespace

void write_backup(Db& db, const std::filesystem::path& to) {
  std::error_code ignored;
  const std::filesystem::path parent = to.has_parent_path() ? to.parent_path() : std::filesystem::path(".");
  const std::filesystem::path target = std::filesystem::weakly_canonical(parent, ignored) / to.filename();
  const std::string exists = "the backup " + json_quoted(to.string()) + " exists already";
  if (std::filesystem::exists(std::filesystem::symlink_status(target, ignored)))
    throw Error(errc::invalid_argument, exists);
  const PartialFile partial(target.string() + "-partial");
  db.copy_to(partial.path());
  // link, not rename: it never replaces a file that appeared meanwhile.
  if (::link(partial.path().c_str(), target.c_str()) != 0) {
    if (errno == EEXIST) throw Error(errc::invalid_argument, exists);
    throw Error(errc::store_io, "cannot name the backup " + json_quoted(to.string()) + ": " + reason(errno));
  }
  sync_directory(target);
}

}  // namespace mneme::store
