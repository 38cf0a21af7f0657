// The sample store.
#include "tests/support/sample_store.hpp"

#include <cstring>
#include <mneme/error.hpp>
#include <stdexcept>

#include "tests/support/store_images.hpp"

namespace mneme::test {
namespace {

constexpr char kRunsMagic[] = "MNRUNS1\n";
constexpr std::size_t kGap = 32;  // a shorter run of zeros is not worth two headers

std::vector<std::int32_t> tokens(std::int32_t first, std::size_t n) {
  std::vector<std::int32_t> out;
  for (std::size_t i = 0; i < n; ++i) out.push_back((first + static_cast<std::int32_t>(i) * 7) % 49152);
  return out;
}

store::ModelIdentity model(const std::string& tail) {
  return {std::string(62, 'a') + tail, std::string(62, 'b') + tail, std::string(62, 'c') + tail,
          R"({"architecture":"llama","n_layers":2})", R"({"block":16,"n_init":4,"n_local":32})"};
}

store::EventRecord event(const std::string& kind, const std::string& body, const std::string& key = "") {
  store::EventRecord e;
  e.key = key;
  e.kind = kind;
  e.source = kind == "observation" ? "front door" : "";
  e.trust = kind == "observation" ? -1 : 1;
  e.posted_us = 1'700'000'000'000'000 + static_cast<std::int64_t>(body.size());
  e.flags = key.empty() ? 0 : 1;
  e.body = body;
  return e;
}

// Absorbs event `seq` as a prefill segment of n tokens.
void absorb(store::StoreFile& store, const std::string& name, std::uint64_t seq, std::size_t n) {
  const auto agent = store.find_agent(name);
  store::ScheduleCommit commit;
  commit.segments.push_back({agent->head_seg, store::SegmentKind::prefill, agent->head_pos, store::SegmentSource::event,
                             seq, tokens(static_cast<std::int32_t>(seq) * 100, n)});
  commit.absorbed_seq = seq;
  store.commit(agent->id, commit);
}

enum class Ending { stop, left_open };

void turn(store::StoreFile& store, const std::string& name, std::size_t n_decoded, Ending ending) {
  const auto agent = store.find_agent(name);
  const std::uint64_t number = agent->n_turns + 1;
  store::ScheduleCommit start;
  start.turn_start = store::TurnRecord{number,
                                       agent->head_seg,
                                       0xDEADBEEF00ULL + number,
                                       R"({"temperature":0.7})",
                                       store::TurnFinish::open,
                                       0,
                                       1'700'000'000'100'000,
                                       0};
  start.segments.push_back({agent->head_seg, store::SegmentKind::prefill, agent->head_pos, store::SegmentSource::turn,
                            number, tokens(1, 3)});
  start.segments.push_back({agent->head_seg + 1, store::SegmentKind::decode, agent->head_pos + 3,
                            store::SegmentSource::turn, number, tokens(900, 1)});
  store.commit(agent->id, start);
  for (std::size_t i = 1; i < n_decoded; i += 10) {
    store::ScheduleCommit grow;
    grow.decoded = tokens(static_cast<std::int32_t>(1000 + i), std::min<std::size_t>(10, n_decoded - i));
    store.commit(agent->id, grow);
  }
  if (ending == Ending::left_open) return;
  store::ScheduleCommit end;
  end.turn_end = store::ScheduleCommit::TurnEnd{number, store::TurnFinish::stop, n_decoded, 1'700'000'000'200'000};
  store.commit(agent->id, end);
}

constexpr std::uint64_t kUnits = 8;
constexpr std::uint64_t kIndexed = 6;
constexpr std::uint64_t kSlicesFrom = 132;

void fill_house(store::StoreFile& store) {
  const std::int64_t id = store.create_agent("house", model("01"), 1'700'000'000'000'000).id;
  store.acquire(id, "build 1, scalar", 1'700'000'000'000'001);
  const store::EventRecord events[] = {
      event("system", "You keep a house."), event("user", "Where is the key?", "msg-1"),
      event("observation", "The d\xC3\xB6or opened.\nTwice.", "door-7"), event("user", std::string(3000, 'z'))};
  store.accept(id, events, store::Sync::normal);
  for (std::uint64_t seq = 1; seq <= 4; ++seq) absorb(store, "house", seq, 5 + seq * 3);
  turn(store, "house", 150, Ending::stop);
  turn(store, "house", 12, Ending::stop);
  turn(store, "house", 1, Ending::stop);
  store::CacheBatch rows;
  add_initial(rows);
  for (std::uint64_t unit = 0; unit < kUnits; ++unit) add_unit(rows, unit);
  for (std::uint64_t unit = 0; unit < kIndexed; ++unit) rows.index.push_back({unit, index_image(unit)});
  store.write_cache(id, rows);
  for (const std::uint64_t pos : {140U, 150U}) {
    store::CacheBatch batch;
    batch.checkpoint = sample_checkpoint(5, kSlicesFrom, pos);
    store.write_cache(id, batch);
  }
  store.release(id);
}

void fill_garden(store::StoreFile& store) {
  const std::int64_t id = store.create_agent("garden", model("02"), 1'700'000'000'300'000).id;
  store.acquire(id, "build 1, scalar", 1'700'000'000'300'001);
  const store::EventRecord events[] = {event("user", "Water the roses.", "msg-1"), event("user", "Now.")};
  store.accept(id, events, store::Sync::normal);
  absorb(store, "garden", 1, 9);
  turn(store, "garden", 5, Ending::left_open);
}

}  // namespace

void make_sample_store(const std::filesystem::path& path, const store::StoreFileOptions& options) {
  const auto store = store::StoreFile::open(path, options);
  fill_house(*store);
  fill_garden(*store);
}

std::string wrong_cache_row(store::StoreFile& store) {
  const auto reported = [](const Error& error) {
    return error.code() == errc::store_corrupt || error.code() == errc::lineage_broken;
  };
  const auto agent = store.find_agent("house");
  for (std::uint64_t unit = 0; unit < kUnits; ++unit) {
    try {
      const auto images = store.read_rows(agent->id, unit_keys(unit));
      if (*images[0] != *unit_image(unit, 0) || *images[1] != *unit_image(unit, 1))
        return "unit " + std::to_string(unit);
      if (unit < kIndexed && *store.read_index(agent->id, unit, 1)[0] != *index_image(unit))
        return "index " + std::to_string(unit);
    } catch (const Error& error) {
      if (!reported(error)) throw;
    }
  }
  const auto found = store.newest_checkpoint(agent->id, ~0ULL);
  if (!found) return {};
  if (found->pos != 140 && found->pos != 150) return "checkpoint at " + std::to_string(found->pos);
  const store::CheckpointRecord expected = sample_checkpoint(5, kSlicesFrom, found->pos);
  bool same = found->seg == expected.seg && found->state_json == expected.state_json &&
              found->slice_ranges == expected.slice_ranges && *found->accumulators == *expected.accumulators;
  for (std::size_t i = 0; same && i < expected.slices.size(); ++i) same = *found->slices[i] == *expected.slices[i];
  return same ? "" : "checkpoint at " + std::to_string(found->pos);
}

std::string pack_runs(const std::string& bytes) {
  std::string out = kRunsMagic;
  const auto append = [&](std::size_t begin, std::size_t end) {
    const std::uint32_t head[2] = {static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end - begin)};
    out.append(reinterpret_cast<const char*>(head), sizeof head);
    out.append(bytes, begin, end - begin);
  };
  for (std::size_t i = 0; i < bytes.size();) {
    if (bytes[i] == '\0') {
      ++i;
      continue;
    }
    const std::size_t next = bytes.find(std::string(kGap, '\0'), i);
    const std::size_t end = next == std::string::npos ? bytes.size() : next;
    append(i, end);
    i = end;
  }
  append(bytes.size(), bytes.size());
  return out;
}

std::string unpack_runs(const std::string& packed) {
  const std::size_t magic = sizeof kRunsMagic - 1;
  if (packed.compare(0, magic, kRunsMagic) != 0) throw std::runtime_error("not a file of runs");
  std::string bytes;
  for (std::size_t at = magic; at + 8 <= packed.size();) {
    std::uint32_t head[2];
    std::memcpy(head, packed.data() + at, sizeof head);
    at += sizeof head;
    if (head[1] > packed.size() - at || head[0] < bytes.size()) throw std::runtime_error("damaged file of runs");
    bytes.resize(head[0], '\0');
    bytes.append(packed, at, head[1]);
    at += head[1];
  }
  return bytes;
}

}  // namespace mneme::test
