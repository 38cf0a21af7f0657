// Index vectors of sealed units, one row each.
#include <mneme/base/text.hpp>
#include <mneme/error.hpp>

#include "persistence/cache_rows.hpp"
#include "persistence/row_hash.hpp"

namespace mneme::store {
namespace {

using memory::Image;
using memory::ImageHeader;
using memory::ImagePtr;
using memory::PayloadKind;

std::uint64_t rep_check(const Db& db, const BranchRow& branch, std::uint64_t unit, std::uint64_t n_units,
                        std::int64_t payload_id) {
  return RowHash(db, "rep").number(branch.id).number(unit).number(n_units).number(payload_id).value();
}

std::string index_name(const AgentRow& agent, std::uint64_t unit) {
  return "index of unit " + std::to_string(unit) + " of " + quoted(agent);
}

void verify_index(const Image& image, std::uint64_t unit, const std::string& name) {
  const ImageHeader header = memory::verify_image(image, name);
  if (header.kind != PayloadKind::index || header.first_ord != unit || header.n_tokens != 1)
    throw Error(errc::store_corrupt, name + ": its image is of another row");
}

}  // namespace

void write_index(Db& db, const AgentRow& agent, const BranchRow& branch, std::span<const CacheBatch::Index> index) {
  for (const CacheBatch::Index& row : index) {
    verify_index(*row.image, row.unit, index_name(agent, row.unit));
    std::optional<std::int64_t> old;
    {
      auto q = db.query("SELECT payload_id, chk FROM rep WHERE branch_id=? AND first_ord=? AND n_units=1", branch.id,
                        row.unit);
      if (q.step() && rep_check(db, branch, row.unit, 1, q.i64(0)) == q.u64(1)) old = q.i64(0);
    }
    if (old && payload_equals(db, *old, *row.image)) continue;
    if (old) delete_payload(db, *old);
    const std::int64_t id = insert_payload(db, *row.image);
    db.exec(
        "INSERT INTO rep(branch_id, first_ord, n_units, payload_id, chk) VALUES(?, ?, 1, ?, ?)"
        " ON CONFLICT(branch_id, first_ord) DO UPDATE SET n_units=1, payload_id=excluded.payload_id, chk=excluded.chk",
        branch.id, row.unit, id, rep_check(db, branch, row.unit, 1, id));
  }
}

std::vector<memory::ImagePtr> load_index(Db& db, const AgentRow& agent, const BranchRow& branch,
                                         std::uint64_t first_unit, std::size_t n_units) {
  std::vector<ImagePtr> images;
  auto q = db.query(
      "SELECT r.first_ord, r.n_units, r.payload_id, r.chk, p.data FROM rep r LEFT JOIN payload p ON p.id=r.payload_id"
      " WHERE r.branch_id=? AND r.first_ord>=? ORDER BY r.first_ord LIMIT ?",
      branch.id, first_unit, n_units);
  while (q.step()) {
    const std::uint64_t unit = first_unit + images.size();
    const std::string name = index_name(agent, unit);
    if (q.u64(0) != unit || q.is_null(4)) throw Error(errc::lineage_broken, name + " is missing");
    if (rep_check(db, branch, unit, q.u64(1), q.i64(2)) != q.u64(3))
      corrupt(db, name + ": checksum of its row differs");
    const auto data = q.blob(4);
    auto image = std::make_shared<const Image>(data.begin(), data.end());
    verify_index(*image, unit, name);
    images.push_back(std::move(image));
  }
  if (images.size() != n_units)
    throw Error(errc::lineage_broken, index_name(agent, first_unit + images.size()) + " is missing");
  return images;
}

void check_index(Db& db, const AgentRow& agent, const std::function<void(const std::string&)>& found,
                 const std::function<void(std::uint64_t)>& visit) {
  std::vector<std::uint64_t> units;
  BranchRow branch;
  {
    Transaction snapshot(db, Transaction::Kind::read);
    branch = load_branch(db, agent.branch_id);
    auto q = db.query("SELECT first_ord FROM rep WHERE branch_id=? ORDER BY first_ord", branch.id);
    while (q.step()) units.push_back(q.u64(0));
  }
  for (const std::uint64_t unit : units) {
    try {
      Transaction snapshot(db, Transaction::Kind::read);
      visit(load_index(db, agent, branch, unit, 1).front()->size());
    } catch (const Error& error) {
      if (!is_damage(error)) throw;
      found(sentence_of(error));
    }
  }
}

}  // namespace mneme::store
