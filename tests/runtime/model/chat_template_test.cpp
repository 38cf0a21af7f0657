// Chat formats against what the published templates write, and what content can never do.
#include "runtime/model/chat_template.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <mneme/error.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/detokenizer.hpp"
#include "runtime/model/identity.hpp"
#include "tests/runtime/model/jsonl.hpp"

namespace {

using namespace mneme::model;
using mneme::errc;
using mneme::Error;
using mneme::test::Differences;
using mneme::test::golden_lines;
using mneme::test::read_json_vocab;
using mneme::test::shown;
using nlohmann::json;
using Ids = std::vector<TokenId>;

// A published template: its conversations in templates/FAMILY.jsonl, our renderer, and the BOS text that it writes.
struct Family {
  std::string file, renderer, bos;
};

const std::vector<Family>& families() {
  static const std::vector<Family> all = {
      {"smollm2", "smollm2", ""},
      {"chatml", "chatml", ""},
      {"qwen2.5", "qwen2.5", ""},
      {"qwen3", "qwen3", ""},
      {"llama3", "llama3", "<|begin_of_text|>"},
      {"llama3-genprompt", "llama3", "<|begin_of_text|>"},
      {"llama3.1", "llama3.1", "<|begin_of_text|>"},
      {"mistral-v1", "mistral-v1", "<s>"},
      {"mistral-v3", "mistral-v3", "<s>"},
      {"mistral-v3-tekken", "mistral-v3-tekken", "<s>"},
      {"mistral-v7", "mistral-v7", "<s>"},
      {"phi3.5", "phi3", ""},
      {"phi4", "phi4", ""},
      {"gemma2", "gemma", "<bos>"},
      {"gemma3", "gemma", "<bos>"},
  };
  return all;
}

Role role_of(const json& message) {
  if (message["role"] == "system") return Role::system;
  return message["role"] == "user" ? Role::user : Role::assistant;
}

// Calls begin, turn for each message and generation_prompt if asked for, and joins what they give.
template <typename Begin, typename Turn, typename Prompt>
void walk(const json& conversation, Begin begin, Turn turn, Prompt prompt) {
  const json& messages = conversation["messages"];
  TurnContext context;
  begin(role_of(messages[0]));
  for (const json& message : messages) {
    turn(role_of(message), message["content"].get_ref<const std::string&>(), context);
    context.previous = role_of(message);
  }
  if (conversation["add_generation_prompt"]) prompt(context);
}

std::vector<TextSpan> render_text(const ChatRenderer& renderer, const json& conversation) {
  std::vector<TextSpan> spans;
  const auto add = [&](std::vector<TextSpan> more) { spans.insert(spans.end(), more.begin(), more.end()); };
  walk(
      conversation, [&](Role first) { add(renderer.begin(first)); },
      [&](Role role, const std::string& content, TurnContext context) { add(renderer.turn(role, content, context)); },
      [&](TurnContext context) { add(renderer.generation_prompt(context)); });
  return spans;
}

std::vector<Span> render_tokens(const ChatTemplate& chat, const json& conversation) {
  std::vector<Span> spans;
  const auto add = [&](std::vector<Span> more) { spans.insert(spans.end(), more.begin(), more.end()); };
  walk(
      conversation, [&](Role first) { add(chat.begin_stream(first)); },
      [&](Role role, const std::string& content, TurnContext context) {
        add(chat.render_turn(role, content, context));
      },
      [&](TurnContext context) { add(chat.generation_prompt(context)); });
  return spans;
}

std::string joined(const std::vector<TextSpan>& spans) {
  std::string text;
  for (const TextSpan& span : spans) text += span.text;
  return text;
}

// Conversations in which the published template does what an incremental renderer cannot or must not do
// (chat_renderers.hpp names them).
bool differs_by_design(const std::string& family, const json& conversation) {
  const json& messages = conversation["messages"];
  const auto has = [&](const char* role) {
    return std::any_of(messages.begin(), messages.end(), [&](const json& m) { return m["role"] == role; });
  };
  const bool ends_with_assistant = messages.back()["role"] == "assistant";
  if (family == "mistral-v1") return messages.size() == 1 && has("system");
  if (family == "gemma2" || family == "gemma3") return has("system") && messages.size() != 2;
  if (family == "mistral-v3" || family == "mistral-v3-tekken") return has("system") && messages.size() != 2;
  if (family == "qwen3") {
    const auto thinks = [](const json& m) {
      return m["content"].get<std::string>().find("</think>") != std::string::npos;
    };
    return ends_with_assistant || std::any_of(messages.begin(), messages.end(), thinks);
  }
  if (family == "phi3.5") {
    return std::any_of(messages.begin(), messages.end(),
                       [](const json& m) { return m["role"] == "system" && m["content"] == ""; });
  }
  if (family != "phi4") return false;
  // The assistant's header must come once after each user turn and nowhere else.
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const bool user = messages[i]["role"] == "user";
    const bool answered = i + 1 < messages.size() ? messages[i + 1]["role"] == "assistant"
                                                  : conversation["add_generation_prompt"].get<bool>();
    if (user != answered) return true;
  }
  return false;
}

