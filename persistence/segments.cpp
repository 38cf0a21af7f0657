// Segments of the journal: the schedule.
#include <algorithm>
#include <cstring>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

#include "persistence/journal.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

constexpr std::size_t kScanRows = 64;  // rows held at a time by find_events_at

struct SegmentRow {
  SegmentRecord record;
  std::int64_t numerics_id = 0;
  std::uint64_t chain = 0;
};

std::span<const std::byte> token_bytes(const SegmentRecord& s) {
  return std::as_bytes(std::span(s.tokens));
}

std::uint64_t chain_of(const Db& db, std::uint64_t previous, const BranchRow& branch, const SegmentRow& row) {
  const SegmentRecord& s = row.record;
  return RowHash(db, "segment")
      .number(previous)
      .number(branch.id)
      .number(s.seg)
      .number(static_cast<int>(s.kind))
      .number(s.first_pos)
      .number(static_cast<int>(s.source))
      .number(s.source_id)
      .number(row.numerics_id)
      .bytes(token_bytes(s))
      .value();
}

std::string segment_name(const AgentRow& agent, std::uint64_t seg) {
  return "segment " + std::to_string(seg) + " of " + quoted(agent);
}

std::uint64_t end_of(const SegmentRecord& s) {
  return s.first_pos + s.tokens.size();
}

// The chain value of the row before `seg`.
std::uint64_t chain_before(Db& db, const AgentRow& agent, const BranchRow& branch, std::uint64_t seg) {
  if (seg == 0) return 0;
  auto q = db.query("SELECT chain FROM segment WHERE branch_id=? AND seg=?", branch.id, seg - 1);
  if (!q.step()) corrupt(db, segment_name(agent, seg - 1) + " is missing");
  return q.u64(0);
}

SegmentRow decode_row(Db& db, const AgentRow& agent, const Query& q) {
  SegmentRow row;
  row.record.seg = q.u64(0);
  row.record.kind = static_cast<SegmentKind>(q.i64(1));
  row.record.first_pos = q.u64(2);
  row.record.source = static_cast<SegmentSource>(q.i64(4));
  row.record.source_id = q.u64(5);
  row.numerics_id = q.i64(6);
  row.chain = q.u64(7);
  const auto blob = q.blob(8);
  if (blob.empty() || blob.size() % sizeof(std::int32_t) != 0 || blob.size() / sizeof(std::int32_t) != q.u64(3))
    corrupt(db, segment_name(agent, row.record.seg) + ": the number of tokens differs");
  row.record.tokens.resize(blob.size() / sizeof(std::int32_t));
  std::memcpy(row.record.tokens.data(), blob.data(), blob.size());
  return row;
}

// Rows seg, seg + 1, ... at most `limit`, each verified against the one before; `chain` is that of row seg - 1.
std::vector<SegmentRow> read_rows(Db& db, const AgentRow& agent, const BranchRow& branch, std::uint64_t seg,
                                  std::uint64_t chain, std::size_t limit) {
  const std::uint64_t n = std::min<std::uint64_t>(limit, branch.head_seg - seg);
  std::vector<SegmentRow> rows;
  auto q = db.query(
      "SELECT seg, kind, first_pos, n_tok, source, source_id, numerics_id, chain, tok FROM segment"
      " WHERE branch_id=? AND seg>=? ORDER BY seg LIMIT ?",
      branch.id, seg, n);
  while (q.step()) {
    SegmentRow row = decode_row(db, agent, q);
    const std::uint64_t expected = seg + rows.size();
    if (row.record.seg != expected) corrupt(db, segment_name(agent, expected) + " is missing");
    chain = chain_of(db, chain, branch, row);
    if (chain != row.chain) corrupt(db, segment_name(agent, expected) + ": chain checksum differs");
    if (!rows.empty() && row.record.first_pos != end_of(rows.back().record))
      corrupt(db, segment_name(agent, expected) + ": does not start where the one before ends");
    rows.push_back(std::move(row));
  }
  if (rows.size() != n) corrupt(db, segment_name(agent, seg + rows.size()) + " is missing");
  const SegmentRow& last = rows.back();
  if (last.record.seg + 1 == branch.head_seg && (chain != branch.seg_chain || end_of(last.record) != branch.head_pos))
    corrupt(db, segment_name(agent, last.record.seg) + ": the chain differs from the branch's");
  return rows;
}

void insert_row(Db& db, BranchRow& branch, SegmentRow row) {
  const SegmentRecord& s = row.record;
  row.chain = chain_of(db, branch.seg_chain, branch, row);
  db.exec(
      "INSERT INTO segment(branch_id, seg, kind, first_pos, n_tok, source, source_id, numerics_id, chain, tok)"
      " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      branch.id, s.seg, static_cast<int>(s.kind), s.first_pos, s.tokens.size(), static_cast<int>(s.source), s.source_id,
      row.numerics_id, row.chain, token_bytes(s));
  branch.seg_chain = row.chain;
  branch.head_seg = s.seg + 1;
  branch.head_pos = end_of(s);
}

}  // namespace

