// Rotation, storing of keys and values, and packing of units.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "gpu/host/memory_ops.hpp"
#include "tests/support/attention_oracle.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::gpu {
namespace {

using host::Isa;
using host::MemoryOps;
using host::ThreadPool;

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

struct Table {
  std::vector<float> cos, sin;  // [n][head_dim/2]
};

Table random_table(int n, int head_dim, std::mt19937& random) {
  std::uniform_real_distribution<float> angle(0.0f, 6.28f);
  Table table;
  for (int i = 0; i < n * head_dim / 2; ++i) {
    const float a = angle(random);
    table.cos.push_back(std::cos(a));
    table.sin.push_back(std::sin(a));
  }
  return table;
}

bool same_bits(const void* a, const void* b, std::size_t bytes) {
  return bytes == 0 || std::memcmp(a, b, bytes) == 0;
}

}  // namespace

TEST_CASE("rope rotates pairs half a head apart, per token or with one row for all") {
  for (const int d : {8, 16, 24, 32, 64, 80, 128}) {
    for (const int n_tokens : {0, 1, 2, 33, 200}) {
      for (const int step : {0, 1}) {
        std::mt19937 random(static_cast<unsigned>(d * 1000 + n_tokens));
        const int n_heads = 3;
        const Table table = random_table(std::max(n_tokens, 1), d, random);
        const auto n = static_cast<std::size_t>(n_tokens) * n_heads * d;
        const std::vector<float> x = test::random_floats(random, n, 1.0f);
        for (const Isa isa : test::runnable_isas()) {
          ThreadPool pool(2);
          MemoryOps ops(pool, isa);
          std::vector<float> out(n, std::nanf("")), in_place = x;
          ops.rope(x.data(), n_tokens, n_heads, d, table.cos.data(), table.sin.data(), step, out.data());
          ops.rope(in_place.data(), n_tokens, n_heads, d, table.cos.data(), table.sin.data(), step, in_place.data());
          INFO("d " << d << ", tokens " << n_tokens << ", step " << step << ", isa " << host::name(isa));
          CHECK(same_bits(out.data(), in_place.data(), n * sizeof(float)));
          for (std::size_t i = 0; i < n; ++i) {
            const auto token = i / static_cast<std::size_t>(n_heads * d), j = i % static_cast<std::size_t>(d);
            const auto half = static_cast<std::size_t>(d / 2), pair = j % half;
            const std::size_t at = (step == 0 ? 0 : token) * half + pair;
            const double a = x[i - j + pair], b = x[i - j + pair + half], c = table.cos[at], s = table.sin[at];
            const double want = j < half ? a * c - b * s : a * s + b * c;
            REQUIRE(std::fabs(out[i] - want) <= 2 * kEpsilon * (std::fabs(a) + std::fabs(b)));
          }
        }
      }
    }
  }
}

