// Checkpoints with their slices.
#include <algorithm>
#include <cstring>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>
#include <set>

#include "persistence/cache_rows.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

using memory::Image;
using memory::ImageHeader;
using memory::ImagePtr;
using memory::PayloadKind;

constexpr std::size_t kKeptCheckpoints = 2;

using SliceRange = std::pair<std::uint64_t, std::uint32_t>;  // first_pos, n_tokens

std::uint64_t slice_check(const Db& db, const BranchRow& branch, const SliceRange& range, std::int64_t payload_id) {
  return RowHash(db, "slice").number(branch.id).number(range.first).number(range.second).number(payload_id).value();
}

std::string slice_name(const AgentRow& agent, const SliceRange& range) {
  return "slice [" + std::to_string(range.first) + ", +" + std::to_string(range.second) + ") of " + quoted(agent);
}

std::string checkpoint_name(const AgentRow& agent, std::uint64_t pos) {
  return "checkpoint at " + std::to_string(pos) + " of " + quoted(agent);
}

void verify_slice(const Image& image, const SliceRange& range, const std::string& name) {
  const ImageHeader header = memory::verify_image(image, name);
  if (header.kind != PayloadKind::slice || header.first_pos != range.first || header.n_tokens != range.second)
    throw Error(errc::store_corrupt, name + ": its image is of another row");
}

void verify_accumulators(const Image& image, const std::string& name) {
  if (memory::verify_image(image, name).kind != PayloadKind::accumulators)
    throw Error(errc::store_corrupt, name + ": its image is of another row");
}

struct SliceRow {
  std::int64_t payload_id = 0;
  bool sound = false;  // its checksum matches
};

std::optional<SliceRow> find_slice(Db& db, const BranchRow& branch, const SliceRange& range) {
  auto q = db.query("SELECT payload_id, chk FROM slice WHERE branch_id=? AND first_pos=? AND n_tok=?", branch.id,
                    range.first, range.second);
  if (!q.step()) return std::nullopt;
  return SliceRow{q.i64(0), slice_check(db, branch, range, q.i64(0)) == q.u64(1)};
}

void write_slice(Db& db, const BranchRow& branch, const SliceRange& range, const Image& image) {
  const std::optional<SliceRow> old = find_slice(db, branch, range);
  if (old && old->sound) {
    if (payload_equals(db, old->payload_id, image)) return;
    delete_payload(db, old->payload_id);
  }
  const std::int64_t id = insert_payload(db, image);
  db.exec(
      "INSERT INTO slice(branch_id, first_pos, n_tok, payload_id, chk) VALUES(?, ?, ?, ?, ?)"
      " ON CONFLICT(branch_id, first_pos, n_tok) DO UPDATE SET payload_id=excluded.payload_id, chk=excluded.chk",
      branch.id, range.first, range.second, id, slice_check(db, branch, range, id));
}

struct CheckpointRow {
  std::uint64_t pos = 0;
  std::uint64_t seg = 0;
  std::int64_t numerics_id = 0;
  std::int64_t keep = 0;
  std::string state_json;
  std::vector<SliceRange> slices;
  std::optional<std::int64_t> payload_id;  // accumulators
};

constexpr std::size_t kRangeBytes = 12;  // u64 first_pos, u32 n_tokens

std::string pack(std::span<const SliceRange> ranges) {
  std::string bytes;
  for (const auto& [first, n] : ranges) {
    bytes.append(reinterpret_cast<const char*>(&first), sizeof first);
    bytes.append(reinterpret_cast<const char*>(&n), sizeof n);
  }
  return bytes;
}

std::vector<SliceRange> unpack(std::span<const std::byte> bytes) {
  std::vector<SliceRange> ranges(bytes.size() / kRangeBytes);
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    std::memcpy(&ranges[i].first, bytes.data() + i * kRangeBytes, sizeof ranges[i].first);
    std::memcpy(&ranges[i].second, bytes.data() + i * kRangeBytes + sizeof ranges[i].first, sizeof ranges[i].second);
  }
  return ranges;
}

