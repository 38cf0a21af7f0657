// SHA-256 through libcrypto, and what goes into each identity.
#include "runtime/model/identity.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <vector>

namespace mneme::model {
namespace {

constexpr std::string_view kTokenizerPrefix = "tokenizer.";
constexpr std::string_view kTemplateKey = "tokenizer.chat_template";
constexpr std::size_t kMaxTemplateBytes = 1U << 20U;

bool starts_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

}  // namespace

void Sha256::Free::operator()(evp_md_ctx_st* context) const noexcept {
  EVP_MD_CTX_free(context);
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  if (context_ == nullptr || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) {
    throw Error(errc::out_of_memory, "SHA-256 is not available from libcrypto");
  }
}

void Sha256::update(std::span<const std::byte> bytes) {
  MNEME_CHECK(EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size()) == 1);
}

void Sha256::update(std::string_view text) {
  update(std::as_bytes(std::span(text)));
}

void Sha256::update_number(std::uint64_t value) {
  update(std::as_bytes(std::span(&value, 1)));
}

void Sha256::update_field(std::string_view text) {
  update_number(text.size());
  update(text);
}

std::array<std::byte, 32> Sha256::finish() {
  std::array<std::byte, 32> digest{};
  MNEME_CHECK(EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(digest.data()), nullptr) == 1);
  return digest;
}

std::string Sha256::finish_hex() {
  const std::array<std::byte, 32> digest = finish();
  return to_hex({reinterpret_cast<const char*>(digest.data()), digest.size()});
}

std::string weights_sha256(const GgufFile& file) {
  std::vector<const TensorInfo*> tensors;
  for (const TensorInfo& tensor : file.tensors()) tensors.push_back(&tensor);
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo* a, const TensorInfo* b) { return a->name < b->name; });
  Sha256 hash;
  for (const TensorInfo* tensor : tensors) {
    hash.update_field(tensor->name);
    hash.update_number(static_cast<std::uint64_t>(tensor->type));
    hash.update_number(tensor->ne.size());
    for (const std::uint64_t extent : tensor->ne) hash.update_number(extent);
    hash.update(file.data(*tensor));  // as long as type and dimensions say
  }
  return hash.finish_hex();
}

std::string tokenizer_sha256(const GgufFile& file) {
  std::vector<std::string_view> keys;
  for (const std::string_view key : file.keys()) {
    if (starts_with(key, kTokenizerPrefix) && !starts_with(key, kTemplateKey)) keys.push_back(key);
  }
  std::sort(keys.begin(), keys.end());
  Sha256 hash;
  for (const std::string_view key : keys) {
    const Value& value = *file.find(key);
    hash.update_field(key);
    hash.update_number(static_cast<std::uint64_t>(value.type));
    hash.update_number(static_cast<std::uint64_t>(value.element));
    hash.update_number(value.count);
    hash.update(file.raw(value));
  }
  return hash.finish_hex();
}

std::string_view chat_template_text(const GgufFile& file) {
  const std::string_view text = file.find_string(kTemplateKey).value_or("");
  if (text.size() > kMaxTemplateBytes) {
    file.fail_corrupt("key " + excerpt(kTemplateKey) + " has " + std::to_string(text.size()) + " bytes, the limit is " +
                      std::to_string(kMaxTemplateBytes));
  }
  return text;
}

std::string template_sha256(const GgufFile& file) {
  Sha256 hash;
  hash.update(chat_template_text(file));
  return hash.finish_hex();
}

}  // namespace mneme::model
