#include "samples/cli/session.hpp"

#include <csignal>
#include <cstdio>
#include <map>

#include "samples/cli/report.hpp"

namespace cli {
namespace {

mneme::AgentOptions agent_options(const AgentFlags& flags) {
  static const std::map<std::string, mneme::Durability> levels = {
      {"token", mneme::Durability::token}, {"unit", mneme::Durability::unit}, {"turn", mneme::Durability::turn}};
  mneme::AgentOptions options;
  options.durability(levels.at(flags.durability)).power_loss_safe(flags.power_loss_safe);
  if (!flags.memory.empty()) options.memory(mneme::MemoryOptions::from_json(flags.memory));
  return options;
}

void log(mneme::LogLevel level, std::string_view message) {
  if (level < mneme::LogLevel::warning) return;
  std::fprintf(stderr, "mneme: %.*s\n", static_cast<int>(message.size()), message.data());
}

void say_resumed(const mneme::ResumeReport& report, const std::string& name) {
  if (report.created) {
    std::fprintf(stderr, "agent %s: new\n", name.c_str());
    return;
  }
  std::fprintf(stderr, "agent %s: resumed at token %llu (%s), %llu tokens replayed, %llu events to read, %.2f s\n",
               name.c_str(), static_cast<unsigned long long>(report.position),
               report.exactness == mneme::Exactness::exact ? "exact" : "equivalent",
               static_cast<unsigned long long>(report.tokens_replayed),
               static_cast<unsigned long long>(report.pending_events), static_cast<double>(report.took.count()) / 1e6);
}

}  // namespace

void AgentFlags::declare(CLI::App& command) {
  command.add_option("--model", model, "GGUF file")->required();
  command.add_option("--store", store, "database file; made if it does not exist")->required();
  command.add_option("--agent", agent, "name of the agent; made if it does not exist")->required();
  command.add_option("--memory", memory, "memory parameters that differ from the model's preset, as a JSON object");
  command.add_option("--durability", durability, "what kill -9 may cost: token, unit or turn")
      ->capture_default_str()
      ->check(CLI::IsMember({"token", "unit", "turn"}));
  command.add_flag("--power-loss-safe", power_loss_safe, "accepted events survive power loss too");
  command.add_option("--device", device, "auto, cpu or cuda:N")->capture_default_str();
  command.add_option("--threads", threads, "of the kernels; 0: one per core")
      ->capture_default_str()
      ->check(CLI::Range(0, 256));
  command.add_option("--host-mib", host_mib, "memory for units and index, in MiB")
      ->capture_default_str()
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 24U));
  command.add_flag("-q,--quiet", quiet, "no notes on stderr");
}

Loop::Loop() : guard_(boost::asio::make_work_guard(io_)) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::thread([this, signals] {
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    io_.run();
  });
}

Loop::~Loop() {
  guard_.reset();
  thread_.join();
}

Session::Session(const AgentFlags& flags) {
  const auto options = agent_options(flags);
  const auto model = mneme::Model::load(flags.model);
  store_ = mneme::Store::open(flags.store);
  runtime_.emplace(
      loop_.io().get_executor(),
      mneme::RuntimeOptions().device(flags.device).threads(flags.threads).host_bytes(flags.host_mib << 20U).log(log));
  agent_ = runtime_->open(model, store_, flags.agent, options);
  if (!flags.quiet) say_resumed(agent_.resume_report(), flags.agent);
}

void Session::close() {
  take(agent_.async_close(boost::asio::use_future), "closing the agent");
}

}  // namespace cli
