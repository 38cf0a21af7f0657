// Fuzz target: any bytes as a model file.
#include "tests/fuzz/gguf_target.hpp"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  mneme::test::loads_as_model(std::as_bytes(std::span(data, size)));
  return 0;
}
