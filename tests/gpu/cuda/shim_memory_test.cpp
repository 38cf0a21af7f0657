// A memory on the stand-in: how often the host waits, what happens without page-locked memory, and what happens when
// the card is full.
#include <doctest/doctest.h>

#include <unistd.h>

#include <array>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gpu/cuda/cuda_device.hpp"
#include "memory/context.hpp"
#include "memory/memory_store.hpp"
#include "mneme/error.hpp"
#include "runtime/agent/open_agent.hpp"
#include "tests/support/cuda_shim/shim.hpp"
#include "tests/support/memory_stream.hpp"
#include "tests/support/tiny_model.hpp"

namespace {

namespace fs = std::filesystem;
using namespace mneme;
using namespace mneme::test;
using memory::MemoryStats;
using memory::MemoryStore;
using memory::Params;
using memory::SelectorKind;

constexpr std::int64_t kPass = 16;

std::uint64_t waits() {
  return cuda_shim::counts().waits;
}

memory::ModelShape shape_of() {
  return plain_shape(2, 2, 1, 16);
}

// Units of four tokens, of which a chunk sees two.
Params small_params(SelectorKind selector) {
  Params params;
  params.selector = selector;
  params.n_init = 4;
  params.n_local = 8;
  params.block = 4;
  params.page = 4;
  params.shortlist = 2;
  params.voters = 2;
  params.repr_topk = 2;
  params.topk = 2;
  params.exec_chunk = 4;
  params.global_distance = 7;
  params.cached_blocks = 4;
  return params;
}

// A context fed step by step, for counting what happens in which step.
struct Stepper {
  gpu::Device& device;
  memory::Context context;
  Stream stream;
  gpu::Buffer q, k, v, out;
  std::vector<std::uint64_t> attend_waits, end_waits;  // of every layer of every pass; of every pass

  Stepper(gpu::Device& device_, memory::UnitStore& store, const Params& params, memory::Budget budget,
          std::int64_t n_tokens)
      : device(device_),
        context(device, store, shape_of(), params, budget, kPass, test_identity()),
        stream(make_stream(5, shape_of(), n_tokens)) {
    q = device.allocate(kPass * 32 * sizeof(float));
    out = device.allocate(kPass * 32 * sizeof(float));
    k = device.allocate(kPass * 16 * sizeof(float));
    v = device.allocate(kPass * 16 * sizeof(float));
  }

  std::vector<float> pass(std::int64_t n) {
    const std::int64_t first = context.position();
    std::vector<float> outputs;
    context.begin_pass(context.chunks_of(n));
    for (int layer = 0; layer < 2; ++layer) {
      const auto upload = [](gpu::Device& to, const gpu::Buffer& buffer, std::span<const float> values) {
        to.upload(buffer.data(), values.data(), values.size_bytes());
      };
      upload(device, q, stream.q_of(layer, first, n));
      upload(device, k, stream.k_of(layer, first, n));
      upload(device, v, stream.v_of(layer, first, n));
      const std::uint64_t before = waits();
      context.attend(layer, q.f32(), k.f32(), v.f32(), out.f32());
      attend_waits.push_back(waits() - before);
      std::vector<float> rows(static_cast<std::size_t>(n) * 32);
      device.download(rows.data(), out.data(), rows.size() * sizeof(float));
      outputs.insert(outputs.end(), rows.begin(), rows.end());
    }
    const std::uint64_t before = waits();
    context.end_pass();
    end_waits.push_back(waits() - before);
    return outputs;
  }
};

memory::Budget budget_of(std::size_t spare_rows) {
  const Params params = small_params(SelectorKind::two_stage);
  return {0, memory::minimum_budget(shape_of(), params, kPass).host_bytes + spare_rows * 1024};
}

template <class Body>
Error thrown(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return Error(errc::invalid_handle, "nothing was thrown");
}

bool says(const Error& error, const std::string& text) {
  return std::string(error.what()).find(text) != std::string::npos;
}

// The card has `bytes` more than is taken now.
struct FreeMemory {
  FreeMemory(gpu::Device& device, std::size_t bytes) {
    const gpu::DeviceMemory memory = device.memory().value();
    cuda_shim::set_device_memory(memory.total - memory.free + bytes);
  }
  ~FreeMemory() { cuda_shim::set_device_memory(std::size_t{8} << 30); }
};

struct PinnedLimit {
  explicit PinnedLimit(std::size_t bytes) { cuda_shim::set_pinned_memory(bytes); }
  ~PinnedLimit() { cuda_shim::set_pinned_memory(static_cast<std::size_t>(-1)); }
};

std::shared_ptr<const model::ModelFile> tiny() {
  const fs::path directory = fs::temp_directory_path() / ("mneme-cuda-plan-" + std::to_string(::getpid()));
  fs::create_directories(directory);
  auto file = model::ModelFile::load(write_tiny_model(directory));
  fs::remove_all(directory);
  return file;
}

}  // namespace

