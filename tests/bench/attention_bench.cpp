// Speed of the host memory operations at the shapes of SmolLM2-135M (9 heads, 3 KV heads, head_dim 64, 30 layers),
// beside the f32 multiply-add peak and the read bandwidth measured in the same minute.
//
//   attention_bench [--threads N] [--isa NAME] [--seconds S]
//
// Data are random, every layer has its own keys and values (50 MB in all, more than the shared cache), outputs are
// poisoned before each round and checked to be finite after it. Prints a table, then a line of name=value pairs.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "gpu/host/memory_ops.hpp"
#include "gpu/quant_blocks.hpp"
#include "tests/support/stored_kv.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mneme::gpu {
namespace {

using Clock = std::chrono::steady_clock;
using host::ThreadPool;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

#if defined(__x86_64__)
// 12 independent chains of 8-lane multiply-adds.
__attribute__((target("avx2,fma"))) float multiply_adds(std::int64_t n) {
  __m256 acc[12];
  for (auto& a : acc) a = _mm256_set1_ps(1.0f);
  const __m256 x = _mm256_set1_ps(1.0000001f), y = _mm256_set1_ps(1e-9f);
  for (std::int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (auto& a : acc) a = _mm256_fmadd_ps(a, x, y);
  }
  __m256 sum = acc[0];
  for (int i = 1; i < 12; ++i) sum = _mm256_add_ps(sum, acc[i]);
  return _mm256_cvtss_f32(sum);
}
#endif

// GMAC/s of f32 multiply-adds on all threads of the pool (256-bit vectors), best of three.
double peak_gmacs(ThreadPool& pool) {
  double best = 0;
#if defined(__x86_64__)
  constexpr std::int64_t kSteps = 2000000;
  volatile float sink = 0;
  for (int round = 0; round < 3; ++round) {
    const auto start = Clock::now();
    pool.run(static_cast<std::size_t>(pool.n_threads()) * 4,
             [&](std::size_t, int) { sink = sink + multiply_adds(kSteps / 4); });
    best = std::max(best, 96.0 * kSteps * pool.n_threads() / seconds_since(start) * 1e-9);
  }
#endif
  return best;
}

// GB/s of reading `bytes` on all threads, best of three.
double read_bandwidth(ThreadPool& pool, const std::vector<std::uint64_t>& data) {
  double best = 0;
  volatile std::uint64_t sink = 0;
  constexpr std::size_t kPiece = 8192;
  for (int round = 0; round < 3; ++round) {
    const auto start = Clock::now();
    pool.run(data.size() / kPiece, [&](std::size_t i, int) {
      std::uint64_t sum[4] = {};
      for (std::size_t k = i * kPiece; k < (i + 1) * kPiece; k += 4) {
        for (int j = 0; j < 4; ++j) sum[j] += data[k + static_cast<std::size_t>(j)];
      }
      sink = sink + sum[0] + sum[1] + sum[2] + sum[3];
    });
    best = std::max(best, static_cast<double>(data.size()) * 8 / seconds_since(start) * 1e-9);
  }
  return best;
}

// Median seconds of a call of body, after one to warm up.
double median_seconds(double budget, const std::function<void()>& body) {
  body();
  std::vector<double> times;
  const auto start = Clock::now();
  while (times.size() < 5 || (seconds_since(start) < budget && times.size() < 1000)) {
    const auto begin = Clock::now();
    body();
    times.push_back(seconds_since(begin));
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

constexpr HeadShape kShape{9, 3, 64};
constexpr int kLayers = 30;

// One layer's spans: initial tokens, 16 units, remainder prefix, window.
struct Layer {
  std::vector<test::StoredKv> stored;
  std::vector<std::vector<std::byte>> slots;
  std::vector<KvSpan> spans;
};

// A resident unit of 64 tokens.
std::vector<std::byte> make_slot(host::MemoryOps& ops, KvType type, std::mt19937& random) {
  const test::StoredKv stored(kShape, KvType::f16, 64, random);
  const KvSpan raw = stored.span();
  std::vector<std::byte> slot(unit_bytes(kShape, type, 64).total());
  ops.pack_unit(kShape, raw.type, raw.k, raw.v, raw.head_stride, 0, 64, type, host::resident_layout(64), slot.data());
  return slot;
}

Layer make_layer(host::MemoryOps& ops, KvType units, int n_queries, std::mt19937& random) {
  constexpr std::int64_t kLocal = 1024, kStart = 100032;
  Layer layer;
  layer.stored.reserve(19);
  const auto add = [&](KvType type, std::int64_t n, KeyMask mask, QueryKind query, std::int64_t first) {
    layer.stored.emplace_back(kShape, type, n, random);
    layer.spans.push_back(layer.stored.back().span(mask, query, first));
  };
  add(KvType::f16, 64, KeyMask::all, QueryKind::global, 0);
  for (int u = 0; u < 16; ++u) {
    layer.slots.push_back(make_slot(ops, units, random));
    layer.spans.push_back(unit_span(kShape, units, layer.slots.back().data(), 64, host::resident_layout(64)));
  }
  const std::int64_t prefix = n_queries == 1 ? 32 : 32 + n_queries - 1;
  add(KvType::f16, prefix, KeyMask::prefix, QueryKind::global, kStart - kLocal - 31);
  add(KvType::f16, kLocal - 1 + n_queries, KeyMask::window, QueryKind::local, kStart - kLocal + 1);
  return layer;
}

double visible_pairs(const AttentionArgs& args) {
  double pairs = 0;
  for (const KvSpan& span : args.spans) {
    for (int i = 0; i < args.n_queries; ++i) {
      const std::int64_t own = args.first_query_pos + i - span.first_pos;
      const auto clamp = [&](std::int64_t x) {
        return static_cast<double>(std::clamp<std::int64_t>(x, 0, span.n_tokens));
      };
      if (span.mask == KeyMask::all) pairs += static_cast<double>(span.n_tokens);
      if (span.mask == KeyMask::prefix) pairs += clamp(own - args.n_local + 1);
      if (span.mask == KeyMask::causal) pairs += clamp(own + 1);
      if (span.mask == KeyMask::window) pairs += clamp(own + 1) - clamp(own - args.n_local + 1);
    }
  }
  return pairs * args.shape.n_heads;
}

class Bench {
 public:
  Bench(int n_threads, host::Isa isa, double budget)
      : pool_(n_threads), ops_(pool_, isa), budget_(budget), random_(1), data_(32u << 20, 1) {
    peak_ = peak_gmacs(pool_);
    std::printf("isa %.*s, %d threads: f32 peak %.1f GMAC/s, read %.1f GB/s\n", static_cast<int>(name(isa).size()),
                name(isa).data(), n_threads, peak_, read_bandwidth(pool_, data_));
  }

  void run() {
    decode(KvType::f16, "decode_f16");
    decode(KvType::q8, "decode_q8_units");
    prefill(false, "prefill");
    prefill(true, "prefill_key_mass");
    full(512, 512, "full_512");
    full(256, 8192, "full_256_at_8k");
    score(1, 1562, "select_decode_100k");
    score(32, 1562, "select_chunk_100k");
    std::printf("%s\n", summary_.c_str());
  }

 private:
  void report(const char* what, double ms, double macs, double bytes, const char* unit) {
    std::printf("%-24s %8.3f ms %-10s %6.1f GMAC/s (%4.1f %% of peak) %6.1f GB/s\n", what, ms, unit, macs / ms * 1e-6,
                100 * macs / ms * 1e-6 / peak_, bytes / ms * 1e-6);
    char pair[96];
    std::snprintf(pair, sizeof pair, "%s%s_ms=%.3f", summary_.empty() ? "" : " ", what, ms);
    summary_ += pair;
  }

  AttentionArgs arguments(int n_queries, const std::vector<KvSpan>& spans) {
    const auto n = static_cast<std::size_t>(n_queries) * kShape.n_heads * kShape.head_dim;
    q_ = test::random_floats(random_, n, 1.0f);
    out_.assign(n, 0.0f);
    AttentionArgs args;
    args.shape = kShape;
    args.n_queries = n_queries;
    args.first_query_pos = 100032;
    args.n_local = 1024;
    args.q_global = args.q_local = q_.data();
    args.spans = spans;
    args.out = out_.data();
    return args;
  }

  void poison() { std::fill(out_.begin(), out_.end(), std::nanf("")); }
  void check() const {
    for (const float x : out_) {
      if (!std::isfinite(x)) std::printf("NOT FINITE: the figures above are void\n");
      if (!std::isfinite(x)) return;
    }
  }

  void decode(KvType units, const char* what) {
    std::vector<Layer> layers;
    for (int l = 0; l < kLayers; ++l) layers.push_back(make_layer(ops_, units, 1, random_));
    AttentionArgs args = arguments(1, layers[0].spans);
    double bytes = 0;
    for (const KvSpan& span : layers[0].spans) {
      bytes +=
          2.0 * static_cast<double>(span.n_tokens * kShape.n_kv_heads * kShape.head_dim * element_bytes(span.type));
    }
    poison();
    const double s = median_seconds(budget_, [&] {
      for (const Layer& layer : layers) {
        args.spans = layer.spans;
        ops_.attention(args);
      }
    });
    report(what, s * 1e3, visible_pairs(args) * 2 * kShape.head_dim * kLayers, bytes * kLayers, "per token");
    check();
  }

  void prefill(bool key_mass, const char* what) {
    const Layer layer = make_layer(ops_, KvType::f16, 256, random_);
    AttentionArgs args = arguments(256, layer.spans);
    std::vector<float> mass(static_cast<std::size_t>(layer.spans.back().n_tokens) * 3);
    if (key_mass) args.key_mass = mass.data();
    poison();
    const double s = median_seconds(budget_, [&] { ops_.attention(args); });
    report(what, s * 1e3, visible_pairs(args) * 2 * kShape.head_dim, 0, "per chunk");
    check();
  }

  void full(int n_queries, std::int64_t n_keys, const char* what) {
    const test::StoredKv stored(kShape, KvType::f16, n_keys, random_);
    const std::vector<KvSpan> spans{stored.span(KeyMask::causal, QueryKind::local, 0)};
    AttentionArgs args = arguments(n_queries, spans);
    args.first_query_pos = n_keys - n_queries;
    poison();
    const double s = median_seconds(budget_, [&] { ops_.attention(args); });
    report(what, s * 1e3, visible_pairs(args) * 2 * kShape.head_dim, 0, "per call");
    check();
  }

  // Stage 1 over n_units units of two pages, stage 2 over 64 candidates of 64 keys.
  void score(int n_voters, int n_units, const char* what) {
    const std::size_t unit_floats = 3 * 2 * 64;
    std::vector<std::uint16_t> pages(n_units * unit_floats);
    std::normal_distribution<float> normal;
    for (std::uint16_t& x : pages) x = f32_to_f16(normal(random_));
    std::vector<std::vector<std::byte>> slots;
    std::vector<KvSpan> candidates;
    for (int u = 0; u < 64; ++u) {
      slots.push_back(make_slot(ops_, KvType::f16, random_));
      candidates.push_back(unit_span(kShape, KvType::f16, slots.back().data(), 64, host::resident_layout(64)));
    }
    const IndexSegment index[1] = {{KvType::f16, pages.data(), n_units}};
    const std::vector<float> voters = test::random_floats(random_, static_cast<std::size_t>(n_voters) * 9 * 64, 1.0f);
    out_.assign(static_cast<std::size_t>(n_units), std::nanf(""));
    const double stage1 =
        median_seconds(budget_, [&] { ops_.score_pages(kShape, voters.data(), n_voters, index, 2, out_.data()); });
    report((std::string(what) + "_pages").c_str(), stage1 * 1e3, 9.0 * n_voters * n_units * 2 * 64,
           static_cast<double>(pages.size()) * 2, "per layer");
    check();
    const double stage2 =
        median_seconds(budget_, [&] { ops_.score_keys(kShape, voters.data(), n_voters, candidates, out_.data()); });
    report((std::string(what) + "_keys").c_str(), stage2 * 1e3, 9.0 * n_voters * 64 * 64 * 64, 64.0 * 64 * 3 * 64 * 2,
           "per layer");
    check();
  }

  ThreadPool pool_;
  host::MemoryOps ops_;
  double budget_, peak_ = 0;
  std::mt19937 random_;
  std::vector<std::uint64_t> data_;
  std::vector<float> q_, out_;
  std::string summary_;
};

}  // namespace
}  // namespace mneme::gpu

int main(int argc, char** argv) {
  int n_threads = 2;
  double budget = 1.0;
  std::string isa;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--threads") == 0) n_threads = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--seconds") == 0) budget = std::atof(argv[i + 1]);
    if (std::strcmp(argv[i], "--isa") == 0) isa = argv[i + 1];
  }
  mneme::gpu::Bench(n_threads, mneme::gpu::host::choose_isa(isa), budget).run();
}
