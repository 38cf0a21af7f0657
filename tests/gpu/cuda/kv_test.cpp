// Keys and values on the CUDA backend: the bits of the scalar host backend, at the sizes of tests/gpu/rope_kv_test.cpp.
#include <doctest/doctest.h>

#include <cmath>
#include <random>

#include "gpu/cuda/kv_ops.hpp"
#include "gpu/host/memory_ops.hpp"
#include "tests/gpu/cuda/select_fixture.hpp"
#include "tests/support/stored_kv.hpp"

namespace mneme::gpu::cuda {
namespace {

using mneme::test::random_floats;
using mneme::test::StoredKv;
using test::Memory;
using test::Rig;
using test::same_bits;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
const float kNan = std::nanf("");

struct Host {
  host::ThreadPool pool{1};
  host::MemoryOps ops{pool, host::Isa::scalar};
};

struct Angles {
  std::vector<float> cos, sin;  // [n][head_dim / 2]
};
Angles random_angles(int n, int head_dim, std::mt19937& random) {
  std::uniform_real_distribution<float> angle(0.0f, 6.28f);
  Angles angles;
  for (int i = 0; i < n * head_dim / 2; ++i) {
    const float a = angle(random);
    angles.cos.push_back(std::cos(a));
    angles.sin.push_back(std::sin(a));
  }
  return angles;
}

}  // namespace

TEST_CASE("cuda rope gives the host's bits, in place or not, with a row per token or one for all") {
  Rig rig;
  Host host;
  KvOps ops(rig.resources());
  for (const int d : {8, 16, 24, 64, 80, 128, 256}) {
    for (const int n_tokens : {0, 1, 2, 33}) {
      for (const int step : {0, 1}) {
        INFO("d " << d << ", tokens " << n_tokens << ", step " << step);
        std::mt19937 random(static_cast<unsigned>(d * 1000 + n_tokens));
        const int n_heads = 5;
        const Angles angles = random_angles(std::max(n_tokens, 1), d, random);
        const auto n = static_cast<std::size_t>(n_tokens) * n_heads * d;
        const std::vector<float> x = random_floats(random, n, 1.0f);
        std::vector<float> want(n);
        host.ops.rope(x.data(), n_tokens, n_heads, d, angles.cos.data(), angles.sin.data(), step, want.data());
        const Memory& in = rig.upload(x);
        const Memory& cos = rig.upload(angles.cos);
        const Memory& sin = rig.upload(angles.sin);
        const Memory& out = rig.allocate(n * sizeof(float));
        ops.rope(in.f32(), n_tokens, n_heads, d, cos.f32(), sin.f32(), step, out.f32());
        ops.rope(in.f32(), n_tokens, n_heads, d, cos.f32(), sin.f32(), step, in.f32());
        CHECK(same_bits(out.download<float>(n), want));
        CHECK(same_bits(in.download<float>(n), want));
        rig.clear();
      }
    }
  }
}

TEST_CASE("cuda append_kv stores the host's bits and touches nothing else") {
  Rig rig;
  Host host;
  KvOps ops(rig.resources());
  for (const KvType type : {KvType::f32, KvType::f16}) {
    for (const int d : {8, 24, 64, 128}) {
      for (const int n_tokens : {0, 1, 5, 70}) {
        INFO("type " << static_cast<int>(type) << ", d " << d << ", tokens " << n_tokens);
        std::mt19937 random(static_cast<unsigned>(d + n_tokens));
        const HeadShape shape{6, 3, d};
        const std::int64_t stride = n_tokens + 7, offset = 4;
        const auto n = static_cast<std::size_t>(n_tokens) * 3 * d;
        std::vector<float> k = random_floats(random, n, 1.0f);
        const std::vector<float> v = random_floats(random, n, 1.0f);
        if (n > 0) k[0] = 70000.0f;    // infinity as f16, whose rotation gives infinities
        if (n > 1) k[1] = 0x1.2p-20f;  // denormal as f16
        const Angles angles = random_angles(std::max(n_tokens, 1), d, random);
        const std::size_t bytes = 3 * static_cast<std::size_t>(stride) * d * element_bytes(type);
        std::vector<std::byte> want[3];
        for (auto& array : want) array.assign(bytes, std::byte{0xAB});
        const Memory* got[3] = {&rig.upload(want[0]), &rig.upload(want[1]), &rig.upload(want[2])};
        host.ops.append_kv(shape, type, k.data(), v.data(), n_tokens, angles.cos.data(), angles.sin.data(),
                           want[0].data(), want[1].data(), want[2].data(), stride, offset);
        ops.append_kv(shape, type, rig.upload(k).f32(), rig.upload(v).f32(), n_tokens, rig.upload(angles.cos).f32(),
                      rig.upload(angles.sin).f32(), got[0]->data(), got[1]->data(), got[2]->data(), stride, offset);
        for (int i = 0; i < 3; ++i) CHECK(got[i]->download<std::byte>(bytes) == want[i]);
        rig.clear();
      }
    }
  }
}

TEST_CASE("cuda rotate_keys gives the host's bits for every stored type, wherever q8 rows start") {
  Rig rig;
  Host host;
  KvOps ops(rig.resources());
  for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
    for (const int d : {8, 48, 128}) {
      for (const std::size_t shift : {0, 1, 2}) {
        if (shift != 0 && type != KvType::q8) continue;
        std::mt19937 random(5);
        const HeadShape shape{4, 2, d};
        const StoredKv stored(shape, type, 19, random);
        const Angles angles = random_angles(19, d, random);
        const auto n = static_cast<std::size_t>(2 * 19 * d);
        std::vector<float> want(n);
        host.ops.rotate_keys(shape, stored.span(), angles.cos.data(), angles.sin.data(), want.data());
        const Memory& out = rig.allocate(n * sizeof(float));
        ops.rotate_keys(shape, rig.upload(shape, stored.span(), shift), rig.upload(angles.cos).f32(),
                        rig.upload(angles.sin).f32(), out.f32());
        INFO("type " << static_cast<int>(type) << ", d " << d << ", shift " << shift);
        CHECK(same_bits(out.download<float>(n), want));
        rig.clear();
      }
    }
  }
}

