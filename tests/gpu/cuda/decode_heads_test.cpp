// Heads finished within the product: the bits of the operations one by one, once per launch, and only where the guard
// lets the kernels run.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <deque>
#include <random>

#include "gpu/cuda/kv_ops.hpp"
#include "gpu/cuda/linear_kernels.hpp"
#include "gpu/cuda/linear_ops.hpp"
#include "tests/gpu/cuda/select_fixture.hpp"
#include "tests/gpu/linear_fixture.hpp"

namespace mneme::gpu::cuda {
namespace {

using mneme::test::random_values;
using mneme::test::RandomMatrix;
using test::Memory;
using test::Rig;

constexpr float kEps = 1e-5f;
constexpr std::int64_t kCapacity = 9, kOffset = 5;
constexpr std::size_t kRoles = 3;  // query, key, value
constexpr HeadRole kRoleOf[kRoles] = {HeadRole::query, HeadRole::key, HeadRole::value};

// What a token's heads are made of, on the device.
struct Heads {
  const Memory *q_local, *q_global, *raw_k, *raw_v, *rotated_k;
  std::size_t query_bytes, store_bytes;

  Heads(Rig& rig, const HeadShape& shape, KvType store)
      : query_bytes(static_cast<std::size_t>(shape.n_heads * shape.head_dim) * sizeof(float)),
        store_bytes(static_cast<std::size_t>(shape.n_kv_heads * kCapacity * shape.head_dim) * element_bytes(store)) {
    for (const Memory** query : {&q_local, &q_global})
      *query = &rig.upload(std::vector<std::byte>(query_bytes, std::byte{0xAB}));
    for (const Memory** kept : {&raw_k, &raw_v, &rotated_k})
      *kept = &rig.upload(std::vector<std::byte>(store_bytes, std::byte{0xAB}));
  }
  std::array<std::vector<std::byte>, 5> download() const {
    return {q_local->download<std::byte>(query_bytes), q_global->download<std::byte>(query_bytes),
            raw_k->download<std::byte>(store_bytes), raw_v->download<std::byte>(store_bytes),
            rotated_k->download<std::byte>(store_bytes)};
  }
};

enum class Norms { none, heads };
enum class Biases { none, all };

struct Case {
  DType q, k, v;
  HeadShape shape;
  KvType store;
  Norms norms;
  Biases biases;
  int n_multiprocessors;  // few: 4 rows per warp
};

// A layer's weights and a token, and both ways to its heads.
class Layer {
 public:
  Layer(Rig& rig, const Case& c)
      : rig_(rig), case_(c), linear_(rig.resources()), random_(static_cast<unsigned>(c.shape.head_dim)) {
    linear_.set_phase(Phase::decode);
    const DType types[kRoles] = {c.q, c.k, c.v};
    const auto d = static_cast<std::size_t>(c.shape.head_dim);
    for (std::size_t r = 0; r < kRoles; ++r) {
      const RandomMatrix& matrix = matrices_.emplace_back(random_, types[r], kIn, rows(r));
      loaded_[r] = linear_.load_matrix(matrix.host);
      views_[r] = load(matrix.host);
      out_[r] = rig.allocate(rows(r) * sizeof(float)).f32();
      if (c.biases == Biases::all) biases_[r] = upload(rows(r));
    }
    x_ = upload(kIn);
    norm_ = upload(kIn);
    if (c.norms == Norms::heads) q_norm_ = upload(d), k_norm_ = upload(d);
    angles(cos_, sin_);
    angles(flat_cos_, flat_sin_);
    set_state({});
    const auto n = static_cast<std::size_t>(c.shape.n_heads + 2 * c.shape.n_kv_heads);
    tickets_ = &rig.upload(std::vector<unsigned>(n, 0));
  }

