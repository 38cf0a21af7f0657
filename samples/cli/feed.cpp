// `mneme feed`: posts the events of a file to an agent and waits until the model has read them.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <deque>
#include <future>
#include <memory>
#include <utility>

#include "samples/cli/commands.hpp"
#include "samples/cli/event_source.hpp"
#include "samples/cli/interrupt.hpp"
#include "samples/cli/progress.hpp"
#include "samples/cli/report.hpp"
#include "samples/cli/session.hpp"

namespace cli {
namespace {

using Clock = std::chrono::steady_clock;

struct FeedFlags {
  AgentFlags agent;
  SourceOptions source;
  std::string file = "-";
  bool progress = false, no_absorb = false, keep_going = false;
};

// Posts wait in the runtime's queue: a few are in flight so that commits are shared.
constexpr std::size_t kInFlight = 64;

class Feed {
 public:
  explicit Feed(const FeedFlags& flags)
      : flags_(flags),
        session_(flags.agent),
        interrupt_(session_.io()),
        lines_(flags.file, interrupt_.fd()),
        source_(lines_, flags.source),
        progress_(flags.agent.quiet ? Progress::Mode::off
                  : flags.progress  ? Progress::Mode::on
                                    : Progress::Mode::if_terminal),
        first_position_(session_.agent().resume_report().position) {}

  Exit run() {
    std::optional<mneme::Error> defect = post_all();
    if (!defect && !flags_.no_absorb) absorb();
    progress_.finish(fraction(), status());
    const Resident memory = resident();
    const mneme::Metrics metrics = session_.runtime().metrics();  // while the agent is open
    session_.close();
    summarise(memory, metrics);
    if (defect) throw *defect;
    return interrupt_.raised() ? interrupted : ok;
  }

 private:
  struct Posted {
    std::uint64_t line, end_bytes;
    std::future<mneme::Receipt> receipt;
  };
  struct Accepted {
    std::uint64_t seq, end_bytes;
  };

  // The first defect that ends the feed; every event before it is accepted.
  std::optional<mneme::Error> post_all() {
    for (bool more = true; more && !interrupt_.raised();) {
      try {
        more = post_next();
      } catch (const mneme::Error& defect) {
        if (!flags_.keep_going || defect.code() != mneme::errc::invalid_event) return settle(defect);
        say(defect);
        ++skipped_;
      }
    }
    return settle(std::nullopt);
  }

  bool post_next() {
    while (posted_.size() >= kInFlight) take_receipt();
    auto sourced = source_.next();
    if (!sourced) return false;
    posted_.push_back({sourced->line, sourced->end_bytes,
                       session_.agent().async_post(std::move(sourced->event), boost::asio::use_future)});
    show_progress();
    return true;
  }

  // Waits for the receipts that are still to come; what they tell of an earlier line comes first.
  std::optional<mneme::Error> settle(std::optional<mneme::Error> defect) {
    while (!posted_.empty()) {
      try {
        take_receipt();
      } catch (const mneme::Error& earlier) {
        const bool may_skip = flags_.keep_going && earlier.code() == mneme::errc::invalid_event;
        if (may_skip) {
          say(earlier);
          ++skipped_;
        } else if (!defect || !defect_is_of_agent_) {
          defect = earlier;
          defect_is_of_agent_ = true;
        }
      }
    }
    return defect;
  }

  // Takes the oldest receipt. Throws the post's error, naming the line.
  void take_receipt() {
    Posted oldest = std::move(posted_.front());
    posted_.pop_front();
    wait_showing(oldest.receipt);
    const auto receipt = session_.take(std::move(oldest.receipt), "line " + std::to_string(oldest.line));
    ++(receipt.duplicate ? duplicates_ : events_);
    last_seq_ = std::max(last_seq_, receipt.seq);
    accepted_.push_back({receipt.seq, oldest.end_bytes});
  }

  void absorb() {
    if (last_seq_ == 0 || interrupt_.raised()) return;
    auto absorbed = session_.agent().async_absorb(last_seq_, boost::asio::use_future);
    if (wait_showing(absorbed)) session_.take(std::move(absorbed), "reading the events");
  }

  // False: interrupted while the events are being read.
  template <class Result>
  bool wait_showing(std::future<Result>& result) {
    while (result.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) {
      show_progress();
      if (interrupt_.raised() && posted_.empty()) return false;
    }
    return true;
  }

  void show_progress() { progress_.show(fraction(), status()); }

