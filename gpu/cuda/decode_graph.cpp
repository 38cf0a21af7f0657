#include "gpu/cuda/decode_graph.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <mneme/base/check.hpp>
#include <mutex>
#include <numbers>
#include <string>
#include <utility>

#include "gpu/cuda/decode_heads.hpp"
#include "gpu/cuda/device_matrix.hpp"
#include "gpu/cuda/stream_signal.hpp"

namespace mneme::gpu::cuda {
namespace {

constexpr std::int64_t kFirstUnits = 64;  // room in the tables at first
constexpr std::int64_t kSegmentUnits = 64;
constexpr std::int64_t kMostCandidates = 32768;  // launch_decode_select() takes no more

std::int64_t pieces_of(std::int64_t n, std::int64_t piece) noexcept {
  return (n + piece - 1) / piece;
}

Arithmetic arithmetic_of(KvType type, int head_dim) noexcept {
  return type != KvType::f32 && head_dim % 16 == 0 ? Arithmetic::matrix : Arithmetic::plain;
}

// Reachable, never destroyed.
void keep_for_ever(cudaGraphExec_t exec) {
  static auto& mutex = *new std::mutex;
  static auto& kept = *new std::vector<cudaGraphExec_t>;
  const std::lock_guard lock(mutex);
  kept.push_back(exec);
}

std::size_t size_of(std::int64_t n) noexcept {
  return static_cast<std::size_t>(n);
}

}  // namespace

bool DecodeGraph::serves(const DecodeMemory& memory) noexcept {
  return memory.topk <= kMostCandidates && (!memory.two_stage || memory.n_candidates <= kMostCandidates);
}

DecodeGraph::DecodeGraph(const Resources& resources, const DecodeModel& model, const DecodeMemory& memory)
    : resources_(resources),
      model_(model),
      layers_(model.layers.begin(), model.layers.end()),
      memory_(memory),
      windows_(memory.layers.begin(), memory.layers.end()) {
  MNEME_CHECK(!layers_.empty() && layers_.size() == windows_.size());
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for shared memory");
  max_shared_ = static_cast<std::size_t>(bytes);
  grow(kFirstUnits);
  build();
}

DecodeGraph::~DecodeGraph() {
  abandon();
  release();
  if (resources_.signal != nullptr && resources_.signal->is_lost()) local_.keep_for_ever();
}

void DecodeGraph::wait() {
  wait_for_stream(resources_, "decoding");
  in_flight_ = false;
}

// A lost device may still run the graph, and write to its memory and to the pinned memory: then all of it stays.
void DecodeGraph::release() noexcept {
  free_device_memory(resources_.signal, arena_);
  if (resources_.signal != nullptr && resources_.signal->is_lost()) {
    if (exec_ != nullptr) keep_for_ever(exec_);
  } else {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
    cudaFreeHost(pinned_to_device_);
    cudaFreeHost(pinned_to_host_);
  }
  exec_ = nullptr;
  arena_ = pinned_to_device_ = pinned_to_host_ = nullptr;
}

// ---- memory

// Called twice: to count (base null) and to place.
DecodeGraph::Places DecodeGraph::lay_out(ScratchPlan& plan, std::byte* base) const {
  const auto place = [&]<class T>(T*& to, std::int64_t n) {
    const std::size_t at = plan.add<T>(size_of(n));
    if (base != nullptr) to = reinterpret_cast<T*>(base + at);
    return at;
  };
  const HeadShape& heads = memory_.heads;
  const auto n_layers = static_cast<std::int64_t>(layers_.size());
  const std::int64_t d = heads.head_dim, q_size = heads.n_heads * d, kv_size = heads.n_kv_heads * d;
  const auto n_embd = static_cast<std::int64_t>(model_.table->n_in());
  const auto n_ff = static_cast<std::int64_t>(layers_.front().gate.weight->n_out());
  Places p;
  // The state is the end of what goes down and the start of what comes back.
  const std::size_t first = place(p.cos, d / 2);
  place(p.sin, d / 2);
  const std::size_t state_at = place(p.state, 1);
  const std::size_t wanted_at = place(p.wanted, n_layers * (1 + max_wanted_));
  p.to_device = base + first;
  p.to_device_bytes = state_at + sizeof(DecodeState) - first;
  p.to_host = base + state_at;
  p.to_host_bytes = wanted_at + size_of(n_layers * (1 + max_wanted_)) * sizeof(std::int32_t) - state_at;

  place(p.slots, n_layers * max_units_);
  place(p.segments, pieces_of(max_units_, kSegmentUnits));
  place(p.x, n_embd);
  place(p.q, q_size);
  place(p.k, kv_size);
  place(p.v, kv_size);
  place(p.q_global, q_size);
  place(p.q_local, q_size);
  place(p.attended, q_size);
  place(p.hidden, n_ff);
  place(p.gate, n_ff);
  place(p.up, n_ff);
  place(p.lse, heads.n_heads);
  place(p.splits, max_splits_);
  place(p.n_splits, 1);
  place(p.unit_splits, 1);
  place(p.part_stats, std::int64_t{max_splits_} * heads.n_heads);
  place(p.part_out, std::int64_t{max_splits_} * q_size);
  const bool has_mass = windows_.front().mass != nullptr;
  place(p.window_logits, has_mass ? pieces_of(memory_.longest_window, kSplitKeys) * heads.n_heads * kSplitKeys : 0);
  place(p.head_tickets, heads.n_heads + 2 * heads.n_kv_heads);
  place(p.merge_tickets, heads.n_kv_heads);
  place(p.selection, static_cast<std::int64_t>(decode_select_scratch(selection_shape())));
  return p;
}

// Room in the host's tables. The device's follow with the next step, so nothing here can fail for want of its memory.
void DecodeGraph::grow(std::int64_t max_units) {
  const auto n_layers = static_cast<std::int64_t>(layers_.size());
  std::vector<const void*> slots(size_of(n_layers * max_units));
  for (std::int64_t layer = 0; layer < n_layers; ++layer)
    std::copy_n(slots_.begin() + layer * max_units_, max_units_, slots.begin() + layer * max_units);
  slots_ = std::move(slots);
  segments_.resize(size_of(pieces_of(max_units, kSegmentUnits)));
  max_units_ = max_units;
  is_built_ = false;
}

// The tables keep what they hold. Everything else is written anew by every step.
void DecodeGraph::build() {
  if (in_flight_) wait();
  release();
  warm_ = false;
  const std::int64_t most = std::max(memory_.topk, memory_.two_stage ? memory_.n_candidates : 0);
  max_wanted_ = static_cast<std::int32_t>(std::min(most, max_units_));
  const std::int64_t attended = std::min<std::int64_t>(memory_.topk, max_units_);
  max_splits_ = static_cast<std::int32_t>(
      pieces_of(memory_.n_init, kSplitKeys) + attended * pieces_of(memory_.block, kSplitKeys) +
      pieces_of(memory_.longest_prefix, kSplitKeys) + pieces_of(memory_.longest_window, kSplitKeys));

  ScratchPlan plan, placed;
  const Places sizes = lay_out(plan, nullptr);
  void* memory = nullptr;
  check(cudaMalloc(&memory, plan.bytes()), "allocating " + std::to_string(plan.bytes()) + " bytes for decoding");
  arena_ = static_cast<std::byte*>(memory);
  arena_bytes_ = plan.bytes();
  places_ = lay_out(placed, arena_);
  check(cudaMemsetAsync(arena_, 0, arena_bytes_, resources_.stream), "clearing device memory");
  for (const auto& [pinned, bytes] :
       {std::pair(&pinned_to_device_, sizes.to_device_bytes), std::pair(&pinned_to_host_, sizes.to_host_bytes)}) {
    check(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable), "allocating pinned memory");
    *pinned = static_cast<std::byte*>(memory);
  }
  stale_slots_.clear();
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i] != nullptr) stale_slots_.push_back(i);
  }
  stale_segments_.clear();
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    if (segments_[i] != nullptr) stale_segments_.push_back(i);
  }
  is_built_ = true;
}

