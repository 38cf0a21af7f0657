// The error category and the exception type of <mneme/error.hpp>.
#include <boost/system/errc.hpp>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <utility>

namespace mneme {
inline namespace v1 {
namespace {

class Category final : public boost::system::error_category {
 public:
  const char* name() const noexcept override { return "mneme"; }
  std::string message(int value) const override { return std::string(v1::name(static_cast<errc>(value))); }
  boost::system::error_condition default_error_condition(int value) const noexcept override {
    namespace sys = boost::system::errc;
    switch (static_cast<errc>(value)) {
      case errc::invalid_argument:
      case errc::invalid_event:
        return sys::make_error_condition(sys::invalid_argument);
      case errc::deadline:
        return sys::make_error_condition(sys::timed_out);
      case errc::agent_locked:
        return sys::make_error_condition(sys::device_or_resource_busy);
      case errc::store_full:
        return sys::make_error_condition(sys::no_space_on_device);
      case errc::store_io:
        return sys::make_error_condition(sys::io_error);
      case errc::out_of_memory:
        return sys::make_error_condition(sys::not_enough_memory);
      default:
        return {value, *this};
    }
  }
};

std::string to_detail(error_code code, const std::string& what) {
  return "{\"error\":" + json_quoted(code.message()) + ",\"what\":" + json_quoted(what) + "}";
}

}  // namespace

const boost::system::error_category& category() noexcept {
  static const Category instance;
  return instance;
}

std::string_view name(errc code) noexcept {
  switch (code) {
    case errc::invalid_argument:
      return "invalid_argument";
    case errc::invalid_event:
      return "invalid_event";
    case errc::invalid_handle:
      return "invalid_handle";
    case errc::already_waiting:
      return "already_waiting";
    case errc::queue_full:
      return "queue_full";
    case errc::shutdown:
      return "shutdown";
    case errc::deadline:
      return "deadline";
    case errc::model_not_found:
      return "model_not_found";
    case errc::model_corrupt:
      return "model_corrupt";
    case errc::model_unsupported:
      return "model_unsupported";
    case errc::template_unsupported:
      return "template_unsupported";
    case errc::schema_unsatisfiable:
      return "schema_unsatisfiable";
    case errc::not_a_store:
      return "not_a_store";
    case errc::schema_newer:
      return "schema_newer";
    case errc::unknown_agent:
      return "unknown_agent";
    case errc::model_mismatch:
      return "model_mismatch";
    case errc::tokenizer_mismatch:
      return "tokenizer_mismatch";
    case errc::template_mismatch:
      return "template_mismatch";
    case errc::memory_mismatch:
      return "memory_mismatch";
    case errc::bad_key:
      return "bad_key";
    case errc::agent_locked:
      return "agent_locked";
    case errc::fenced:
      return "fenced";
    case errc::store_full:
      return "store_full";
    case errc::store_io:
      return "store_io";
    case errc::store_corrupt:
      return "store_corrupt";
    case errc::store_unavailable:
      return "store_unavailable";
    case errc::store_unsupported:
      return "store_unsupported";
    case errc::lineage_broken:
      return "lineage_broken";
    case errc::out_of_memory:
      return "out_of_memory";
    case errc::engine_faulted:
      return "engine_faulted";
    case errc::tool_failed:
      return "tool_failed";
    case errc::callback_threw:
      return "callback_threw";
  }
  return "unknown_error";
}

Error::Error(errc code, const std::string& what)
    : system_error(make_error_code(code), what), detail_(to_detail(make_error_code(code), what)) {}

Error::Error(error_code code, const std::string& what, std::string detail)
    : system_error(code, what), detail_(std::move(detail)) {
  if (detail_.empty()) detail_ = to_detail(code, what);
}

}  // namespace v1
}  // namespace mneme
