// The CUDA device as a whole on the stand-in: memory, and what happens when the card has no room or fails.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "gpu/cuda/cuda_device.hpp"
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

TEST_CASE("the device names the card and everything that decides its bits") {
  const DeviceInfo info = make_cuda_device()->info();
  CHECK(info.name.starts_with("cuda:0 ("));
  CHECK(info.numerics.starts_with("cuda/sm_90/4/driver "));
  CHECK(info.numerics.find("cublasLt") != std::string::npos);
  CHECK(info.pass_tokens == 2048);
}
