// Writes GGUF files for tests: good ones, and ones with one chosen defect.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/model/gguf.hpp"

namespace mneme::test {

using model::ValueType;

// Type ids of tensors as they stand in the file.
enum class GgmlType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  i32 = 26,
  bf16 = 30,
};

// The little-endian bytes of a number.
template <typename T>
std::string le(T value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

inline std::string gguf_string(std::string_view text) {
  return le<std::uint64_t>(text.size()) + std::string(text);
}

template <typename T>
constexpr ValueType value_type() {
  static_assert(std::is_arithmetic_v<T>);
  if constexpr (std::is_same_v<T, bool>) {
    return ValueType::boolean;
  } else if constexpr (std::is_floating_point_v<T>) {
    return sizeof(T) == 4 ? ValueType::f32 : ValueType::f64;
  } else {
    constexpr bool kIsSigned = std::is_signed_v<T>;
    switch (sizeof(T)) {
      case 1:
        return kIsSigned ? ValueType::i8 : ValueType::u8;
      case 2:
        return kIsSigned ? ValueType::i16 : ValueType::u16;
      case 4:
        return kIsSigned ? ValueType::i32 : ValueType::u32;
      default:
        return kIsSigned ? ValueType::i64 : ValueType::u64;
    }
  }
}

// Collects keys and tensors, then lays the file out. Everything that a defect needs can be overridden.
class GgufWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> ne;
    std::uint32_t type = 0;
    std::string data;
    std::optional<std::uint64_t> offset;  // else: behind the tensor before, aligned
    std::optional<std::uint32_t> n_dims;  // else: ne.size()
  };

  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::optional<std::uint64_t> n_tensors, n_kv;  // what the header claims, if not the truth
  std::uint64_t alignment = 32;                  // used for the layout; written only by the caller
  std::vector<Tensor> tensors;

  // The value is replaced if the key exists.
  template <typename T>
  void set(std::string_view key, T value) {
    if constexpr (std::is_convertible_v<T, std::string_view>) {
      set_raw(key, static_cast<std::uint32_t>(ValueType::string), gguf_string(value));
    } else {
      set_raw(key, static_cast<std::uint32_t>(value_type<T>()), le(value));
    }
  }

  template <typename T>
  void set_array(std::string_view key, const std::vector<T>& values) {
    std::string body;
    constexpr bool kIsString = std::is_convertible_v<T, std::string_view>;
    for (const T& value : values) {
      if constexpr (kIsString) {
        body += gguf_string(value);
      } else {
        body += le(value);
      }
    }
    set_raw_array(key, kIsString ? ValueType::string : element_type<T>(), values.size(), body);
  }

  void set_raw_array(std::string_view key, ValueType element, std::uint64_t count, const std::string& body) {
    set_raw(key, static_cast<std::uint32_t>(ValueType::array),
            le(static_cast<std::uint32_t>(element)) + le(count) + body);
  }

  // A value with a type id and bytes of the caller's choice.
  void set_raw(std::string_view key, std::uint32_t type, std::string body) {
    remove(key);
    values_.push_back({std::string(key), gguf_string(key) + le(type) + std::move(body)});
  }

  // Bytes in place of a whole key-value pair.
  void append_raw_kv(std::string bytes) { values_.push_back({"", std::move(bytes)}); }

  void remove(std::string_view key) {
    std::erase_if(values_, [&](const Entry& entry) { return entry.key == key; });
  }

  void add_tensor(std::string name, std::vector<std::uint64_t> ne, GgmlType type, std::string data) {
    tensors.push_back({std::move(name), std::move(ne), static_cast<std::uint32_t>(type), std::move(data), {}, {}});
  }

  Tensor& tensor(std::string_view name) {
    for (Tensor& found : tensors) {
      if (found.name == name) return found;
    }
    throw std::runtime_error("no such tensor: " + std::string(name));
  }

  void remove_tensor(std::string_view name) {
    std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
  }

  // The file.
  std::string bytes() const {
    std::string out = magic + le(version) + le<std::uint64_t>(n_tensors.value_or(tensors.size())) +
                      le<std::uint64_t>(n_kv.value_or(values_.size()));
    for (const Entry& entry : values_) out += entry.bytes;
    std::string data;
    for (const Tensor& tensor : tensors) {
      pad(data);
      out += gguf_string(tensor.name) + le(tensor.n_dims.value_or(static_cast<std::uint32_t>(tensor.ne.size())));
      for (const std::uint64_t extent : tensor.ne) out += le(extent);
      out += le(tensor.type) + le<std::uint64_t>(tensor.offset.value_or(data.size()));
      data += tensor.data;
    }
    if (!tensors.empty()) pad(out);
    return out + data;
  }

  void write(const std::filesystem::path& path) const {
    std::ofstream out(path, std::ios::binary);
    const std::string all = bytes();
    out.write(all.data(), static_cast<std::streamsize>(all.size()));
    if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
  }

 private:
  struct Entry {
    std::string key;
    std::string bytes;
  };

  template <typename T>
  static constexpr ValueType element_type() {
    if constexpr (std::is_convertible_v<T, std::string_view>) {
      return ValueType::string;
    } else {
      return value_type<T>();
    }
  }

  void pad(std::string& out) const { out.resize((out.size() + alignment - 1) / alignment * alignment); }

  std::vector<Entry> values_;
};

inline GgmlType ggml_type(gpu::DType type) noexcept {
  constexpr GgmlType kIds[] = {GgmlType::f32,  GgmlType::f16,  GgmlType::bf16, GgmlType::q8_0,
                               GgmlType::q4_0, GgmlType::q4_1, GgmlType::q5_0, GgmlType::q5_1,
                               GgmlType::q4_k, GgmlType::q5_k, GgmlType::q6_k};
  return kIds[static_cast<std::size_t>(type) - 1];
}

inline std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

}  // namespace mneme::test
