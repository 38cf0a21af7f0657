// See <mneme/model.hpp>.
#include <atomic>
#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/error.hpp>
#include <filesystem>
#include <mneme/error.hpp>
#include <mneme/model.hpp>
#include <utility>

#include "runtime/model/detokenizer.hpp"
#include "sdk/src/composition.hpp"

namespace mneme {
inline namespace v1 {
namespace {

const model::ModelFile& checked(const std::shared_ptr<detail::ModelState>& state) {
  if (state == nullptr) throw Error(errc::invalid_handle, "a default-constructed Model was used");
  return *state->file;
}

model::ModelFileOptions options_of(const ModelOptions& options) {
  model::ModelFileOptions with;
  with.mode = options.copy_into_memory() ? model::LoadMode::read : model::LoadMode::map;
  with.verify_weights = options.verify_weights();
  with.pre_tokenizer = options.pre_tokenizer();
  with.template_name = options.chat_template();
  return with;
}

std::string template_name(const model::ModelFile& file) {
  try {
    return std::string(file.chat_template().name());
  } catch (const Error&) {
    return {};
  }
}

}  // namespace

Model Model::load(const std::filesystem::path& path, const ModelOptions& options) {
  Model model;
  model.state_ = std::make_shared<detail::ModelState>();
  model.state_->file = model::ModelFile::load(path, options_of(options));
  return model;
}

Model Model::load(const std::filesystem::path& path, const ModelOptions& options, error_code& ec) {
  ec = {};
  try {
    return load(path, options);
  } catch (const Error& e) {
    ec = e.code();
    return {};
  }
}

void Model::start_load(LoadHandler handler, Runtime& runtime, std::filesystem::path path, ModelOptions options) {
  const auto state = runtime.state();
  using Shared = agent::Handler<void(error_code, Model)>;
  auto shared = std::make_shared<Shared>(std::move(handler), state->executor);
  auto is_cancelled = std::make_shared<std::atomic<bool>>(false);
  shared->on_cancel([is_cancelled](agent::CancelType) { *is_cancelled = true; });
  auto job = [shared, state, is_cancelled, path = std::move(path), options = std::move(options)] {
    Model model;
    error_code ec;
    try {
      if (!*is_cancelled) model = load(path, options);
    } catch (...) {
      ec = state->note(std::current_exception());
    }
    if (*is_cancelled) {
      ec = asio::error::operation_aborted;
      model = Model();
    }
    shared->complete(ec, std::move(model));
  };
  const bool accepted = state->run_on_engine(std::move(job));
  if (!accepted) shared->complete(errc::shutdown, Model());
}

ModelInfo Model::info() const {
  const model::ModelFile& file = checked(state_);
  const model::ModelConfig& config = file.config();
  ModelInfo info;
  info.architecture = config.architecture;
  info.name = config.name;
  info.file_bytes = std::filesystem::file_size(file.path());
  info.n_layers = config.n_layers;
  info.n_embd = config.n_embd;
  info.n_heads = config.heads.n_heads;
  info.n_kv_heads = config.heads.n_kv_heads;
  info.head_dim = config.heads.head_dim;
  info.native_context = config.n_ctx_train;
  info.n_vocab = config.n_vocab;
  const auto missing = file.tokenizer().missing_bytes();
  info.missing_bytes.assign(missing.begin(), missing.end());
  info.chat_template = template_name(file);
  info.memory_json = detail::memory_json(memory::preset(file.memory_shape()));
  return info;
}

std::string Model::fingerprint() const {
  return checked(state_).weights_sha256();
}

std::size_t Model::count_tokens(std::string_view text) const {
  return checked(state_).tokenizer().encode_text(text).size();
}

std::vector<std::int32_t> Model::encode(std::string_view text, Special special) const {
  const model::Tokenizer& tokenizer = checked(state_).tokenizer();
  return special == Special::parse ? tokenizer.encode_with_special(text) : tokenizer.encode_text(text);
}

std::string Model::decode(std::span<const std::int32_t> ids) const {
  const model::Tokenizer& tokenizer = checked(state_).tokenizer();
  for (const std::int32_t id : ids) {
    if (!tokenizer.is_valid(id)) {
      throw Error(errc::invalid_argument, "token id " + std::to_string(id) + " is not in the vocabulary of " +
                                              std::to_string(tokenizer.n_vocab()));
    }
  }
  return model::decode_bytes(tokenizer, ids, model::StructuralText::shown);
}

}  // namespace v1
}  // namespace mneme