TEST_CASE("append_kv stores rounded keys and values and rotates the rounded keys") {
  for (const KvType type : {KvType::f32, KvType::f16}) {
    for (const int d : {8, 24, 64}) {
      for (const int n_tokens : {1, 5, 256}) {
        std::mt19937 random(static_cast<unsigned>(d + n_tokens));
        const HeadShape shape{6, 3, d};
        const std::int64_t stride = n_tokens + 7, offset = 4;
        const auto n = static_cast<std::size_t>(n_tokens) * 3 * d;
        const std::vector<float> k = test::random_floats(random, n, 1.0f), v = test::random_floats(random, n, 1.0f);
        const Table table = random_table(n_tokens, d, random);
        const std::size_t bytes = 3 * static_cast<std::size_t>(stride) * d * element_bytes(type);
        for (const Isa isa : test::runnable_isas()) {
          INFO("type " << static_cast<int>(type) << ", d " << d << ", tokens " << n_tokens << ", isa "
                       << host::name(isa));
          ThreadPool pool(2);
          MemoryOps ops(pool, isa);
          std::vector<std::byte> raw_k(bytes, std::byte{0xAB}), raw_v = raw_k, rotated = raw_k;
          ops.append_kv(shape, type, k.data(), v.data(), n_tokens, table.cos.data(), table.sin.data(), raw_k.data(),
                        raw_v.data(), rotated.data(), stride, offset);
          // The ring is what rotate_keys gives for the stored keys, rounded.
          KvSpan span;
          span.type = type;
          span.k = raw_k.data() + static_cast<std::size_t>(offset * d) * element_bytes(type);
          span.n_tokens = n_tokens;
          span.head_stride = stride;
          std::vector<float> again(n);
          ops.rotate_keys(shape, span, table.cos.data(), table.sin.data(), again.data());
          std::size_t untouched = 0;
          for (int g = 0; g < 3; ++g) {
            for (std::int64_t t = 0; t < stride; ++t) {
              for (int j = 0; j < d; ++j) {
                const auto at = static_cast<std::int64_t>((g * stride + t) * d + j);
                if (t < offset || t >= offset + n_tokens) {
                  const std::byte* byte = &raw_k[static_cast<std::size_t>(at) * element_bytes(type)];
                  untouched += *byte == std::byte{0xAB} ? 1 : 0;
                  continue;
                }
                const auto from = static_cast<std::size_t>(((t - offset) * 3 + g) * d + j);
                const float want_k = type == KvType::f16 ? f16_to_f32(f32_to_f16(k[from])) : k[from];
                const float want_v = type == KvType::f16 ? f16_to_f32(f32_to_f16(v[from])) : v[from];
                const float ring = again[static_cast<std::size_t>((g * n_tokens + t - offset) * d + j)];
                const float want_ring = type == KvType::f16 ? f16_to_f32(f32_to_f16(ring)) : ring;
                REQUIRE(test::stored_element(type, raw_k.data(), at) == want_k);
                REQUIRE(test::stored_element(type, raw_v.data(), at) == want_v);
                REQUIRE(test::stored_element(type, rotated.data(), at) == want_ring);
              }
            }
          }
          CHECK(untouched == 3 * 7 * static_cast<std::size_t>(d));
        }
      }
    }
  }
}

TEST_CASE("rotate_keys reads every stored type") {
  for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
    std::mt19937 random(5);
    const HeadShape shape{4, 2, 48};
    const test::StoredKv stored(shape, type, 19, random);
    const Table table = random_table(19, 48, random);
    for (const Isa isa : test::runnable_isas()) {
      ThreadPool pool(2);
      MemoryOps ops(pool, isa);
      std::vector<float> out(2 * 19 * 48, std::nanf(""));
      ops.rotate_keys(shape, stored.span(), table.cos.data(), table.sin.data(), out.data());
      for (int g = 0; g < 2; ++g) {
        for (int t = 0; t < 19; ++t) {
          for (int j = 0; j < 24; ++j) {
            const double a = test::key_element(shape, stored.span(), g, t, j);
            const double b = test::key_element(shape, stored.span(), g, t, j + 24);
            const double c = table.cos[static_cast<std::size_t>(t * 24 + j)];
            const double s = table.sin[static_cast<std::size_t>(t * 24 + j)];
            const auto at = static_cast<std::size_t>((g * 19 + t) * 48 + j);
            const double bound = 2 * kEpsilon * (std::fabs(a) + std::fabs(b));
            REQUIRE(std::fabs(out[at] - (a * c - b * s)) <= bound);
            REQUIRE(std::fabs(out[at + 24] - (a * s + b * c)) <= bound);
          }
        }
      }
    }
  }
}

