// Typed access to the metadata and tensors of an open model file.
#include <limits>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>

#include "runtime/model/gguf.hpp"
#include "runtime/model/load_value.hpp"

namespace mneme::model {
namespace {

bool is_integer(ValueType type) noexcept {
  return scalar_bytes(type) != 0 && type != ValueType::boolean && type != ValueType::f32 && type != ValueType::f64;
}

bool is_float(ValueType type) noexcept {
  return type == ValueType::f32 || type == ValueType::f64;
}

bool is_boolean(ValueType type) noexcept {
  return type == ValueType::boolean;
}

bool is_string(ValueType type) noexcept {
  return type == ValueType::string;
}

// An integer of the file, sign and magnitude apart so that u64 and i64 both fit.
struct Integer {
  bool negative = false;
  std::uint64_t bits = 0;  // two's complement if negative
};

Integer signed_integer(std::int64_t value) noexcept {
  return {value < 0, static_cast<std::uint64_t>(value)};
}

Integer load_integer(std::span<const std::byte> bytes, ValueType type, std::uint64_t offset) {
  switch (type) {
    case ValueType::u8:
      return {false, load_value<std::uint8_t>(bytes, offset)};
    case ValueType::i8:
      return signed_integer(load_value<std::int8_t>(bytes, offset));
    case ValueType::u16:
      return {false, load_value<std::uint16_t>(bytes, offset)};
    case ValueType::i16:
      return signed_integer(load_value<std::int16_t>(bytes, offset));
    case ValueType::u32:
      return {false, load_value<std::uint32_t>(bytes, offset)};
    case ValueType::i32:
      return signed_integer(load_value<std::int32_t>(bytes, offset));
    case ValueType::u64:
      return {false, load_value<std::uint64_t>(bytes, offset)};
    case ValueType::i64:
      return signed_integer(load_value<std::int64_t>(bytes, offset));
    case ValueType::f32:
    case ValueType::f64:
    case ValueType::boolean:
    case ValueType::string:
    case ValueType::array:
      break;
  }
  MNEME_CHECK(is_integer(type));
  return {};
}

double load_float(std::span<const std::byte> bytes, ValueType type, std::uint64_t offset) noexcept {
  return type == ValueType::f32 ? static_cast<double>(load_value<float>(bytes, offset))
                                : load_value<double>(bytes, offset);
}

std::string_view load_string(std::span<const std::byte> bytes, std::uint64_t offset) noexcept {
  const auto length = load_value<std::uint64_t>(bytes, offset);
  return {reinterpret_cast<const char*>(bytes.data()) + offset + 8, length};
}

}  // namespace

std::uint64_t scalar_bytes(ValueType type) noexcept {
  switch (type) {
    case ValueType::u8:
    case ValueType::i8:
    case ValueType::boolean:
      return 1;
    case ValueType::u16:
    case ValueType::i16:
      return 2;
    case ValueType::u32:
    case ValueType::i32:
    case ValueType::f32:
      return 4;
    case ValueType::u64:
    case ValueType::i64:
    case ValueType::f64:
      return 8;
    case ValueType::string:
    case ValueType::array:
      return 0;
  }
  return 0;
}

std::string_view name(ValueType type) noexcept {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<std::size_t>(type)];
}

std::uint64_t TensorInfo::n_rows() const noexcept {
  std::uint64_t rows = 1;
  for (std::size_t i = 1; i < ne.size(); ++i) rows *= ne[i];
  return rows;
}

GgufFile GgufFile::open(const std::filesystem::path& path, LoadMode mode) {
  FileStamp stamp;
  FileBytes bytes = mode == LoadMode::map ? FileBytes::map(path, stamp) : FileBytes::read(path, stamp);
  return parse(path.string(), std::move(bytes), stamp);
}

GgufFile GgufFile::from_bytes(std::span<const std::byte> bytes, std::string name) {
  return parse(std::move(name), FileBytes::copy(bytes), {});
}

std::string GgufFile::message(const std::string& what) const {
  return "model file " + json_quoted(path_) + ": " + what;
}

void GgufFile::fail_corrupt(const std::string& what) const {
  throw Error(errc::model_corrupt, message(what));
}

void GgufFile::fail_unsupported(const std::string& what) const {
  throw Error(errc::model_unsupported, message(what));
}