std::vector<SegmentRecord> read_segments(Db& db, const AgentRow& agent, const BranchRow& branch, std::uint64_t from_pos,
                                         std::size_t limit) {
  if (from_pos >= branch.head_pos || limit == 0) return {};
  std::uint64_t seg = 0;
  {
    auto q = db.query("SELECT seg FROM segment WHERE branch_id=? AND first_pos<=? ORDER BY first_pos DESC LIMIT 1",
                      branch.id, from_pos);
    if (!q.step())
      corrupt(db, "the segment of position " + std::to_string(from_pos) + " of " + quoted(agent) + " is missing");
    seg = q.u64(0);
  }
  if (seg >= branch.head_seg) corrupt(db, segment_name(agent, seg) + ": lies beyond the branch's head");
  std::vector<SegmentRow> rows = read_rows(db, agent, branch, seg, chain_before(db, agent, branch, seg), limit);
  const SegmentRecord& first = rows.front().record;
  if (from_pos < first.first_pos || from_pos >= end_of(first))
    corrupt(db, "the segment of position " + std::to_string(from_pos) + " of " + quoted(agent) + " is missing");
  std::vector<SegmentRecord> segments;
  for (SegmentRow& row : rows) segments.push_back(std::move(row.record));
  return segments;
}

void append_segment(Db& db, const AgentRow& agent, BranchRow& branch, const SegmentRecord& segment) {
  const std::string name = segment_name(agent, segment.seg);
  if (segment.seg != branch.head_seg || segment.first_pos != branch.head_pos) {
    throw Error(errc::invalid_argument, name + " at position " + std::to_string(segment.first_pos) +
                                            " does not continue the branch: next is segment " +
                                            std::to_string(branch.head_seg) + " at position " +
                                            std::to_string(branch.head_pos));
  }
  if (segment.tokens.empty()) throw Error(errc::invalid_argument, name + " has no tokens");
  if (segment.kind == SegmentKind::decode && segment.tokens.size() > kMaxDecodeTokens)
    throw Error(errc::invalid_argument,
                name + " has more than " + std::to_string(kMaxDecodeTokens) + " decoded tokens");
  insert_row(db, branch, {segment, agent.numerics_id, 0});
}

void grow_segment(Db& db, const AgentRow& agent, BranchRow& branch, std::span<const std::int32_t> tokens) {
  if (tokens.empty()) return;
  if (branch.head_seg == 0)
    throw Error(errc::invalid_argument, "decoded tokens of " + quoted(agent) + ": there is no segment");
  const std::uint64_t seg = branch.head_seg - 1;
  const std::uint64_t previous = chain_before(db, agent, branch, seg);
  SegmentRow row = read_rows(db, agent, branch, seg, previous, 1).front();
  SegmentRecord& s = row.record;
  if (s.kind != SegmentKind::decode)
    throw Error(errc::invalid_argument,
                segment_name(agent, seg) + " is not a decode segment: tokens cannot be appended");
  const std::size_t n = std::min(tokens.size(), kMaxDecodeTokens - std::min(kMaxDecodeTokens, s.tokens.size()));
  if (n > 0) {
    s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(n));
    row.numerics_id = agent.numerics_id;
    row.chain = chain_of(db, previous, branch, row);
    db.exec("UPDATE segment SET n_tok=?, numerics_id=?, chain=?, tok=? WHERE branch_id=? AND seg=?", s.tokens.size(),
            row.numerics_id, row.chain, token_bytes(s), branch.id, seg);
    branch.seg_chain = row.chain;
    branch.head_pos += n;
    tokens = tokens.subspan(n);
  }
  while (!tokens.empty()) {
    const std::size_t take = std::min(tokens.size(), kMaxDecodeTokens);
    SegmentRecord next{branch.head_seg, SegmentKind::decode, branch.head_pos, s.source, s.source_id, {}};
    next.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(take));
    insert_row(db, branch, {std::move(next), agent.numerics_id, 0});
    tokens = tokens.subspan(take);
  }
}

std::vector<std::uint64_t> find_events_at(Db& db, const AgentRow& agent, const BranchRow& branch,
                                          std::uint64_t first_pos, std::uint64_t end_pos) {
  std::vector<std::uint64_t> seqs;
  std::uint64_t pos = first_pos;
  while (pos < end_pos) {
    const std::vector<SegmentRecord> segments = read_segments(db, agent, branch, pos, kScanRows);
    if (segments.empty()) break;
    for (const SegmentRecord& s : segments) {
      if (s.first_pos < end_pos && s.source == SegmentSource::event) seqs.push_back(s.source_id);
    }
    pos = end_of(segments.back());
  }
  std::sort(seqs.begin(), seqs.end());
  seqs.erase(std::unique(seqs.begin(), seqs.end()), seqs.end());
  return seqs;
}

}  // namespace mneme::store
