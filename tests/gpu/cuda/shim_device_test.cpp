// The CUDA device as a whole on the stand-in: memory, and what happens when the card has no room or fails.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gpu/cuda/cuda_device.hpp"
#include "gpu/cuda/launch.hpp"
#include "gpu/cuda/stream_signal.hpp"
#include "mneme/error.hpp"
#include "tests/support/cuda_shim/shim.hpp"

using namespace mneme;
using namespace mneme::gpu;

namespace {

// What Error `body` throws; invalid_handle stands for none.
template <class Body>
Error thrown(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return Error(errc::invalid_handle, "nothing was thrown");
}

std::vector<std::uint8_t> bytes_of(Device& device, const Buffer& buffer) {
  std::vector<std::uint8_t> bytes(buffer.bytes());
  device.download(bytes.data(), buffer.data(), bytes.size());
  return bytes;
}

std::vector<std::uint8_t> counted(std::size_t n) {
  std::vector<std::uint8_t> bytes(n);
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::uint8_t>(i * 7 + i / 251);
  return bytes;
}

}  // namespace

TEST_CASE("device memory carries bytes there and back, also more than the argument ring holds") {
  const auto device = make_cuda_device();
  for (const std::size_t n : {std::size_t{1}, std::size_t{4096}, std::size_t{5} << 20}) {
    CAPTURE(n);
    const Buffer buffer = device->allocate(n);
    auto bytes = counted(n);
    device->upload(buffer.data(), bytes.data(), n);
    const auto wanted = bytes;
    bytes.assign(n, 0);  // the host may go on at once
    CHECK(bytes_of(*device, buffer) == wanted);
    device->fill_zero(buffer.data(), n);
    CHECK(bytes_of(*device, buffer) == std::vector<std::uint8_t>(n, 0));
  }
}

TEST_CASE("copies on the device may overlap, in both directions") {
  const auto device = make_cuda_device();
  for (const bool forwards : {true, false}) {
    const Buffer buffer = device->allocate(1000);
    const auto bytes = counted(1000);
    device->upload(buffer.data(), bytes.data(), 1000);
    device->copy(buffer.at(forwards ? 10 : 0), buffer.at(forwards ? 0 : 10), 990);
    const auto moved = bytes_of(*device, buffer);
    for (std::size_t i = 0; i < 990; ++i) REQUIRE(moved[i + (forwards ? 10 : 0)] == bytes[i + (forwards ? 0 : 10)]);
  }
}

TEST_CASE("an ordinal that does not exist is refused, with how many devices there are") {
  for (const int ordinal : {-1, 1, 7}) {
    const Error error = thrown([&] { make_cuda_device({ordinal}); });
    CHECK(error.code() == errc::invalid_argument);
    CHECK(std::string(error.what()).find(std::to_string(ordinal)) != std::string::npos);
  }
  const int count = cuda_shim::set_device_count(0);
  CHECK(cuda_device_count() == 0);
  CHECK(thrown([] { make_cuda_device(); }).code() == errc::invalid_argument);
  cuda_shim::set_device_count(count);
}

TEST_CASE("what does not fit is out_of_memory with the bytes, and the device goes on") {
  const auto device = make_cuda_device();
  const Buffer small = device->allocate(100);
  const Error error = thrown([&] { device->allocate(std::size_t{1} << 50); });
  CHECK(error.code() == errc::out_of_memory);
  CHECK(std::string(error.what()).find(std::to_string(std::size_t{1} << 50)) != std::string::npos);
  const auto bytes = counted(100);
  device->upload(small.data(), bytes.data(), 100);
  CHECK(bytes_of(*device, small) == bytes);
}

TEST_CASE("after a fault of the card every operation is refused, and the device can be destroyed") {
  for (const cudaError_t fault : {cudaErrorIllegalAddress, cudaErrorECCUncorrectable}) {
    auto device = make_cuda_device();
    Buffer buffer = device->allocate(100);
    std::vector<std::uint8_t> bytes(100);
    cuda_shim::fail_call(1, fault, true);
    CHECK(thrown([&] { device->upload(buffer.data(), bytes.data(), 100); }).code() == errc::engine_faulted);
    CHECK(thrown([&] { device->download(bytes.data(), buffer.data(), 100); }).code() == errc::engine_faulted);
    CHECK(thrown([&] { device->synchronize(); }).code() == errc::engine_faulted);
    CHECK(thrown([&] { device->allocate(1); }).code() == errc::engine_faulted);
    buffer = Buffer();
    device.reset();
    cuda_shim::clear_failures();
  }
  const auto another = make_cuda_device();  // of a new process, so to speak
  CHECK(another->allocate(1).bytes() == 1);
}

// Long enough for a busy machine to run the stand-in's driver in between.
constexpr std::chrono::milliseconds kLimit{1000};

// A device that hangs while this lives.
struct Hang {
  Hang() { cuda_shim::hang(true); }
  ~Hang() { cuda_shim::hang(false); }
};

