// The error vocabulary: names, conditions, details.
#include <mneme/error.hpp>

#include <boost/system/errc.hpp>
#include <mneme/base/check.hpp>
#include <mneme/base/text.hpp>

#include <doctest/doctest.h>

TEST_CASE("an Error carries its code, a sentence and the same as JSON") {
  const mneme::Error error(mneme::errc::model_corrupt, "tensor \"a\nb\" is truncated");
  CHECK(error.code() == mneme::errc::model_corrupt);
  CHECK(std::string(error.code().category().name()) == "mneme");
  CHECK(error.detail() == R"({"error":"model_corrupt","what":"tensor \"a\u000ab\" is truncated"})");
}

TEST_CASE("codes compare equal to the generic conditions callers test for") {
  namespace sys = boost::system::errc;
  CHECK(make_error_code(mneme::errc::store_full) == sys::no_space_on_device);
  CHECK(make_error_code(mneme::errc::agent_locked) == sys::device_or_resource_busy);
  CHECK(make_error_code(mneme::errc::deadline) == sys::timed_out);
  CHECK(make_error_code(mneme::errc::invalid_event) == sys::invalid_argument);
}

TEST_CASE("checked arithmetic names what overflows") {
  CHECK(mneme::checked_add<std::uint64_t>(1, 2, mneme::errc::model_corrupt, "size") == 3);
  CHECK_THROWS_WITH_AS(mneme::checked_mul<std::uint64_t>(1ULL << 63U, 2, mneme::errc::model_corrupt, "size of x"),
                       doctest::Contains("size of x overflows"), mneme::Error);
}

TEST_CASE("UTF-8 validation finds the first bad byte") {
  struct Case {
    std::string_view text;
    std::size_t bad;
  };
  const Case cases[] = {{"", std::string_view::npos},
                        {"plain", std::string_view::npos},
                        {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", std::string_view::npos},
                        {"a\x80", 1},
                        {"\xC0\x80", 0},
                        {"\xED\xA0\x80", 0},
                        {"\xF4\x90\x80\x80", 0},
                        {"ab\xE2\x82", 2}};
  for (const Case& c : cases) {
    CAPTURE(mneme::json_quoted(c.text));
    CHECK(mneme::find_invalid_utf8(c.text) == c.bad);
  }
}
