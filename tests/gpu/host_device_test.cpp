#include "gpu/host/host_device.hpp"

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "gpu/host/isa.hpp"
#include "mneme/error.hpp"

using namespace mneme::gpu;

TEST_CASE("the device says which instruction set and activations decide its bits, but not how many threads") {
  const auto scalar = make_host_device({2, ActivationType::int8, "scalar"});
  CHECK(scalar->info().numerics == "host/scalar/int8/1");
  CHECK(scalar->info().name == "cpu (scalar, 2 threads)");
  CHECK(scalar->info().n_threads == 2);
  CHECK(make_host_device({1, ActivationType::f32, "scalar"})->info().numerics == "host/scalar/f32/1");
  CHECK(make_host_device({1, ActivationType::f32, "scalar"})->info().name == "cpu (scalar, 1 thread)");
  const std::string best(host::name(host::best_isa()));
  CHECK(make_host_device({1, ActivationType::int8, best})->info().numerics == "host/" + best + "/int8/1");
}

TEST_CASE("thread counts out of range are refused; 0 takes the machine's cores") {
  for (const int n : {-1, 257}) {
    CHECK_THROWS_WITH_AS(make_host_device({n, ActivationType::int8, "scalar"}),
                         doctest::Contains(std::to_string(n).c_str()), mneme::Error);
  }
  CHECK(make_host_device({0, ActivationType::int8, "scalar"})->info().n_threads >= 1);
}

TEST_CASE("device memory is aligned, moves with its handle, and carries bytes there and back") {
  const auto device = make_host_device({1, ActivationType::int8, ""});
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, std::size_t{5} << 20}) {
    CAPTURE(bytes);
    Buffer buffer = device->allocate(bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64 == 0);
    CHECK(buffer.bytes() == bytes);
    Buffer moved = std::move(buffer);
    CHECK(buffer.data() == nullptr);  // NOLINT: a moved-from handle is empty
    std::vector<std::uint8_t> in(bytes), out(bytes);
    for (std::size_t i = 0; i < bytes; ++i) in[i] = static_cast<std::uint8_t>(i * 7);
    device->upload(moved.data(), in.data(), bytes);
    device->download(out.data(), moved.data(), bytes);
    CHECK(in == out);
    device->fill_zero(moved.data(), bytes);
    device->download(out.data(), moved.data(), bytes);
    CHECK(out == std::vector<std::uint8_t>(bytes, 0));
  }
}

TEST_CASE("copies may overlap") {
  const auto device = make_host_device({1, ActivationType::int8, ""});
  Buffer buffer = device->allocate(100);
  std::vector<std::uint8_t> bytes(100);
  for (std::size_t i = 0; i < 100; ++i) bytes[i] = static_cast<std::uint8_t>(i);
  device->upload(buffer.data(), bytes.data(), 100);
  device->copy(buffer.at(10), buffer.at(0), 90);
  device->download(bytes.data(), buffer.data(), 100);
  for (std::size_t i = 10; i < 100; ++i) CHECK(bytes[i] == i - 10);
}

TEST_CASE("a buffer that does not fit into memory is out_of_memory and names the bytes") {
  const auto device = make_host_device({1, ActivationType::int8, ""});
  for (const std::size_t bytes : {std::size_t{1} << 56, std::numeric_limits<std::size_t>::max() - 5}) {
    try {
      device->allocate(bytes);
      FAIL("allocated");
    } catch (const mneme::Error& error) {
      CHECK(error.code() == mneme::errc::out_of_memory);
      CHECK(std::string(error.what()).find(std::to_string(bytes)) != std::string::npos);
    }
  }
}

TEST_CASE("a unit is K, then V; with q8 each after its scales") {
  const HeadShape shape{6, 2, 16};
  CHECK(unit_bytes(shape, KvType::f16, 8).total() == 2 * 2 * 8 * 16 * 2);
  CHECK(unit_bytes(shape, KvType::f32, 8).k == 2 * 8 * 16 * 4);
  CHECK(unit_bytes(shape, KvType::q8, 8).k == 2 * 16 * 2 + 2 * 8 * 16);
  CHECK(unit_bytes(shape, KvType::q8, 8).v == 2 * 8 * 2 + 2 * 8 * 16);
  const std::vector<std::byte> row(unit_bytes(shape, KvType::q8, 8).total());
  const KvSpan span = unit_span(shape, KvType::q8, row.data(), 8);
  CHECK(span.k_scales == row.data());
  CHECK(span.k == row.data() + 2 * 16 * 2);
  CHECK(span.v_scales == row.data() + unit_bytes(shape, KvType::q8, 8).k);
  CHECK(span.v == row.data() + unit_bytes(shape, KvType::q8, 8).k + 2 * 8 * 2);
  CHECK(span.n_tokens == 8);
  CHECK(span.head_stride == 8);
  const KvSpan plain = unit_span(shape, KvType::f16, row.data(), 8);
  CHECK(plain.k == row.data());
  CHECK(plain.v == row.data() + 2 * 8 * 16 * 2);
  CHECK(plain.k_scales == nullptr);
}
