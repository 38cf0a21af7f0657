// The closed forms of the layout, and the schedule of chunks.
#include "memory/layout.hpp"

#include <doctest/doctest.h>

#include <deque>

#include "support/memory_stream.hpp"

namespace {

using namespace mneme;
using memory::Layout;
using memory::Params;

Params small(std::int64_t n_init, std::int64_t n_local, std::int64_t block) {
  Params params;
  params.n_init = n_init;
  params.n_local = n_local;
  params.block = block;
  return params;
}

TEST_CASE("the layout of the worked example of the specification") {
  const Layout layout(small(4, 16, 8));
  CHECK(layout.initial_tokens(16) == 0);
  CHECK(layout.initial_tokens(18) == 2);
  CHECK(layout.remainder_first(18) == 2);
  CHECK(layout.initial_tokens(20) == 4);
  CHECK(layout.remainder_first(20) == 4);
  CHECK(layout.units(27) == 0);
  CHECK(layout.units(28) == 1);
  CHECK(layout.remainder_first(28) == 12);
}

// Appends chunk by chunk: initial tokens leave the front first, then whole blocks, as long as n_local tokens stay.
TEST_CASE("M9 closed form: the layout equals a queue that is filled chunk by chunk") {
  test::Random random(7);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const Params params = small(random.between(0, 9), random.between(2, 40), random.between(1, 16));
    const Layout layout(params);
    std::deque<std::int64_t> remainder;
    std::int64_t position = 0, initial = 0, units = 0;
    while (position < 300) {
      const std::int64_t n = random.between(1, params.n_local);
      for (std::int64_t i = 0; i < n; ++i) remainder.push_back(position++);
      const auto size = [&] { return static_cast<std::int64_t>(remainder.size()); };
      while (initial < params.n_init && size() > params.n_local) remainder.pop_front(), ++initial;
      while (initial == params.n_init && size() - params.block >= params.n_local) {
        CHECK(remainder.front() == layout.unit_first(units));
        remainder.erase(remainder.begin(), remainder.begin() + params.block);
        ++units;
      }
      CAPTURE(position);
      CAPTURE(test::describe(params));
      REQUIRE(layout.initial_tokens(position) == initial);
      REQUIRE(layout.units(position) == units);
      REQUIRE(layout.remainder_first(position) == remainder.front());
      REQUIRE(layout.complete_blocks(position) == std::max<std::int64_t>(0, position - params.n_init) / params.block);
      if (units > 0) REQUIRE(layout.units(layout.sealed_at(units - 1)) == units);
      if (units > 0) REQUIRE(layout.units(layout.sealed_at(units - 1) - 1) == units - 1);
    }
  }
}

TEST_CASE("the layout counts in 64 bits") {
  const Layout layout(small(4, 16, 8));
  const std::int64_t position = (std::int64_t{1} << 40) + 20;
  CHECK(layout.units(position) == (std::int64_t{1} << 37));
  CHECK(layout.remainder_first(position) == position - 16);
}

TEST_CASE("chunks end at absolute multiples of E, at T and at the end of the segment") {
  Params params = small(4, 16, 8);
  params.exec_chunk = 10;
  using Chunks = std::vector<std::int64_t>;
  CHECK(memory::cut_into_chunks(params, 0, 25) == Chunks{10, 10, 5});
  CHECK(memory::cut_into_chunks(params, 7, 25) == Chunks{3, 10, 10, 2});
  CHECK(memory::cut_into_chunks(params, 9, 1) == Chunks{1});
  CHECK(memory::cut_into_chunks(params, 9, 0).empty());
  params.dense_limit = 23;
  CHECK(memory::cut_into_chunks(params, 7, 25) == Chunks{3, 10, 3, 7, 2});
  CHECK(memory::cut_into_chunks(params, 23, 9) == Chunks{7, 2});
}

}  // namespace
