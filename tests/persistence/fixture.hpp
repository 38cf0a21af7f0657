// What the store tests share: a directory of their own, sample records, file hashes.
#pragma once

#include <openssl/sha.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mneme/error.hpp>
#include <string>
#include <vector>

#include "persistence/records.hpp"
#include "persistence/store_file.hpp"

namespace mneme::test {

// A fresh directory, removed with everything in it. `ram`: on a RAM disk where there is one, for many small stores.
class TempDir {
 public:
  enum class Where { disk, ram };
  explicit TempDir(Where where = Where::disk) {
    const std::filesystem::path shm = "/dev/shm";
    const bool ram = where == Where::ram && access(shm.c_str(), W_OK | X_OK) == 0;
    std::string pattern = ((ram ? shm : std::filesystem::temp_directory_path()) / "mneme-store-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a directory like " + pattern);
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// Loops over faults and mutants try each n-th: all of them normally, a sample where each costs many times more.
inline unsigned thinning() {
#if defined(__SANITIZE_THREAD__)
  return 40;  // these loops have one thread: nothing to find
#else
  return std::getenv("MNEME_TEST_QUICK") != nullptr ? 7 : 1;
#endif
}

// The bytes of a file; empty if there is none.
inline std::string slurp(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) return {};
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void spill(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

// SHA-256 of a file and of its -wal (a missing file counts as empty). No connection of this process may be open.
inline std::string store_hash(const std::filesystem::path& path) {
  std::string digests;
  for (const std::string& file : {path.string(), path.string() + "-wal"}) {
    const std::string bytes = slurp(file);
    std::string digest(SHA256_DIGEST_LENGTH, '\0');
    SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
           reinterpret_cast<unsigned char*>(digest.data()));
    digests += digest;
  }
  return digests;
}

// The code of what `body` throws; a default error_code if it returns.
template <typename Body>
error_code code_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  return {};
}

// The message of what `body` throws; empty if it returns.
template <typename Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

inline store::StoreFileOptions quick_options() {
  store::StoreFileOptions options;
  options.min_free_bytes = 0;
  return options;
}

inline store::StoreFileOptions reader_options() {
  store::StoreFileOptions options;
  options.access = store::Access::read_only;
  return options;
}

inline store::ModelIdentity sample_model() {
  return {"aa11", "bb22", "cc33", R"({"layers":2})", R"({"block":64})"};
}

inline store::EventRecord sample_event(const std::string& body, const std::string& key = "") {
  store::EventRecord event;
  event.key = key;
  event.kind = "user";
  event.posted_us = 1000;
  event.body = body;
  return event;
}

inline std::vector<std::int32_t> sample_tokens(std::int32_t first, std::size_t n) {
  std::vector<std::int32_t> tokens;
  for (std::size_t i = 0; i < n; ++i) tokens.push_back(first + static_cast<std::int32_t>(i));
  return tokens;
}

// A store with one acquired agent.
struct OpenAgent {
  std::unique_ptr<store::StoreFile> store;
  std::int64_t agent = 0;
};

inline OpenAgent open_agent(const std::filesystem::path& path, const store::StoreFileOptions& options = quick_options(),
                            const std::string& name = "house") {
  OpenAgent open;
  open.store = store::StoreFile::open(path, options);
  const auto found = open.store->find_agent(name);
  open.agent = found ? found->id : open.store->create_agent(name, sample_model(), 5).id;
  open.store->acquire(open.agent, "numerics-1", 6);
  return open;
}

}  // namespace mneme::test