const Value* GgufFile::find(std::string_view key) const noexcept {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

std::span<const std::byte> GgufFile::raw(const Value& value) const noexcept {
  std::uint64_t bytes = scalar_bytes(value.element) * value.count;
  if (value.element == ValueType::string) {
    for (std::uint64_t i = 0; i < value.count; ++i) {
      bytes += sizeof(std::uint64_t) + load_value<std::uint64_t>(bytes_.span(), value.offset + bytes);
    }
  }
  return bytes_.span().subspan(value.offset, bytes);
}

const Value* GgufFile::find_scalar(std::string_view key, bool (*accepts)(ValueType), std::string_view wanted) const {
  const Value* value = find(key);
  if (value != nullptr && !accepts(value->type)) {
    fail_corrupt("key " + excerpt(key) + " has the type " + std::string(name(value->type)) + ", expected " +
                 std::string(wanted));
  }
  return value;
}

const Value* GgufFile::find_array(std::string_view key, bool (*accepts)(ValueType), std::string_view wanted) const {
  const Value* value = find(key);
  if (value == nullptr) return nullptr;
  if (value->type != ValueType::array || !accepts(value->element)) {
    const std::string of = value->type == ValueType::array ? " of " + std::string(name(value->element)) : "";
    fail_corrupt("key " + excerpt(key) + " has the type " + std::string(name(value->type)) + of +
                 ", expected an array of " + std::string(wanted));
  }
  return value;
}

std::optional<std::uint64_t> GgufFile::find_uint(std::string_view key) const {
  const Value* value = find_scalar(key, is_integer, "an integer");
  if (value == nullptr) return std::nullopt;
  const Integer integer = load_integer(bytes_.span(), value->type, value->offset);
  if (integer.negative) {
    fail_corrupt("key " + excerpt(key) + " is " + std::to_string(static_cast<std::int64_t>(integer.bits)) +
                 "; it must not be negative");
  }
  return integer.bits;
}

std::int64_t GgufFile::to_signed(std::string_view key, ValueType type, std::uint64_t offset) const {
  const Integer integer = load_integer(bytes_.span(), type, offset);
  const auto value = static_cast<std::int64_t>(integer.bits);
  if (!integer.negative && value < 0) {
    fail_corrupt("key " + excerpt(key) + " holds " + std::to_string(integer.bits) + ", more than a signed integer can");
  }
  return value;
}

std::optional<std::int64_t> GgufFile::find_int(std::string_view key) const {
  const Value* value = find_scalar(key, is_integer, "an integer");
  if (value == nullptr) return std::nullopt;
  return to_signed(key, value->type, value->offset);
}

std::optional<double> GgufFile::find_float(std::string_view key) const {
  const Value* value = find_scalar(key, is_float, "a floating-point number");
  if (value == nullptr) return std::nullopt;
  return load_float(bytes_.span(), value->type, value->offset);
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const {
  const Value* value = find_scalar(key, is_boolean, "a truth value");
  if (value == nullptr) return std::nullopt;
  return load_value<std::uint8_t>(bytes_.span(), value->offset) == 1;
}

std::optional<std::string_view> GgufFile::find_string(std::string_view key) const {
  const Value* value = find_scalar(key, is_string, "a string");
  if (value == nullptr) return std::nullopt;
  return load_string(bytes_.span(), value->offset);
}

std::optional<std::vector<std::string_view>> GgufFile::find_strings(std::string_view key) const {
  const Value* value = find_array(key, is_string, "strings");
  if (value == nullptr) return std::nullopt;
  std::vector<std::string_view> strings(value->count);
  std::uint64_t offset = value->offset;
  for (std::string_view& string : strings) {
    string = load_string(bytes_.span(), offset);
    offset += sizeof(std::uint64_t) + string.size();
  }
  return strings;
}

std::optional<std::vector<std::int64_t>> GgufFile::find_ints(std::string_view key) const {
  const Value* value = find_array(key, is_integer, "integers");
  if (value == nullptr) return std::nullopt;
  const std::uint64_t each = scalar_bytes(value->element);
  std::vector<std::int64_t> integers(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    integers[i] = to_signed(key, value->element, value->offset + i * each);
  }
  return integers;
}

std::optional<std::vector<float>> GgufFile::find_floats(std::string_view key) const {
  const Value* value = find_array(key, is_float, "floating-point numbers");
  if (value == nullptr) return std::nullopt;
  const std::uint64_t each = scalar_bytes(value->element);
  std::vector<float> floats(value->count);
  for (std::uint64_t i = 0; i < value->count; ++i) {
    floats[i] = static_cast<float>(load_float(bytes_.span(), value->element, value->offset + i * each));
  }
  return floats;
}

void GgufFile::fail_missing(std::string_view key) const {
  fail_corrupt("key " + excerpt(key) + " is missing");
}

std::uint64_t GgufFile::require_uint(std::string_view key) const {
  const auto value = find_uint(key);
  if (!value) fail_missing(key);
  return *value;
}

double GgufFile::require_float(std::string_view key) const {
  const auto value = find_float(key);
  if (!value) fail_missing(key);
  return *value;
}

std::string_view GgufFile::require_string(std::string_view key) const {
  const auto value = find_string(key);
  if (!value) fail_missing(key);
  return *value;
}

std::vector<std::string_view> GgufFile::require_strings(std::string_view key) const {
  auto value = find_strings(key);
  if (!value) fail_missing(key);
  return std::move(*value);
}

const TensorInfo* GgufFile::find_tensor(std::string_view name) const noexcept {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

std::span<const std::byte> GgufFile::data(const TensorInfo& tensor) const noexcept {
  return bytes_.span().subspan(data_offset_ + tensor.offset, tensor.bytes);
}

}  // namespace mneme::model
