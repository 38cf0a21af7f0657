// What fuzzing of model files runs: everything that a load does with bytes from outside.
#pragma once

#include <cstddef>
#include <mneme/error.hpp>
#include <span>

#include "runtime/model/chat_template.hpp"
#include "runtime/model/identity.hpp"
#include "runtime/model/tokenizer/tokenizer.hpp"
#include "runtime/model/tokenizer/vocab.hpp"
#include "runtime/model/weights.hpp"

namespace mneme::test {

// Loads `bytes` as a model file. Returns whether they are one; any other outcome than that or a typed error about the
// model escapes as an exception or a sanitizer's report.
inline bool loads_as_model(std::span<const std::byte> bytes) {
  try {
    const model::GgufFile file = model::GgufFile::from_bytes(bytes);
    for (const std::string_view key : file.keys()) file.raw(*file.find(key));
    model::tokenizer_sha256(file);
    model::template_sha256(file);
    model::weights_sha256(file);
    const model::ModelConfig config = model::read_config(file);
    model::map_weights(file, config);
    model::verify_weights(file);
    const model::Tokenizer tokenizer = model::Tokenizer::create(model::read_vocab(file));
    model::ChatTemplate::detect(model::chat_template_text(file), tokenizer);
    return true;
  } catch (const Error& error) {
    const bool is_about_the_model = error.code() == errc::model_corrupt || error.code() == errc::model_unsupported ||
                                    error.code() == errc::template_unsupported;
    if (!is_about_the_model) throw;
    return false;
  }
}

}  // namespace mneme::test
