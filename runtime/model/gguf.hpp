// Reads GGUF model files safely: the container, its metadata and its tensor table, without interpreting a model.
//
// Any byte sequence either opens or throws mneme::Error that names the key or tensor: nothing is read outside the file,
// nothing is allocated that the file's own size does not justify (specs/model-files.md 1 and 5).
//
// Container, little-endian:
//
//     "GGUF" | u32 version (2, 3) | i64 n_tensors | i64 n_kv | kv[n_kv] | info[n_tensors] | pad to alignment | data
//
//   | part      | encoding                                                                                       |
//   |-----------|------------------------------------------------------------------------------------------------|
//   | string    | u64 length, bytes (not terminated, any bytes)                                                  |
//   | kv        | string key, i32 ValueType, value                                                               |
//   | array     | i32 element type (not array), u64 n, n elements                                                |
//   | info      | string name, u32 n_dims (1..4), i64 ne[n_dims], i32 ggml type, u64 offset into the data section |
//   | alignment | key general.alignment, a power of two, default 32                                              |
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gpu/dtype.hpp"

namespace mneme::model {

// map: pages come from the file as they are touched. The file must not be changed while it is open: one truncated
// meanwhile raises SIGBUS in the process that reads it. read: the whole file is copied into owned memory first.
enum class LoadMode { map, read };

// The types of metadata values, numbered as in the file.
enum class ValueType : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

// "u8", "string", ...
std::string_view name(ValueType type) noexcept;

// Bytes of one value; 0 for strings and arrays, which carry their own lengths.
std::uint64_t scalar_bytes(ValueType type) noexcept;

// Where a metadata value lies in the file; decoded by the getters, so a large vocabulary costs nothing until it is
// asked for.
struct Value {
  ValueType type = ValueType::u8;
  ValueType element = ValueType::u8;  // arrays: type of the elements; else equal to type
  std::uint64_t count = 1;            // arrays: number of elements
  std::uint64_t offset = 0;           // of the value's first byte in the file (arrays: of the first element)
};

struct TensorInfo {
  std::string name;
  std::vector<std::uint64_t> ne;  // 1..4 dimensions; ne[0] is the row length, its elements are contiguous
  gpu::DType type = gpu::DType::f32;
  std::uint64_t offset = 0;  // of the first byte, inside the data section
  std::uint64_t bytes = 0;

  std::uint64_t n_rows() const noexcept;  // product of ne[1..]
};

// What identifies a file on this machine for as long as nobody writes to it.
struct FileStamp {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  std::int64_t mtime_ns = 0;
  bool operator==(const FileStamp&) const = default;
};

// The bytes of a file: a read-only mapping or owned memory, aligned to at least 64. Move-only; moving keeps the
// address.
class FileBytes {
 public:
  FileBytes() = default;
  static FileBytes map(const std::filesystem::path& path, FileStamp& stamp);
  static FileBytes read(const std::filesystem::path& path, FileStamp& stamp);
  static FileBytes copy(std::span<const std::byte> bytes);
  FileBytes(FileBytes&& other) noexcept;
  FileBytes& operator=(FileBytes&& other) noexcept;
  ~FileBytes();

  std::span<const std::byte> span() const noexcept { return {data_, size_}; }

  // Gives the physical memory of a mapped file back; what is read afterwards comes from the file again. Any thread.
  void drop_pages() const noexcept;

 private:
  enum class Kind { none, mapped, owned };
  FileBytes(Kind kind, std::byte* data, std::size_t size) noexcept : kind_(kind), data_(data), size_(size) {}
  static FileBytes allocate(std::size_t size);

  Kind kind_ = Kind::none;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// An open model file. Const after open, so any thread may read it. Views and spans it returns live as long as the file
// object; moving it does not invalidate them.
//
// Invariants: 1. keys and tensor names are unique and not empty. 2. every Value lies inside the file. 3. every tensor
// lies inside the data section, aligned, whole rows of whole blocks, and overlaps no other.
class GgufFile {
 public:
  // Throws model_not_found (missing or unreadable), model_corrupt, model_unsupported (version 1, big-endian, split
  // files, tensor types outside gpu::DType), out_of_memory.
  static GgufFile open(const std::filesystem::path& path, LoadMode mode = LoadMode::map);

  // The same for bytes in memory, which are copied. `name` stands for the path in messages.
  static GgufFile from_bytes(std::span<const std::byte> bytes, std::string name = "memory");

  const std::string& path() const noexcept { return path_; }
  const FileStamp& stamp() const noexcept { return stamp_; }  // all zero for from_bytes
  std::uint32_t version() const noexcept { return version_; }
  std::uint64_t alignment() const noexcept { return alignment_; }
  std::uint64_t data_offset() const noexcept { return data_offset_; }  // of the data section in the file
  std::uint64_t size() const noexcept { return bytes_.span().size(); }
  void drop_pages() const noexcept { bytes_.drop_pages(); }

  // ---- metadata
  std::span<const std::string_view> keys() const noexcept { return keys_; }  // in file order
  const Value* find(std::string_view key) const noexcept;

  // Absent keys give nullopt; a key of another kind, or a number that does not fit, throws model_corrupt naming it.
  std::optional<std::uint64_t> find_uint(std::string_view key) const;  // any integer type, value >= 0
  std::optional<std::int64_t> find_int(std::string_view key) const;    // any integer type
  std::optional<double> find_float(std::string_view key) const;        // f32 or f64
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string_view> find_string(std::string_view key) const;
  std::optional<std::vector<std::string_view>> find_strings(std::string_view key) const;  // array of string
  std::optional<std::vector<std::int64_t>> find_ints(std::string_view key) const;         // array of any integer type
  std::optional<std::vector<float>> find_floats(std::string_view key) const;              // array of f32 or f64

  // As above; an absent key throws model_corrupt naming it.
  std::uint64_t require_uint(std::string_view key) const;
  double require_float(std::string_view key) const;
  std::string_view require_string(std::string_view key) const;
  std::vector<std::string_view> require_strings(std::string_view key) const;

  // The bytes of a value as they stand in the file, without its type.
  std::span<const std::byte> raw(const Value& value) const noexcept;

  // ---- tensors
  std::span<const TensorInfo> tensors() const noexcept { return tensors_; }  // in file order
  const TensorInfo* find_tensor(std::string_view name) const noexcept;
  std::span<const std::byte> data(const TensorInfo& tensor) const noexcept;  // [n_rows] rows of row_bytes(type, ne[0])

  // `what` with the file's name before it, and errors with that sentence.
  std::string message(const std::string& what) const;
  [[noreturn]] void fail_corrupt(const std::string& what) const;
  [[noreturn]] void fail_unsupported(const std::string& what) const;

 private:
  friend class GgufParser;
  GgufFile() = default;
  static GgufFile parse(std::string path, FileBytes bytes, const FileStamp& stamp);
  const Value* find_scalar(std::string_view key, bool (*accepts)(ValueType), std::string_view wanted) const;
  const Value* find_array(std::string_view key, bool (*accepts)(ValueType), std::string_view wanted) const;
  std::int64_t to_signed(std::string_view key, ValueType type, std::uint64_t offset) const;
  [[noreturn]] void fail_missing(std::string_view key) const;

  std::string path_;
  FileStamp stamp_;
  FileBytes bytes_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32;
  std::uint64_t data_offset_ = 0;
  std::vector<std::string_view> keys_;
  std::unordered_map<std::string_view, Value> values_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, std::size_t> tensor_index_;  // views into tensors_, whose elements never move
};

}  // namespace mneme::model
