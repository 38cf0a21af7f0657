// Models of the sizes people run, with random weights, written to disk piece by piece: what benchmarks run on where the
// real files cannot be had. Weights are scaled as in tiny_model.hpp, so attention and logits are as sane as there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/tiny_model.hpp"

namespace mneme::test {

// The names that model_shape() knows: tiny (for tests), 0.5B (Qwen2.5's dimensions), 1B (Llama 3.2's), 8B (Llama
// 3.1's).
const std::vector<std::string>& model_shape_names();

// The description of a model with matrices of `type`. Matrices whose rows are not whole blocks of a K type get Q5_0, as
// converters do. Throws std::invalid_argument for an unknown name.
TinyModelSpec model_shape(const std::string& name, gpu::DType type);

// Writes a model that need not fit memory; returns the size of the file. Every number depends on the spec's seed and
// its place alone, not on the threads. n_threads: 0: one per core. Throws std::runtime_error where writing fails.
std::uint64_t write_streamed_model(const std::filesystem::path& path, const TinyModelSpec& spec, int n_threads = 0);

}  // namespace mneme::test
