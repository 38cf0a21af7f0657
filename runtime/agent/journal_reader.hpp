// Generated tokens of the past, read from the journal as a stream.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>

#include "persistence/records.hpp"
#include "runtime/agent/storage_thread.hpp"
#include "runtime/agent/turn_handle.hpp"
#include "runtime/model/detokenizer.hpp"
#include "runtime/model/model_file.hpp"

namespace mneme::agent {

// Gives `handle` the tokens of turns at positions >= from_pos, up to the journal's end as it is met, then the result:
// the last turn read, with the text of what was given. Works on the storage thread, a few segments at a time, and waits
// while the stream is full.
class JournalReader : public std::enable_shared_from_this<JournalReader> {
 public:
  JournalReader(std::shared_ptr<StorageThread> storage, std::int64_t agent_id,
                std::shared_ptr<const model::ModelFile> model, bool decodes_last, std::shared_ptr<TurnHandle> handle,
                std::uint64_t from_pos);
  void start();

 private:
  void post();
  void step(store::StoreFile& file);
  void find_start(store::StoreFile& file);
  bool give_segment(store::StoreFile& file, const store::SegmentRecord& segment);
  void begin_turn(store::StoreFile& file, std::uint64_t turn);
  void end(store::StoreFile& file);

  const std::shared_ptr<StorageThread> storage_;
  const std::int64_t agent_id_;
  const std::shared_ptr<const model::ModelFile> model_;
  const bool decodes_last_;                 // of the template: turns have no prompt (PromptBuilder)
  const std::weak_ptr<TurnHandle> handle_;  // a reader whose handles are gone stops
  const std::uint64_t from_pos_;
  bool started_ = false;
  std::uint64_t pos_ = 0;  // read up to here
  std::deque<store::SegmentRecord> segments_;
  std::size_t offset_ = 0;  // in the front segment
  std::unique_ptr<model::Detokenizer> detokenizer_;
  TurnResult result_;
};

}  // namespace mneme::agent
