// The bounded stream between engine and reader, alone and under races.
#include "runtime/agent/token_stream.hpp"

#include <atomic>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <condition_variable>
#include <functional>
#include <future>
#include <mneme/error.hpp>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include <doctest/doctest.h>

namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using mneme::errc;
using mneme::Token;
using mneme::agent::TokenStream;

Token token(std::int32_t id) {
  Token made;
  made.id = id;
  made.text = std::to_string(id);
  return made;
}

struct Reader {
  std::vector<std::int32_t> ids;
  bool ended = false;
  error_code ec;
};

// Reads one after the other until the end.
void read_all(const std::shared_ptr<TokenStream>& stream, const asio::any_io_executor& executor, Reader& reader) {
  stream->next({[stream, executor, &reader](error_code ec, std::optional<Token> next) {
                  if (ec || !next.has_value()) {
                    reader.ec = ec;
                    reader.ended = true;
                    return;
                  }
                  reader.ids.push_back(next->id);
                  read_all(stream, executor, reader);
                },
                executor});
}

}  // namespace

TEST_CASE("tokens come out in order, buffered ones before the end, and the end is not an error") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  for (int i = 0; i < 5; ++i) {
    REQUIRE(stream->reserve());
    stream->push({token(i)});
  }
  stream->close({});
  Reader reader;
  read_all(stream, io.get_executor(), reader);
  CHECK(reader.ids.empty());  // nothing runs inside the call
  io.run();
  CHECK(reader.ids == std::vector<std::int32_t>{0, 1, 2, 3, 4});
  CHECK(reader.ended);
  CHECK_FALSE(reader.ec.failed());
}

TEST_CASE("a failed turn gives its error after its last token") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  REQUIRE(stream->reserve());
  stream->push({token(1)});
  stream->close(make_error_code(errc::store_io));
  Reader reader;
  read_all(stream, io.get_executor(), reader);
  io.run();
  CHECK(reader.ids.size() == 1);
  CHECK(reader.ec == errc::store_io);
}

TEST_CASE("a second consumer is refused while one waits") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  Reader first, second;
  read_all(stream, io.get_executor(), first);
  read_all(stream, io.get_executor(), second);
  io.poll();
  CHECK(second.ec == errc::already_waiting);
  CHECK_FALSE(first.ended);
  stream->close({});
  io.restart();
  io.run();
  CHECK(first.ended);
}

TEST_CASE("a pending wait keeps the executor busy, a cancelled one loses no token") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  asio::cancellation_signal signal;
  error_code got;
  stream->next({asio::bind_cancellation_slot(signal.slot(), [&](error_code ec, std::optional<Token>) { got = ec; }),
                io.get_executor()});
  CHECK(io.poll() == 0);
  CHECK_FALSE(io.stopped());
  signal.emit(asio::cancellation_type::terminal);
  io.run();
  CHECK(got == asio::error::operation_aborted);
  REQUIRE(stream->reserve());
  stream->push({token(7)});
  CHECK(stream->try_next()->id == 7);
}

TEST_CASE("next_some takes what is there, up to the span") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  for (int i = 0; i < 5; ++i) {
    REQUIRE(stream->reserve());
    stream->push({token(i)});
  }
  std::vector<Token> buffer(3);
  std::size_t got = 0;
  const auto take = [&] {
    stream->next_some({[&](error_code, std::size_t n) { got = n; }, io.get_executor()}, buffer);
    io.restart();
    io.run();
  };
  take();
  CHECK(got == 3);
  CHECK(buffer[2].id == 2);
  take();
  CHECK(got == 2);
  stream->close({});
  take();
  CHECK(got == 0);
}

TEST_CASE("a full ring refuses room and announces it once a quarter is free") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  int announced = 0;
  stream->set_on_room([&] { ++announced; });
  for (std::uint64_t i = 0; i < TokenStream::kRing; ++i) {
    REQUIRE(stream->reserve());
    stream->push({token(static_cast<std::int32_t>(i))});
  }
  CHECK_FALSE(stream->reserve());
  for (std::uint64_t i = 0; i < TokenStream::kRing / 4; ++i) {
    CHECK(announced == 0);
    REQUIRE(stream->try_next().has_value());
  }
  CHECK(announced == 1);
  CHECK(stream->reserve());
}

