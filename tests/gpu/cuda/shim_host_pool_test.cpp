// Page-locked rows and downloads on the stand-in, which does a stream's work as late as it may: a row that is reused
// too early, or a slot that is overwritten before its reader has passed, gives wrong bytes here.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gpu/cuda/cuda_device.hpp"
#include "mneme/error.hpp"
#include "tests/support/cuda_shim/shim.hpp"

using namespace mneme;
using namespace mneme::gpu;

namespace {

constexpr HeadShape kShape{2, 1, 8};
constexpr int kTokens = 4;
const std::size_t kRow = unit_bytes(kShape, KvType::f16, kTokens).total();

std::uint64_t waits() {
  return cuda_shim::counts().waits;
}

void upload(Device& device, const void* row, void* slot) {
  const UnitUpload unit{row, slot};
  device.upload_units(kShape, KvType::f16, kTokens, {&unit, 1});
}

std::vector<int> values_of(Device& device, const Buffer& buffer) {
  std::vector<unsigned char> bytes(buffer.bytes());
  device.download(bytes.data(), buffer.data(), bytes.size());
  return {bytes.begin(), bytes.end()};
}

std::vector<int> filled(std::size_t n, int value) {
  return std::vector<int>(n, value);
}

struct PinnedLimit {
  explicit PinnedLimit(std::size_t bytes) { cuda_shim::set_pinned_memory(bytes); }
  ~PinnedLimit() { cuda_shim::set_pinned_memory(static_cast<std::size_t>(-1)); }
};

}  // namespace

TEST_CASE("a row goes from its room to a slot without a wait, and its room is given out again behind the copy only") {
  const auto device = make_cuda_device();
  const auto rows = device->host_rows(kRow, 2);
  const Buffer first = device->allocate(kRow), second = device->allocate(kRow);
  const std::uint64_t before = waits();
  auto a = rows->take();
  std::memset(a.get(), 1, kRow);
  upload(*device, a.get(), first.data());
  const std::byte* place_of_a = a.get();
  a.reset();
  auto b = rows->take();
  CHECK(b.get() != place_of_a);  // which is on its way
  std::memset(b.get(), 2, kRow);
  upload(*device, b.get(), second.data());
  b.reset();
  CHECK(waits() == before);
  const auto c = rows->take();  // both are on their way, and there is no third
  CHECK(waits() == before + 1);
  std::memset(c.get(), 3, kRow);
  CHECK(values_of(*device, first) == filled(kRow, 1));
  CHECK(values_of(*device, second) == filled(kRow, 2));
  const std::uint64_t passed = waits();
  const auto d = rows->take();
  CHECK(waits() == passed);
  CHECK(d != nullptr);
  CHECK(rows->take() == nullptr);  // all are held
  CHECK(rows->bytes() == 2 * kRow);
}

TEST_CASE("rooms come free however many batches are under way") {
  const auto device = make_cuda_device();
  constexpr std::size_t kRows = 40;
  const auto rows = device->host_rows(kRow, kRows);
  std::vector<Buffer> slots;
  for (std::size_t i = 0; i < 3 * kRows; ++i) {
    slots.push_back(device->allocate(kRow));
    const auto row = rows->take();
    REQUIRE(row != nullptr);
    std::memset(row.get(), static_cast<int>(i), kRow);
    upload(*device, row.get(), slots.back().data());
  }
  for (std::size_t i = 0; i < slots.size(); ++i)
    REQUIRE(values_of(*device, slots[i]) == filled(kRow, static_cast<int>(i)));
}

TEST_CASE("a slot is overwritten behind its last reader, and read behind the copy") {
  const auto device = make_cuda_device();
  const auto rows = device->host_rows(kRow, 1);
  const Buffer slot = device->allocate(kRow), before = device->allocate(kRow), after = device->allocate(kRow);
  std::vector<unsigned char> old(kRow, 7);
  device->upload(slot.data(), old.data(), kRow);
  device->copy(before.data(), slot.data(), kRow);
  {
    const auto row = rows->take();
    std::memset(row.get(), 8, kRow);
    upload(*device, row.get(), slot.data());
    device->copy(after.data(), slot.data(), kRow);
  }
  rows->take();  // waits for the upload, not for what was put on the compute stream behind it
  CHECK(values_of(*device, before) == filled(kRow, 7));
  CHECK(values_of(*device, after) == filled(kRow, 8));
}

TEST_CASE("rows in ordinary memory and in the room may be mixed") {
  const auto device = make_cuda_device();
  const auto rows = device->host_rows(kRow, 8);
  const Buffer a = device->allocate(kRow), b = device->allocate(kRow), c = device->allocate(kRow);
  const auto room = rows->take();
  std::memset(room.get(), 1, kRow);
  std::vector<unsigned char> ordinary(kRow, 2), other(kRow, 3);
  const UnitUpload units[] = {{ordinary.data(), a.data()}, {room.get(), b.data()}, {other.data(), c.data()}};
  device->upload_units(kShape, KvType::f16, kTokens, units);
  ordinary.assign(kRow, 9);  // read before the call returned
  other.assign(kRow, 9);
  CHECK(values_of(*device, a) == filled(kRow, 2));
  CHECK(values_of(*device, b) == filled(kRow, 1));
  CHECK(values_of(*device, c) == filled(kRow, 3));
}

TEST_CASE("memory that cannot be page-locked gives no room and no error") {
  const auto device = make_cuda_device();
  const Buffer slot = device->allocate(kRow);
  const auto rows = device->host_rows(kRow, 100);
  {
    const PinnedLimit limit(0);
    CHECK(rows->take() == nullptr);
  }
  CHECK(rows->bytes() == 0);
  CHECK(rows->take() == nullptr);  // it is not tried again
  std::vector<unsigned char> ordinary(kRow, 5);
  upload(*device, ordinary.data(), slot.data());
  CHECK(values_of(*device, slot) == filled(kRow, 5));
}

