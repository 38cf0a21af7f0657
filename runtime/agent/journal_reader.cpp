// See journal_reader.hpp.
#include "runtime/agent/journal_reader.hpp"

#include <mneme/error.hpp>
#include <utility>

namespace mneme::agent {
namespace {

constexpr std::size_t kSegmentsPerStep = 8;

bool is_answer(const store::SegmentRecord& segment) {
  return segment.kind == store::SegmentKind::decode && segment.source == store::SegmentSource::turn;
}

}  // namespace

JournalReader::JournalReader(std::shared_ptr<StorageThread> storage, std::int64_t agent_id,
                             std::shared_ptr<const model::ModelFile> model, bool decodes_last,
                             std::shared_ptr<TurnHandle> handle, std::uint64_t from_pos)
    : storage_(std::move(storage)),
      agent_id_(agent_id),
      model_(std::move(model)),
      decodes_last_(decodes_last),
      handle_(handle),
      from_pos_(from_pos) {
  result_.finish = Finish::stop;
}

void JournalReader::start() {
  const auto handle = handle_.lock();
  handle->stream().set_on_room([self = shared_from_this()] { self->post(); });
  handle->set_on_stop([self = shared_from_this()](Finish) { self->post(); });
  post();
}

void JournalReader::post() {
  storage_->post([self = shared_from_this()](store::StoreFile& file) {
    try {
      self->step(file);
    } catch (const Error& e) {
      if (const auto handle = self->handle_.lock()) handle->finish(e.code(), self->result_);
    }
  });
}

void JournalReader::step(store::StoreFile& file) {
  const auto handle = handle_.lock();
  if (!handle) return;
  if (handle->control().stop != Finish::open) {
    result_.finish = Finish::cancelled;
    handle->finish({}, result_);
    return;
  }
  if (!std::exchange(started_, true)) find_start(file);
  if (segments_.empty()) {
    for (store::SegmentRecord& segment : file.segments(agent_id_, pos_, kSegmentsPerStep)) {
      pos_ = segment.first_pos + segment.tokens.size();
      segments_.push_back(std::move(segment));
    }
  }
  if (segments_.empty()) {
    end(file);
    return;
  }
  while (!segments_.empty()) {
    if (is_answer(segments_.front()) && !give_segment(file, segments_.front()))
      return;  // on_room() posts the next step
    segments_.pop_front();
    offset_ = 0;
  }
  post();
}

// Text needs the turn's tokens from its first one on: go back to where the turn of from_pos begins.
void JournalReader::find_start(store::StoreFile& file) {
  pos_ = from_pos_;
  auto found = file.segments(agent_id_, pos_, 1);
  if (found.empty()) return;
  const std::uint64_t turn = found.front().source_id;
  if (!is_answer(found.front())) return;
  while (pos_ = found.front().first_pos, pos_ > 0) {
    found = file.segments(agent_id_, pos_ - 1, 1);
    if (found.empty() || !is_answer(found.front()) || found.front().source_id != turn) return;
  }
}

bool JournalReader::give_segment(store::StoreFile& file, const store::SegmentRecord& segment) {
  const auto handle = handle_.lock();
  if (!handle) return false;
  if (segment.source_id != result_.turn) {
    begin_turn(file, segment.source_id);
  }
  for (; offset_ < segment.tokens.size(); ++offset_) {
    const std::uint64_t pos = segment.first_pos + offset_;
    const std::int32_t id = segment.tokens[offset_];
    if (!model_->tokenizer().is_valid(id)) {
      throw Error(errc::store_corrupt,
                  "token " + std::to_string(id) + " at position " + std::to_string(pos) + " is not in the vocabulary");
    }
    const bool is_given = pos >= from_pos_;
    if (is_given && !handle->stream().reserve()) return false;
    std::string text = detokenizer_->push(id);
    if (!is_given) continue;
    if (result_.last_pos == 0) result_.first_pos = pos;
    result_.last_pos = pos + 1;
    result_.text += text;
    handle->stream().push({Token{id, pos, segment.source_id, std::move(text), 0.0F}});
  }
  return true;
}

void JournalReader::begin_turn(store::StoreFile& file, std::uint64_t turn) {
  const auto records = file.turns(agent_id_, turn - 1, 1);
  const bool has_prompt = !decodes_last_ || (!records.empty() && records.front().first_seg == 0);
  offset_ = has_prompt ? 1 : 0;  // the prompt's last token stands before the answer
  detokenizer_ = std::make_unique<model::Detokenizer>(model_->tokenizer());
  result_.turn = turn;
  result_.first_pos = result_.last_pos = 0;
  result_.text.clear();
}

void JournalReader::end(store::StoreFile& file) {
  const auto handle = handle_.lock();
  if (!handle) return;
  if (result_.turn != 0) {
    for (const store::TurnRecord& turn : file.turns(agent_id_, result_.turn - 1, 1)) {
      result_.finish = static_cast<Finish>(turn.finish);
    }
  }
  result_.usage.generated_tokens = result_.last_pos - result_.first_pos;
  handle->finish({}, result_);
}

}  // namespace mneme::agent