TEST_CASE("the bound is lifted for a reader that waits for the result, and abandoned streams take everything") {
  asio::io_context io;
  for (const bool abandon : {false, true}) {
    CAPTURE(abandon);
    const auto stream = std::make_shared<TokenStream>(io.get_executor());
    while (stream->reserve()) stream->push({token(1)});
    int announced = 0;
    stream->set_on_room([&] { ++announced; });
    abandon ? stream->abandon() : stream->lift_bound();
    CHECK(announced == 1);
    CHECK(stream->reserve());
    CHECK(stream->try_next().has_value() == !abandon);
  }
}

TEST_CASE("push mode calls back in order on the executor, and drained comes last") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  std::vector<std::int32_t> seen;
  bool drained = false;
  stream->set_callback([&](const Token& next) { seen.push_back(next.id); }, [](std::exception_ptr) {});
  for (int i = 0; i < 100; ++i) {
    REQUIRE(stream->reserve());
    stream->push({token(i)});
  }
  stream->when_drained([&] {
    CHECK(seen.size() == 100);
    drained = true;
  });
  stream->close({});
  CHECK(seen.empty());
  io.run();
  CHECK(drained);
  CHECK(seen[99] == 99);
}

TEST_CASE("a callback that throws is not called again") {
  asio::io_context io;
  const auto stream = std::make_shared<TokenStream>(io.get_executor());
  int calls = 0, threw = 0;
  stream->set_callback(
      [&](const Token& next) {
        ++calls;
        if (next.id == 2) throw std::runtime_error("enough");
      },
      [&](std::exception_ptr thrown) { threw += thrown ? 1 : 0; });
  for (int i = 0; i < 10; ++i) {
    REQUIRE(stream->reserve());
    stream->push({token(i)});
  }
  bool drained = false;
  stream->when_drained([&] { drained = true; });
  stream->close({});
  io.run();
  CHECK(calls == 3);
  CHECK(threw == 1);
  CHECK(drained);
}

TEST_CASE("a producer and a reader on different threads, with random cancellation, lose and repeat nothing") {
  constexpr int kTokens = 20000;
  asio::thread_pool pool(2);
  const asio::any_io_executor executor = asio::make_strand(pool);
  const auto stream = std::make_shared<TokenStream>(executor);
  std::mutex mutex;
  std::condition_variable room;
  bool has_room = true;
  stream->set_on_room([&] {
    const std::lock_guard lock(mutex);
    has_room = true;
    room.notify_one();
  });
  std::thread producer([&] {
    for (int i = 0; i < kTokens; ++i) {
      while (!stream->reserve()) {
        std::unique_lock lock(mutex);
        room.wait(lock, [&] { return has_room; });
        has_room = false;
      }
      stream->push({token(i)});
    }
    stream->close({});
  });
  std::vector<std::int32_t> seen;
  std::promise<void> ended;
  asio::cancellation_signal signal;
  std::function<void()> read = [&] {
    stream->next({asio::bind_cancellation_slot(signal.slot(),
                                               [&](error_code ec, std::optional<Token> next) {
                                                 if (ec == asio::error::operation_aborted) return read();
                                                 if (!next.has_value()) return ended.set_value();
                                                 seen.push_back(next->id);
                                                 read();
                                                 if (seen.size() % 7 == 0) signal.emit(asio::cancellation_type::total);
                                               }),
                  executor});
  };
  asio::post(executor, read);
  ended.get_future().wait();
  producer.join();
  pool.join();
  REQUIRE(seen.size() == kTokens);
  for (int i = 0; i < kTokens; ++i) CHECK(seen[static_cast<std::size_t>(i)] == i);
}