TEST_CASE("cuda pack_unit writes the host's bytes") {
  Rig rig;
  Host host;
  KvOps ops(rig.resources());
  for (const KvType from : {KvType::f32, KvType::f16}) {
    for (const KvType to : {KvType::f32, KvType::f16, KvType::q8}) {
      for (const int d : {8, 24, 64, 128, 136}) {
        for (const int n_tokens : {1, 16, 33}) {
          INFO("from " << static_cast<int>(from) << " to " << static_cast<int>(to) << ", d " << d << ", tokens "
                       << n_tokens);
          std::mt19937 random(static_cast<unsigned>(d * 100 + n_tokens));
          const HeadShape shape{6, 3, d};
          StoredKv stored(shape, from, n_tokens, random, 3.0f);
          for (int t = 0; t < n_tokens; ++t) {
            stored.set_key(0, t, 0, 0.0f);  // a channel of zeros: scale 0
            stored.set_key(1, t, 1, t == 0 ? 60000.0f : 1.0f);
            stored.set_key(1, t, 2, 0x1p-22f);  // amax / 127 is below the smallest f16
          }
          stored.set_value(0, 0, 3, kInfinity);
          const std::size_t bytes = unit_bytes(shape, to, n_tokens).total();
          std::vector<std::byte> want(bytes);
          const KvSpan raw = stored.span(), there = rig.upload(shape, raw);
          host.ops.pack_unit(shape, from, raw.k, raw.v, raw.head_stride, 0, n_tokens, to, KeyLayout::rows, want.data());
          // A slot may start anywhere that its elements may.
          const std::size_t shift = to == KvType::q8 ? 2 : 16;
          const Memory& row = rig.allocate(bytes + shift);
          ops.pack_unit(shape, from, there.k, there.v, there.head_stride, 0, n_tokens, to, KeyLayout::rows,
                        row.at(shift));
          CHECK(row.download<std::byte>(bytes, shift) == want);
          rig.clear();
        }
      }
    }
  }
}

