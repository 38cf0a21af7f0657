// The stand-in itself: barriers, warp collectives, the matrix unit and copies do what CUDA's do, and what a card would
// not forgive is not forgiven here.
#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <vector>

#include "gpu/cuda/intrinsics.cuh"
#include "gpu/cuda/runtime.hpp"
#include "gpu/quant_blocks.hpp"
#include "tests/support/cuda_shim/shim.hpp"

namespace mneme::gpu::cuda {
namespace {

struct Stream {
  cudaStream_t stream = nullptr;
  Stream() { check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, 0), "creating a stream"); }
  ~Stream() { cudaStreamDestroy(stream); }
};

// out[block] = sum of in[block * n .. + n): a tree over the warp, then over the warps.
__global__ void sum_kernel(const float* in, int n, float* out) {
  __shared__ float parts[32];
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
    sum += in[blockIdx.x * static_cast<unsigned>(n) + static_cast<unsigned>(i)];
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(kFullWarp, sum, bits);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (unsigned w = 1; w < blockDim.x / 32; ++w) sum += parts[w];
  out[blockIdx.x] = sum;
}

// c[16][8] = a[16][16] * b, b given as [8][16] rows of its columns; both come into shared memory in the background.
__global__ void multiply_kernel(const std::uint16_t* a, const std::uint16_t* b, float* c, bool wait) {
  auto* shared = dynamic_shared<std::uint16_t>();
  std::uint16_t* tile_a = shared;
  std::uint16_t* tile_b = shared + 256;
  const unsigned lane = threadIdx.x;
  copy_async_16(tile_a + lane * 8, a + lane * 8);
  copy_async_16(tile_b + lane * 8, b + lane * 8, lane < 16);
  copy_async_commit();
  if (wait) copy_async_wait<0>();
  __syncthreads();
  std::uint32_t fragment_a[4], rows_b[4];
  load_matrix_x4(fragment_a, tile_a + lane % 16 * 16 + lane / 16 * 8);
  load_matrix_x4(rows_b, tile_b + lane % 8 * 16 + lane / 8 % 2 * 8);
  const std::uint32_t fragment_b[2] = {rows_b[0], rows_b[1]};
  float d[4] = {0, 0, 0, 0};
  mma_16816(d, fragment_a, fragment_b);
  const unsigned row = lane / 4, column = lane % 4 * 2;
  c[row * 8 + column] = d[0];
  c[row * 8 + column + 1] = d[1];
  c[(row + 8) * 8 + column] = d[2];
  c[(row + 8) * 8 + column + 1] = d[3];
}

}  // namespace

TEST_CASE("blocks sum over warps and threads") {
  const Stream s;
  std::vector<float> in(3 * 1000), out(3, -1.0f);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 17);
  check(launch(sum_kernel, 3, 128, 0, s.stream, in.data(), 1000, out.data()), "sum");
  CHECK(out[0] == -1.0f);  // nobody has waited yet
  check(cudaStreamSynchronize(s.stream), "sum");
  for (std::size_t b = 0; b < 3; ++b) {
    float want = 0;
    for (std::size_t i = 0; i < 1000; ++i) want += in[b * 1000 + i];
    CHECK(out[b] == want);
  }
}

TEST_CASE("the matrix unit multiplies what its lanes hold, and unwaited copies have not arrived") {
  const Stream s;
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> a(256), b(128);
  for (auto& x : a) x = f32_to_f16(normal(random));
  for (auto& x : b) x = f32_to_f16(normal(random));
  for (const bool wait : {true, false}) {
    std::vector<float> c(128, 0.0f);
    check(launch(multiply_kernel, 1, 32, 1024, s.stream, a.data(), b.data(), c.data(), wait), "multiply");
    check(cudaStreamSynchronize(s.stream), "multiply");
    for (std::size_t i = 0; i < 16; ++i) {
      for (std::size_t j = 0; j < 8; ++j) {
        double want = 0;
        for (std::size_t k = 0; k < 16; ++k) want += f16_to_f32(a[i * 16 + k]) * f16_to_f32(b[j * 16 + k]);
        if (wait) CHECK(c[i * 8 + j] == doctest::Approx(want).epsilon(1e-5));
        if (!wait) CHECK(c[i * 8 + j] != c[i * 8 + j]);
      }
    }
  }
}

TEST_CASE("arguments that are on their way stay as they were when they were given") {
  const Stream s;
  void* device = nullptr;
  check(cudaMalloc(&device, 64 * 100), "allocating");
  {
    PinnedRing ring(s.stream, 1024);
    for (int i = 0; i < 100; ++i) {
      std::vector<int> values(16, i);
      ring.upload(static_cast<std::byte*>(device) + i * 64, values.data(), 64);
    }
    std::vector<int> large(16 * 100), back(16 * 100);
    check(cudaMemcpyAsync(back.data(), device, 6400, cudaMemcpyDeviceToHost, s.stream), "reading");
    for (std::size_t i = 0; i < back.size(); ++i) REQUIRE(back[i] == static_cast<int>(i / 16));
    ring.upload(device, large.data(), 6400);  // larger than the ring
    check(cudaMemcpyAsync(back.data(), device, 6400, cudaMemcpyDeviceToHost, s.stream), "reading");
    CHECK(back == large);
  }
  cudaFree(device);
}

TEST_CASE("a graph replays what was captured, with what its memory holds then") {
  const Stream s;
  std::vector<float> in(64, 1.0f), out(1);
  check(cudaStreamBeginCapture(s.stream, cudaStreamCaptureModeThreadLocal), "capturing");
  check(launch(sum_kernel, 1, 32, 0, s.stream, in.data(), 64, out.data()), "sum");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamEndCapture(s.stream, &graph), "capturing");
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiating");
  for (const float x : {2.0f, 3.0f}) {
    std::fill(in.begin(), in.end(), x);
    check(cudaGraphLaunch(exec, s.stream), "launching");
    check(cudaStreamSynchronize(s.stream), "launching");
    CHECK(out[0] == 64 * x);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

}  // namespace mneme::gpu::cuda
