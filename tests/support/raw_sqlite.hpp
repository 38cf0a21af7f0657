// Plain SQLite for tests: to damage stores, or to look into them from outside.
#pragma once

#include <sqlite3.h>

#include <filesystem>
#include <stdexcept>
#include <string>

namespace mneme::test {

class RawDb {
 public:
  explicit RawDb(const std::filesystem::path& path) {
    if (sqlite3_open(path.c_str(), &handle_) != SQLITE_OK) throw std::runtime_error("cannot open " + path.string());
  }
  ~RawDb() { sqlite3_close_v2(handle_); }
  RawDb(const RawDb&) = delete;
  RawDb& operator=(const RawDb&) = delete;

  void exec(const std::string& sql) {
    if (sqlite3_exec(handle_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK)
      throw std::runtime_error(sql + ": " + sqlite3_errmsg(handle_));
  }
  // The first column of the first row.
  std::string value(const std::string& sql) {
    std::string found;
    const auto take = [](void* out, int, char** columns, char**) {
      auto& text = *static_cast<std::string*>(out);
      if (text.empty() && columns[0] != nullptr) text = columns[0];
      return 0;
    };
    if (sqlite3_exec(handle_, sql.c_str(), take, &found, nullptr) != SQLITE_OK)
      throw std::runtime_error(sql + ": " + sqlite3_errmsg(handle_));
    return found;
  }

 private:
  sqlite3* handle_ = nullptr;
};

}  // namespace mneme::test
