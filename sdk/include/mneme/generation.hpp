// One turn of an agent: pull its tokens, wait for its result, cancel it.
#pragma once

#include <memory>
#include <mneme/error.hpp>
#include <mneme/types.hpp>
#include <mneme/version.hpp>
#include <optional>
#include <span>

namespace boost::asio {
class deferred_t;
template <typename... Signatures>
class any_completion_handler;
}  // namespace boost::asio

namespace mneme {
inline namespace v1 {

namespace asio = boost::asio;
namespace detail {
struct GenerationState;
}

// A shared handle, safe from any thread (assigning or destroying one handle is not, as with shared_ptr). Dropping all
// handles does not stop the turn. At most 256 tokens wait here; when that many do, the agent's decoding pauses until a
// quarter is taken.
class MNEME_API Generation {
 public:
  Generation() = default;

  // void(error_code, std::optional<Token>). Empty: the end. A failed turn gives its error after its last token. A
  // second waiting consumer gets already_waiting. Cancelling the wait loses no token and does not touch the turn.
  template <class T = asio::deferred_t>
  auto async_next(T&& token = {});
  // void(error_code, std::size_t): fills 1..n of `tokens`, which must outlive the call; 0: the end.
  template <class T = asio::deferred_t>
  auto async_next_some(std::span<Token> tokens, T&& token = {});
  // void(error_code, TurnResult): completes when the turn's end is committed. Any number may wait.
  template <class T = asio::deferred_t>
  auto async_result(T&& token = {});

  std::optional<Token> try_next();  // never waits; empty: none now
  bool finished() const;            // the result is there
  // The result, or empty while the turn runs. `ec` gets the error of a failed turn.
  std::optional<TurnResult> try_result(error_code& ec) const;
  // The turn ends after its current token, with Finish::cancelled; the tokens computed until then are delivered.
  void cancel() noexcept;

  explicit Generation(std::shared_ptr<detail::GenerationState> state) noexcept;  // for the library

 private:
  using NextHandler = asio::any_completion_handler<void(error_code, std::optional<Token>)>;
  using SomeHandler = asio::any_completion_handler<void(error_code, std::size_t)>;
  using ResultHandler = asio::any_completion_handler<void(error_code, TurnResult)>;
  void start_next(NextHandler handler);
  void start_next_some(SomeHandler handler, std::span<Token> tokens);
  void start_result(ResultHandler handler);

  std::shared_ptr<detail::GenerationState> state_;  // shared between the handles and the agent
};

}  // namespace v1
}  // namespace mneme