TEST_CASE("a missing unit costs the host no wait, and a pass ends with one wait at most") {
  for (const SelectorKind selector : {SelectorKind::two_stage, SelectorKind::representatives}) {
    const auto device = gpu::make_cuda_device();
    MemoryStore store;
    Stepper stepper(*device, store, small_params(selector), budget_of(1000), 200);
    for (int i = 0; i < 4; ++i) stepper.pass(16);  // the pool and the area for downloads exist
    stepper.attend_waits.clear();
    stepper.end_waits.clear();
    const MemoryStats before = stepper.context.stats();
    std::uint64_t n_sealing = 0;
    std::int64_t blocks = (stepper.context.position() - 4) / 4;
    for (int i = 0; i < 40; ++i) {
      stepper.pass(1);
      const std::int64_t blocks_now = (stepper.context.position() - 4) / 4;
      if (blocks_now > blocks) {
        ++n_sealing;
        CHECK(stepper.end_waits.back() == 1);
      }
      blocks = blocks_now;
      CHECK(stepper.end_waits.back() <= 1);
    }
    CHECK(n_sealing == 10);
    // The waits of a layer are the selector's, the same in every pass, though units were missing in many.
    const std::set<std::uint64_t> distinct(stepper.attend_waits.begin(), stepper.attend_waits.end());
    CHECK(distinct.size() == 1);
    CHECK(*distinct.begin() <= 2);
    CHECK(stepper.context.stats().host_hits > before.host_hits + 20);
    CHECK(stepper.context.stats().pinned_bytes > 0);
  }
}

TEST_CASE("page-locked memory changes no bit: all rows, no downloads, none, in a cache that holds few rows") {
  struct Variant {
    std::size_t spare_rows, pinned;
  };
  constexpr std::size_t kUnbounded = static_cast<std::size_t>(-1);
  // 1 MiB: downloads want more than is left.
  constexpr Variant kVariants[] = {{1000, kUnbounded}, {0, kUnbounded}, {0, std::size_t{1} << 20}, {0, 0}};
  std::vector<std::vector<float>> expected;
  for (const Variant& variant : kVariants) {
    CAPTURE(variant.spare_rows);
    CAPTURE(variant.pinned);
    const auto device = gpu::make_cuda_device();
    const gpu::Buffer scores = device->allocate(16);
    device->fill_zero(scores.data(), 16);
    device->top_k(scores.f32(), 4, 1);  // has its page-locked memory now
    const PinnedLimit limit(variant.pinned);
    MemoryStore store;
    const memory::Budget budget = budget_of(variant.spare_rows);
    Stepper stepper(*device, store, small_params(SelectorKind::two_stage), budget, 120);
    std::size_t i = 0;
    for (const std::int64_t n : {16, 7, 1, 1, 9, 16, 3, 1, 1, 1, 1, 16, 16, 5, 16, 10}) {
      const auto out = stepper.pass(n);
      if (&variant == kVariants) expected.push_back(out);
      REQUIRE(same_bits(out, expected[i++]));
    }
    const MemoryStats stats = stepper.context.stats();
    CHECK(stats.host_bytes <= budget.host_bytes);
    CHECK((stats.store_reads > 0) == (variant.spare_rows == 0));
    CHECK((stats.pinned_bytes > 0) == (variant.pinned > 0));
    CHECK(stats.pinned_bytes <= budget.host_bytes + 32 * 1024);  // and a read's rows
  }
}

TEST_CASE("slots that a budget allows are there from the start, and a stream takes no more memory for units") {
  const auto device = gpu::make_cuda_device();
  const Params params = small_params(SelectorKind::two_stage);
  memory::Budget budget = budget_of(10);
  budget.device_bytes = memory::minimum_budget(shape_of(), params, kPass).device_bytes;
  MemoryStore store;
  const std::uint64_t before = cuda_shim::counts().allocations;
  Stepper stepper(*device, store, params, budget, 250);
  CHECK(cuda_shim::counts().allocations > before);
  CHECK(stepper.context.stats().slot_bytes == memory::plan_memory(shape_of(), params, budget, kPass).slots);
  for (int i = 0; i < 5; ++i) stepper.pass(16);
  const std::uint64_t steady = cuda_shim::counts().allocations;
  const std::size_t slots = stepper.context.stats().slot_bytes;
  for (int i = 0; i < 10; ++i) stepper.pass(16);
  CHECK(cuda_shim::counts().allocations == steady);
  CHECK(stepper.context.stats().slot_bytes == slots);
}

