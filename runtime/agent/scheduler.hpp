// Who is served next on the engine: weighted round robin.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace mneme::agent {

// Pure. Members have a weight >= 1; a member that is ready gets `weight` picks in a row (one pick = one prefill pass or
// one decode step), then the next ready one in the order of ids, so none waits longer than the sum of the others'
// weights.
class Scheduler {
 public:
  using Id = std::uint64_t;

  void add(Id id, int weight);
  void remove(Id id);
  void set_ready(Id id, bool ready);
  bool is_ready(Id id) const;

  // The member to serve now, or nothing if none is ready.
  std::optional<Id> pick();

 private:
  struct Member {
    int weight = 1;
    bool ready = false;
  };
  std::map<Id, Member> members_;
  Id current_ = 0;  // served last
  int left_ = 0;    // picks that current_ still has in a row
};

}  // namespace mneme::agent