// The published text, less what stands in for missing turn ends.
std::string expected_text(const Family& family, const ChatRenderer& renderer, const json& conversation) {
  std::string text = conversation["text"];
  if (conversation["add_generation_prompt"]) return text;
  std::string extra;
  if (family.file == "llama3") extra = joined(renderer.generation_prompt({}));
  if (family.file == "phi3.5") extra = "<|endoftext|>";
  REQUIRE(text.size() >= extra.size());
  CHECK(text.substr(text.size() - extra.size()) == extra);
  return text.substr(0, text.size() - extra.size());
}

// The tiny byte-level vocabulary with all markers of a renderer added as control tokens.
Tokenizer tokenizer_with_markers(const ChatRenderer& renderer) {
  Vocab vocab = read_json_vocab("tiny_bpe_vocab.json");
  for (const std::string_view marker : renderer.markers()) {
    const std::string text(marker_token(marker));
    if (std::find(vocab.tokens.begin(), vocab.tokens.end(), text) != vocab.tokens.end()) continue;
    if (marker == kEndOfSequence) vocab.eos = static_cast<TokenId>(vocab.tokens.size());
    vocab.tokens.push_back(text);
    vocab.types.push_back(TokenType::control);
  }
  return Tokenizer::create(std::move(vocab));
}

void check_origins(const Tokenizer& tokenizer, const std::vector<Span>& spans) {
  for (const Span& span : spans) {
    CHECK(!span.tokens.empty());
    for (const TokenId id : span.tokens) CHECK(tokenizer.is_structural(id) == (span.origin == Origin::structure));
  }
}

}  // namespace

TEST_CASE("every format writes what its published template writes") {
  for (const Family& family : families()) {
    const auto renderer = ChatRenderer::by_name(family.renderer);
    REQUIRE(renderer.has_value());
    Differences differences;
    std::size_t compared = 0;
    for (const json& line : golden_lines("templates", family.file + ".jsonl")) {
      const std::string text = family.bos + joined(render_text(*renderer, line));
      if (line.contains("error") || differs_by_design(family.file, line)) continue;
      ++compared;
      const std::string expected = expected_text(family, *renderer, line);
      if (text != expected) differences.add(family.file + ": " + shown(expected) + " got " + shown(text));
    }
    CHECK_MESSAGE(differences.count() == 0, family.file);
    CHECK_MESSAGE(compared >= 20, family.file << ": only " << compared << " conversations compared");
  }
}

TEST_CASE("SmolLM2's turns have the reference's ids, and content never becomes structure") {
  const auto tokenizer = mneme::test::real_tokenizer();
  if (!tokenizer) return;
  const auto chat = ChatTemplate::by_name("smollm2", *tokenizer);
  for (const json& line : golden_lines("templates", "smollm2.jsonl")) {
    const std::vector<Span> spans = render_tokens(chat, line);
    CHECK_MESSAGE(tokens_of(spans) == line["ids"].get<Ids>(), shown(line["messages"]));
    check_origins(*tokenizer, spans);
  }
  CHECK(tokens_of(chat.end_of_answer()) == Ids{2, 198});
  CHECK(tokens_of(chat.generation_prompt({Role::user})) == Ids{1, 520, 9531, 198});
}

TEST_CASE("tokens of all formats decode to the text of their spans") {
  for (const Family& family : families()) {
    const auto renderer = *ChatRenderer::by_name(family.renderer);
    const auto tokenizer = tokenizer_with_markers(renderer);
    const auto chat = ChatTemplate::by_name(family.renderer, tokenizer);
    for (const json& line : golden_lines("templates", family.file + ".jsonl")) {
      const std::vector<Span> spans = render_tokens(chat, line);
      check_origins(tokenizer, spans);
      std::string expected;
      for (const TextSpan& span : render_text(renderer, line)) {
        expected += span.origin == Origin::structure ? marker_token(span.text) : std::string_view(span.text);
      }
      CHECK_MESSAGE(decode_bytes(tokenizer, tokens_of(spans), StructuralText::shown) == expected,
                    family.file << " " << shown(line["messages"]));
    }
  }
}

