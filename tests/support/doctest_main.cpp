// The entry point shared by all test programs.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

// What the sanitizers are to pass over in the test programs.
#if defined(__SANITIZE_ADDRESS__)
// Allocations that cannot be are to fail as they do without the sanitizer, not to end the program.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "allocator_may_return_null=1";
}
#endif
#if defined(__SANITIZE_THREAD__)
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "allocator_may_return_null=1";
}
// The reference count of an exception_ptr is atomic, but in libstdc++.so, where ThreadSanitizer does not see it: an
// exception that a future carried to another thread looks as if two threads freed it.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_suppressions() {
  return "race:std::__exception_ptr::exception_ptr::_M_release\n";
}
#endif
