// Payloads, and the rows of units that refer to them.
#include <algorithm>
#include <cstring>
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

#include "persistence/cache_rows.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

using memory::ImageHeader;
using memory::ImagePtr;
using memory::PayloadKind;
using memory::RowKey;
using memory::RowKind;

constexpr std::int64_t kFlagInitial = 1;

struct UnitRow {
  std::int64_t id = 0;
  std::string hash;  // 16 bytes
  std::int64_t model_id = 0;
  std::int64_t numerics_id = 0;
  std::uint64_t first_pos = 0;
  std::uint64_t n_tok = 0;
  UnitState state = UnitState::complete;
  std::int64_t refs = 1;
  std::uint64_t bytes = 0;
  std::int64_t flags = 0;
};

std::uint64_t unit_check(const Db& db, const UnitRow& u) {
  return RowHash(db, "unit")
      .number(u.id)
      .text(u.hash)
      .number(u.model_id)
      .number(u.numerics_id)
      .number(u.first_pos)
      .number(u.n_tok)
      .number(static_cast<int>(u.state))
      .number(u.refs)
      .number(u.bytes)
      .number(u.flags)
      .value();
}

std::uint64_t branch_unit_check(const Db& db, const BranchRow& branch, std::int64_t ord, std::int64_t unit_id) {
  return RowHash(db, "branch_unit").number(branch.id).number(ord).number(unit_id).value();
}

std::uint64_t unit_row_check(const Db& db, std::int64_t unit_id, std::int64_t layer, std::int64_t payload_id) {
  return RowHash(db, "unit_row").number(unit_id).number(layer).number(payload_id).value();
}

std::int64_t ordinal_of(const RowKey& key) {
  return key.kind == RowKind::initial ? kInitialOrdinal : static_cast<std::int64_t>(key.ordinal);
}

std::string unit_name(const AgentRow& agent, std::int64_t ord) {
  const std::string unit = ord == kInitialOrdinal ? "initial tokens" : "unit " + std::to_string(ord);
  return unit + " of " + quoted(agent);
}

std::string row_name(const AgentRow& agent, std::int64_t ord, std::int64_t layer) {
  const std::string unit = ord == kInitialOrdinal ? "initial tokens" : "unit " + std::to_string(ord);
  return unit + " layer " + std::to_string(layer) + " of " + quoted(agent);
}

UnitRow load_unit(Db& db, std::int64_t id, const std::string& name) {
  auto q = db.query(
      "SELECT id, hash, model_id, numerics_id, first_pos, n_tok, state, refs, bytes, flags, chk FROM unit WHERE id=?",
      id);
  if (!q.step()) throw Error(errc::lineage_broken, name + " is missing");
  const auto hash = q.blob(1);
  UnitRow u{q.i64(0),
            {reinterpret_cast<const char*>(hash.data()), hash.size()},
            q.i64(2),
            q.i64(3),
            q.u64(4),
            q.u64(5),
            static_cast<UnitState>(q.i64(6)),
            q.i64(7),
            q.u64(8),
            q.i64(9)};
  if (u.id != id || unit_check(db, u) != q.u64(10)) corrupt(db, name + ": checksum of its row differs");
  return u;
}

// The unit at an ordinal of the branch.
std::optional<UnitRow> find_unit(Db& db, const AgentRow& agent, const BranchRow& branch, std::int64_t ord) {
  const std::string name = unit_name(agent, ord);
  std::int64_t id = 0;
  {
    auto q = db.query("SELECT unit_id, chk FROM branch_unit WHERE branch_id=? AND ord=?", branch.id, ord);
    if (!q.step()) return std::nullopt;
    id = q.i64(0);
    if (branch_unit_check(db, branch, ord, id) != q.u64(1)) corrupt(db, name + ": checksum of its branch row differs");
  }
  return load_unit(db, id, name);
}

void put_unit(Db& db, const UnitRow& u) {
  db.exec(
      "INSERT INTO unit(id, hash, model_id, numerics_id, first_pos, n_tok, state, refs, bytes, flags, recall_count,"
      " recalled_pos, chk) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?) ON CONFLICT(id) DO UPDATE SET"
      " hash=excluded.hash, numerics_id=excluded.numerics_id, first_pos=excluded.first_pos, n_tok=excluded.n_tok,"
      " state=excluded.state, refs=excluded.refs, bytes=excluded.bytes, chk=excluded.chk",
      u.id, as_bytes(u.hash), u.model_id, u.numerics_id, u.first_pos, u.n_tok, static_cast<int>(u.state), u.refs,
      u.bytes, u.flags, unit_check(db, u));
}

