// The async_* templates: each starts an operation in the library with the handler's type erased, so any completion
// token works.
#pragma once

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/deferred.hpp>
#include <mneme/core.hpp>
#include <utility>

namespace mneme {
inline namespace v1 {

template <class T>
auto Model::async_load(Runtime& runtime, std::filesystem::path path, ModelOptions options, T&& token) {
  return asio::async_initiate<T, void(error_code, Model)>(
      [](LoadHandler handler, Runtime* on, std::filesystem::path file, ModelOptions with) {
        start_load(std::move(handler), *on, std::move(file), std::move(with));
      },
      token, &runtime, std::move(path), std::move(options));
}

template <class T>
auto Runtime::async_open(Model model, Store store, std::string agent, AgentOptions options, T&& token) {
  return asio::async_initiate<T, void(error_code, Agent)>(
      [](OpenHandler handler, Runtime* self, Model of, Store in, std::string name, AgentOptions with) {
        self->start_open(std::move(handler), std::move(of), std::move(in), std::move(name), std::move(with));
      },
      token, this, std::move(model), std::move(store), std::move(agent), std::move(options));
}

template <class T>
auto Runtime::async_run(T&& token) {
  return asio::async_initiate<T, void(error_code)>(
      [](RunHandler handler, Runtime* self) { self->start_run(std::move(handler)); }, token, this);
}

template <class T>
auto Agent::async_post(Event event, T&& token) {
  return asio::async_initiate<T, void(error_code, Receipt)>(
      [](PostHandler handler, Agent self, Event posted) { self.start_post(std::move(handler), std::move(posted)); },
      token, *this, std::move(event));
}

template <class T>
auto Agent::async_absorb(std::uint64_t seq, T&& token) {
  return asio::async_initiate<T, void(error_code)>(
      [](VoidHandler handler, Agent self, std::uint64_t upto) { self.start_absorb(std::move(handler), upto); }, token,
      *this, seq);
}

template <class T>
auto Agent::async_ask(Event event, GenerateOptions options, T&& token) {
  return asio::async_initiate<T, void(error_code, TurnResult)>(
      [](AskHandler handler, Agent self, Event asked, GenerateOptions with) {
        self.start_ask(std::move(handler), std::move(asked), std::move(with));
      },
      token, *this, std::move(event), std::move(options));
}

template <class T>
auto Agent::async_checkpoint(T&& token) {
  return asio::async_initiate<T, void(error_code, CheckpointInfo)>(
      [](CheckpointHandler handler, Agent self) { self.start_checkpoint(std::move(handler)); }, token, *this);
}

template <class T>
auto Agent::async_close(T&& token) {
  return asio::async_initiate<T, void(error_code)>(
      [](VoidHandler handler, Agent self) { self.start_close(std::move(handler)); }, token, *this);
}

template <class T>
auto Generation::async_next(T&& token) {
  return asio::async_initiate<T, void(error_code, std::optional<Token>)>(
      [](NextHandler handler, Generation self) { self.start_next(std::move(handler)); }, token, *this);
}

template <class T>
auto Generation::async_next_some(std::span<Token> tokens, T&& token) {
  return asio::async_initiate<T, void(error_code, std::size_t)>(
      [](SomeHandler handler, Generation self, std::span<Token> into) {
        self.start_next_some(std::move(handler), into);
      },
      token, *this, tokens);
}

template <class T>
auto Generation::async_result(T&& token) {
  return asio::async_initiate<T, void(error_code, TurnResult)>(
      [](ResultHandler handler, Generation self) { self.start_result(std::move(handler)); }, token, *this);
}

}  // namespace v1
}  // namespace mneme