void DecodeGraph::set_slot(int layer, std::int64_t unit, const void* slot) {
  if (unit >= max_units_) {
    if (slot == nullptr) return;
    grow(std::max(2 * max_units_, unit + 1));
  }
  const std::size_t at = size_of(layer * max_units_ + unit);
  if (slots_[at] == slot) return;
  slots_[at] = slot;
  stale_slots_.push_back(at);
}

void DecodeGraph::set_index_segment(std::int64_t segment, const void* entries) {
  if (size_of(segment) >= segments_.size()) {
    if (entries == nullptr) return;
    grow(std::max(2 * max_units_, (segment + 1) * kSegmentUnits));
  }
  if (segments_[size_of(segment)] == entries) return;
  segments_[size_of(segment)] = entries;
  stale_segments_.push_back(size_of(segment));
}

// Neighbouring entries go in one copy.
void DecodeGraph::upload_tables() {
  const auto upload = [&](std::vector<std::size_t>& stale, const std::vector<const void*>& table, const void** to) {
    std::sort(stale.begin(), stale.end());
    for (std::size_t i = 0; i < stale.size();) {
      const std::size_t first = stale[i];
      std::size_t end = first + 1;
      for (++i; i < stale.size() && stale[i] <= end; ++i) end = std::max(end, stale[i] + 1);
      resources_.arguments->upload(to + first, std::span<const void* const>(table.data() + first, end - first));
    }
    stale.clear();
  };
  upload(stale_slots_, slots_, places_.slots);
  upload(stale_segments_, segments_, places_.segments);
}

