// A naive float64 memory of one layer, written from specs/infllm.md 2.2-2.10 and 2.14 alone: loops over queries, keys,
// heads and units, nothing shared with memory/ but the parameter structs. What the production memory is compared with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/params.hpp"

namespace mneme::test {

// What one execution chunk did.
struct OracleChunk {
  std::int64_t first = 0, end = 0;  // positions [first, end)
  bool scored = false;              // nb > K > 0: the units were ranked
  std::vector<std::int64_t> selected, candidates, voters, sealed;
  std::vector<double> stage1;       // [nb before the chunk] score1 or relevance; empty unless scored
  std::vector<double> stage2;       // [candidates] score2
  std::vector<double> unit_mass;    // [selected] probability summed over heads, queries and tokens
  double global_mass = 0;           // probability of everything outside the window, summed over heads and queries
  double margin1 = 0, margin2 = 0;  // (last one in - first one out) / largest score; infinity where nothing is left out
  std::vector<double> out;          // [n][n_heads][head_dim]
};

// `value` rounded to IEEE half precision, to nearest even.
double round_to_f16(double value);

class InfllmOracle {
 public:
  InfllmOracle(const memory::Params& params, const memory::ModelShape& model);

  // q: [n, n_heads, head_dim], k, v: [n, n_kv_heads, head_dim], un-rotated; one execution chunk of n tokens.
  OracleChunk append(std::span<const float> q, std::span<const float> k, std::span<const float> v);

  std::int64_t position() const { return position_; }
  std::int64_t initial() const { return initial_; }            // i
  std::int64_t units() const { return n_units_; }              // nb
  std::int64_t remainder_first() const { return remainder_; }  // F
  // r of token t of the remainder, one value per head of the rep mode.
  std::vector<double> mass(std::int64_t t) const;
  // The index vectors of a unit: [heads][vectors][head_dim].
  const std::vector<double>& index_vectors(std::int64_t unit) const { return index_[static_cast<std::size_t>(unit)]; }
  // Contributions that token t's r has received (queries, not weighted).
  std::int64_t contributions(std::int64_t t) const { return contributions_[static_cast<std::size_t>(t)]; }

 private:
  struct Visible {
    std::int64_t token;
    std::int64_t distance;  // at which the key is attended
    std::int64_t part;      // index into selected, or -1: window, -2: other global
  };
  double stored(double value) const;
  double rounded_index(double value) const;
  const double* turn(std::int64_t distance);  // [head_dim/2][2] cos, sin
  std::vector<double> rotated(const double* x, std::int64_t distance);
  const double* key(std::int64_t t, int g) const;
  std::vector<Visible> visible(std::int64_t q, const OracleChunk& chunk) const;
  void select(OracleChunk& chunk, std::span<const float> q);
  void select_two_stage(OracleChunk& chunk, const std::vector<std::vector<double>>& global);
  void select_representatives(OracleChunk& chunk, const std::vector<std::vector<double>>& global);
  void attend(OracleChunk& chunk, std::span<const float> q);
  void grow_and_seal(OracleChunk& chunk);
  std::vector<double> seal_pages(std::int64_t first) const;
  std::vector<double> seal_representatives(std::int64_t first) const;

  memory::Params params_;
  memory::ModelShape model_;
  int heads_, kv_heads_, dim_, group_, mass_heads_;
  std::int64_t position_ = 0, initial_ = 0, n_units_ = 0, remainder_ = 0;
  std::vector<double> k_, v_;                // [t][n_kv_heads][head_dim]
  std::vector<double> r_;                    // [t][mass_heads]
  std::vector<std::int64_t> contributions_;  // [t]
  std::vector<std::vector<double>> index_;   // per unit
  std::vector<std::vector<double>> turns_;   // per distance
};

}  // namespace mneme::test
