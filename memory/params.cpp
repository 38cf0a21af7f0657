#include "memory/params.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "mneme/error.hpp"

namespace mneme::memory {
namespace {

constexpr std::int64_t kMaxBlock = 65536;       // tokens; spans and rows are counted in int
constexpr std::int64_t kMaxCount = 1LL << 24U;  // voters, shortlist factor: nothing larger means anything
constexpr std::int64_t kSpareSlots = 32;        // C = F1 * K + 32 in the general rule

// a * b for counts >= 0; kAllUnits absorbs and overflow saturates to it.
std::int64_t saturating_mul(std::int64_t a, std::int64_t b) noexcept {
  if (a == 0 || b == 0) return 0;
  std::int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kAllUnits : product;
}

std::int64_t saturating_add(std::int64_t a, std::int64_t b) noexcept {
  std::int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? kAllUnits : sum;
}

std::string text(std::int64_t value) {
  return value == kAllUnits ? "all" : std::to_string(value);
}

[[noreturn]] void refuse(std::string_view field, const std::string& value, const std::string& allowed) {
  throw Error(errc::invalid_argument,
              "memory parameter " + std::string(field) + " is " + value + "; allowed: " + allowed);
}

void require_range(std::string_view field, std::int64_t value, std::int64_t low, std::int64_t high,
                   const std::string& meaning = {}) {
  if (value >= low && value <= high) return;
  std::string allowed = text(low) + " .. " + text(high);
  if (!meaning.empty()) allowed += " (" + meaning + ")";
  refuse(field, text(value), allowed);
}

void require_at_least(std::string_view field, std::int64_t value, std::int64_t low, const std::string& meaning) {
  if (value < low) refuse(field, text(value), "at least " + text(low) + " (" + meaning + ")");
}

// What differs between the rows of the table; everything else is common to them.
struct PresetRow {
  std::string_view architecture;
  int n_layers;
  std::int64_t n_embd, native_context;
  std::int64_t n_init, n_local, block, topk, exec_chunk, cached_blocks, global_distance;
};

constexpr PresetRow kPresets[] = {
    {"llama", 30, 576, 8192, 64, 1024, 64, 16, 256, 96, 511},         // SmolLM2-135M, measured (7.3)
    {"qwen2", 24, 896, 32768, 128, 4096, 128, 32, 512, 160, 4095},    // Qwen2.5-0.5B
    {"qwen2", 28, 3584, 32768, 128, 4096, 128, 32, 512, 160, 4095},   // Qwen2.5-7B
    {"llama", 16, 2048, 131072, 128, 4096, 128, 32, 512, 160, 4095},  // Llama-3.2-1B
    {"llama", 32, 4096, 131072, 128, 4096, 128, 32, 512, 160, 4095},  // Llama-3.1-8B
};

Params common_preset() {
  Params params;
  params.repr_topk = 4;
  params.page = 32;
  params.shortlist = 4;
  params.voters = 32;
  return params;
}

Params general_rule(std::int64_t native) {
  Params params = common_preset();
  params.n_local = std::min(std::clamp<std::int64_t>(native / 8, 256, 4096), std::max<std::int64_t>(native, 2));
  params.n_init = std::clamp<std::int64_t>(native - params.n_local, 0, 64);
  params.block = 64;
  params.topk = std::clamp<std::int64_t>((native - params.n_init - params.n_local) / params.block, 0, 16);
  params.exec_chunk = std::min<std::int64_t>(256, params.n_local);
  params.global_distance = params.n_local - 1;
  params.cached_blocks = params.shortlist * params.topk + kSpareSlots;
  return params;
}

// The longest page of at most `preset` tokens that divides the block.
std::int64_t page_for(std::int64_t preset, std::int64_t block) {
  for (std::int64_t page = std::min(preset, block); page > 1; --page)
    if (block % page == 0) return page;
  return 1;
}

// The units that must be resident at once in a layer.
std::int64_t resident_minimum(const Params& params) {
  const std::int64_t selected =
      params.selector == SelectorKind::two_stage ? saturating_mul(params.shortlist, params.topk) : params.topk;
  const std::int64_t dense =
      std::max<std::int64_t>(params.dense_limit - params.n_init - params.n_local, 0) / params.block;
  return std::max(selected, dense);
}

void validate_shape(const ModelShape& model) {
  const gpu::HeadShape& heads = model.heads;
  if (model.n_layers < 1) refuse("model.n_layers", std::to_string(model.n_layers), "at least 1");
  if (heads.n_kv_heads < 1) refuse("model.n_kv_heads", std::to_string(heads.n_kv_heads), "at least 1");
  if (heads.n_heads < 1 || heads.n_heads % heads.n_kv_heads != 0) {
    refuse("model.n_heads", std::to_string(heads.n_heads),
           "a multiple of the " + std::to_string(heads.n_kv_heads) + " KV heads");
  }
  if (heads.head_dim < 8 || heads.head_dim % 8 != 0)
    refuse("model.head_dim", std::to_string(heads.head_dim), "a multiple of 8");
  if (model.inv_freq.size() != static_cast<std::size_t>(heads.head_dim) / 2) {
    refuse("model.inv_freq", std::to_string(model.inv_freq.size()) + " values",
           std::to_string(heads.head_dim / 2) + " values (half of head_dim)");
  }
  if (!(model.attention_factor > 0) || !std::isfinite(model.attention_factor))
    refuse("model.attention_factor", std::to_string(model.attention_factor), "a positive number");
}

void validate_window(const Params& params, const ModelShape& model) {
  require_range("n_local", params.n_local, 2, model.native_context, "up to the native context of the model");
  require_range("n_init", params.n_init, 0, model.native_context, "up to the native context of the model");
  require_range("block", params.block, 1, kMaxBlock);
  require_range("topk", params.topk, 0, kAllUnits);
  require_range("exec_chunk", params.exec_chunk, 1, params.n_local, "up to n_local");
  require_range("global_distance", params.global_distance, 1, params.n_local - 1, "up to n_local - 1");
  require_range("dense_limit", params.dense_limit, 0, model.native_context, "up to the native context of the model");
  if (params.position_mode != PositionMode::sequential) return;
  const std::int64_t longest = saturating_add(saturating_mul(params.topk, params.block),
                                              params.n_init + params.n_local + params.block + params.exec_chunk);
  if (longest > model.native_context) {
    refuse("position_mode", "sequential with " + text(longest) + " positions",
           "n_init + topk * block + n_local + block + exec_chunk up to the native context of " +
               text(model.native_context));
  }
}

void validate_selector(const Params& params) {
  if (params.selector == SelectorKind::representatives) {
    require_range("repr_topk", params.repr_topk, 1, params.block, "up to block");
    return;
  }
  require_range("page", params.page, 1, params.block, "a divisor of block");
  if (params.block % params.page != 0)
    refuse("page", text(params.page), "a divisor of block, which is " + text(params.block));
  require_range("shortlist", params.shortlist, 1, kMaxCount);
  require_range("voters", params.voters, 1, kMaxCount);
}

void validate_types(const Params& params) {
  if (params.store_type == gpu::KvType::q8) refuse("store_type", "q8", "f16 or f32");
  if (params.unit_type != params.store_type && params.unit_type != gpu::KvType::q8)
    refuse("unit_type", "neither store_type nor q8", "store_type or q8");
  if (params.index_type == gpu::KvType::q8) refuse("index_type", "q8", "f16 or f32");
}

void validate_cache(const Params& params) {
  const std::int64_t minimum = resident_minimum(params);
  require_at_least("cached_blocks", params.cached_blocks, minimum,
                   params.selector == SelectorKind::two_stage ? "shortlist * topk, and every unit below dense_limit"
                                                              : "topk, and every unit below dense_limit");
  if (params.cache_policy == CachePolicy::lru_s && !(params.decay > 0.0 && params.decay <= 1.0))
    refuse("decay", std::to_string(params.decay), "above 0, up to 1 (cache_policy is lru_s)");
}

std::string_view name(gpu::KvType type) {
  return type == gpu::KvType::f32 ? "f32" : type == gpu::KvType::f16 ? "f16" : "q8";
}

std::string_view name(PositionMode mode) {
  return mode == PositionMode::flat ? "flat" : mode == PositionMode::sequential ? "sequential" : "true";
}

}  // namespace

Params preset(const ModelShape& model) {
  for (const PresetRow& row : kPresets) {
    if (row.architecture != model.architecture || row.n_layers != model.n_layers || row.n_embd != model.n_embd ||
        row.native_context != model.native_context) {
      continue;
    }
    Params params = common_preset();
    params.n_init = row.n_init;
    params.n_local = row.n_local;
    params.block = row.block;
    params.topk = row.topk;
    params.exec_chunk = row.exec_chunk;
    params.cached_blocks = row.cached_blocks;
    params.global_distance = row.global_distance;
    return params;
  }
  return general_rule(model.native_context);
}

Params resolve(const ModelShape& model, const ParamOverrides& overrides) {
  Params params = preset(model);
  params.n_init = overrides.n_init.value_or(params.n_init);
  params.n_local = overrides.n_local.value_or(params.n_local);
  params.block = overrides.block.value_or(params.block);
  params.topk = overrides.topk.value_or(params.topk);
  params.dense_limit = overrides.dense_limit.value_or(params.dense_limit);
  params.shortlist = overrides.shortlist.value_or(params.shortlist);
  params.voters = overrides.voters.value_or(params.voters);
  params.selector = overrides.selector.value_or(params.selector);
  params.position_mode = overrides.position_mode.value_or(params.position_mode);
  params.rep_mode = overrides.rep_mode.value_or(params.rep_mode);
  params.store_type = overrides.store_type.value_or(params.store_type);
  params.unit_type = overrides.unit_type.value_or(params.store_type);
  params.index_type = overrides.index_type.value_or(params.index_type);
  params.cache_policy = overrides.cache_policy.value_or(params.cache_policy);
  params.decay = overrides.decay.value_or(params.decay);
  // What follows from the values above where the caller left it open (1.3). The block is checked first: the rules
  // divide by it.
  require_range("block", params.block, 1, kMaxBlock);
  params.global_distance = overrides.global_distance.value_or(std::min(params.global_distance, params.n_local - 1));
  params.exec_chunk = overrides.exec_chunk.value_or(std::min(params.exec_chunk, params.n_local));
  params.page = overrides.page.value_or(page_for(params.page, params.block));
  params.repr_topk = overrides.repr_topk.value_or(std::min(params.repr_topk, params.block));
  params.cached_blocks = overrides.cached_blocks.value_or(
      std::max({params.cached_blocks, saturating_mul(params.shortlist, params.topk), resident_minimum(params)}));
  validate(params, model);
  return params;
}

void validate(const Params& params, const ModelShape& model) {
  validate_shape(model);
  validate_window(params, model);
  validate_selector(params);
  validate_types(params);
  validate_cache(params);
}

std::string identity_json(const Params& params) {
  std::string json = "{";
  const auto number = [&json](std::string_view key, std::int64_t value) {
    json += '"' + std::string(key) + "\":" + (value == kAllUnits ? "\"all\"" : std::to_string(value)) + ',';
  };
  const auto word = [&json](std::string_view key, std::string_view value) {
    json += '"' + std::string(key) + "\":\"" + std::string(value) + "\",";
  };
  const auto flag = [&json](std::string_view key, bool value) {
    json += '"' + std::string(key) + "\":" + (value ? "true" : "false") + ',';
  };
  const bool two_stage = params.selector == SelectorKind::two_stage;
  number("block", params.block);
  number("dense_limit", params.dense_limit);
  number("exec_chunk", params.exec_chunk);
  number("global_distance", params.global_distance);
  word("index_type", name(params.index_type));
  number("n_init", params.n_init);
  number("n_local", params.n_local);
  if (two_stage) number("page", params.page);
  word("position_mode", name(params.position_mode));
  flag("prefix_visible", params.prefix_visible);
  flag("reference_masks", params.reference_masks);
  if (!two_stage) {
    word("rep_mode", params.rep_mode == gpu::MassHeads::per_kv_head ? "per_kv_group" : "per_query_head");
    number("repr_topk", params.repr_topk);
  }
  word("selector", two_stage ? "two_stage" : "representatives");
  if (two_stage) number("shortlist", params.shortlist);
  word("store_type", name(params.store_type));
  number("topk", params.topk);
  word("unit_type", name(params.unit_type));
  if (two_stage) number("voters", params.voters);
  json.back() = '}';
  return json;
}

}  // namespace mneme::memory