TEST_CASE("a device that does not answer within the limit is lost: typed errors at once, nothing waits for it") {
  auto device = make_cuda_device({.wait_limit = kLimit});
  const std::vector<std::uint8_t> bytes(100, 7);
  std::vector<std::uint8_t> back(100);
  Buffer buffer = device->allocate(400);
  std::vector<float> scores(100, 1.0f);
  device->upload(buffer.data(), scores.data(), 400);
  auto matrix = device->load_matrix({DType::f32, 8, 1, std::as_bytes(std::span(scores).first(8)), {}});
  {
    const Hang hang;
    const auto start = std::chrono::steady_clock::now();
    const Error error = thrown([&] { device->top_k(buffer.f32(), 100, 3); });
    CHECK(std::chrono::steady_clock::now() - start >= kLimit);
    CHECK(error.code() == errc::engine_faulted);
    CHECK(std::string(error.what()).find("did not answer for 1 s") != std::string::npos);

    const std::int32_t id = 0;
    const std::function<void()> operations[] = {
        [&] { device->synchronize(); },
        [&] { device->upload(buffer.data(), bytes.data(), 100); },
        [&] { device->download(back.data(), buffer.data(), 100); },
        [&] { device->copy(buffer.at(100), buffer.data(), 100); },
        [&] { device->fill_zero(buffer.data(), 100); },
        [&] { device->allocate(1); },
        [&] { device->set_phase(Phase::decode); },
        [&] { device->embed(*matrix, std::span(&id, 1), buffer.f32()); },
        [&] { device->attention({}); },
        [&] { device->rope(buffer.f32(), 1, 1, 8, buffer.f32(), buffer.f32(), 0, buffer.f32()); },
        [&] { device->top_k(buffer.f32(), 100, 3); },
    };
    for (const auto& operation : operations) {
      const Error again = thrown(operation);
      CHECK(again.code() == errc::engine_faulted);
      CHECK(std::string(again.what()).find("did not answer") != std::string::npos);
    }
    CHECK(std::chrono::steady_clock::now() - start < 8 * kLimit);  // the limit was waited for once
    matrix.reset();
    buffer = Buffer();
    device.reset();  // ends the process if it waits
  }
  // What was under way comes late, and finds its memory.
  const auto another = make_cuda_device();
  const Buffer there = another->allocate(100);
  another->upload(there.data(), bytes.data(), 100);
  CHECK(bytes_of(*another, there) == bytes);
}

TEST_CASE("a device that hangs when it is closed is left alone") {
  auto device = make_cuda_device({.wait_limit = kLimit});
  Buffer buffer = device->allocate(100);
  device->fill_zero(buffer.data(), 100);
  const Hang hang;
  buffer = Buffer();
  device.reset();
}

TEST_CASE("waits below the limit are only waits, and the limit grows with them") {
  cudaStream_t stream = nullptr;
  gpu::cuda::check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, 0), "creating a stream");
  {
    gpu::cuda::StreamSignal signal(stream, {.least = kLimit, .waits = 1'000'000});
    CHECK(signal.limit() == kLimit);
    void* memory = nullptr;
    gpu::cuda::check(cudaMalloc(&memory, std::size_t{64} << 20), "allocating");
    gpu::cuda::check(cudaMemsetAsync(memory, 0, std::size_t{64} << 20, stream), "clearing");
    const auto waits = cuda_shim::counts().waits;
    signal.wait("waiting");
    CHECK(cuda_shim::counts().waits == waits + 1);
    CHECK(signal.limit() > kLimit);  // clearing 64 MiB takes longer than 1 us
    signal.wait("waiting for nothing");
    CHECK(cuda_shim::counts().waits == waits + 1);
    CHECK(!signal.is_lost());
    cudaFree(memory);
  }
  cudaStreamDestroy(stream);
}

TEST_CASE("an error of the stream, behind which no host function comes, is found by asking") {
  auto device = make_cuda_device();
  const Buffer buffer = device->allocate(100);
  device->fill_zero(buffer.data(), 100);
  {
    const Hang hang;                                           // so that the host function does not come before
    cuda_shim::fail_call(4, cudaErrorECCUncorrectable, true);  // device, query, function, query
    const Error error = thrown([&] { device->synchronize(); });
    CHECK(error.code() == errc::engine_faulted);
    CHECK(std::string(error.what()).find("did not answer") == std::string::npos);
  }
  CHECK(thrown([&] { device->synchronize(); }).code() == errc::engine_faulted);
  cuda_shim::clear_failures();
}

TEST_CASE("the device names the card and everything that decides its bits") {
  const DeviceInfo info = make_cuda_device()->info();
  CHECK(info.name.starts_with("cuda:0 ("));
  CHECK(info.numerics.starts_with("cuda/sm_90/4/driver "));
  CHECK(info.numerics.find("cublasLt") != std::string::npos);
  CHECK(info.pass_tokens == 2048);
}
