// Content identities: SHA-256 over what makes a model this model, independent of the file's layout and path.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "runtime/model/gguf.hpp"

struct evp_md_ctx_st;

namespace mneme::model {

// Incremental SHA-256.
class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  // A number as 8 little-endian bytes; a text with its length before it: so that neighbouring fields cannot run
  // together.
  void update_number(std::uint64_t value);
  void update_field(std::string_view text);
  std::array<std::byte, 32> finish();  // once
  std::string finish_hex();            // once; lower case

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const noexcept;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

// Every tensor in the order of names: name, type, dimensions, bytes. Reads the whole file.
std::string weights_sha256(const GgufFile& file);

// Every key that starts with "tokenizer." but the chat templates, in the order of names, with its bytes.
std::string tokenizer_sha256(const GgufFile& file);

// The text of tokenizer.chat_template, empty if there is none. Throws model_corrupt for one above 1 MiB.
std::string_view chat_template_text(const GgufFile& file);

// The plain SHA-256 of that text; of the empty text if there is none.
std::string template_sha256(const GgufFile& file);

}  // namespace mneme::model