// ---- a step

// What the graph's first copy brings to `place`.
void DecodeGraph::write(const void* place, const void* value, std::size_t bytes) {
  std::memcpy(pinned_to_device_ + (static_cast<const std::byte*>(place) - places_.to_device), value, bytes);
}

void DecodeGraph::launch(const DecodeStep& step) {
  const auto half = size_of(memory_.heads.head_dim / 2);
  MNEME_CHECK(step.cos.size() == half && step.sin.size() == half);
  MNEME_CHECK(step.n_initial <= memory_.n_init && step.n_window <= memory_.longest_window &&
              step.n_prefix <= memory_.longest_prefix && step.offset < memory_.capacity);
  MNEME_CHECK(step.choice != UnitChoice::all || step.n_units <= memory_.topk);
  if (in_flight_) wait();
  drop_local();
  if (step.n_units > max_units_) grow(std::max(2 * max_units_, step.n_units));
  if (!is_built_) build();
  state_ = {};
  state_.token = step.token;
  state_.choice = step.choice;
  state_.n_units = step.n_units;
  state_.offset = step.offset;
  state_.n_initial = step.n_initial;
  state_.prefix_first = step.prefix_first;
  state_.n_prefix = step.n_prefix;
  state_.window_first = step.window_first;
  state_.n_window = step.n_window;
  write(places_.cos, step.cos.data(), step.cos.size_bytes());
  write(places_.sin, step.sin.data(), step.sin.size_bytes());
  run();
}

// The step from where its state says.
void DecodeGraph::run() {
  upload_tables();
  write(places_.state, &state_, sizeof state_);
  missing_layer_ = -1;
  in_flight_ = true;
  if (!warm_) {
    enqueue();
    warm_ = true;
    return;
  }
  if (exec_ == nullptr) capture();
  check(cudaGraphLaunch(exec_, resources_.stream), "launching a decode step");
}

int DecodeGraph::finish() {
  wait();
  DecodeState state;
  std::memcpy(&state, pinned_to_host_, sizeof state);
  missing_layer_ = state.missing_layer;
  if (missing_layer_ < 0 || missing_layer_ > local_layer_) local_layer_ = -1;
  return missing_layer_;
}

void DecodeGraph::launch_local() {
  MNEME_CHECK(missing_layer_ >= 0 && local_layer_ < 0 && !in_flight_);
  local_layer_ = missing_layer_;
  enqueue_attention(local_layer_, DecodeStage::local, local_.get());
}