struct UnitLayer {
  std::int64_t layer = 0;
  std::int64_t payload_id = 0;
};

// All rows of a unit, ascending layer.
std::vector<UnitLayer> load_layers(Db& db, std::int64_t unit_id, const std::string& name) {
  std::vector<UnitLayer> layers;
  auto q = db.query("SELECT layer, payload_id, chk FROM unit_row WHERE unit_id=? ORDER BY layer", unit_id);
  while (q.step()) {
    layers.push_back({q.i64(0), q.i64(1)});
    if (unit_row_check(db, unit_id, q.i64(0), q.i64(1)) != q.u64(2))
      corrupt(db, name + ": checksum of the row of layer " + std::to_string(q.i64(0)) + " differs");
  }
  return layers;
}

void delete_layers(Db& db, std::int64_t unit_id) {
  db.exec("DELETE FROM payload WHERE id IN (SELECT payload_id FROM unit_row WHERE unit_id=?)", unit_id);
  db.exec("DELETE FROM unit_row WHERE unit_id=?", unit_id);
}

PayloadKind payload_kind(std::int64_t ord) {
  return ord == kInitialOrdinal ? PayloadKind::initial : PayloadKind::unit;
}

// Verifies an image and that it is the row that refers to it.
ImageHeader verify_row(Db& db, const memory::Image& image, const UnitRow& u, std::int64_t ord, std::int64_t layer,
                       const std::string& name) {
  const ImageHeader header = memory::verify_image(image, name);
  const bool fits = header.kind == payload_kind(ord) && header.layer == static_cast<std::uint64_t>(layer) &&
                    header.first_pos == u.first_pos && header.n_tokens == u.n_tok;
  if (!fits) corrupt(db, name + ": its image is of another row");
  return header;
}

// unit.hash: SHA-256 over the layers' content hashes, first position, tokens and types, its first 16 bytes.
std::string hash_of(std::span<const ImageHeader> layers) {
  std::string bytes;
  const auto append = [&](const auto& value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); };
  for (const ImageHeader& h : layers) append(h.content_hash);
  append(layers.front().first_pos);
  append(layers.front().n_tokens);
  append(layers.front().k_type);
  append(layers.front().v_type);
  return sha256(bytes).substr(0, 16);
}

// The rows of one unit in a batch, ascending layer, with their headers.
struct Incoming {
  std::int64_t ord = 0;
  std::vector<const CacheBatch::Row*> rows;
  std::vector<ImageHeader> headers;
};

Incoming take_unit(const AgentRow& agent, const BranchRow& branch, std::vector<const CacheBatch::Row*> rows) {
  std::sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) { return a->key.layer < b->key.layer; });
  Incoming unit{ordinal_of(rows.front()->key), std::move(rows), {}};
  for (std::size_t i = 0; i < unit.rows.size(); ++i) {
    const CacheBatch::Row& row = *unit.rows[i];
    const std::string name = row_name(agent, unit.ord, row.key.layer);
    const ImageHeader header = memory::verify_image(*row.image, name);
    const ImageHeader& first = unit.headers.empty() ? header : unit.headers.front();
    const bool fits = row.key.layer == static_cast<int>(i) && header.layer == i &&
                      header.kind == payload_kind(unit.ord) && header.first_pos == first.first_pos &&
                      header.n_tokens == first.n_tokens;
    if (!fits) throw Error(errc::invalid_argument, name + " does not fit its unit, or a layer before it is missing");
    unit.headers.push_back(header);
  }
  const ImageHeader& first = unit.headers.front();
  if (first.n_tokens == 0 || first.first_pos > branch.head_pos || first.n_tokens > branch.head_pos - first.first_pos) {
    throw Error(errc::invalid_argument, unit_name(agent, unit.ord) +
                                            " has tokens that the journal does not hold: it ends at " +
                                            std::to_string(branch.head_pos));
  }
  return unit;
}

bool stands_already(Db& db, const UnitRow& u, const Incoming& unit, const std::string& hash) {
  if (u.hash != hash || u.state != UnitState::complete) return false;
  const std::vector<UnitLayer> layers = load_layers(db, u.id, "unit");
  if (layers.size() != unit.rows.size()) return false;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (!payload_equals(db, layers[i].payload_id, *unit.rows[i]->image)) return false;
  }
  return true;
}

