// A model as loaded from a file: configuration, weights, tokenizer, chat template, identities. Immutable, shared by
// everyone.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

#include "memory/params.hpp"
#include "runtime/model/chat_template.hpp"
#include "runtime/model/gguf.hpp"
#include "runtime/model/model_config.hpp"
#include "runtime/model/tokenizer/tokenizer.hpp"
#include "runtime/model/weights.hpp"

namespace mneme::model {

struct ModelFileOptions {
  LoadMode mode = LoadMode::map;  // map: the file must not be modified while the model is in use
  bool verify_weights = false;    // read all weights once and refuse non-finite scales
  std::string pre_tokenizer;      // for files without tokenizer.ggml.pre
  std::string template_name;      // a renderer by name, for files whose template is not recognised
};

// Thread-safe: const after load. Shared between the handles of the program and the engine.
class ModelFile {
 public:
  // Throws model_not_found, model_corrupt, model_unsupported; a template that is not recognised is an error only when a
  // chat is needed (see chat_template()).
  static std::shared_ptr<const ModelFile> load(const std::filesystem::path& path, const ModelFileOptions& options = {});

  const std::filesystem::path& path() const noexcept { return path_; }
  const GgufFile& gguf() const noexcept { return gguf_; }
  const ModelConfig& config() const noexcept { return config_; }
  const ModelWeights& weights() const noexcept { return weights_; }
  const Tokenizer& tokenizer() const noexcept { return *tokenizer_; }
  // Throws template_unsupported if the file's template is unknown and none was named.
  const ChatTemplate& chat_template() const;
  memory::ModelShape memory_shape() const;

  // Hex SHA-256 identities (specs/durability.md 4.1 step 3).
  const std::string& weights_sha256() const noexcept { return weights_sha256_; }
  const std::string& tokenizer_sha256() const noexcept { return tokenizer_sha256_; }
  const std::string& template_sha256() const noexcept { return template_sha256_; }

 private:
  ModelFile(std::filesystem::path path, GgufFile gguf);

  std::filesystem::path path_;
  GgufFile gguf_;
  ModelConfig config_;
  ModelWeights weights_;
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<const ChatTemplate> chat_template_;
  std::string template_problem_;
  std::string weights_sha256_, tokenizer_sha256_, template_sha256_;
};

}  // namespace mneme::model