TEST_CASE("a packed unit holds the stored bits, or their nearest q8 values") {
  for (const KvType from : {KvType::f32, KvType::f16}) {
    for (const KvType to : {KvType::f32, KvType::f16, KvType::q8}) {
      for (const int d : {8, 24, 64}) {
        for (const int n_tokens : {1, 16, 33}) {
          std::mt19937 random(static_cast<unsigned>(d * 100 + n_tokens));
          const HeadShape shape{4, 2, d};
          test::StoredKv stored(shape, from, n_tokens, random, 3.0f);
          for (int t = 0; t < n_tokens; ++t) {
            stored.set_key(0, t, 0, 0.0f);  // a channel of zeros: scale 0
            stored.set_key(1, t, 1, t == 0 ? 60000.0f : 1.0f);
          }
          const KvSpan raw = stored.span();
          std::optional<std::vector<std::byte>> first;
          for (const Isa isa : test::runnable_isas()) {
            INFO("from " << static_cast<int>(from) << " to " << static_cast<int>(to) << ", d " << d << ", tokens "
                         << n_tokens << ", isa " << host::name(isa));
            ThreadPool pool(2);
            MemoryOps ops(pool, isa);
            std::vector<std::byte> row(unit_bytes(shape, to, n_tokens).total());
            ops.pack_unit(shape, from, raw.k, raw.v, raw.head_stride, 0, n_tokens, to, KeyLayout::rows, row.data());
            if (!first) first = row;
            CHECK(row == *first);  // the bytes are stored in databases: every ISA writes the same
            const KvSpan unit = unit_span(shape, to, row.data(), n_tokens);
            for (int g = 0; g < 2; ++g) {
              for (int t = 0; t < n_tokens; ++t) {
                for (int j = 0; j < d; ++j) {
                  const double k = test::key_element(shape, raw, g, t, j), v = test::value_element(shape, raw, g, t, j);
                  const double packed_k = test::key_element(shape, unit, g, t, j);
                  const double packed_v = test::value_element(shape, unit, g, t, j);
                  if (to == KvType::q8) {
                    const auto* k_scale = static_cast<const std::uint16_t*>(unit.k_scales);
                    const auto* v_scale = static_cast<const std::uint16_t*>(unit.v_scales);
                    // A scale rounded down to f16 can leave the largest element up to 127 * 2^-11 scales outside.
                    REQUIRE(std::fabs(packed_k - k) <= f16_to_f32(k_scale[g * d + j]) * 0.5000001);
                    REQUIRE(std::fabs(packed_v - v) <= f16_to_f32(v_scale[g * n_tokens + t]) * 0.5000001);
                  } else {
                    const double eps = to == KvType::f16 ? 0.0004883 : 0.0;
                    REQUIRE(std::fabs(packed_k - k) <= std::fabs(k) * eps + eps * 1e-4);
                    REQUIRE(std::fabs(packed_v - v) <= std::fabs(v) * eps + eps * 1e-4);
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST_CASE("quantising rounds ties to even and survives values no finite scale fits") {
  const HeadShape shape{1, 1, 8};
  ThreadPool pool(1);
  for (const Isa isa : test::runnable_isas()) {
    MemoryOps ops(pool, isa);
    // Token 0: amax 127, so the scale is 1 and halves are ties. Token 1: infinity. Token 2: NaN.
    const float inf = std::numeric_limits<float>::infinity();
    const std::vector<float> v{127, 0.5f, 1.5f, 2.5f, -0.5f,         -1.5f, -2.5f, 126.5f, inf, 1, -inf, 0,
                               0,   0,    0,    0,    std::nanf(""), 1,     2,     0,      0,   0, 0,    0};
    std::vector<std::byte> row(unit_bytes(shape, KvType::q8, 3).total());
    ops.pack_unit(shape, KvType::f32, v.data(), v.data(), 3, 0, 3, KvType::q8, KeyLayout::rows, row.data());
    const KvSpan unit = unit_span(shape, KvType::q8, row.data(), 3);
    const auto* q = static_cast<const std::int8_t*>(unit.v);
    CHECK(std::vector<int>(q, q + 8) == std::vector<int>{127, 0, 2, 2, 0, -2, -2, 126});
    CHECK(std::isinf(f16_to_f32(static_cast<const std::uint16_t*>(unit.v_scales)[1])));
    CHECK(std::vector<int>(q + 8, q + 16) == std::vector<int>(8, 0));
    CHECK(q[16] == 0);
  }
}

}  // namespace mneme::gpu