  void set_state(DecodeState state) {
    state.offset = kOffset;
    state_ = &rig_.upload(std::vector<DecodeState>(1, state));
  }
  std::vector<unsigned> tickets() const {
    return tickets_->download<unsigned>(static_cast<std::size_t>(case_.shape.n_heads + 2 * case_.shape.n_kv_heads));
  }

  void one_by_one(const Heads& to) {
    const HeadShape& s = case_.shape;
    LinearOutput outputs[kRoles];
    for (std::size_t r = 0; r < kRoles; ++r) outputs[r] = {loaded_[r].get(), biases_[r], out_[r]};
    linear_.norm_linear(x_, 1, norm_, kEps, outputs);
    if (q_norm_ != nullptr) {
      linear_.head_norm(out_[0], 1, s.n_heads, s.head_dim, q_norm_, kEps);
      linear_.head_norm(out_[1], 1, s.n_kv_heads, s.head_dim, k_norm_, kEps);
    }
    KvOps kv(rig_.resources());
    kv.rope(out_[0], 1, s.n_heads, s.head_dim, cos_, sin_, 1, to.q_local->f32());
    kv.rope(out_[0], 1, s.n_heads, s.head_dim, flat_cos_, flat_sin_, 0, to.q_global->f32());
    kv.append_kv(s, case_.store, out_[1], out_[2], 1, cos_, sin_, to.raw_k->data(), to.raw_v->data(),
                 to.rotated_k->data(), kCapacity, kOffset);
  }

  // One launch per type, as a plan does it.
  void in_the_product(const Heads& to, std::int32_t layer = 0) {
    const DType types[kRoles] = {case_.q, case_.k, case_.v};
    std::array<bool, kRoles> done{};
    for (std::size_t first = 0; first < kRoles; ++first) {
      if (done[first]) continue;
      GemvArgs args = product(to, layer);
      for (std::size_t r = first; r < kRoles; ++r) {
        if (types[r] != types[first]) continue;
        done[r] = true;
        GemvPart& part = args.parts[args.n_parts++];
        part.weight = views_[r];
        part.bias = biases_[r];
        part.out = out_[r];
        part.n_out = static_cast<std::int64_t>(rows(r));
        part.role = kRoleOf[r];
      }
      check(launch_gemv(types[first], args, case_.n_multiprocessors, rig_.stream()), "multiplying");
    }
  }

  GemvArgs product(const Heads& to, std::int32_t layer) const {
    GemvArgs args;
    args.x = x_;
    args.norm = norm_;
    args.eps = kEps;
    args.n_columns = 1;
    args.n_in = kIn;
    args.guard = {static_cast<const DecodeState*>(state_->data()), layer};
    HeadFinish& h = args.heads;
    h.n_heads = case_.shape.n_heads, h.n_kv_heads = case_.shape.n_kv_heads, h.head_dim = case_.shape.head_dim;
    h.q_norm = q_norm_, h.k_norm = k_norm_, h.eps = kEps;
    h.cos = cos_, h.sin = sin_, h.flat_cos = flat_cos_, h.flat_sin = flat_sin_;
    h.q_local = to.q_local->f32(), h.q_global = to.q_global->f32();
    h.store_type = case_.store;
    h.raw_k = to.raw_k->data(), h.raw_v = to.raw_v->data(), h.rotated_k = to.rotated_k->data();
    h.capacity = kCapacity;
    h.tickets = static_cast<unsigned*>(tickets_->data());
    return args;
  }

 private:
  static constexpr std::size_t kIn = 256;

