// The GGUF container: what loads, what every getter refuses, and every known way to attack a reader of it.
#include "runtime/model/gguf.hpp"

#include <sys/resource.h>

#include <filesystem>
#include <functional>
#include <limits>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <string>

#include <doctest/doctest.h>

#include "tests/support/gguf_writer.hpp"

namespace {

using mneme::errc;
using mneme::model::GgufFile;
using mneme::model::LoadMode;
using mneme::test::as_bytes;
using mneme::test::GgmlType;
using mneme::test::gguf_string;
using mneme::test::GgufWriter;
using mneme::test::le;
using mneme::test::ValueType;

constexpr std::uint64_t kHuge = std::numeric_limits<std::int64_t>::max();

// Two small tensors and one key of each kind.
GgufWriter small_file() {
  GgufWriter file;
  file.set("general.architecture", "llama");
  file.set("a.u8", std::uint8_t{200});
  file.set("a.i8", std::int8_t{-2});
  file.set("a.u16", std::uint16_t{60'000});
  file.set("a.i16", std::int16_t{-3});
  file.set("a.u32", std::uint32_t{4'000'000'000});
  file.set("a.i32", std::int32_t{-4});
  file.set("a.u64", std::numeric_limits<std::uint64_t>::max());
  file.set("a.i64", std::int64_t{-5});
  file.set("a.f32", 1.5F);
  file.set("a.f64", 2.25);
  file.set("a.bool", true);
  file.set_array<std::string>("a.strings", {"one", "", "three"});
  file.set_array<std::int32_t>("a.ints", {1, -2, 3});
  file.set_array<float>("a.floats", {0.5F, -0.25F});
  file.set_array<std::uint8_t>("a.bytes", {1, 2});
  file.add_tensor("one", {3, 2}, GgmlType::f32, std::string(24, '\1'));
  file.add_tensor("two", {32, 1, 2}, GgmlType::q8_0, std::string(68, '\2'));
  return file;
}

GgufFile load(const GgufWriter& writer) {
  return GgufFile::from_bytes(as_bytes(writer.bytes()), "case");
}

// The code that `bytes` fails with; the sentence must contain `named`.
errc failure_of(const std::string& bytes, const std::string& named) {
  try {
    GgufFile::from_bytes(as_bytes(bytes), "case");
  } catch (const mneme::Error& error) {
    CAPTURE(error.what());
    CHECK(std::string(error.what()).find(named) != std::string::npos);
    return static_cast<errc>(error.code().value());
  }
  FAIL_CHECK("the file loads");
  return errc{};
}

std::filesystem::path temporary_file(const std::string& bytes) {
  const auto path = std::filesystem::temp_directory_path() / ("mneme_gguf_test_" + std::to_string(::getpid()));
  std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

}  // namespace

TEST_CASE("metadata comes back through getters that check the kind") {
  const GgufFile file = load(small_file());
  CHECK(file.keys().size() == 16);
  CHECK(file.keys()[0] == "general.architecture");
  CHECK(file.require_string("general.architecture") == "llama");
  CHECK(file.find_uint("a.u8") == 200);
  CHECK(file.find_int("a.i8") == -2);
  CHECK(file.find_uint("a.u16") == 60'000);
  CHECK(file.find_int("a.i16") == -3);
  CHECK(file.find_uint("a.u32") == 4'000'000'000);
  CHECK(file.find_int("a.i32") == -4);
  CHECK(file.find_uint("a.u64") == std::numeric_limits<std::uint64_t>::max());
  CHECK(file.find_int("a.i64") == -5);
  CHECK(file.find_float("a.f32") == 1.5);
  CHECK(file.find_float("a.f64") == 2.25);
  CHECK(file.find_bool("a.bool") == true);
  CHECK(file.find_strings("a.strings") == std::vector<std::string_view>{"one", "", "three"});
  CHECK(file.find_ints("a.ints") == std::vector<std::int64_t>{1, -2, 3});
  CHECK(file.find_ints("a.bytes") == std::vector<std::int64_t>{1, 2});
  CHECK(file.find_floats("a.floats") == std::vector<float>{0.5F, -0.25F});
  CHECK_FALSE(file.find_uint("absent").has_value());
  CHECK_FALSE(file.find_strings("absent").has_value());
  CHECK(file.raw(*file.find("a.strings")).size() == 3 * 8 + 8);
  CHECK(file.raw(*file.find("a.ints")).size() == 12);
}

TEST_CASE("a value of another kind, or one that does not fit, is an error naming the key") {
  const GgufFile file = load(small_file());
  CHECK_THROWS_WITH_AS(file.find_uint("a.i32"), doctest::Contains("\"a.i32\" is -4"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_int("a.u64"), doctest::Contains("a.u64"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_uint("a.f32"), doctest::Contains("a.f32"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_uint("a.bool"), doctest::Contains("a.bool"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_uint("a.ints"), doctest::Contains("a.ints"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_float("a.u32"), doctest::Contains("a.u32"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_bool("a.u8"), doctest::Contains("a.u8"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_string("a.strings"), doctest::Contains("a.strings"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_strings("a.ints"), doctest::Contains("array of i32"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_floats("a.bytes"), doctest::Contains("array of u8"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_ints("a.floats"), doctest::Contains("array of f32"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.find_ints("a.u8"), doctest::Contains("a.u8"), mneme::Error);
  CHECK_THROWS_WITH_AS(file.require_uint("absent"), doctest::Contains("\"absent\" is missing"), mneme::Error);
}

TEST_CASE("tensors lie where the file says, mapped, read or in memory") {
  const std::string bytes = small_file().bytes();
  const auto path = temporary_file(bytes);
  for (const LoadMode mode : {LoadMode::map, LoadMode::read}) {
    GgufFile opened = GgufFile::open(path, mode);
    const GgufFile file = std::move(opened);  // views stay valid across a move
    REQUIRE(file.tensors().size() == 2);
    CHECK(file.stamp().size == bytes.size());
    const auto* one = file.find_tensor("one");
    const auto* two = file.find_tensor("two");
    REQUIRE(one != nullptr);
    REQUIRE(two != nullptr);
    CHECK(file.find_tensor("three") == nullptr);
    CHECK(one->ne == std::vector<std::uint64_t>{3, 2});
    CHECK(two->n_rows() == 2);
    CHECK(two->type == mneme::gpu::DType::q8_0);
    CHECK(file.data(*one).size() == 24);
    CHECK(file.data(*one)[23] == std::byte{1});
    CHECK(file.data(*two).size() == 68);
    CHECK(file.data(*two)[0] == std::byte{2});
    CHECK(reinterpret_cast<std::uintptr_t>(file.data(*two).data()) % 32 == 0);
  }
  std::filesystem::remove(path);
}

TEST_CASE("gaps between tensors, any order and version 2 are accepted") {
  GgufWriter file = small_file();
  file.version = 2;
  file.tensor("one").offset = 128;
  file.tensor("two").offset = 0;
  file.tensor("two").data.resize(256);
  CHECK(load(file).data(load(file).tensors()[0]).size() == 24);
}

TEST_CASE("what cannot be opened as a file is not found") {
  const auto code_of = [](const std::filesystem::path& path) {
    try {
      GgufFile::open(path);
    } catch (const mneme::Error& error) {
      return static_cast<errc>(error.code().value());
    }
    return errc{};
  };
  CHECK(code_of("no/such/model.gguf") == errc::model_not_found);
  CHECK(code_of(std::filesystem::temp_directory_path()) == errc::model_not_found);
  const auto empty = temporary_file("");
  CHECK(code_of(empty) == errc::model_corrupt);
  std::filesystem::remove(empty);
}

TEST_CASE("a good file cut at any byte gives a typed error") {
  const std::string bytes = small_file().bytes();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    CAPTURE(length);
    CHECK(failure_of(bytes.substr(0, length), "case") == errc::model_corrupt);
  }
}

namespace {

struct Defect {
  const char* name;
  errc code;
  const char* named;  // must stand in the message
  std::function<void(GgufWriter&)> apply;
};

const Defect kHeaderDefects[] = {
    {"other magic", errc::model_corrupt, "not a GGUF file", [](GgufWriter& f) { f.magic = "GGML"; }},
    {"version 0", errc::model_corrupt, "version 0", [](GgufWriter& f) { f.version = 0; }},
    {"version 1", errc::model_unsupported, "version 1", [](GgufWriter& f) { f.version = 1; }},
    {"version 4", errc::model_unsupported, "version 4", [](GgufWriter& f) { f.version = 4; }},
    {"big-endian", errc::model_unsupported, "big-endian", [](GgufWriter& f) { f.version = 3U << 24U; }},
    {"n_kv 2^63-1", errc::model_corrupt, "number of keys", [](GgufWriter& f) { f.n_kv = kHuge; }},
    {"n_kv -1", errc::model_corrupt, "number of keys", [](GgufWriter& f) { f.n_kv = ~0ULL; }},
    {"n_kv 2^61+1", errc::model_corrupt, "number of keys", [](GgufWriter& f) { f.n_kv = (1ULL << 61U) + 1; }},
    {"n_kv one too many", errc::model_corrupt, "case", [](GgufWriter& f) { f.n_kv = 17; }},
    {"n_kv one too few", errc::model_corrupt, "case", [](GgufWriter& f) { f.n_kv = 15; }},
    {"n_tensors 2^63-1", errc::model_corrupt, "number of tensors", [](GgufWriter& f) { f.n_tensors = kHuge; }},
    {"n_tensors -1", errc::model_corrupt, "number of tensors", [](GgufWriter& f) { f.n_tensors = ~0ULL; }},
    {"n_tensors 2^61+1", errc::model_corrupt, "number of tensors",
     [](GgufWriter& f) { f.n_tensors = (1ULL << 61U) + 1; }},
    {"n_tensors one too many", errc::model_corrupt, "case", [](GgufWriter& f) { f.n_tensors = 3; }},
    {"n_tensors more than the rest can hold", errc::model_corrupt, "number of tensors",
     [](GgufWriter& f) { f.n_tensors = 200; }},
};

const Defect kMetadataDefects[] = {
    {"empty key", errc::model_corrupt, "key number 16 is empty", [](GgufWriter& f) { f.set("", std::uint8_t{1}); }},
    {"duplicate key", errc::model_corrupt, "\"a.u8\" occurs twice",
     [](GgufWriter& f) { f.append_raw_kv(gguf_string("a.u8") + le(0U) + "x"); }},
    {"key length 2^63-1", errc::model_corrupt, "key number 16",
     [](GgufWriter& f) { f.append_raw_kv(le(kHuge) + std::string(32, 'k')); }},
    {"key length -1", errc::model_corrupt, "key number 16",
     [](GgufWriter& f) { f.append_raw_kv(le(~0ULL) + std::string(32, 'k')); }},
    {"key of 64 KiB and one byte", errc::model_corrupt, "the limit is 65536",
     [](GgufWriter& f) { f.set(std::string((64U << 10U) + 1, 'k'), true); }},
    {"string of 16 MiB and one byte", errc::model_corrupt, "\"long\"",
     [](GgufWriter& f) { f.set("long", std::string((16U << 20U) + 1, 's')); }},
    {"string length 2^31", errc::model_corrupt, "\"long\"",
     [](GgufWriter& f) { f.set_raw("long", 8, le<std::uint64_t>(1ULL << 31U) + "text"); }},
    {"string length 2^61+1", errc::model_corrupt, "\"long\"",
     [](GgufWriter& f) { f.set_raw("long", 8, le<std::uint64_t>((1ULL << 61U) + 1) + "text"); }},
    {"unknown value type", errc::model_corrupt, "value type 13", [](GgufWriter& f) { f.set_raw("odd", 13, "text"); }},
    {"negative value type", errc::model_corrupt, "\"odd\"", [](GgufWriter& f) { f.set_raw("odd", ~0U, "text"); }},
    {"bool 2", errc::model_corrupt, "\"odd\"", [](GgufWriter& f) { f.set_raw("odd", 7, "\2"); }},
    {"array of arrays", errc::model_corrupt, "\"odd\" is an array of arrays",
     [](GgufWriter& f) { f.set_raw_array("odd", ValueType::array, 1, le(0U) + le(0ULL)); }},
    {"array of unknown type", errc::model_corrupt, "\"odd\"",
     [](GgufWriter& f) { f.set_raw_array("odd", static_cast<ValueType>(99), 1, "text"); }},
    {"array length 2^63-1", errc::model_corrupt, "length of key \"odd\"",
     [](GgufWriter& f) { f.set_raw_array("odd", ValueType::u8, kHuge, "text"); }},
    {"array length -1", errc::model_corrupt, "length of key \"odd\"",
     [](GgufWriter& f) { f.set_raw_array("odd", ValueType::f32, ~0ULL, "text"); }},
    {"array length 2^61+1 wraps in bytes", errc::model_corrupt, "length of key \"odd\"",
     [](GgufWriter& f) { f.set_raw_array("odd", ValueType::u64, (1ULL << 61U) + 1, "textmore"); }},
    {"array of strings 2^61+1", errc::model_corrupt, "length of key \"odd\"",
     [](GgufWriter& f) { f.set_raw_array("odd", ValueType::string, (1ULL << 61U) + 1, "textmore"); }},
    {"more than 4 Mi strings", errc::model_corrupt, "limit of 4194304",
     [](GgufWriter& f) {
       f.set_raw_array("odd", ValueType::string, (4U << 20U) + 1, std::string(((4U << 20U) + 1) * 8, '\0'));
     }},
    {"string in an array past the end", errc::model_corrupt, "element 1 of key \"odd\"",
     [](GgufWriter& f) { f.set_raw_array("odd", ValueType::string, 2, gguf_string("a") + le(kHuge)); }},
    {"string in an array over 16 MiB", errc::model_corrupt, "element 0 of key \"odd\"",
     [](GgufWriter& f) { f.set_array<std::string>("odd", {std::string((16U << 20U) + 1, 's')}); }},
    {"alignment 2^30", errc::model_corrupt, "general.alignment",
     [](GgufWriter& f) { f.set("general.alignment", 1U << 30U); }},
    {"alignment 0", errc::model_corrupt, "general.alignment", [](GgufWriter& f) { f.set("general.alignment", 0U); }},
    {"alignment 4", errc::model_corrupt, "general.alignment", [](GgufWriter& f) { f.set("general.alignment", 4U); }},
    {"alignment 48", errc::model_corrupt, "general.alignment", [](GgufWriter& f) { f.set("general.alignment", 48U); }},
    {"alignment as a string", errc::model_corrupt, "general.alignment",
     [](GgufWriter& f) { f.set("general.alignment", "32"); }},
    {"part of a split model", errc::model_unsupported, "split",
     [](GgufWriter& f) { f.set("split.count", std::uint16_t{2}); }},
    {"part number without a count", errc::model_unsupported, "split",
     [](GgufWriter& f) { f.set("split.no", std::uint16_t{0}); }},
};

const Defect kTensorDefects[] = {
    {"empty name", errc::model_corrupt, "empty name", [](GgufWriter& f) { f.tensor("one").name = ""; }},
    {"name of 64 bytes", errc::model_corrupt, "the limit is 63",
     [](GgufWriter& f) { f.tensor("one").name = std::string(64, 'n'); }},
    {"duplicate name", errc::model_corrupt, "\"two\" occurs twice",
     [](GgufWriter& f) { f.tensor("one").name = "two"; }},
    {"0 dimensions", errc::model_corrupt, "0 dimensions", [](GgufWriter& f) { f.tensor("one").ne = {}; }},
    {"5 dimensions", errc::model_corrupt, "5 dimensions",
     [](GgufWriter& f) {
       f.tensor("one").ne = {3, 2, 1, 1, 1};
     }},
    {"2^32-1 dimensions", errc::model_corrupt, "dimensions", [](GgufWriter& f) { f.tensor("one").n_dims = ~0U; }},
    {"dimension 0", errc::model_corrupt, "the dimension 0",
     [](GgufWriter& f) {
       f.tensor("one").ne = {3, 0};
     }},
    {"dimension -1", errc::model_corrupt, "the dimension -1",
     [](GgufWriter& f) {
       f.tensor("one").ne = {3, ~0ULL};
     }},
    {"dimension 2^63-1", errc::model_corrupt, "\"one\"", [](GgufWriter& f) { f.tensor("one").ne = {kHuge}; }},
    {"elements wrap to a small number", errc::model_corrupt, "size of tensor \"one\" overflows",
     [](GgufWriter& f) {
       f.tensor("one").ne = {1ULL << 32U, 1ULL << 32U, 4};
     }},
    {"bytes wrap", errc::model_corrupt, "size of tensor \"one\" overflows",
     [](GgufWriter& f) { f.tensor("one").ne = {(1ULL << 62U) + 6}; }},
    {"bytes just below 2^64", errc::model_corrupt, "\"one\" reaches past",
     [](GgufWriter& f) { f.tensor("one").ne = {(1ULL << 62U) - 1}; }},
    {"one row too many", errc::model_corrupt, "\"two\" reaches past", [](GgufWriter& f) { f.tensor("two").ne[2] = 3; }},
    {"row of half a block", errc::model_corrupt, "whole blocks of Q8_0",
     [](GgufWriter& f) {
       f.tensor("two").ne = {16, 2};
     }},
    {"last tensor one byte short", errc::model_corrupt, "\"two\" reaches past",
     [](GgufWriter& f) { f.tensor("two").data.pop_back(); }},
    {"offset near 2^64", errc::model_corrupt, "\"one\" reaches past",
     [](GgufWriter& f) { f.tensor("one").offset = ~0ULL - 31; }},
    {"offset at the end", errc::model_corrupt, "\"one\" reaches past",
     [](GgufWriter& f) { f.tensor("one").offset = 96; }},
    {"offset not aligned", errc::model_corrupt, "multiple of the alignment",
     [](GgufWriter& f) { f.tensor("one").offset = 8; }},
    {"overlap", errc::model_corrupt, "overlaps", [](GgufWriter& f) { f.tensor("two").offset = 0; }},
    {"no data section", errc::model_corrupt, "case",
     [](GgufWriter& f) {
       f.tensor("one").data.clear();
       f.tensor("two").data.clear();
     }},
    {"type known, not supported", errc::model_unsupported, "\"one\" has the unsupported type Q2_K",
     [](GgufWriter& f) { f.tensor("one").type = 10; }},
    {"integer type", errc::model_unsupported, "unsupported type I32", [](GgufWriter& f) { f.tensor("one").type = 26; }},
    {"removed type 4", errc::model_unsupported, "unsupported type 4", [](GgufWriter& f) { f.tensor("one").type = 4; }},
    {"removed type 36", errc::model_unsupported, "unsupported type 36",
     [](GgufWriter& f) { f.tensor("one").type = 36; }},
    {"type -1", errc::model_unsupported, "unsupported type 4294967295",
     [](GgufWriter& f) { f.tensor("one").type = ~0U; }},
};

void check_defects(std::span<const Defect> defects) {
  for (const Defect& defect : defects) {
    CAPTURE(defect.name);
    GgufWriter file = small_file();
    defect.apply(file);
    CHECK(failure_of(file.bytes(), defect.named) == defect.code);
  }
}

}  // namespace

TEST_CASE("each defect of the header, metadata or tensor table is a typed error that names it") {
  check_defects(kHeaderDefects);
  check_defects(kMetadataDefects);
  check_defects(kTensorDefects);
}

TEST_CASE("a key with bytes that are no text is escaped in the message") {
  GgufWriter file = small_file();
  file.set_raw("%s%n\n\xff", 13, "");
  CHECK(failure_of(file.bytes(), R"(%s%n\u000a\u00ff)") == errc::model_corrupt);
}

TEST_CASE("small files that promise gigabytes allocate nothing of the kind") {
  const auto peak_kib = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  GgufWriter alignment;
  alignment.set("general.alignment", 1U << 30U);
  GgufWriter arrays;
  for (const char* key : {"a", "b", "c", "d"}) arrays.set_raw_array(key, ValueType::u8, 1ULL << 40U, "");
  GgufWriter tensor;
  tensor.add_tensor("t", {1ULL << 40U}, GgmlType::f32, "");
  const auto before = peak_kib();
  for (const GgufWriter* file : {&alignment, &arrays, &tensor}) {
    CHECK(failure_of(file->bytes(), "case") == errc::model_corrupt);
  }
  CHECK(peak_kib() - before < 64 * 1024);
}