std::uint64_t row_check(const Db& db, const BranchRow& branch, const CheckpointRow& c) {
  return RowHash(db, "checkpoint")
      .number(branch.id)
      .number(c.pos)
      .number(c.seg)
      .number(c.numerics_id)
      .number(c.keep)
      .text(c.state_json)
      .text(pack(c.slices))
      .number(c.payload_id ? 1 : 0)
      .number(c.payload_id.value_or(0))
      .value();
}

struct Listed {
  CheckpointRow row;
  bool sound = false;  // its checksum matches
};

// All checkpoints of the branch, newest first.
std::vector<Listed> list(Db& db, const BranchRow& branch) {
  std::vector<Listed> all;
  auto q = db.query(
      "SELECT pos, seg, numerics_id, keep, state_json, slices, payload_id, chk FROM checkpoint WHERE branch_id=?"
      " ORDER BY pos DESC",
      branch.id);
  while (q.step()) {
    Listed c;
    c.row.pos = q.u64(0);
    c.row.seg = q.u64(1);
    c.row.numerics_id = q.i64(2);
    c.row.keep = q.i64(3);
    c.row.state_json = q.text(4);
    const auto ranges = q.blob(5);
    c.row.slices = unpack(ranges);
    if (!q.is_null(6)) c.row.payload_id = q.i64(6);
    c.sound = ranges.size() % kRangeBytes == 0 && row_check(db, branch, c.row) == q.u64(7);
    all.push_back(std::move(c));
  }
  return all;
}

// The checkpoint with its images, all verified.
CheckpointRecord load(Db& db, const AgentRow& agent, const BranchRow& branch, const CheckpointRow& row) {
  CheckpointRecord record{row.seg, row.pos, row.state_json, {}, row.slices, nullptr};
  for (const SliceRange& range : row.slices) {
    const std::string name = slice_name(agent, range);
    const std::optional<SliceRow> slice = find_slice(db, branch, range);
    if (!slice) throw Error(errc::lineage_broken, name + " is missing");
    if (!slice->sound) corrupt(db, name + ": checksum of its row differs");
    record.slices.push_back(load_payload(db, slice->payload_id, name));
    verify_slice(*record.slices.back(), range, name);
  }
  if (row.payload_id) {
    const std::string name = "accumulators of the " + checkpoint_name(agent, row.pos);
    record.accumulators = load_payload(db, *row.payload_id, name);
    verify_accumulators(*record.accumulators, name);
  }
  return record;
}

void delete_checkpoint(Db& db, const BranchRow& branch, const CheckpointRow& row) {
  if (row.payload_id) delete_payload(db, *row.payload_id);
  db.exec("DELETE FROM checkpoint WHERE branch_id=? AND pos=?", branch.id, row.pos);
}

// Keeps the newest sound ones and the anchors; then deletes the slices that nothing refers to.
void prune(Db& db, const BranchRow& branch) {
  std::set<SliceRange> wanted;
  std::size_t kept = 0;
  for (const Listed& c : list(db, branch)) {
    const bool stays = c.sound && (c.row.keep != 0 || kept < kKeptCheckpoints);
    if (!stays) {
      if (c.sound) {
        delete_checkpoint(db, branch, c.row);
      } else {
        db.exec("DELETE FROM checkpoint WHERE branch_id=? AND pos=?", branch.id, c.row.pos);
      }
      continue;
    }
    if (c.row.keep == 0) ++kept;
    wanted.insert(c.row.slices.begin(), c.row.slices.end());
  }
  std::vector<std::pair<SliceRange, std::int64_t>> unwanted;
  {
    auto q = db.query("SELECT first_pos, n_tok, payload_id, chk FROM slice WHERE branch_id=?", branch.id);
    while (q.step()) {
      const SliceRange range{q.u64(0), static_cast<std::uint32_t>(q.u64(1))};
      if (wanted.count(range) == 0 && slice_check(db, branch, range, q.i64(2)) == q.u64(3))
        unwanted.push_back({range, q.i64(2)});
    }
  }
  for (const auto& [range, payload_id] : unwanted) {
    delete_payload(db, payload_id);
    db.exec("DELETE FROM slice WHERE branch_id=? AND first_pos=? AND n_tok=?", branch.id, range.first, range.second);
  }
}

}  // namespace

