// Loading a model: every part validated before the object exists.
#include "runtime/model/model_file.hpp"

#include <mneme/error.hpp>
#include <utility>

#include "runtime/model/identity.hpp"
#include "runtime/model/tokenizer/vocab.hpp"

namespace mneme::model {

ModelFile::ModelFile(std::filesystem::path path, GgufFile gguf) : path_(std::move(path)), gguf_(std::move(gguf)) {}

std::shared_ptr<const ModelFile> ModelFile::load(const std::filesystem::path& path, const ModelFileOptions& options) {
  // The constructor is private, so no make_shared.
  std::shared_ptr<ModelFile> file(new ModelFile(path, GgufFile::open(path, options.mode)));
  file->config_ = read_config(file->gguf_);
  file->weights_ = map_weights(file->gguf_, file->config_);
  if (options.verify_weights) verify_weights(file->gguf_);
  file->tokenizer_ =
      std::make_unique<const Tokenizer>(Tokenizer::create(read_vocab(file->gguf_, options.pre_tokenizer)));
  try {
    file->chat_template_ = std::make_unique<const ChatTemplate>(
        options.template_name.empty() ? ChatTemplate::detect(chat_template_text(file->gguf_), *file->tokenizer_)
                                      : ChatTemplate::by_name(options.template_name, *file->tokenizer_));
  } catch (const Error& error) {
    if (error.code() != errc::template_unsupported || !options.template_name.empty()) throw;
    file->template_problem_ = error.what();
  }
  file->weights_sha256_ = model::weights_sha256(file->gguf_);
  file->tokenizer_sha256_ = model::tokenizer_sha256(file->gguf_);
  file->template_sha256_ = model::template_sha256(file->gguf_);
  return file;
}

const ChatTemplate& ModelFile::chat_template() const {
  if (chat_template_ == nullptr) throw Error(errc::template_unsupported, template_problem_);
  return *chat_template_;
}

memory::ModelShape ModelFile::memory_shape() const {
  memory::ModelShape shape;
  shape.architecture = config_.architecture;
  shape.n_layers = config_.n_layers;
  shape.n_embd = config_.n_embd;
  shape.native_context = config_.n_ctx_train;
  shape.heads = config_.heads;
  shape.inv_freq = config_.rope.inv_freq;
  shape.attention_factor = config_.rope.attention_factor;
  return shape;
}

}  // namespace mneme::model