// True if the unit stands in the store as it is in the batch. Damaged rows do not stand: they are written again.
bool is_stored(Db& db, const std::optional<UnitRow>& old, const Incoming& unit, const std::string& hash) {
  if (!old) return false;
  try {
    return stands_already(db, *old, unit, hash);
  } catch (const Error& error) {
    if (!is_damage(error)) throw;
    return false;
  }
}

// The unit at an ordinal if its rows are sound; a listing that leads to damage is removed.
std::optional<UnitRow> find_replaceable(Db& db, const AgentRow& agent, const BranchRow& branch, std::int64_t ord) {
  try {
    return find_unit(db, agent, branch, ord);
  } catch (const Error& error) {
    if (!is_damage(error)) throw;
  }
  db.exec("DELETE FROM branch_unit WHERE branch_id=? AND ord=?", branch.id, ord);
  return std::nullopt;
}

void write_layers(Db& db, UnitRow& u, const Incoming& unit) {
  for (std::size_t i = 0; i < unit.rows.size(); ++i) {
    const auto layer = static_cast<std::int64_t>(i);
    const std::int64_t payload_id = insert_payload(db, *unit.rows[i]->image);
    db.exec("INSERT INTO unit_row(unit_id, layer, payload_id, chk) VALUES(?, ?, ?, ?)", u.id, layer, payload_id,
            unit_row_check(db, u.id, layer, payload_id));
    u.bytes += unit.rows[i]->image->size();
  }
}

void write_unit(Db& db, const AgentRow& agent, BranchRow& branch, const Incoming& unit) {
  const std::string hash = hash_of(unit.headers);
  const std::optional<UnitRow> old = find_replaceable(db, agent, branch, unit.ord);
  if (is_stored(db, old, unit, hash)) return;
  UnitRow u;
  if (old) {
    u.id = old->id;
    delete_layers(db, u.id);
  } else {
    auto q = db.query("SELECT ifnull(max(id), 0) + 1 FROM unit");
    if (q.step()) u.id = q.i64(0);
  }
  u.hash = hash;
  u.model_id = agent.model_id;
  u.numerics_id = agent.numerics_id;
  u.first_pos = unit.headers.front().first_pos;
  u.n_tok = unit.headers.front().n_tokens;
  u.flags = unit.ord == kInitialOrdinal ? kFlagInitial : 0;
  write_layers(db, u, unit);
  put_unit(db, u);
  if (old) return;
  db.exec("INSERT INTO branch_unit(branch_id, ord, unit_id, chk) VALUES(?, ?, ?, ?)", branch.id, unit.ord, u.id,
          branch_unit_check(db, branch, unit.ord, u.id));
  if (unit.ord != kInitialOrdinal) branch.n_units = std::max(branch.n_units, static_cast<std::uint64_t>(unit.ord) + 1);
}

// One unit of check_units. Returns the ordinal's damage as an exception.
void check_unit(Db& db, const AgentRow& agent, const BranchRow& branch, std::int64_t ord,
                const std::function<void(const std::string&)>& found, const std::function<void(std::uint64_t)>& visit) {
  const std::string name = unit_name(agent, ord);
  const std::optional<UnitRow> u = find_unit(db, agent, branch, ord);
  if (!u) throw Error(errc::lineage_broken, name + " is missing");
  std::vector<ImageHeader> headers;
  const std::vector<UnitLayer> layers = load_layers(db, u->id, name);
  for (const UnitLayer& row : layers) {
    const std::string what = row_name(agent, ord, row.layer);
    try {
      const ImagePtr image = load_payload(db, row.payload_id, what);
      visit(image->size());
      headers.push_back(verify_row(db, *image, *u, ord, row.layer, what));
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      found(sentence_of(error));
    }
  }
  if (layers.empty()) throw Error(errc::lineage_broken, name + " has no rows");
  if (headers.size() == layers.size() && hash_of(headers) != u->hash)
    corrupt(db, name + ": its rows do not make its hash");
}

}  // namespace

bool is_damage(const Error& error) {
  return error.code() == errc::store_corrupt || error.code() == errc::lineage_broken;
}

std::string sentence_of(const Error& error) {
  const std::string what = error.what();
  const std::size_t end = what.rfind(": " + error.code().what());
  return what.substr(0, end);
}

std::int64_t insert_payload(Db& db, const memory::Image& image) {
  db.exec("INSERT INTO payload(data) VALUES(?)", std::span<const std::byte>(image));
  return db.last_insert_rowid();
}

void delete_payload(Db& db, std::int64_t id) {
  db.exec("DELETE FROM payload WHERE id=?", id);
}