  // The part of the file that the model has read; empty for a pipe.
  std::optional<double> fraction() {
    const std::uint64_t absorbed = session_.agent().watermarks().absorbed_seq;
    for (; !accepted_.empty() && accepted_.front().seq <= absorbed; accepted_.pop_front())
      read_bytes_ = accepted_.front().end_bytes;
    if (lines_.total_bytes() == 0) return std::nullopt;
    return static_cast<double>(read_bytes_) / static_cast<double>(lines_.total_bytes());
  }

  double seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }
  std::uint64_t tokens() { return session_.agent().position() - first_position_; }

  std::string status() {
    std::array<char, 160> text{};
    std::snprintf(text.data(), text.size(), "%llu events  %llu tokens  %.0f tok/s  resident %s",
                  static_cast<unsigned long long>(events_ + duplicates_), static_cast<unsigned long long>(tokens()),
                  static_cast<double>(tokens()) / seconds(), mib(resident().all_bytes).c_str());
    return text.data();
  }

  void summarise(const Resident& memory, const mneme::Metrics& metrics) {
    constexpr double kMiB = 1024.0 * 1024.0;
    const mneme::AgentMetrics agent = metrics.agents.empty() ? mneme::AgentMetrics() : metrics.agents.front();
    std::printf(
        "events=%llu duplicates=%llu skipped=%llu tokens=%llu seconds=%.2f tok_per_s=%.1f position=%llu "
        "resident_mib=%.1f weights_mib=%.1f units_mib=%.1f cache_mib=%.1f mapped_mib=%.1f peak_mib=%.1f "
        "database_mib=%.2f\n",
        static_cast<unsigned long long>(events_), static_cast<unsigned long long>(duplicates_),
        static_cast<unsigned long long>(skipped_), static_cast<unsigned long long>(tokens()), seconds(),
        static_cast<double>(tokens()) / seconds(), static_cast<unsigned long long>(session_.agent().position()),
        static_cast<double>(memory.all_bytes) / kMiB, static_cast<double>(metrics.weight_bytes) / kMiB,
        static_cast<double>(agent.device_bytes) / kMiB, static_cast<double>(agent.host_bytes) / kMiB,
        static_cast<double>(memory.mapped_file_bytes) / kMiB, static_cast<double>(memory.peak_bytes) / kMiB,
        static_cast<double>(session_.store().file_bytes()) / kMiB);
    std::fflush(stdout);
  }

  const FeedFlags& flags_;
  Session session_;
  Interrupt interrupt_;
  LineReader lines_;
  EventSource source_;
  Progress progress_;
  std::deque<Posted> posted_;      // receipts to come, oldest first
  std::deque<Accepted> accepted_;  // not yet read by the model, oldest first
  std::uint64_t events_ = 0, duplicates_ = 0, skipped_ = 0, last_seq_ = 0, read_bytes_ = 0;
  std::uint64_t first_position_ = 0;
  bool defect_is_of_agent_ = false;
  Clock::time_point started_ = Clock::now();
};

}  // namespace

void add_feed(CLI::App& app, Chosen& chosen) {
  auto flags = std::make_shared<FeedFlags>();  // shared by the parser and the chosen command
  CLI::App* command = app.add_subcommand("feed", "Post events to an agent, and wait until the model has read them.");
  flags->agent.declare(*command);
  command
      ->add_option("FILE", flags->file, "one JSON object a line: kind, body, key, source, time, trust, pin; -: stdin")
      ->capture_default_str();
  command->add_flag("--text", flags->source.plain_text, "FILE is plain text: each paragraph is an event");
  command->add_option("--kind", flags->source.kind, "kind of the events of plain text")->capture_default_str();
  command->add_option("--event-bytes", flags->source.event_bytes, "join paragraphs until an event has so many bytes")
      ->capture_default_str();
  command
      ->add_option("--key-prefix", flags->source.key_prefix,
                   "events without a key get this and their line number: a feed can run again without duplicates")
      ->check(CLI::Validator([](const std::string& text) { return std::string(text.size() > 480 ? "too long" : ""); },
                             "up to 480 bytes"));
  command->add_flag("--keep-going", flags->keep_going, "skip bad lines, and report them");
  command->add_flag("--no-absorb", flags->no_absorb, "end when the events are durable; they are read later");
  command->add_flag("--progress", flags->progress, "show progress even where stderr is not a terminal");
  command->callback([flags, &chosen] { chosen = [flags] { return Feed(*flags).run(); }; });
}

}  // namespace cli