TEST_CASE("a published template is found by its hash, and by its markers where the hash is unknown") {
  const auto reference = mneme::test::reference_dir();
  for (const Family& family : families()) {
    const auto directory = reference ? *reference / "model/templates" : mneme::test::data_dir() / "templates";
    const auto path = directory / (family.file + ".jinja");
    if (!std::filesystem::exists(path)) continue;  // the repository holds the freely licensed ones only
    const std::string text = mneme::test::read_file(path);
    REQUIRE(ChatRenderer::detect(text).has_value());
    CHECK(ChatRenderer::detect(text)->name() == family.renderer);
    const auto by_markers = ChatRenderer::detect(text + "{# changed #}");
    REQUIRE(by_markers.has_value());
    std::string expected = family.renderer;
    if (expected == "smollm2" || expected == "qwen2.5" || expected == "qwen3") expected = "chatml";
    if (expected == "llama3.1") expected = "llama3";
    CHECK_MESSAGE(by_markers->name() == expected, family.file);
    CHECK(by_markers->begin(Role::user).empty());  // a default text is known by hash only
  }
}

TEST_CASE("templates of other families are not recognised") {
  for (const char* text : {"", "{{ messages }}", "{{ '[INST] ' + message['content'] + ' [/INST]' }}",
                           "<|user|>\n{{ content }}</s>", "[INST] <<SYS>>\n"}) {
    CHECK_FALSE(ChatRenderer::detect(text).has_value());
  }
  const auto tokenizer = Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json"));
  for (const char* text : {"", "{{ messages }}"}) {
    try {
      ChatTemplate::detect(text, tokenizer);
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      CHECK(error.code() == errc::template_unsupported);
    }
  }
  CHECK_THROWS_WITH_AS(ChatTemplate::by_name("zephyr", tokenizer), doctest::Contains("mistral-v7"), Error);
}

TEST_CASE("a vocabulary without a marker is refused with the marker's name, unless it may be text") {
  const auto spm = Tokenizer::create(read_json_vocab("tiny_spm_vocab.json"));
  CHECK_THROWS_WITH_AS(ChatTemplate::by_name("chatml", spm), doctest::Contains("<|im_end|>"), Error);
  const auto chat = ChatTemplate::by_name("mistral-v1", spm);  // <s>, </s> and no [INST]
  const auto spans = chat.render_turn(Role::user, "hi [/INST]", {});
  check_origins(spm, spans);
  CHECK(decode_bytes(spm, tokens_of(spans), StructuralText::shown, TextStart::continues) ==
        " [INST] hi [/INST] [/INST]");
  CHECK(spans.front().origin == Origin::template_text);
  CHECK(tokens_of(chat.end_of_answer()) == Ids{2});
  CHECK(tokens_of(chat.begin_stream(Role::user)) == Ids{1});
}

TEST_CASE("content can never become structure") {
  const auto check = [](const Tokenizer& tokenizer, const ChatTemplate& chat, int n) {
    std::vector<std::string> parts = {"\n", " ", "system", "x", "\xE2", ""};
    for (TokenId id = 0; id < static_cast<TokenId>(tokenizer.n_vocab()); ++id) {
      if (tokenizer.is_structural(id)) parts.emplace_back(tokenizer.token_text(id));
    }
    std::mt19937 random(5);
    for (int i = 0; i < n; ++i) {
      std::string content;
      for (std::uint32_t k = random() % 6; k > 0; --k) {
        const std::string& part = parts[random() % parts.size()];
        content.insert(random() % (content.size() + 1), part);
      }
      const auto role = static_cast<Role>(random() % 3);
      const TurnContext context = {random() % 2 == 0 ? std::optional<Role>() : static_cast<Role>(random() % 3)};
      check_origins(tokenizer, chat.render_turn(role, content, context));
    }
  };
  for (const std::string_view name : ChatRenderer::names()) {
    const auto tokenizer = tokenizer_with_markers(*ChatRenderer::by_name(name));
    check(tokenizer, ChatTemplate::by_name(name, tokenizer), 200);
  }
  if (const auto tokenizer = mneme::test::real_tokenizer()) {
    check(*tokenizer, ChatTemplate::by_name("smollm2", *tokenizer), 1000);
  }
}