memory::ImagePtr load_payload(Db& db, std::int64_t id, const std::string& what) {
  auto q = db.query("SELECT data FROM payload WHERE id=?", id);
  if (!q.step()) throw Error(errc::lineage_broken, what + ": its payload " + std::to_string(id) + " is missing");
  const auto data = q.blob(0);
  return std::make_shared<const memory::Image>(data.begin(), data.end());
}

bool payload_equals(Db& db, std::int64_t id, const memory::Image& image) {
  auto q = db.query("SELECT data FROM payload WHERE id=?", id);
  if (!q.step()) return false;
  const auto data = q.blob(0);
  return data.size() == image.size() && std::memcmp(data.data(), image.data(), image.size()) == 0;
}

void write_units(Db& db, const AgentRow& agent, BranchRow& branch, std::span<const CacheBatch::Row> rows) {
  std::vector<std::vector<const CacheBatch::Row*>> units;  // in the order of their first rows
  for (const CacheBatch::Row& row : rows) {
    const auto same = [&](const auto& unit) { return ordinal_of(unit.front()->key) == ordinal_of(row.key); };
    const auto found = std::find_if(units.begin(), units.end(), same);
    if (found == units.end()) {
      units.push_back({&row});
    } else {
      found->push_back(&row);
    }
  }
  for (auto& unit : units) write_unit(db, agent, branch, take_unit(agent, branch, std::move(unit)));
}

std::vector<memory::ImagePtr> load_rows(Db& db, const AgentRow& agent, const BranchRow& branch,
                                        std::span<const memory::RowKey> keys) {
  std::vector<ImagePtr> images;
  std::optional<UnitRow> unit;
  std::int64_t unit_ord = kInitialOrdinal - 1;
  for (const RowKey& key : keys) {
    const std::int64_t ord = ordinal_of(key);
    const std::string name = row_name(agent, ord, key.layer);
    if (ord != unit_ord) {
      unit = find_unit(db, agent, branch, ord);
      if (!unit || unit->state != UnitState::complete) throw Error(errc::lineage_broken, name + " is missing");
      unit_ord = ord;
    }
    std::int64_t payload_id = 0;
    {
      auto q = db.query("SELECT payload_id, chk FROM unit_row WHERE unit_id=? AND layer=?", unit->id, key.layer);
      if (!q.step()) throw Error(errc::lineage_broken, name + " is missing");
      payload_id = q.i64(0);
      if (unit_row_check(db, unit->id, key.layer, payload_id) != q.u64(1))
        corrupt(db, name + ": checksum of its row differs");
    }
    ImagePtr image = load_payload(db, payload_id, name);
    verify_row(db, *image, *unit, ord, key.layer, name);
    images.push_back(std::move(image));
  }
  return images;
}

void delete_partial_units(Db& db, const BranchRow& branch) {
  std::vector<std::int64_t> partial;
  {
    auto q = db.query("SELECT u.id FROM branch_unit b JOIN unit u ON u.id=b.unit_id WHERE b.branch_id=? AND u.state<>?",
                      branch.id, static_cast<int>(UnitState::complete));
    while (q.step()) partial.push_back(q.i64(0));
  }
  for (const std::int64_t id : partial) {
    db.exec("DELETE FROM branch_unit WHERE branch_id=? AND unit_id=?", branch.id, id);
    delete_layers(db, id);
    db.exec("DELETE FROM unit WHERE id=?", id);
  }
}

void check_units(Db& db, const AgentRow& agent, const std::function<void(const std::string&)>& found,
                 const std::function<void(std::uint64_t)>& visit) {
  std::vector<std::int64_t> ordinals;
  BranchRow branch;
  {
    Transaction snapshot(db, Transaction::Kind::read);
    branch = load_branch(db, agent.branch_id);
    auto q = db.query("SELECT ord FROM branch_unit WHERE branch_id=? ORDER BY ord", branch.id);
    while (q.step()) ordinals.push_back(q.i64(0));
  }
  const auto units = static_cast<std::uint64_t>(
      std::count_if(ordinals.begin(), ordinals.end(), [](std::int64_t ord) { return ord != kInitialOrdinal; }));
  if (units != branch.n_units) {
    found(std::to_string(units) + " units of " + quoted(agent) + " are listed, " + std::to_string(branch.n_units) +
          " were written");
  }
  for (const std::int64_t ord : ordinals) {
    try {
      Transaction snapshot(db, Transaction::Kind::read);
      check_unit(db, agent, branch, ord, found, visit);
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      found(sentence_of(error));
    }
  }
}

}  // namespace mneme::store