void write_checkpoint(Db& db, const AgentRow& agent, const BranchRow& branch, const CheckpointRecord& checkpoint) {
  const std::string name = checkpoint_name(agent, checkpoint.pos);
  if (checkpoint.pos > branch.head_pos || checkpoint.seg > branch.head_seg) {
    throw Error(errc::invalid_argument,
                name + " lies beyond the journal, which ends at " + std::to_string(branch.head_pos));
  }
  if (checkpoint.slices.size() != checkpoint.slice_ranges.size())
    throw Error(errc::invalid_argument, name + " has slices without ranges");
  CheckpointRow row{checkpoint.pos,        checkpoint.seg,          agent.numerics_id, 0,
                    checkpoint.state_json, checkpoint.slice_ranges, std::nullopt};
  for (const Listed& old : list(db, branch)) {
    if (old.row.pos != row.pos) continue;
    if (old.sound) row.keep = old.row.keep;
    delete_checkpoint(db, branch, old.sound ? old.row : CheckpointRow{row.pos, 0, 0, 0, {}, {}, std::nullopt});
  }
  for (std::size_t i = 0; i < checkpoint.slices.size(); ++i) {
    const SliceRange& range = checkpoint.slice_ranges[i];
    verify_slice(*checkpoint.slices[i], range, slice_name(agent, range));
    write_slice(db, branch, range, *checkpoint.slices[i]);
  }
  if (checkpoint.accumulators) {
    verify_accumulators(*checkpoint.accumulators, "accumulators of the " + name);
    row.payload_id = insert_payload(db, *checkpoint.accumulators);
  }
  const std::string ranges = pack(row.slices);
  db.exec(
      "INSERT INTO checkpoint(branch_id, pos, seg, numerics_id, keep, state_json, slices, payload_id, chk)"
      " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
      branch.id, row.pos, row.seg, row.numerics_id, row.keep, row.state_json, as_bytes(ranges), row.payload_id,
      row_check(db, branch, row));
  prune(db, branch);
}

std::optional<CheckpointRecord> load_checkpoint(Db& db, const AgentRow& agent, const BranchRow& branch,
                                                std::uint64_t max_pos) {
  for (const Listed& c : list(db, branch)) {
    if (!c.sound || c.row.pos > max_pos || c.row.pos > branch.head_pos) continue;
    try {
      return load(db, agent, branch, c.row);
    } catch (const Error& error) {
      if (!is_damage(error)) throw;  // a damaged one only costs replay from the one before
    }
  }
  return std::nullopt;
}

void check_checkpoints(Db& db, const AgentRow& agent, const std::function<void(const std::string&)>& found,
                       const std::function<void(std::uint64_t)>& visit) {
  Transaction snapshot(db, Transaction::Kind::read);
  const BranchRow branch = load_branch(db, agent.branch_id);
  for (const Listed& c : list(db, branch)) {
    if (!c.sound) {
      found(checkpoint_name(agent, c.row.pos) + ": checksum of its row differs");
      continue;
    }
    try {
      const CheckpointRecord record = load(db, agent, branch, c.row);
      for (const ImagePtr& slice : record.slices) visit(slice->size());
      if (record.accumulators) visit(record.accumulators->size());
      visit(record.state_json.size());
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      found(sentence_of(error));
    }
  }
}

}  // namespace mneme::store
