// What a decoded token must read, and what the memory it reads from gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "gpu/device.hpp"
#include "memory/params.hpp"
#include "runtime/model/model_file.hpp"

namespace mneme::bench {

struct Traffic {
  std::size_t weights = 0;          // every matrix once, as the file stores it; of an untied table one row
  std::size_t keys_and_values = 0;  // of the attended tokens
  std::size_t selection = 0;        // index vectors, and keys of the candidates
  std::size_t total() const { return weights + keys_and_values + selection; }
};

// Of a token at `position` with n_units sealed units. What is written, and activations, are not counted.
Traffic decode_traffic(const model::ModelFile& file, const memory::Params& params, std::int64_t position,
                       std::int64_t n_units);

// GB/s of the device's memory: reading by all cores for "cpu", else copies of 512 MiB, reads and writes counted. Best
// of five.
double measured_ceiling(gpu::Device& device, const std::string& device_name);

}  // namespace mneme::bench