void DecodeGraph::resume() {
  MNEME_CHECK(local_layer_ >= 0 && local_layer_ == missing_layer_ && is_built_);
  join_local();
  state_.first_layer = local_layer_;
  state_.first_part = LayerPart::rest;
  run();
}

// G4. Nothing but the local stage goes to its stream.
void DecodeGraph::join_local() {
  check(cudaEventRecord(local_done_.get(), local_.get()), "recording an event");
  check(cudaStreamWaitEvent(resources_.stream, local_done_.get()), "ordering a decode step");
}

void DecodeGraph::drop_local() {
  if (local_layer_ < 0) return;
  join_local();
  const std::size_t bytes = size_of(memory_.heads.n_kv_heads) * sizeof(unsigned);
  check(cudaMemsetAsync(places_.merge_tickets, 0, bytes, resources_.stream), "clearing device memory");
  local_layer_ = missing_layer_ = -1;
}

// After an error of the device the next step tries again, and says so.
void DecodeGraph::abandon() noexcept {
  try {
    drop_local();
  } catch (...) {
  }
}

std::span<const std::int32_t> DecodeGraph::wanted(int layer) const {
  const auto offset = reinterpret_cast<const std::byte*>(places_.wanted) - places_.to_host;
  const auto* list = reinterpret_cast<const std::int32_t*>(pinned_to_host_ + offset) +
                     static_cast<std::int64_t>(layer) * (1 + max_wanted_);
  return {list + 1, size_of(*list)};
}

void DecodeGraph::capture() {
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(resources_.stream, cudaStreamCaptureModeThreadLocal), "recording a decode step");
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(resources_.stream, &graph);
    cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(resources_.stream, &graph), "recording a decode step");
  const cudaError_t error = cudaGraphInstantiate(&exec_, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "making the graph of a decode step");
}

// ---- the kernels of a step

void DecodeGraph::enqueue() {
  check(cudaMemcpyAsync(places_.to_device, pinned_to_device_, places_.to_device_bytes, cudaMemcpyHostToDevice,
                        resources_.stream),
        "handing over a decode step");
  const DeviceMatrix& table = on_device(*model_.table);
  check(launch_embed(table.type(), table.view(), static_cast<std::int64_t>(table.n_in()), &places_.state->token, 1,
                     places_.x, resources_.stream, guard(0, LayerPart::heads)),
        "looking up an embedding");
  const int n_layers = static_cast<int>(layers_.size());
  for (int layer = 0; layer < n_layers; ++layer) enqueue_layer(layer);
  enqueue_product(n_layers, places_.x, model_.output_norm, {model_.output, nullptr}, model_.logits, Epilogue::store);
  check(cudaMemcpyAsync(pinned_to_host_, places_.to_host, places_.to_host_bytes, cudaMemcpyDeviceToHost,
                        resources_.stream),
        "taking over a decode step");
}

void DecodeGraph::enqueue_layer(int layer) {
  const DecodeLayer& weights = layers_[size_of(layer)];
  enqueue_heads(layer);
  enqueue_selection(layer);
  enqueue_attention(layer, DecodeStage::rest, resources_.stream);
  enqueue_product(layer, places_.attended, nullptr, weights.attn_output, places_.x, Epilogue::add);
  enqueue_feed_forward(layer);
  enqueue_product(layer, places_.hidden, nullptr, weights.down, places_.x, Epilogue::add);
}

void DecodeGraph::multiply(DType type, const GemvArgs& args) {
  check(launch_gemv(type, args, resources_.n_multiprocessors, resources_.stream), "multiplying by a matrix");
}

void DecodeGraph::enqueue_product(int layer, const float* in, const float* norm, const LinearWeight& weight, float* out,
                                  Epilogue epilogue) {
  const DeviceMatrix& matrix = on_device(*weight.weight);
  GemvArgs args;
  args.x = in;
  args.norm = norm;
  args.eps = model_.rms_eps;
  args.n_columns = 1;
  args.n_in = static_cast<std::int64_t>(matrix.n_in());
  args.n_parts = 1;
  args.parts[0].weight = matrix.view();
  args.parts[0].bias = weight.bias;
  args.parts[0].out = out;
  args.parts[0].n_out = static_cast<std::int64_t>(matrix.n_out());
  args.epilogue = epilogue;
  args.guard = guard(layer);
  multiply(matrix.type(), args);
}