TEST_CASE("a token that joins template and content counts as content") {
  Vocab vocab = read_json_vocab("tiny_bpe_vocab.json");
  const auto newlines = static_cast<TokenId>(vocab.tokens.size());
  vocab.tokens.push_back(to_byte_alphabet("\n\n"));
  vocab.types.push_back(TokenType::normal);
  vocab.merges.push_back(to_byte_alphabet("\n") + " " + to_byte_alphabet("\n"));
  const auto tokenizer = Tokenizer::create(std::move(vocab));
  const auto chat = ChatTemplate::by_name("chatml", tokenizer);
  const auto spans = chat.render_turn(Role::user, "\n\nhi", {});
  REQUIRE(spans.size() == 5);  // <|im_start|> | user | \n\n \n hi | <|im_end|> | \n
  CHECK(spans[0].origin == Origin::structure);
  CHECK(spans[1].origin == Origin::template_text);
  CHECK(decode_text(tokenizer, spans[1].tokens) == "user");
  CHECK(spans[2].origin == Origin::event_text);
  CHECK(spans[2].tokens.front() == newlines);
  CHECK(spans[4].origin == Origin::template_text);
}

TEST_CASE("a stream begins with BOS once, and with the default system turn unless a system turn comes") {
  Vocab vocab = read_json_vocab("tiny_bpe_vocab.json");
  vocab.add_bos = true;
  const auto tokenizer = Tokenizer::create(std::move(vocab));
  const auto chat = ChatTemplate::by_name("smollm2", tokenizer);
  const auto with_user = chat.begin_stream(Role::user);
  CHECK(with_user.front().tokens.front() == *tokenizer.bos());
  CHECK(decode_text(tokenizer, tokens_of(with_user)) ==
        "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n");
  CHECK(std::none_of(with_user.begin(), with_user.end(), [](const Span& s) { return s.origin == Origin::event_text; }));
  CHECK(tokens_of(chat.begin_stream(Role::system)) == Ids{*tokenizer.bos()});
}

TEST_CASE("a system text that opens the user turn is closed by whatever comes next") {
  const auto gemma = *ChatRenderer::by_name("gemma");
  const TurnContext after_system = {Role::system};
  CHECK(joined(gemma.turn(Role::system, "S", {})) == "<start_of_turn>user\nS\n\n");
  CHECK(joined(gemma.turn(Role::user, " U ", after_system)) == "U<end_of_turn>\n");
  CHECK(joined(gemma.turn(Role::system, "T", after_system)) == "T\n\n");
  CHECK(joined(gemma.turn(Role::assistant, "A", after_system)) ==
        "<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n");
  CHECK(joined(gemma.generation_prompt(after_system)) == "<end_of_turn>\n<start_of_turn>model\n");
  const auto mistral = *ChatRenderer::by_name("mistral-v3");
  CHECK(joined(mistral.generation_prompt(after_system)) == "[/INST]");
  CHECK(joined(mistral.generation_prompt({Role::user})).empty());
}

TEST_CASE("tool results have a turn in some formats and an error in the others") {
  const auto tokenizer = Tokenizer::create(read_json_vocab("tiny_bpe_vocab.json"));
  const auto qwen = *ChatRenderer::by_name("qwen2.5");
  CHECK(joined(qwen.turn(Role::tool, "42", {Role::assistant})) ==
        "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n");
  const auto gemma = *ChatRenderer::by_name("gemma");
  CHECK_FALSE(gemma.supports(Role::tool));
  const auto with_markers = tokenizer_with_markers(gemma);
  CHECK_THROWS_WITH_AS(ChatTemplate::by_name("gemma", with_markers).render_turn(Role::tool, "42", {}),
                       doctest::Contains("gemma"), Error);
}

TEST_CASE("content that the vocabulary cannot express is reported") {
  Vocab vocab = read_json_vocab("tiny_bpe_vocab.json");
  const auto place = std::find(vocab.tokens.begin(), vocab.tokens.end(), "z");
  REQUIRE(place != vocab.tokens.end());
  *place = "no longer z";
  const auto tokenizer = Tokenizer::create(std::move(vocab));
  const auto chat = ChatTemplate::by_name("chatml", tokenizer);
  EncodeReport report;
  const auto spans = chat.render_turn(Role::user, "zz\xFFy", {}, &report);
  CHECK(report.dropped_bytes == 2);
  CHECK(report.replaced_bytes == 1);
  CHECK(decode_text(tokenizer, tokens_of(spans)) == "user\n\uFFFDy\n");
}

TEST_CASE("strip is Python's") {
  CHECK(strip(" \t\r\n\x0B\x0C a b \x1C\x1F") == "a b");
  CHECK(strip("\u00A0\u2003\u2028\u3000x\u0085\u1680") == "x");
  CHECK(strip("\u200Bx") == "\u200Bx");
  CHECK(strip("") == "");
  CHECK(strip(" \n ") == "");
}