TEST_CASE("a memory that does not fit is refused with its parts, nothing is taken, and the others go on") {
  const auto device = gpu::make_cuda_device();
  const Params params = small_params(SelectorKind::two_stage);
  memory::Budget budget = budget_of(10);
  budget.device_bytes = memory::minimum_budget(shape_of(), params, kPass).device_bytes;
  MemoryStore store, alone_store, refused_store;
  Stepper alone(*device, alone_store, params, budget, 100);
  Stepper stepper(*device, store, params, budget, 100);
  for (int i = 0; i < 3; ++i) REQUIRE(same_bits(stepper.pass(16), alone.pass(16)));
  const memory::MemoryPlan plan = memory::plan_memory(shape_of(), params, budget, kPass);
  const std::size_t wanted = plan.window + plan.slots + plan.scratch + plan.index;
  {
    const FreeMemory limit(*device, wanted - 1);
    const cuda_shim::Counts before = cuda_shim::counts();
    const Error error =
        thrown([&] { memory::Context(*device, refused_store, shape_of(), params, budget, kPass, test_identity()); });
    CHECK(error.code() == errc::out_of_memory);
    for (const gpu::MemoryPart& part : plan.parts()) CHECK(says(error, part.name + " " + std::to_string(part.bytes)));
    CHECK(says(error, std::to_string(wanted) + " bytes"));
    CHECK(says(error, std::to_string(wanted - 1) + " of "));
    CHECK(cuda_shim::counts().allocations == before.allocations);
    CHECK(cuda_shim::counts().launches == before.launches);
  }
  for (int i = 0; i < 3; ++i) REQUIRE(same_bits(stepper.pass(16), alone.pass(16)));
  const FreeMemory limit(*device, wanted);
  CHECK_NOTHROW(memory::Context(*device, refused_store, shape_of(), params, budget, kPass, test_identity()));
}

TEST_CASE("an agent whose model does not fit is refused with weights and memory together, before either is loaded") {
  const auto file = tiny();
  Params params = small_params(SelectorKind::two_stage);
  agent::EngineDevice engine(gpu::make_cuda_device());
  const std::int64_t pass = engine.device().info().pass_tokens;
  const auto model_parts = model::Transformer::plan(engine.device(), *file, pass);
  const auto memory_parts = memory::plan_memory(file->memory_shape(), params, {0, std::size_t{8} << 20}, pass).parts();
  std::size_t model_bytes = 0, all_bytes = 0;
  for (const auto& part : model_parts) model_bytes += part.bytes;
  all_bytes = model_bytes;
  for (const auto& part : memory_parts) all_bytes += part.bytes;
  const memory::Budget budget{0, std::size_t{8} << 20};
  const std::uint64_t allocations = cuda_shim::counts().allocations;
  {
    const FreeMemory limit(engine.device(), all_bytes - 1);
    const Error error = thrown([&] { engine.require_room(file, params, budget); });
    CHECK(error.code() == errc::out_of_memory);
    for (const auto* parts : {&model_parts, &memory_parts}) {
      for (const gpu::MemoryPart& part : *parts) CHECK(says(error, part.name + " " + std::to_string(part.bytes)));
    }
  }
  {
    const FreeMemory limit(engine.device(), model_bytes - 1);
    CHECK(thrown([&] { engine.transformer(file); }).code() == errc::out_of_memory);
  }
  CHECK(cuda_shim::counts().allocations == allocations);
  engine.require_room(file, params, budget);
  const auto transformer = engine.transformer(file);
  CHECK(transformer->weight_bytes() == model_parts.at(0).bytes);
  CHECK(transformer->activation_bytes() == model_parts.at(1).bytes);
  const FreeMemory limit(engine.device(), all_bytes - model_bytes);  // the weights are there now
  CHECK_NOTHROW(engine.require_room(file, params, budget));
  engine.update_figures();
  CHECK(engine.weight_bytes() == model_parts.at(0).bytes);
  CHECK(engine.activation_bytes() >= model_parts.at(1).bytes);
  CHECK(engine.free_bytes() == all_bytes - model_bytes);
  CHECK(engine.total_bytes() > engine.free_bytes());
}

TEST_CASE("a memory may go, and a pass may be abandoned, while rows are on their way") {
  const auto device = gpu::make_cuda_device();
  const Params params = small_params(SelectorKind::two_stage);
  MemoryStore store;
  auto stepper = std::make_unique<Stepper>(*device, store, params, budget_of(1000), 200);
  for (int i = 0; i < 6; ++i) stepper->pass(16);
  const auto start_pass = [&] {
    const auto q = stepper->stream.q_of(0, stepper->context.position(), 16);
    device->upload(stepper->q.data(), q.data(), q.size_bytes());
    stepper->context.begin_pass(stepper->context.chunks_of(16));
    stepper->context.attend(0, stepper->q.f32(), stepper->k.f32(), stepper->v.f32(), stepper->out.f32());
  };
  MemoryStore other_store;
  Stepper other(*device, other_store, params, budget_of(1000), 200);
  for (int i = 0; i < 6; ++i) other.pass(16);
  start_pass();
  stepper->context.abandon_pass();
  for (int i = 0; i < 3; ++i) REQUIRE(same_bits(stepper->pass(16), other.pass(16)));
  start_pass();
  stepper.reset();
  CHECK_NOTHROW(device->synchronize());
  CHECK_NOTHROW(other.pass(16));
}
