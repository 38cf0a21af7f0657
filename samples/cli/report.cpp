#include "samples/cli/report.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

namespace cli {

using nlohmann::json;

std::string sentence(const mneme::Error& error) {
  const json detail = json::parse(error.detail(), nullptr, false);
  if (detail.is_object() && detail.contains("what") && detail["what"].is_string()) return detail["what"];
  return error.what();
}

void say(const mneme::Error& error) {
  std::fflush(stdout);
  std::fprintf(stderr, "mneme: %s: %s\n", error.code().message().c_str(), sentence(error).c_str());
}

mneme::Error failure(mneme::error_code code, std::string_view doing, const std::string& detail) {
  const json parsed = json::parse(detail, nullptr, false);
  const bool of_this_error =
      parsed.is_object() && parsed.value("error", "") == code.message() && parsed.contains("what");
  const std::string what =
      std::string(doing) + (of_this_error ? ": " + parsed["what"].get<std::string>() : std::string(" failed"));
  return {code, what, json{{"error", code.message()}, {"what", what}}.dump()};
}

std::string in_quotes(std::string_view text) {
  return json(std::string(text)).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string shortened(std::string_view text, std::size_t max_bytes) {
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  const std::string_view line = text.substr(0, text.find('\n'));
  std::size_t end = std::min(line.size(), max_bytes);
  while (end > 0 && end < line.size() && (static_cast<unsigned char>(line[end]) & 0xC0U) == 0x80U) --end;
  return std::string(line.substr(0, end)) + (end < text.size() ? "..." : "");
}

std::string utc(std::chrono::system_clock::time_point time) {
  using namespace std::chrono;
  const auto second = floor<seconds>(time);
  const auto ms = duration_cast<milliseconds>(time - second).count();
  const std::time_t plain = system_clock::to_time_t(second);
  std::tm parts{};
  gmtime_r(&plain, &parts);
  std::array<char, 40> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%S", &parts);
  std::array<char, 8> fraction{};
  if (ms > 0) std::snprintf(fraction.data(), fraction.size(), ".%03d", static_cast<int>(ms));
  return std::string(text.data()) + fraction.data() + "Z";
}

std::string mib(std::uint64_t bytes) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%.1f MiB", static_cast<double>(bytes) / (1024.0 * 1024.0));
  return text.data();
}

Resident resident() {
  Resident figures;
  std::ifstream status("/proc/self/status");
  for (std::string name; status >> name;) {
    std::uint64_t kib = 0;
    if (name == "VmRSS:" && status >> kib) figures.all_bytes = kib * 1024;
    if (name == "VmHWM:" && status >> kib) figures.peak_bytes = kib * 1024;
    if (name == "RssFile:" && status >> kib) figures.mapped_file_bytes = kib * 1024;
    status.ignore(4096, '\n');
  }
  return figures;
}

}  // namespace cli