// q, k, v in one launch per type; the heads are finished by the warps that complete them.
void DecodeGraph::enqueue_heads(int layer) {
  const DecodeLayer& weights = layers_[size_of(layer)];
  const DecodeWindow& window = windows_[size_of(layer)];
  struct Part {
    const LinearWeight* weight;
    float* out;
    HeadRole role;
  };
  const std::array<Part, 3> parts{Part{&weights.q, places_.q, HeadRole::query},
                                  Part{&weights.k, places_.k, HeadRole::key},
                                  Part{&weights.v, places_.v, HeadRole::value}};
  GemvArgs args;
  args.x = places_.x;
  args.norm = weights.attn_norm;
  args.eps = model_.rms_eps;
  args.n_columns = 1;
  args.n_in = static_cast<std::int64_t>(weights.q.weight->n_in());
  args.guard = guard(layer, LayerPart::heads);
  HeadFinish& heads = args.heads;
  heads.cos = places_.cos;
  heads.sin = places_.sin;
  heads.flat_cos = memory_.flat_cos;
  heads.flat_sin = memory_.flat_sin;
  heads.q_norm = weights.q_norm;
  heads.k_norm = weights.k_norm;
  heads.eps = model_.rms_eps;
  heads.n_heads = memory_.heads.n_heads;
  heads.n_kv_heads = memory_.heads.n_kv_heads;
  heads.head_dim = memory_.heads.head_dim;
  heads.q_global = places_.q_global;
  heads.q_local = places_.q_local;
  heads.store_type = memory_.store_type;
  heads.raw_k = window.raw_k;
  heads.raw_v = window.raw_v;
  heads.rotated_k = window.rotated_k;
  heads.capacity = memory_.capacity;
  heads.tickets = places_.head_tickets;
  std::array<bool, 3> done{};
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (done[i]) continue;
    const DType type = on_device(*parts[i].weight->weight).type();
    args.n_parts = 0;
    for (std::size_t j = i; j < parts.size(); ++j) {
      const DeviceMatrix& matrix = on_device(*parts[j].weight->weight);
      if (matrix.type() != type) continue;
      done[j] = true;
      GemvPart& part = args.parts[args.n_parts++];
      part.weight = matrix.view();
      part.bias = parts[j].weight->bias;
      part.out = parts[j].out;
      part.n_out = static_cast<std::int64_t>(matrix.n_out());
      part.role = parts[j].role;
    }
    multiply(type, args);
  }
}

// What decides the size of its scratch.
DecodeSelect DecodeGraph::selection_shape() const {
  DecodeSelect select;
  select.n_heads = memory_.heads.n_heads;
  select.n_kv_heads = memory_.heads.n_kv_heads;
  select.head_dim = memory_.heads.head_dim;
  select.two_stage = memory_.two_stage;
  select.heads = memory_.mass_heads;
  select.n_vectors = memory_.n_vectors;
  select.max_units = max_units_;
  select.topk = static_cast<std::int32_t>(std::min<std::int64_t>(memory_.topk, max_units_));
  select.n_candidates = static_cast<std::int32_t>(std::min<std::int64_t>(memory_.n_candidates, max_units_));
  return select;
}

