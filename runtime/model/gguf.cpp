// The GGUF parser: header, metadata, tensor table, placement of tensors.
#include "runtime/model/gguf.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>

#include "runtime/model/load_value.hpp"

namespace mneme::model {
namespace {

// Own caps, whatever the file could justify (specs/model-files.md 5.2).
constexpr std::uint64_t kMaxKeyBytes = 64U << 10U;
constexpr std::uint64_t kMaxStringBytes = 16U << 20U;
constexpr std::uint64_t kMaxStrings = 4U << 20U;  // elements of one array of strings
constexpr std::uint64_t kMaxEntries = 65'536;     // keys; tensors
constexpr std::uint64_t kMaxTensorName = 63;
constexpr std::uint64_t kMinAlignment = 8;
constexpr std::uint64_t kMaxAlignment = 64U << 10U;

// The shortest encodings: what a count promises must fit the rest of the file.
constexpr std::uint64_t kMinKvBytes = 8 + 1 + 4 + 1;
constexpr std::uint64_t kMinInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;

// The type ids of the file that Mneme reads.
std::optional<gpu::DType> supported_type(std::uint32_t id) noexcept {
  using gpu::DType;
  constexpr std::pair<std::uint32_t, DType> kTypes[] = {
      {0, DType::f32},  {1, DType::f16},   {2, DType::q4_0},  {3, DType::q4_1},  {6, DType::q5_0}, {7, DType::q5_1},
      {8, DType::q8_0}, {12, DType::q4_k}, {13, DType::q5_k}, {14, DType::q6_k}, {30, DType::bf16}};
  for (const auto& [known, type] : kTypes) {
    if (known == id) return type;
  }
  return std::nullopt;
}

// Names of the other type ids, for messages. Empty: removed from the format or never defined.
std::string_view other_type_name(std::uint32_t id) noexcept {
  constexpr std::pair<std::uint32_t, std::string_view> kNames[] = {
      {9, "Q8_1"},     {10, "Q2_K"},  {11, "Q3_K"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"},
      {18, "IQ3_XXS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},   {23, "IQ4_XS"},
      {24, "I8"},      {25, "I16"},   {26, "I32"},    {27, "I64"},   {28, "F64"},     {29, "IQ1_M"},
      {34, "TQ1_0"},   {35, "TQ2_0"}, {39, "MXFP4"},  {40, "NVFP4"}, {41, "Q1_0"},    {42, "Q2_0"}};
  for (const auto& [known, type_name] : kNames) {
    if (known == id) return type_name;
  }
  return {};
}

std::string key_label(std::string_view key) {
  return "key " + excerpt(key);
}

std::string tensor_label(std::string_view tensor) {
  return "tensor " + excerpt(tensor);
}

}  // namespace

// Walks the file once from front to back; `position_` never passes the end.
class GgufParser {
 public:
  explicit GgufParser(GgufFile& file) : file_(file), bytes_(file.bytes_.span()) {}

  void run() {
    parse_header();
    for (std::uint64_t i = 0; i < n_kv_; ++i) parse_kv(i);
    read_alignment();
    refuse_split();
    for (std::uint64_t i = 0; i < n_tensors_; ++i) parse_info(i);
    index_tensors();
    place_tensors();
  }

 private:
  std::uint64_t remaining() const noexcept { return bytes_.size() - position_; }

  void require(std::uint64_t n_bytes, const std::string& what) const {
    if (n_bytes > remaining()) file_.fail_corrupt(what + " reaches past the end of the file");
  }

  template <typename T>
  T take(const std::string& what) {
    require(sizeof(T), what);
    const T value = load_value<T>(bytes_, position_);
    position_ += sizeof(T);
    return value;
  }

  std::string_view take_string(std::uint64_t max_bytes, const std::string& what) {
    const std::uint64_t start = position_;
    const auto length = take<std::uint64_t>("the length of " + what);
    require(length, what);
    if (length > max_bytes) {
      file_.fail_corrupt(what + " has " + std::to_string(length) + " bytes, the limit is " + std::to_string(max_bytes));
    }
    position_ += length;
    return {reinterpret_cast<const char*>(bytes_.data()) + start + sizeof(length), length};
  }

  ValueType take_type(const std::string& what) {
    const auto id = take<std::uint32_t>("the type of " + what);
    if (id > static_cast<std::uint32_t>(ValueType::f64)) {
      file_.fail_corrupt(what + " has the unknown value type " + std::to_string(id));
    }
    return static_cast<ValueType>(id);
  }

  // A count of things that take at least `min_bytes` each: more than the rest of the file can hold is refused before
  // anything is allocated for them.
  std::uint64_t take_count(std::uint64_t min_bytes, std::uint64_t max_count, const std::string& what) {
    const auto count = take<std::uint64_t>(what);
    if (count > max_count || count > remaining() / min_bytes) {
      file_.fail_corrupt(what + " is " + std::to_string(count) + ", more than the file can hold or the limit of " +
                         std::to_string(max_count));
    }
    return count;
  }

  void parse_header();
  void parse_kv(std::uint64_t index);
  void skip_array(Value& value, const std::string& what);
  void read_alignment();
  void refuse_split() const;
  void parse_info(std::uint64_t index);
  void measure(TensorInfo& tensor, std::uint32_t type_id) const;
  void index_tensors();
  void place_tensors();

  GgufFile& file_;
  std::span<const std::byte> bytes_;
  std::uint64_t position_ = 0;
  std::uint64_t n_tensors_ = 0;
  std::uint64_t n_kv_ = 0;
};

void GgufParser::parse_header() {
  require(4, "the magic number");
  if (std::memcmp(bytes_.data(), "GGUF", 4) != 0) file_.fail_corrupt("is not a GGUF file");
  position_ = 4;
  file_.version_ = take<std::uint32_t>("the version");
  const std::uint32_t version = file_.version_;
  if (version != 0 && (version & 0xFFFFU) == 0) file_.fail_unsupported("is a big-endian GGUF file");
  if (version == 0) file_.fail_corrupt("has GGUF version 0");
  if (version != 2 && version != 3) {
    file_.fail_unsupported("has GGUF version " + std::to_string(version) + "; versions 2 and 3 are supported");
  }
  n_tensors_ = take_count(1, kMaxEntries, "the number of tensors");
  n_kv_ = take_count(kMinKvBytes, kMaxEntries, "the number of keys");
  if (n_tensors_ > remaining() / kMinInfoBytes) {
    file_.fail_corrupt("the number of tensors is " + std::to_string(n_tensors_) + ", more than the file can hold");
  }
}

void GgufParser::parse_kv(std::uint64_t index) {
  const std::string_view key = take_string(kMaxKeyBytes, "key number " + std::to_string(index));
  if (key.empty()) file_.fail_corrupt("key number " + std::to_string(index) + " is empty");
  const std::string what = key_label(key);
  Value value;
  value.type = value.element = take_type(what);
  value.offset = position_;
  if (value.type == ValueType::array) {
    skip_array(value, what);
  } else if (value.type == ValueType::string) {
    take_string(kMaxStringBytes, what);
  } else {
    require(scalar_bytes(value.type), what);
    position_ += scalar_bytes(value.type);
  }
  if (value.type == ValueType::boolean && load_value<std::uint8_t>(bytes_, value.offset) > 1) {
    file_.fail_corrupt(what + " is neither true nor false");
  }
  if (!file_.values_.emplace(key, value).second) file_.fail_corrupt(what + " occurs twice");
  file_.keys_.push_back(key);
}

void GgufParser::skip_array(Value& value, const std::string& what) {
  value.element = take_type(what);
  if (value.element == ValueType::array) file_.fail_corrupt(what + " is an array of arrays");
  const std::string count_label = "the length of " + what;
  if (value.element != ValueType::string) {
    const std::uint64_t each = scalar_bytes(value.element);
    value.count = take_count(each, std::numeric_limits<std::uint64_t>::max(), count_label);
    value.offset = position_;
    position_ += value.count * each;
    return;
  }
  value.count = take_count(sizeof(std::uint64_t), kMaxStrings, count_label);
  value.offset = position_;
  for (std::uint64_t i = 0; i < value.count; ++i) {
    // The message is built on failure only: a vocabulary has many strings.
    const bool has_length = remaining() >= sizeof(std::uint64_t);
    const std::uint64_t length = has_length ? load_value<std::uint64_t>(bytes_, position_) : 0;
    if (!has_length || length > kMaxStringBytes || length > remaining() - sizeof(std::uint64_t)) {
      take_string(kMaxStringBytes, "element " + std::to_string(i) + " of " + what);
    }
    position_ += sizeof(std::uint64_t) + length;
  }
}

void GgufParser::read_alignment() {
  file_.alignment_ = file_.find_uint("general.alignment").value_or(32);
  const std::uint64_t alignment = file_.alignment_;
  const bool is_power_of_two = alignment != 0 && (alignment & (alignment - 1)) == 0;
  if (!is_power_of_two || alignment < kMinAlignment || alignment > kMaxAlignment) {
    file_.fail_corrupt("key \"general.alignment\" is " + std::to_string(alignment) +
                       "; it must be a power of two from 8 to 65536");
  }
}

// A file merged from parts keeps split.count = 0, and one part of one is whole.
void GgufParser::refuse_split() const {
  const std::uint64_t parts = file_.find_uint("split.count").value_or(file_.find("split.no") != nullptr ? 2 : 0);
  if (parts > 1) file_.fail_unsupported("is one part of a split model (key \"split.count\"); merge the parts first");
}

void GgufParser::parse_info(std::uint64_t index) {
  TensorInfo tensor;
  const std::string number = "tensor number " + std::to_string(index);
  tensor.name = take_string(kMaxTensorName, "the name of " + number);
  if (tensor.name.empty()) file_.fail_corrupt(number + " has an empty name");
  const std::string what = tensor_label(tensor.name);
  const auto n_dims = take<std::uint32_t>("the number of dimensions of " + what);
  if (n_dims < 1 || n_dims > 4) {
    file_.fail_corrupt(what + " has " + std::to_string(n_dims) + " dimensions; 1 to 4 are allowed");
  }
  for (std::uint32_t i = 0; i < n_dims; ++i) tensor.ne.push_back(take<std::uint64_t>("a dimension of " + what));
  const auto type_id = take<std::uint32_t>("the type of " + what);
  tensor.offset = take<std::uint64_t>("the offset of " + what);
  measure(tensor, type_id);
  file_.tensors_.push_back(std::move(tensor));
}

void GgufParser::measure(TensorInfo& tensor, std::uint32_t type_id) const {
  const std::string what = tensor_label(tensor.name);
  const std::optional<gpu::DType> type = supported_type(type_id);
  if (!type) {
    const std::string_view known = other_type_name(type_id);
    file_.fail_unsupported(what + " has the unsupported type " +
                           (known.empty() ? std::to_string(type_id) : std::string(known)));
  }
  tensor.type = *type;
  std::uint64_t rows = 1;
  for (std::size_t i = 0; i < tensor.ne.size(); ++i) {
    const std::uint64_t extent = tensor.ne[i];
    if (extent < 1 || extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      file_.fail_corrupt(what + " has the dimension " + std::to_string(static_cast<std::int64_t>(extent)));
    }
    if (i > 0) rows = checked_mul(rows, extent, errc::model_corrupt, file_.message("the size of " + what));
  }
  const gpu::DTypeTraits& traits = gpu::traits(*type);
  if (tensor.ne[0] % traits.block_elements != 0) {
    file_.fail_corrupt(what + " has rows of " + std::to_string(tensor.ne[0]) + " elements, not whole blocks of " +
                       std::string(traits.name));
  }
  const std::uint64_t row = checked_mul<std::uint64_t>(tensor.ne[0] / traits.block_elements, traits.block_bytes,
                                                       errc::model_corrupt, file_.message("the size of " + what));
  tensor.bytes = checked_mul(row, rows, errc::model_corrupt, file_.message("the size of " + what));
}

void GgufParser::index_tensors() {
  for (std::size_t i = 0; i < file_.tensors_.size(); ++i) {
    const std::string& tensor = file_.tensors_[i].name;
    if (!file_.tensor_index_.emplace(tensor, i).second) file_.fail_corrupt(tensor_label(tensor) + " occurs twice");
  }
}

// Invariant 3. All sums are of values that were compared with the file's size before.
void GgufParser::place_tensors() {
  const std::uint64_t padding = (file_.alignment_ - position_ % file_.alignment_) % file_.alignment_;
  file_.data_offset_ = file_.tensors_.empty() ? position_ : position_ + padding;
  if (file_.data_offset_ > bytes_.size()) file_.fail_corrupt("ends before its tensor data");
  const std::uint64_t available = bytes_.size() - file_.data_offset_;
  std::vector<const TensorInfo*> by_offset;
  for (const TensorInfo& tensor : file_.tensors_) {
    if (tensor.offset % file_.alignment_ != 0) {
      file_.fail_corrupt(tensor_label(tensor.name) + " has the offset " + std::to_string(tensor.offset) +
                         ", which is not a multiple of the alignment");
    }
    if (tensor.offset > available || tensor.bytes > available - tensor.offset) {
      file_.fail_corrupt(tensor_label(tensor.name) + " reaches past the end of the file (" +
                         std::to_string(tensor.bytes) + " bytes at offset " + std::to_string(tensor.offset) + ", " +
                         std::to_string(available) + " present)");
    }
    by_offset.push_back(&tensor);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo& before = *by_offset[i - 1];
    if (before.offset + before.bytes > by_offset[i]->offset) {
      file_.fail_corrupt(tensor_label(by_offset[i]->name) + " overlaps " + tensor_label(before.name));
    }
  }
}

GgufFile GgufFile::parse(std::string path, FileBytes bytes, const FileStamp& stamp) {
  GgufFile file;
  file.path_ = std::move(path);
  file.bytes_ = std::move(bytes);
  file.stamp_ = stamp;
  GgufParser(file).run();
  return file;
}

}  // namespace mneme::model
