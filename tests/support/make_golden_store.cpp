// Writes the golden store of the current schema version: make_golden_store DIRECTORY. To be run once per version; the
// result is checked in (tests/data/store) and never changed afterwards.
#include <cstdio>
#include <fstream>
#include <iterator>

#include "persistence/schema.hpp"
#include "tests/support/sample_store.hpp"
#include "tests/support/store_contents.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_golden_store DIRECTORY\n");
    return 2;
  }
  const std::filesystem::path directory = argv[1];
  const std::string name = "golden_v" + std::to_string(mneme::store::kSchemaVersion);
  const std::filesystem::path path = directory / (name + ".mneme");
  mneme::store::StoreFileOptions options;
  mneme::test::make_sample_store(path, options);
  {
    options.access = mneme::store::Access::read_only;
    const auto store = mneme::store::StoreFile::open(path, options);
    std::ofstream(directory / (name + ".txt")) << mneme::test::dump_journals(*store);
  }
  std::ifstream in(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  std::ofstream(directory / (name + ".runs"), std::ios::binary) << mneme::test::pack_runs(bytes);
  for (const char* suffix : {"", "-lock", "-wal", "-shm"}) std::filesystem::remove(path.string() + suffix);
  return 0;
}