void DecodeGraph::enqueue_selection(int layer) {
  const DecodeWindow& window = windows_[size_of(layer)];
  const HeadShape& heads = memory_.heads;
  DecodeSelect select = selection_shape();
  select.state = places_.state;
  select.layer = layer;
  select.query = places_.q_global;
  select.segments = places_.segments;
  select.index_type = memory_.index_type;
  select.slots = places_.slots + layer * max_units_;
  select.unit_type = memory_.unit_type;
  select.block = memory_.block;
  select.store_type = memory_.store_type;
  select.raw_k = window.raw_k;
  select.raw_v = window.raw_v;
  select.rotated_k = window.rotated_k;
  select.capacity = memory_.capacity;
  select.initial_k = window.initial_k;
  select.initial_v = window.initial_v;
  select.n_init = memory_.n_init;
  select.unit_arithmetic = arithmetic_of(memory_.unit_type, heads.head_dim);
  select.store_arithmetic = arithmetic_of(memory_.store_type, heads.head_dim);
  select.splits = places_.splits;
  select.n_splits = places_.n_splits;
  select.unit_splits = places_.unit_splits;
  select.max_splits = max_splits_;
  std::int32_t* list = places_.wanted + static_cast<std::int64_t>(layer) * (1 + max_wanted_);
  select.wanted = list + 1;
  select.n_wanted = list;
  select.scratch = places_.selection;
  check(launch_decode_select(select, resources_.stream), "selecting units");
}

void DecodeGraph::enqueue_attention(int layer, DecodeStage stage, cudaStream_t stream) {
  const DecodeWindow& window = windows_[size_of(layer)];
  const HeadShape& heads = memory_.heads;
  AttentionProblem problem;
  problem.splits = places_.splits;
  problem.n_splits = places_.n_splits;
  problem.queries[static_cast<int>(QueryKind::global)] = places_.q_global;
  problem.queries[static_cast<int>(QueryKind::local)] = places_.q_local;
  problem.out = places_.attended;
  problem.lse = places_.lse;
  problem.n_local = memory_.n_local;
  problem.max_splits = max_splits_;
  problem.n_queries = 1;
  problem.n_kv_heads = heads.n_kv_heads;
  problem.group = heads.n_heads / heads.n_kv_heads;
  problem.head_dim = heads.head_dim;
  problem.scale = static_cast<float>(std::numbers::log2e / std::sqrt(static_cast<double>(heads.head_dim)));
  for (const KvType type : {memory_.store_type, memory_.unit_type}) {
    problem.n_pieces =
        std::max(problem.n_pieces, attention_pieces(arithmetic_of(type, heads.head_dim), heads.head_dim));
  }
  problem.guard = guard(layer);
  DecodeMass mass;
  mass.mass = window.mass;
  mass.saved = window.saved_mass;
  mass.columns = memory_.mass_heads == MassHeads::per_query_head ? problem.group : 1;
  mass.logits = places_.window_logits;
  check(attention_decode(problem, {places_.part_stats, places_.part_out}, mass, places_.unit_splits, stage,
                         places_.merge_tickets, max_shared_, stream),
        "attention of a token");
}

void DecodeGraph::enqueue_feed_forward(int layer) {
  const DecodeLayer& weights = layers_[size_of(layer)];
  const DeviceMatrix &gate = on_device(*weights.gate.weight), &up = on_device(*weights.up.weight);
  if (gate.type() != up.type()) {  // two products, then the gate
    enqueue_product(layer, places_.x, weights.ffn_norm, {weights.gate.weight, nullptr}, places_.gate, Epilogue::store);
    enqueue_product(layer, places_.x, weights.ffn_norm, {weights.up.weight, nullptr}, places_.up, Epilogue::store);
    const auto n_ff = static_cast<std::int64_t>(gate.n_out());
    check(launch_finish_glu({places_.gate, n_ff, nullptr, weights.gate.bias},
                            {places_.up, n_ff, nullptr, weights.up.bias}, 1, n_ff, places_.hidden, n_ff,
                            resources_.stream),
          "gating");
    return;
  }
  GemvArgs args;
  args.x = places_.x;
  args.norm = weights.ffn_norm;
  args.eps = model_.rms_eps;
  args.n_columns = 1;
  args.n_in = static_cast<std::int64_t>(gate.n_in());
  args.n_parts = 1;
  args.parts[0].weight = gate.view();
  args.parts[0].bias = weights.gate.bias;
  args.parts[0].out = places_.hidden;
  args.parts[0].n_out = static_cast<std::int64_t>(gate.n_out());
  args.up = up.view();
  args.up_bias = weights.up.bias;
  args.epilogue = Epilogue::glu;
  args.guard = guard(layer);
  multiply(gate.type(), args);
}

}  // namespace mneme::gpu::cuda
