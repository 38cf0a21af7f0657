// Checks of invariants that only a bug can break, and checked arithmetic for numbers that come from files.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <mneme/error.hpp>
#include <string>

namespace mneme {
inline namespace v1 {

// Called by MNEME_CHECK; writes the expression to stderr and aborts. Input never reaches it.
[[noreturn]] void check_failed(const char* expression, const char* file, int line) noexcept;

// Adds two values from outside; on overflow throws Error(code) naming `what`.
template <std::unsigned_integral T>
T checked_add(T a, T b, errc code, const std::string& what) {
  T sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) throw Error(code, what + " overflows");
  return sum;
}

// Multiplies two values from outside; on overflow throws Error(code) naming `what`.
template <std::unsigned_integral T>
T checked_mul(T a, T b, errc code, const std::string& what) {
  T product = 0;
  if (__builtin_mul_overflow(a, b, &product)) throw Error(code, what + " overflows");
  return product;
}

}  // namespace v1
}  // namespace mneme

// Aborts with a message if `condition` is false: for bugs only, in every build type.
#define MNEME_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::mneme::check_failed(#condition, __FILE__, __LINE__))