  std::size_t rows(std::size_t role) const {
    return static_cast<std::size_t>((role == 0 ? case_.shape.n_heads : case_.shape.n_kv_heads) * case_.shape.head_dim);
  }
  const float* upload(std::size_t n) { return rig_.upload(random_values(random_, n)).f32(); }
  void angles(const float*& cos, const float*& sin) {
    std::vector<float> c, s;
    for (const float angle : random_values(random_, static_cast<std::size_t>(case_.shape.head_dim / 2), 2.0f)) {
      c.push_back(std::cos(angle));
      s.push_back(std::sin(angle));
    }
    cos = rig_.upload(c).f32();
    sin = rig_.upload(s).f32();
  }
  // The planes of a matrix, as linear_layout.hpp says.
  WeightView load(const HostMatrix& matrix) {
    const PlaneLayout layout = plane_layout(matrix.type, matrix.n_in, matrix.n_out);
    std::vector<std::byte> planes(layout.bytes);
    std::array<std::byte*, kPlanes> to;
    for (std::size_t p = 0; p < kPlanes; ++p) to[p] = planes.data() + layout.offset[p];
    repack_rows(matrix, 0, matrix.n_out, to);
    const std::byte* there = rig_.upload(planes).at(0);
    const auto at = [&](std::size_t p) {
      return layout.row_bytes[p] == 0 ? nullptr : reinterpret_cast<const unsigned char*>(there + layout.offset[p]);
    };
    return {at(0), at(1), at(2), at(3)};
  }

