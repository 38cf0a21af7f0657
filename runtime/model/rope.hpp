// Rotary position embedding: how fast each pair of a head's dimensions turns (specs/model-files.md 4).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mneme::model {

// How pairs of dimensions lie in the file's q and k rows. In memory every architecture uses halves.
enum class RopePairing {
  adjacent,  // (2i, 2i+1): the llama family, whose converter permuted the rows
  halves,    // (i, i + n_rot/2)
};

enum class RopeScalingKind { none, linear, yarn };

struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::none;
  double factor = 1.0;            // by how much positions are stretched; > 0
  double original_context = 0;    // positions before stretching (yarn); > 0
  double extrapolation = 1.0;     // yarn: weight of the ramp between stretched and original frequencies
  double beta_fast = 32.0;        // yarn: turns within original_context above which a pair is not stretched
  double beta_slow = 1.0;         // yarn: ... below which it is stretched fully
  double attention_factor = 1.0;  // written by the converter, besides YaRN's own
};

struct Rope {
  int n_rot = 0;  // dimensions of a head that turn; even
  double base = 10'000.0;
  RopePairing pairing = RopePairing::halves;
  RopeScaling scaling;
  std::vector<double> inv_freq;   // [n_rot/2] radians per position, scaling included
  double attention_factor = 1.0;  // multiplies cos and sin
};

// Radians per position of each pair, [n_rot/2], in f64. `factors` divide the frequencies (rope_freqs.weight),
// [n_rot/2] or empty. Requires: n_rot even; base > 0, > 1 for yarn; factors > 0.
std::vector<double> inverse_frequencies(int n_rot, double base, const RopeScaling& scaling,
                                        std::span<const float> factors);

// What cos and sin are multiplied by.
double attention_factor(const RopeScaling& scaling);

}  // namespace mneme::model
