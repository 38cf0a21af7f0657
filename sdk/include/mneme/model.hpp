// A model: weights, tokenizer and chat template of one GGUF file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mneme/error.hpp>
#include <mneme/options.hpp>
#include <mneme/version.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace boost::asio {
class deferred_t;
template <typename... Signatures>
class any_completion_handler;
}  // namespace boost::asio

namespace mneme {
inline namespace v1 {

namespace asio = boost::asio;
class Runtime;
namespace detail {
struct ModelState;
}

struct ModelInfo {
  std::string architecture;
  std::string name;  // as the file says; may be empty
  std::uint64_t file_bytes = 0;
  std::int64_t n_layers = 0, n_embd = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0;
  std::int64_t native_context = 0;  // positions the model was trained for
  std::int64_t n_vocab = 0;
  std::vector<std::uint8_t> missing_bytes;  // bytes that the vocabulary cannot express
  std::string chat_template;                // name of the renderer; empty: the file's template is not recognised
  std::string memory_json;                  // the preset of the memory's parameters, as a JSON object
};

// How encode() treats text that spells a control token.
enum class Special { literal, parse };

// A shared handle. Immutable and thread-safe after load. A default-constructed one only serves to be assigned to.
class MNEME_API Model {
 public:
  Model() = default;

  // Throws model_not_found, model_corrupt, model_unsupported, naming file, key or tensor.
  static Model load(const std::filesystem::path& path, const ModelOptions& options = {});
  static Model load(const std::filesystem::path& path, const ModelOptions& options, error_code& ec);
  // void(error_code, Model). Loads on the runtime's engine thread.
  template <class T = asio::deferred_t>
  static auto async_load(Runtime& runtime, std::filesystem::path path, ModelOptions options = {}, T&& token = {});

  ModelInfo info() const;
  std::string fingerprint() const;  // hex SHA-256 of the weights
  std::size_t count_tokens(std::string_view text) const;
  std::vector<std::int32_t> encode(std::string_view text, Special special = Special::literal) const;
  // The bytes of the ids, incomplete UTF-8 included; control tokens give their text. Throws invalid_argument for an id
  // out of range.
  std::string decode(std::span<const std::int32_t> ids) const;

  explicit operator bool() const noexcept { return state_ != nullptr; }
  const std::shared_ptr<detail::ModelState>& state() const noexcept { return state_; }  // for the library

 private:
  using LoadHandler = asio::any_completion_handler<void(error_code, Model)>;
  static void start_load(LoadHandler handler, Runtime& runtime, std::filesystem::path path, ModelOptions options);

  std::shared_ptr<detail::ModelState> state_;  // shared between the handles and the runtimes that use it
};

}  // namespace v1
}  // namespace mneme
