// What a store costs: accepting events, committing tokens, writing and reading units, opening.
//   store_bench [DIRECTORY]     (default: the temporary directory; the store is removed afterwards)
// Prints a table of p50 and p99, then one line of name=value pairs (microseconds, MB/s).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <functional>
#include <string>

#include "memory/unit_image.hpp"
#include "persistence/store_file.hpp"

namespace {

using mneme::store::Access;
using mneme::store::CacheBatch;
using mneme::store::EventRecord;
using mneme::store::ScheduleCommit;
using mneme::store::StoreFile;
using mneme::store::StoreFileOptions;
using mneme::store::Sync;
using Clock = std::chrono::steady_clock;

// A unit of the size of SmolLM2-135M: 30 layers, 3 KV heads of 64 channels, 64 tokens, f16: 48 KiB per row.
constexpr int kLayers = 30;
constexpr std::uint32_t kTokens = 64;
constexpr std::uint32_t kKvHeads = 3;
constexpr std::uint32_t kHeadDim = 64;

std::string summary;

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double cpu_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) / 1e3;
}

// Runs body(i) n times and prints the quantiles of the time and the mean processor time, which other programs on the
// machine disturb less; returns the sum of the times in microseconds.
double measure(const char* what, const char* name, int n, const std::function<void(int)>& body) {
  std::vector<double> times;
  double total = 0;
  const double cpu_start = cpu_us();
  for (int i = 0; i < n; ++i) {
    const auto start = Clock::now();
    body(i);
    times.push_back(us_since(start));
    total += times.back();
  }
  const double cpu = (cpu_us() - cpu_start) / n;
  std::sort(times.begin(), times.end());
  const double p50 = times[times.size() / 2];
  const double p99 = times[times.size() * 99 / 100];
  std::printf("%-44s %6d x   p50 %9.1f   p99 %9.1f   processor %9.1f us\n", what, n, p50, p99, cpu);
  char pair[192];
  std::snprintf(pair, sizeof pair, "%s_p50_us=%.1f %s_p99_us=%.1f %s_cpu_us=%.1f ", name, p50, name, p99, name, cpu);
  summary += pair;
  return total;
}

void rate(const char* what, const char* name, double bytes, double us) {
  std::printf("%-44s %12.0f MB/s\n", what, bytes / us);
  char pair[128];
  std::snprintf(pair, sizeof pair, "%s_mbps=%.0f ", name, bytes / us);
  summary += pair;
}

mneme::memory::ImagePtr row(std::uint64_t unit, int layer) {
  mneme::memory::ImageHeader h;
  h.layer = static_cast<std::uint32_t>(layer);
  h.n_kv_heads = kKvHeads;
  h.head_dim = kHeadDim;
  h.n_tokens = kTokens;
  h.first_pos = unit * kTokens;
  h.k_bytes = static_cast<std::uint64_t>(kKvHeads) * kTokens * kHeadDim * 2;
  h.payload_bytes = 2 * h.k_bytes;
  std::vector<std::byte> payload(h.payload_bytes);
  for (std::size_t i = 0; i < payload.size(); i += 2)
    payload[i] = static_cast<std::byte>((i * 2654435761U + unit * 97U + static_cast<unsigned>(layer)) >> 11U);
  return mneme::memory::encode_image(h, payload);
}

void run(const std::filesystem::path& path) {
  StoreFileOptions options;
  const auto store = StoreFile::open(path, options);
  const std::int64_t agent = store->create_agent("bench", {"w", "t", "c", "{}", "{}"}, 0).id;
  store->acquire(agent, "numerics", 0);
  const auto event = [](int i, const char* tag) {
    EventRecord e;
    e.kind = "user";
    e.body = std::string(200, 'x');
    e.key = tag + std::to_string(i);
    return e;
  };
  measure("accept, 200-byte event with a key", "accept", 5000, [&](int i) {
    const EventRecord events[] = {event(i, "a")};
    store->accept(agent, events, Sync::normal);
  });
  measure("accept, synced (power_loss_safe)", "accept_full", 300, [&](int i) {
    const EventRecord events[] = {event(i, "f")};
    store->accept(agent, events, Sync::full);
  });
  measure("accept, 256 events in one call", "accept256", 40, [&](int i) {
    std::vector<EventRecord> events;
    for (int j = 0; j < 256; ++j) events.push_back(event(i * 256 + j, "g"));
    store->accept(agent, events, Sync::normal);
  });
  std::uint64_t pos = 20000;
  ScheduleCommit first;
  first.segments.push_back({0, mneme::store::SegmentKind::prefill, 0, mneme::store::SegmentSource::event, 1,
                            std::vector<std::int32_t>(pos, 7)});
  first.segments.push_back({1, mneme::store::SegmentKind::decode, pos, mneme::store::SegmentSource::turn, 1, {7}});
  store->commit(agent, first);
  measure("commit of one decoded token", "commit_token", 8000, [&](int) {
    ScheduleCommit commit;
    commit.decoded = {7};
    store->commit(agent, commit);
  });
  measure("commit of 16 decoded tokens", "commit_token16", 2000, [&](int) {
    ScheduleCommit commit;
    commit.decoded.assign(16, 7);
    store->commit(agent, commit);
  });
  constexpr int kUnits = 300;
  const double unit_bytes = static_cast<double>(kLayers) * static_cast<double>(row(0, 0)->size());
  std::vector<CacheBatch> batches(kUnits);
  for (int unit = 0; unit < kUnits; ++unit) {
    for (int layer = 0; layer < kLayers; ++layer) {
      const auto ordinal = static_cast<std::uint64_t>(unit);
      batches[ordinal].rows.push_back({{mneme::memory::RowKind::unit, ordinal, layer}, row(ordinal, layer)});
    }
  }
  std::uint64_t wal_peak = 0;
  const double written = measure("write_cache, a unit of 30 x 48 KiB", "write_unit", kUnits, [&](int unit) {
    store->write_cache(agent, batches[static_cast<std::size_t>(unit)]);
    wal_peak = std::max<std::uint64_t>(wal_peak, std::filesystem::file_size(path.string() + "-wal"));
  });
  rate("write_cache, WAL copies into the file included", "write", unit_bytes * kUnits, written);
  std::printf("%-44s %12.1f MiB\n", "largest -wal", static_cast<double>(wal_peak) / 1048576.0);
  const double read = measure("read_rows, a unit, verified (warm)", "read_unit", kUnits, [&](int unit) {
    std::vector<mneme::memory::RowKey> keys;
    for (const auto& r : batches[static_cast<std::size_t>(unit)].rows) keys.push_back(r.key);
    store->read_rows(agent, keys);
  });
  rate("read_rows", "read", unit_bytes * kUnits, read);
  const auto verify_start = Clock::now();
  const auto result = store->verify();
  rate("verify, all of the store", "verify", static_cast<double>(result.bytes_checked), us_since(verify_start));
}

}  // namespace

int main(int argc, char** argv) {
  const std::filesystem::path directory = argc > 1 ? argv[1] : std::filesystem::temp_directory_path().string();
  const std::filesystem::path path = directory / "mneme-store-bench";
  const auto remove = [&] {
    for (const char* suffix : {"", "-wal", "-shm", "-lock"}) std::filesystem::remove(path.string() + suffix);
  };
  remove();
  run(path);
  measure("open, acquire (whole journal checked), close", "reopen", 20, [&](int i) {
    const auto store = StoreFile::open(path, {});
    store->acquire(store->find_agent("bench")->id, "numerics", i);
  });
  remove();
  std::printf("%s\n", summary.c_str());
  return 0;
}