TEST_CASE("cuda quantising rounds ties to even and survives values no finite scale fits") {
  Rig rig;
  Host host;
  KvOps ops(rig.resources());
  const HeadShape shape{1, 1, 8};
  // Token 0: amax 127, so the scale is 1 and halves are ties. Token 1: infinity. Token 2: NaN.
  const std::vector<float> v{127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, kInfinity, 1, -kInfinity, 0,
                             0,   0,    0,    0,    kNan,  1,     2,     0,      0,         0, 0,          0};
  std::vector<std::byte> want(unit_bytes(shape, KvType::q8, 3).total());
  host.ops.pack_unit(shape, KvType::f32, v.data(), v.data(), 3, 0, 3, KvType::q8, KeyLayout::rows, want.data());
  const Memory& in = rig.upload(v);
  const Memory& row = rig.allocate(want.size());
  ops.pack_unit(shape, KvType::f32, in.data(), in.data(), 3, 0, 3, KvType::q8, KeyLayout::rows, row.data());
  CHECK(row.download<std::byte>(want.size()) == want);
}

TEST_CASE("cuda page means give the host's bits") {
  Rig rig;
  Host host;
  KvOps ops(rig.resources());
  for (const KvType type : {KvType::f32, KvType::f16, KvType::q8}) {
    for (const KvType out_type : {KvType::f32, KvType::f16}) {
      for (const int page : {1, 4, 5, 12, 13}) {
        for (const int d : {8, 24, 128}) {
          std::mt19937 random(2);
          const HeadShape shape{4, 2, d};
          const StoredKv stored(shape, type, 12, random);
          const std::size_t bytes = static_cast<std::size_t>(2 * (12 / page) * d) * element_bytes(out_type);
          std::vector<std::byte> want(bytes);
          host.ops.page_means(shape, stored.span(), page, out_type, want.data());
          const Memory& out = rig.allocate(bytes);
          ops.page_means(shape, rig.upload(shape, stored.span(), type == KvType::q8 ? 1 : 0), page, out_type,
                         out.data());
          INFO("type " << static_cast<int>(type) << ", page " << page << ", d " << d);
          CHECK(out.download<std::byte>(bytes) == want);
          rig.clear();
        }
      }
    }
  }
}

TEST_CASE("cuda representatives give the host's bits: largest masses, ties to the lower token, NaN last") {
  Rig rig;
  Host host;
  KvOps ops(rig.resources());
  const HeadShape shape{4, 2, 16};
  std::mt19937 random(4);
  struct Case {
    std::vector<float> mass;  // per token, the same for every head but rotated by the head
    int n_repr;
  };
  std::vector<Case> cases = {
      {{1, 5, 3, 5, 0, 2}, 1},
      {{1, 5, 3, 5, 0, 2}, 2},
      {{1, 5, 3, 5, 0, 2}, 3},
      {{0, 0, 0, 0, 0, 0}, 2},
      {{0, -0.0f, 0}, 2},
      {{kNan, 1, kNan, -1, -2, -3}, 2},
      {{1, 2, 3, 4, 5, 6}, 6},
      {{1, 2, 3, 4, 5, 6}, 9},
      {{-kInfinity, kNan, 0, -kInfinity, kNan, kNan}, 3},
      {random_floats(random, 300, 1.0f), 40},
  };
  for (const Case& c : cases) {
    for (const KvType type : {KvType::f16, KvType::q8}) {
      for (const MassHeads heads : {MassHeads::per_query_head, MassHeads::per_kv_head}) {
        const auto n_heads = heads == MassHeads::per_query_head ? std::size_t{4} : std::size_t{2};
        const std::size_t n_tokens = c.mass.size();
        const StoredKv stored(shape, type, static_cast<std::int64_t>(n_tokens), random);
        std::vector<float> mass(n_tokens * n_heads), want(n_heads * 16);
        for (std::size_t i = 0; i < mass.size(); ++i) mass[i] = c.mass[(i / n_heads + i % n_heads) % n_tokens];
        host.ops.representatives(shape, stored.span(), mass.data(), heads, c.n_repr, KvType::f32, want.data());
        const Memory& out = rig.allocate(want.size() * sizeof(float));
        ops.representatives(shape, rig.upload(shape, stored.span()), rig.upload(mass).f32(), heads, c.n_repr,
                            KvType::f32, out.data());
        INFO("tokens " << n_tokens << ", n_repr " << c.n_repr << ", heads " << n_heads);
        CHECK(same_bits(out.download<float>(want.size()), want));
        rig.clear();
      }
    }
  }
}

}  // namespace mneme::gpu::cuda
