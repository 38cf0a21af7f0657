// Where Mneme's own messages go: a sink given by the program.
#pragma once

#include <functional>
#include <string_view>

namespace mneme {
inline namespace v1 {

enum class LogLevel { debug, info, warning, error };

// Receives one message without a newline. Called from any thread, never two at once for one runtime; must not throw.
// An empty function drops all messages.
using LogSink = std::function<void(LogLevel, std::string_view)>;

}  // namespace v1
}  // namespace mneme