  Rig& rig_;
  Case case_;
  LinearOps linear_;
  std::mt19937 random_;
  std::deque<RandomMatrix> matrices_;
  std::unique_ptr<Matrix> loaded_[kRoles];
  WeightView views_[kRoles];
  const float* biases_[kRoles] = {};
  float* out_[kRoles] = {};
  const float *x_ = nullptr, *norm_ = nullptr, *q_norm_ = nullptr, *k_norm_ = nullptr;
  const float *cos_ = nullptr, *sin_ = nullptr, *flat_cos_ = nullptr, *flat_sin_ = nullptr;
  const Memory *state_ = nullptr, *tickets_ = nullptr;
};

constexpr Case kCases[] = {
    {DType::f32, DType::f32, DType::f32, {3, 1, 64}, KvType::f32, Norms::heads, Biases::none, 4},
    {DType::f16, DType::f16, DType::f16, {2, 1, 80}, KvType::f16, Norms::none, Biases::all, 4},
    {DType::bf16, DType::bf16, DType::bf16, {2, 2, 128}, KvType::f16, Norms::heads, Biases::all, 1},
    {DType::q8_0, DType::q8_0, DType::q8_0, {4, 2, 64}, KvType::f16, Norms::none, Biases::none, 1},
    {DType::q4_0, DType::q4_0, DType::q4_0, {3, 1, 64}, KvType::f16, Norms::heads, Biases::none, 4},
    {DType::q4_1, DType::q4_1, DType::q4_1, {2, 1, 80}, KvType::f32, Norms::heads, Biases::none, 1},
    {DType::q5_0, DType::q5_0, DType::q5_0, {2, 1, 128}, KvType::f16, Norms::none, Biases::all, 4},
    {DType::q5_1, DType::q5_1, DType::q5_1, {7, 1, 24}, KvType::f16, Norms::heads, Biases::none, 1},
    {DType::q4_k, DType::q4_k, DType::q6_k, {4, 2, 64}, KvType::f16, Norms::none, Biases::none, 1},
    {DType::q5_k, DType::q4_k, DType::q6_k, {2, 1, 128}, KvType::f16, Norms::heads, Biases::all, 4},
    {DType::q6_k, DType::q6_k, DType::f32, {1, 1, 256}, KvType::f32, Norms::none, Biases::all, 4},
    {DType::q4_0, DType::q8_0, DType::q4_0, {5, 5, 8}, KvType::f16, Norms::heads, Biases::none, 4},
};

}  // namespace

TEST_CASE("heads finished in the product have the bits of norm, rotation and storing one by one, launch after launch") {
  Rig rig;
  for (const Case& c : kCases) {
    INFO("types " << static_cast<int>(c.q) << ", " << static_cast<int>(c.v) << ", d " << c.shape.head_dim);
    Layer layer(rig, c);
    const Heads want(rig, c.shape, c.store);
    layer.one_by_one(want);
    for (int launch = 0; launch < 2; ++launch) {
      const Heads got(rig, c.shape, c.store);
      layer.in_the_product(got);
      CHECK(got.download() == want.download());
      const std::vector<unsigned> tickets = layer.tickets();
      CHECK(tickets == std::vector<unsigned>(tickets.size(), 0));
    }
    rig.clear();
  }
}

TEST_CASE("a product writes nothing when its layer is done or a unit is missing") {
  struct GuardCase {
    std::int32_t first_layer, missing_layer;
    bool runs;
    LayerPart first_part = LayerPart::heads;
  };
  Rig rig;
  const Case c = kCases[3];
  Layer layer(rig, c);
  const Heads want(rig, c.shape, c.store), untouched(rig, c.shape, c.store);
  layer.one_by_one(want);
  for (const GuardCase& guard : {GuardCase{4, -1, false},
                                 {3, -1, true},
                                 {0, -1, true},
                                 {0, 2, false},
                                 {3, -1, false, LayerPart::rest},
                                 {2, -1, true, LayerPart::rest}}) {
    DecodeState state;
    state.first_layer = guard.first_layer;
    state.first_part = guard.first_part;
    state.missing_layer = guard.missing_layer;
    layer.set_state(state);
    const Heads got(rig, c.shape, c.store);
    layer.in_the_product(got, 3);
    INFO("first layer " << guard.first_layer << ", missing layer " << guard.missing_layer);
    CHECK(got.download() == (guard.runs ? want : untouched).download());
  }
}

TEST_CASE("heads that a product cannot finish are refused") {
  Rig rig;
  const Case c = kCases[0];
  Layer layer(rig, c);
  const Heads to(rig, c.shape, c.store);
  GemvArgs good = layer.product(to, 0);
  good.n_parts = 1;
  good.parts[0].n_out = c.shape.n_heads * c.shape.head_dim;
  good.parts[0].role = HeadRole::query;
  std::vector<GemvArgs> refused(6, good);
  refused[0].guard = {};
  refused[1].n_columns = 2;
  refused[2].epilogue = Epilogue::add;
  refused[3].heads.tickets = nullptr;
  refused[4].parts[0].n_out += 8;
  refused[5].heads.store_type = KvType::q8;
  for (const GemvArgs& args : refused) CHECK(launch_gemv(DType::f32, args, 4, rig.stream()) == cudaErrorInvalidValue);
}

TEST_CASE("an embedding whose id lies in the decode state equals the operation's, unless its layer is done") {
  Rig rig;
  std::mt19937 random(3);
  const RandomMatrix table(random, DType::f32, 36, 5);
  LinearOps linear(rig.resources());
  const std::unique_ptr<Matrix> loaded = linear.load_table(table.host);
  const std::int32_t id = 3;
  const Memory& want = rig.allocate(36 * sizeof(float));
  linear.embed(*loaded, std::span(&id, 1), want.f32());
  const PlaneLayout layout = plane_layout(DType::f32, 36, 5);
  std::vector<std::byte> rows(layout.bytes);
  repack_rows(table.host, 0, 5, {rows.data(), nullptr, nullptr, nullptr});
  const WeightView view{reinterpret_cast<const unsigned char*>(rig.upload(rows).data()), nullptr, nullptr, nullptr};
  for (const std::int32_t first_layer : {0, 1}) {
    DecodeState state;
    state.token = id;
    state.first_layer = first_layer;
    const auto* there = static_cast<const DecodeState*>(rig.upload(std::vector<DecodeState>(1, state)).data());
    const std::vector<float> before(36, 7.0f);
    const Memory& got = rig.upload(before);
    check(launch_embed(DType::f32, view, 36, &there->token, 1, got.f32(), rig.stream(), {there, 0}), "embedding");
    CHECK(got.download<float>(36) == (first_layer == 0 ? want.download<float>(36) : before));
  }
}

}  // namespace mneme::gpu::cuda
