// Quick start with callbacks: an agent that watches a house. Run it twice: it goes on where it was.
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <iostream>
#include <mneme/mneme.hpp>

int main() try {
  boost::asio::io_context io;
  mneme::Runtime runtime(io.get_executor());
  auto agent = runtime.open(mneme::Model::load("smollm2.gguf"), mneme::Store::open("house.db"), "house");
  std::cout << "resumed at token " << agent.position() << "\n";
  auto options = mneme::GenerateOptions().max_tokens(64).on_token(
      [](const mneme::Token& token) { std::cout << token.text << std::flush; });
  agent.async_post({"sensor", "front door opened", "evt-41"}, [&](mneme::error_code ec, mneme::Receipt receipt) {
    if (ec) return std::cerr << ec.message() << "\n", runtime.stop();
    std::cout << "event " << receipt.seq << (receipt.duplicate ? " was known\n" : " is on disk\n");
    agent.async_ask(mneme::Event::user("Which door?"), options, [&](mneme::error_code ec, mneme::TurnResult turn) {
      std::cout << "\n" << (ec ? ec.message() : "turn " + std::to_string(turn.turn) + " is on disk") << "\n";
      runtime.stop();
    });
  });
  runtime.async_run(boost::asio::detached);
  io.run();
} catch (const mneme::Error& e) {
  std::cerr << e.what() << "\n";
  return 1;
}
