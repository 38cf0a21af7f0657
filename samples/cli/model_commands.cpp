// `mneme tokenize` and `mneme score`: what the model alone does, JSON lines in, JSON lines out, so that another engine
// can be compared on the same input. They need no store.
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <mneme/mneme.hpp>
#include <string>
#include <vector>

#include "samples/cli/commands.hpp"
#include "samples/cli/json_line.hpp"
#include "samples/cli/line_reader.hpp"

namespace cli {
namespace {

using nlohmann::json;

void append(std::string& text, std::int32_t value) {
  text += std::to_string(value);
}

// The shortest decimals that give the same float again; JSON has no NaN and no infinity: null.
void append(std::string& text, float value) {
  std::array<char, 32> digits{};
  const auto end = std::to_chars(digits.begin(), digits.end(), value).ptr;
  text += std::isfinite(value) ? std::string(digits.begin(), end) : "null";
}

template <class Value>
std::string array_of(const std::vector<Value>& values) {
  std::string text = "[";
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (i > 0) text += ',';
    append(text, values[i]);
  }
  return text + "]";
}

// Answers each line of standard input with one on standard output, at once. A defect ends it, naming the line.
Exit answer_lines(const std::function<std::string(const JsonLine&)>& answer) {
  LineReader lines("-");
  while (auto line = lines.next()) {
    if (line->text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string text = answer(JsonLine(*line, mneme::errc::invalid_argument));
    std::printf("%s\n", text.c_str());
    std::fflush(stdout);
  }
  return ok;
}

Exit tokenize(const std::string& model_path, mneme::Special special) {
  const auto model = mneme::Model::load(model_path);
  return answer_lines([&](const JsonLine& line) {
    line.only({"text"});
    return "{\"ids\":" + array_of(model.encode(line.text("text"), special)) + "}";
  });
}

std::vector<std::int32_t> ids_of(const JsonLine& line, std::int64_t n_vocab) {
  const json* value = line.find("ids");
  if (value == nullptr) line.fail("ids", "missing");
  if (!value->is_array()) line.fail("ids", std::string("not an array but ") + value->type_name());
  std::vector<std::int32_t> ids;
  for (const json& id : *value) {
    const bool in_range = id.is_number_integer() && id >= 0 && id < n_vocab;
    if (!in_range) {
      line.fail("ids", "element " + std::to_string(ids.size()) + " is not a token id from 0 to " +
                           std::to_string(n_vocab - 1));
    }
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

std::vector<mneme::ScoreSegment> segments_of(const JsonLine& line, std::size_t n_ids) {
  const json* value = line.find("segments");
  if (value == nullptr) return {};
  if (!value->is_array()) line.fail("segments", std::string("not an array but ") + value->type_name());
  std::vector<mneme::ScoreSegment> segments;
  std::size_t covered = 0;
  for (const json& pair : *value) {
    const std::string element = "element " + std::to_string(segments.size());
    const bool formed = pair.is_array() && pair.size() == 2 && pair[0].is_number_unsigned() && pair[1].is_string();
    const bool known = formed && (pair[1] == "prefill" || pair[1] == "decode");
    if (!known) line.fail("segments", element + " is not [count, \"prefill\"] or [count, \"decode\"]");
    const auto n_tokens = pair[0].get<std::size_t>();
    if (n_tokens > n_ids - covered)
      line.fail("segments", element + " goes beyond the " + std::to_string(n_ids) + " ids");
    covered += n_tokens;
    segments.push_back(
        {n_tokens, pair[1] == "decode" ? mneme::ScoreSegment::Kind::decode : mneme::ScoreSegment::Kind::prefill});
  }
  if (covered != n_ids) {
    line.fail("segments", "they cover " + std::to_string(covered) + " of " + std::to_string(n_ids) + " ids");
  }
  return segments;
}

struct ScoreFlags {
  std::string model, memory, device = "auto";
  bool full = false;
  int threads = 0;
};

Exit score(const ScoreFlags& flags) {
  mneme::ScorerOptions options;
  options.full_attention = flags.full;
  options.device = flags.device;
  options.threads = flags.threads;
  if (!flags.memory.empty()) options.memory = mneme::MemoryOptions::from_json(flags.memory);
  const auto model = mneme::Model::load(flags.model);
  const std::int64_t n_vocab = model.info().n_vocab;
  mneme::Scorer scorer(model, options);
  return answer_lines([&](const JsonLine& line) {
    line.only({"ids", "segments"});
    const auto ids = ids_of(line, n_vocab);
    const auto segments = segments_of(line, ids.size());
    const mneme::Score result = scorer.score(ids, segments);
    return "{\"nll\":" + array_of(result.nll) + ",\"top1\":" + array_of(result.top1) + "}";
  });
}

}  // namespace

void add_tokenize(CLI::App& app, Chosen& chosen) {
  struct Flags {
    std::string model;
    bool special = false;
  };
  auto flags = std::make_shared<Flags>();  // shared by the parser and the chosen command, as below
  CLI::App* command = app.add_subcommand("tokenize", "JSON lines {\"text\":...} in, {\"ids\":[...]} out.");
  command->add_option("--model", flags->model, "GGUF file")->required();
  command->add_flag("--special", flags->special, "text that spells a control token becomes that token");
  command->callback([flags, &chosen] {
    chosen = [flags] {
      return tokenize(flags->model, flags->special ? mneme::Special::parse : mneme::Special::literal);
    };
  });
}

void add_score(CLI::App& app, Chosen& chosen) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* command = app.add_subcommand("score",
                                         "JSON lines {\"ids\":[...],\"segments\":[[n,\"prefill\"|\"decode\"],...]} in, "
                                         "{\"nll\":[...],\"top1\":[...]} out.");
  command->add_option("--model", flags->model, "GGUF file")->required();
  CLI::Option* full = command->add_flag("--full", flags->full, "full attention");
  command
      ->add_option(
          "--memory", flags->memory,
          "with the memory, its parameters changed by this JSON object: n_init, n_local, block, topk, repr_topk, "
          "exec_chunk, cached_blocks, selector, page, shortlist, voters, global_distance")
      ->excludes(full);
  command->add_option("--device", flags->device, "auto, cpu or cuda:N")->capture_default_str();
  command->add_option("--threads", flags->threads, "of the kernels; 0: one per core")
      ->capture_default_str()
      ->check(CLI::Range(0, 256));
  command->callback([flags, &chosen] { chosen = [flags] { return score(*flags); }; });
}

}  // namespace cli