TEST_CASE("a pool that can grow no further gives the room that it has") {
  const auto device = make_cuda_device();
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  const auto rows = device->host_rows(kMiB, 100);
  std::vector<std::shared_ptr<std::byte>> taken;
  {
    const PinnedLimit limit(9 * kMiB);  // two slabs of four rows
    for (auto row = rows->take(); row != nullptr; row = rows->take()) taken.push_back(std::move(row));
  }
  CHECK(taken.size() == 8);
  CHECK(rows->bytes() == 8 * kMiB);
  CHECK(rows->take() == nullptr);
  std::byte* const last = taken.back().get();
  taken.pop_back();
  CHECK(rows->take().get() == last);
}

TEST_CASE("rooms may go while their rows are on their way") {
  const auto device = make_cuda_device();
  const Buffer slot = device->allocate(kRow);
  auto rows = device->host_rows(kRow, 3);
  {
    const auto row = rows->take();
    std::memset(row.get(), 6, kRow);
    upload(*device, row.get(), slot.data());
  }
  rows.reset();
  CHECK(values_of(*device, slot) == filled(kRow, 6));
}

TEST_CASE("a copy that cannot be begun is reported, and the rooms stay usable") {
  const auto device = make_cuda_device();
  const auto rows = device->host_rows(kRow, 2);
  const Buffer slot = device->allocate(kRow);
  for (int nth = 1; nth <= 5; ++nth) {  // record, wait, copy, record, wait
    CAPTURE(nth);
    const auto row = rows->take();
    std::memset(row.get(), nth, kRow);
    cuda_shim::fail_call(nth, cudaErrorIllegalAddress, false);
    CHECK_THROWS_AS(upload(*device, row.get(), slot.data()), Error);
    cuda_shim::clear_failures();
    upload(*device, row.get(), slot.data());
    CHECK(values_of(*device, slot) == filled(kRow, nth));
  }
}

TEST_CASE("pieces that share their place are downloaded with one wait, in order") {
  const auto device = make_cuda_device();
  constexpr std::size_t kPieces = 50, kBytes = 1000;
  const Buffer place = device->allocate(kBytes);
  std::vector<unsigned char> bytes(kBytes);
  const auto next = [&](std::size_t i) -> std::span<const std::byte> {
    bytes.assign(kBytes, static_cast<unsigned char>(i));
    device->upload(place.data(), bytes.data(), kBytes);
    return {place.at(0), kBytes - i};
  };
  device->download_each(1, next, [](std::size_t, std::span<const std::byte>) {});  // makes the area
  const std::uint64_t before = waits();
  std::size_t n = 0;
  device->download_each(kPieces, next, [&](std::size_t i, std::span<const std::byte> piece) {
    REQUIRE(i == n++);
    REQUIRE(piece.size() == kBytes - i);
    for (const std::byte byte : piece) REQUIRE(byte == static_cast<std::byte>(i));
  });
  CHECK(n == kPieces);
  CHECK(waits() == before + 1);
  device->download_each(0, next, [](std::size_t, std::span<const std::byte>) { FAIL("there is no piece"); });
  CHECK(waits() == before + 1);
}

TEST_CASE("pieces that the page-locked area does not hold are downloaded all the same") {
  constexpr std::size_t kArea = std::size_t{16} << 20;
  for (const bool pinned : {true, false}) {
    CAPTURE(pinned);
    const PinnedLimit limit(pinned ? static_cast<std::size_t>(-1)
                                   : std::size_t{9} << 20);  // what a device takes at first
    const auto device = make_cuda_device();
    const std::size_t sizes[] = {1000, kArea / 2, kArea / 2, kArea + 1, 1000, kArea};
    const Buffer place = device->allocate(kArea + 1);
    const auto next = [&](std::size_t i) -> std::span<const std::byte> {
      std::vector<unsigned char> mark(1, static_cast<unsigned char>(i + 1));
      device->fill_zero(place.data(), sizes[i]);
      device->upload(place.at(sizes[i] - 1), mark.data(), 1);
      return {place.at(0), sizes[i]};
    };
    std::size_t n = 0;
    device->download_each(std::size(sizes), next, [&](std::size_t i, std::span<const std::byte> piece) {
      REQUIRE(i == n++);
      REQUIRE(piece.size() == sizes[i]);
      CHECK(piece.front() == std::byte{0});
      CHECK(piece.back() == static_cast<std::byte>(i + 1));
    });
    CHECK(n == std::size(sizes));
  }
}

TEST_CASE("a download that its user ends by throwing leaves nothing behind") {
  const auto device = make_cuda_device();
  const Buffer place = device->allocate(100);
  device->fill_zero(place.data(), 100);
  const auto next = [&](std::size_t) -> std::span<const std::byte> { return {place.at(0), 100}; };
  for (const bool at_next : {true, false}) {
    int handed = 0;
    CHECK_THROWS_AS(device->download_each(
                        5,
                        [&](std::size_t i) {
                          if (at_next && i == 3) throw Error(errc::store_io, "injected");
                          return next(i);
                        },
                        [&](std::size_t i, std::span<const std::byte>) {
                          if (i == 2) throw Error(errc::store_io, "injected");
                          ++handed;
                        }),
                    Error);
    CHECK(handed == (at_next ? 0 : 2));
    std::size_t n = 0;
    device->download_each(4, next, [&](std::size_t i, std::span<const std::byte>) { CHECK(i == n++); });
    CHECK(n == 4);
  }
}
