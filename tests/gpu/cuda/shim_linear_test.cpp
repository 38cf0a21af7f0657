// What only the stand-in can show of the CUDA backend's linear algebra: memory that is short, calls that fail, and that
// nothing is allocated or waited for in steady state.
#include <doctest/doctest.h>
#include <mneme/error.hpp>

#include "gpu/cuda/gemm.hpp"
#include "tests/gpu/cuda/linear_fixture.hpp"
#include "tests/support/cuda_shim/shim.hpp"

using namespace mneme::gpu;
using namespace mneme::test;

namespace {

struct SmallMemory {
  explicit SmallMemory(std::size_t bytes) { cuda_shim::set_device_memory(bytes); }
  ~SmallMemory() { cuda_shim::set_device_memory(std::size_t{8} << 30); }
};

bool fails_with(mneme::errc code, const auto& operation) {
  try {
    operation();
  } catch (const mneme::Error& error) {
    return error.code() == code;
  }
  return false;
}

}  // namespace

TEST_CASE("CUDA's linear algebra is usable after memory ran out, for weights and for scratch") {
  std::mt19937 random(kSeed);
  LinearRig rig(Phase::prefill);
  const RandomMatrix matrix(random, DType::q4_0, 64, 40);
  const auto x = random_values(random, 64);
  const auto weight = rig.ops.load_matrix(matrix.host);
  const OnCard in(rig.stream, x), out(rig.stream, 40);
  const LinearOutput output{weight.get(), nullptr, out.get()};
  const auto multiply = [&] { rig.ops.norm_linear(in.get(), 1, nullptr, 0, std::span(&output, 1)); };
  {
    const SmallMemory none(2048);
    CHECK(fails_with(mneme::errc::out_of_memory, [&] { rig.ops.load_matrix(matrix.host); }));
    CHECK(fails_with(mneme::errc::out_of_memory, multiply));
  }
  multiply();
  CHECK(same_bits(out.download(), rig.multiply(matrix, x, 1)));
}

TEST_CASE("weights whose upload fails are freed, and so are weights that are dropped") {
  std::mt19937 random(kSeed);
  LinearRig rig;
  const RandomMatrix matrix(random, DType::q5_k, 256, 40);
  std::size_t before = 0, after = 0, total = 0;
  cudaMemGetInfo(&before, &total);
  for (int call = 2; call <= 5; ++call) {
    cuda_shim::fail_call(call, cudaErrorLaunchFailure, false);
    CHECK(fails_with(mneme::errc::engine_faulted, [&] { rig.ops.load_matrix(matrix.host); }));
    cuda_shim::clear_failures();
  }
  rig.ops.load_matrix(matrix.host);
  cudaMemGetInfo(&after, &total);
  CHECK(before == after);
}

TEST_CASE("nothing is allocated and nothing waits once CUDA's linear algebra has seen its shapes") {
  std::mt19937 random(kSeed);
  constexpr std::size_t kIn = 64, kFf = 40;
  LinearRig rig;
  const RandomMatrix a(random, DType::q4_1, kIn, kFf), b(random, DType::f16, kIn, kFf),
      c(random, DType::q8_0, kFf / 32 * 32, kIn);
  const auto wa = rig.ops.load_matrix(a.host), wb = rig.ops.load_matrix(b.host), wc = rig.ops.load_matrix(c.host);
  const auto table = rig.ops.load_table(a.host);
  const OnCard x(rig.stream, random_values(random, 9 * kIn)), norm(rig.stream, random_values(random, kIn));
  const OnCard h(rig.stream, 9 * kFf), q(rig.stream, 9 * kFf);
  const std::vector<std::int32_t> ids = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  const auto layer = [&](int n_tokens) {
    const LinearOutput outputs[] = {{wa.get(), nullptr, q.get()}, {wb.get(), nullptr, h.get()}};
    rig.ops.embed(*table, std::span(ids).first(static_cast<std::size_t>(n_tokens)), x.get());
    rig.ops.norm_linear(x.get(), n_tokens, norm.get(), 1e-5f, outputs);
    rig.ops.head_norm(x.get(), n_tokens, 2, kIn / 2, norm.get(), 1e-5f);
    rig.ops.norm_glu(x.get(), n_tokens, norm.get(), 1e-5f, *wa, nullptr, *wb, nullptr, h.get());
    rig.ops.linear_add(h.get(), n_tokens, *wc, nullptr, x.get());
  };
  for (const Phase phase : kPhases) {
    rig.ops.set_phase(phase);
    layer(9);
    const auto before = cuda_shim::counts();
    for (const int n_tokens : {1, 9, 3}) layer(n_tokens);
    const auto after = cuda_shim::counts();
    CHECK(after.waits == before.waits);
    CHECK(after.allocations == before.allocations);
  }
  cudaStreamSynchronize(rig.stream);
}

TEST_CASE("products of equal type share a launch in decode, and the gate is one launch") {
  std::mt19937 random(kSeed);
  LinearRig rig;
  const RandomMatrix matrix(random, DType::q4_0, 64, 24);
  const auto w = rig.ops.load_matrix(matrix.host);
  const OnCard x(rig.stream, random_values(random, 8 * 64)), y(rig.stream, 3 * 8 * 24);
  const LinearOutput outputs[] = {
      {w.get(), nullptr, y.get()}, {w.get(), nullptr, y.get() + 8 * 24}, {w.get(), nullptr, y.get() + 2 * 8 * 24}};
  auto before = cuda_shim::counts().launches;
  rig.ops.norm_linear(x.get(), 8, nullptr, 0, outputs);
  CHECK(cuda_shim::counts().launches == before + 1);
  rig.ops.norm_glu(x.get(), 8, nullptr, 0, *w, nullptr, *w, nullptr, y.get());
  CHECK(cuda_shim::counts().launches == before + 2);
  cudaStreamSynchronize(rig.stream);
}

TEST_CASE("errors of cuBLASLt are named") {
  try {
    cuda::check(CUBLAS_STATUS_ALLOC_FAILED, "multiplying");
    FAIL("nothing failed");
  } catch (const mneme::Error& error) {
    CHECK(error.code() == mneme::errc::out_of_memory);
    CHECK(std::string(error.what()).find("multiplying: CUBLAS_STATUS_ALLOC_FAILED") != std::string::npos);
  }
  CHECK(fails_with(mneme::errc::engine_faulted, [] { cuda::check(CUBLAS_STATUS_NOT_SUPPORTED, "multiplying"); }));
  cuda::check(CUBLAS_STATUS_SUCCESS, "nothing");
}
