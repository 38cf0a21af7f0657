// See scheduler.hpp.
#include "runtime/agent/scheduler.hpp"

#include <mneme/base/check.hpp>

namespace mneme::agent {

void Scheduler::add(Id id, int weight) {
  MNEME_CHECK(weight >= 1);
  members_[id] = Member{weight, false};
}

void Scheduler::remove(Id id) {
  members_.erase(id);
}

void Scheduler::set_ready(Id id, bool ready) {
  const auto found = members_.find(id);
  MNEME_CHECK(found != members_.end());
  found->second.ready = ready;
}

bool Scheduler::is_ready(Id id) const {
  const auto found = members_.find(id);
  return found != members_.end() && found->second.ready;
}

std::optional<Scheduler::Id> Scheduler::pick() {
  if (members_.empty()) return std::nullopt;
  if (left_ > 0 && is_ready(current_)) {
    --left_;
    return current_;
  }
  auto next = members_.upper_bound(current_);
  for (std::size_t tried = 0; tried < members_.size(); ++tried) {
    if (next == members_.end()) next = members_.begin();
    if (next->second.ready) {
      current_ = next->first;
      left_ = next->second.weight - 1;
      return current_;
    }
    ++next;
  }
  return std::nullopt;
}

}  // namespace mneme::agent
