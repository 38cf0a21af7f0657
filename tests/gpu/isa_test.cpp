#include "gpu/host/isa.hpp"

#include <cstdlib>
#include <mneme/error.hpp>
#include <optional>
#include <string>

#include <doctest/doctest.h>

namespace host = mneme::gpu::host;

namespace {

// Sets MNEME_ISA (nullptr: unset) and restores it at the end of the scope.
class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    if (const char* old = std::getenv("MNEME_ISA")) old_ = old;
    set(value);
  }
  ~IsaVariable() { set(old_ ? old_->c_str() : nullptr); }

 private:
  static void set(const char* value) { value ? setenv("MNEME_ISA", value, 1) : unsetenv("MNEME_ISA"); }
  std::optional<std::string> old_;
};

}  // namespace

TEST_CASE("without a request the best instruction set of the machine is chosen") {
  const IsaVariable variable(nullptr);
  CHECK(host::choose_isa("") == host::best_isa());
}

TEST_CASE("an option beats MNEME_ISA, which beats the best") {
  const IsaVariable variable("scalar");
  CHECK(host::choose_isa("") == host::Isa::scalar);
  CHECK(host::choose_isa(host::name(host::best_isa())) == host::best_isa());
}

TEST_CASE("an unknown instruction set is refused and named, wherever it comes from") {
  {
    const IsaVariable variable("sse9");
    CHECK_THROWS_WITH_AS(host::choose_isa(""), doctest::Contains("MNEME_ISA"), mneme::Error);
  }
  const IsaVariable variable(nullptr);
  CHECK_THROWS_WITH_AS(host::choose_isa("AVX2"), doctest::Contains("\"AVX2\""), mneme::Error);
  try {
    host::choose_isa("neon");
    FAIL("accepted");
  } catch (const mneme::Error& error) {
    CHECK(error.code() == mneme::errc::invalid_argument);
  }
}

TEST_CASE("an instruction set that this CPU lacks is refused") {
  if (host::best_isa() == host::Isa::avx512) {
    MESSAGE("skipped: this CPU has them all");
    return;
  }
  CHECK_THROWS_WITH_AS(host::choose_isa("avx512"), doctest::Contains("this CPU has at most"), mneme::Error);
}
