// Quick start with coroutines: an agent that watches a house. Run it twice: it goes on where it was.
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <iostream>
#include <mneme/mneme.hpp>

boost::asio::awaitable<void> watch(mneme::Runtime& runtime) {
  auto agent = runtime.open(mneme::Model::load("smollm2.gguf"), mneme::Store::open("house.db"), "house");
  std::cout << "resumed at token " << agent.position() << "\n";
  auto receipt = co_await agent.async_post(mneme::Event("sensor", "front door opened", "evt-41"));  // now on disk
  std::cout << "event " << receipt.seq << (receipt.duplicate ? " was known\n" : " is on disk\n");
  co_await agent.async_post(mneme::Event::user("Which door?"));
  auto generation = agent.generate(mneme::GenerateOptions().max_tokens(64));
  while (auto token = co_await generation.async_next()) std::cout << token->text << std::flush;
  auto turn = co_await generation.async_result();  // now the turn is on disk
  std::cout << "\nturn " << turn.turn << " is on disk\n";
  runtime.stop();
}

int main() try {
  boost::asio::io_context io;
  mneme::Runtime runtime(io.get_executor());
  boost::asio::co_spawn(io, watch(runtime), [](std::exception_ptr e) {
    if (e) std::rethrow_exception(e);
  });
  runtime.async_run(boost::asio::detached);
  io.run();
} catch (const std::exception& e) {
  std::cerr << e.what() << "\n";
  return 1;
}
