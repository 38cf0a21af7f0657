// The write-behind queue between the memory and the store.
//
//   engine thread                        storage thread
//   put_row ──► queue of items ──pump──► write_cache (<= 4 MiB) ──► item leaves the queue
//                 ▲      │
//   begin_read ───┘      └─ items stay until they are in the store, so a row is always in one of the two
//
// Invariants
//  U1 Items go to the store in the order they were put; the first that is incomplete, or whose tokens the journal does
//     not hold yet, holds back those behind it.
//  U2 At most one pump job is posted at a time; it writes one transaction and posts the next, so that journal commits
//     get between.
//  U3 The state outlives the object: jobs hold it. A job that is dropped without running fails the object.
#include "persistence/unit_rows.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mneme/base/check.hpp>
#include <mneme/error.hpp>
#include <mutex>

namespace mneme::store {
namespace {

using memory::ImagePtr;
using memory::RowKey;

constexpr std::size_t kBatchBytes = 4U << 20U;  // one transaction, unless a single unit is larger
constexpr std::size_t kKickBytes = 1U << 20U;   // less than this waits for a flush or for company

enum class ItemKind : int { unit = 1, initial = 2, index = 3 };
using ItemKey = std::pair<ItemKind, std::uint64_t>;  // ordinal

ItemKey item_key(const RowKey& key) {
  return {key.kind == memory::RowKind::initial ? ItemKind::initial : ItemKind::unit, key.ordinal};
}

// All layers of a unit, or one index row, on the way to the store.
struct Item {
  ItemKey key;
  std::uint64_t sequence = 0;
  std::uint64_t end_pos = 0;
  std::vector<ImagePtr> images;  // by layer; index: one
  std::size_t n_images = 0;      // present
  std::size_t bytes = 0;
  bool complete() const { return n_images == images.size(); }
};
using ItemPtr = std::shared_ptr<Item>;

struct Flush {
  std::uint64_t sequence = 0;  // items up to here go before it
  std::optional<CheckpointRecord> checkpoint;
  std::function<void(std::exception_ptr)> done;
};

bool is_full(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e.code() == errc::store_full;
  } catch (...) {
    return false;
  }
}

std::exception_ptr stopped() {
  return std::make_exception_ptr(Error(errc::shutdown, "the storage thread has stopped"));
}

// Runs `dropped` if it dies before `taken` was set: a posted job that never ran.
class JobTicket {
 public:
  explicit JobTicket(std::function<void()> dropped) : dropped_(std::move(dropped)) {}
  ~JobTicket() {
    if (!taken) dropped_();
  }
  JobTicket(const JobTicket&) = delete;
  JobTicket& operator=(const JobTicket&) = delete;
  bool taken = false;

 private:
  std::function<void()> dropped_;
};

// The answer of a read on the storage thread.
class Answer {
 public:
  void set(std::vector<ImagePtr> images) {
    const std::lock_guard lock(mutex_);
    images_ = std::move(images);
    ready_ = true;
    changed_.notify_all();
  }
  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
    ready_ = true;
    changed_.notify_all();
  }
  // To be called once.
  std::vector<ImagePtr> wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ready_; });
    if (error_) std::rethrow_exception(std::move(error_));
    return std::move(images_);
  }

 private:
  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  bool ready_ = false;
  std::vector<ImagePtr> images_;
  std::exception_ptr error_;
};

// Posts `body`, which returns images, and gives its answer.
template <typename Body>
std::shared_ptr<Answer> ask(const PostToStorage& post, Body body) {
  auto answer = std::make_shared<Answer>();
  auto ticket = std::make_shared<JobTicket>([answer] { answer->fail(stopped()); });
  post([answer, ticket, body = std::move(body)](StoreFile& store) {
    ticket->taken = true;
    std::exception_ptr error;
    try {
      answer->set(body(store));
    } catch (...) {
      error = std::current_exception();
    }
    // Handed over outside the handler: then the waiting thread alone holds the exception.
    if (error) answer->fail(std::move(error));
  });
  return answer;
}

// Images of which some are at hand and the others are on their way.
class Reading final : public memory::PendingRead {
 public:
  Reading(std::vector<ImagePtr> images, std::vector<std::size_t> holes, std::shared_ptr<Answer> answer)
      : images_(std::move(images)), holes_(std::move(holes)), answer_(std::move(answer)) {}

  std::vector<ImagePtr> wait() override {
    if (answer_) {
      const std::vector<ImagePtr> read = answer_->wait();
      MNEME_CHECK(read.size() == holes_.size());
      for (std::size_t i = 0; i < read.size(); ++i) images_[holes_[i]] = read[i];
    }
    return std::move(images_);
  }

 private:
  std::vector<ImagePtr> images_;
  std::vector<std::size_t> holes_;  // indices of images_ that the answer fills, in order
  std::shared_ptr<Answer> answer_;
};

}  // namespace

struct UnitRows::Impl : std::enable_shared_from_this<Impl> {
  PostToStorage post;
  std::int64_t agent_id = 0;
  std::size_t n_layers = 0;
  std::size_t max_pending = 0;

  mutable std::mutex mutex;  // guards all below
  std::condition_variable changed;
  std::deque<ItemPtr> queue;                      // order of put
  std::map<ItemKey, std::vector<ItemPtr>> items;  // the queue by key, oldest first
  std::deque<Flush> flushes;
  std::uint64_t sequence = 0;
  std::uint64_t committed = 0;
  std::size_t pending = 0;    // bytes in the queue
  std::size_t in_flight = 0;  // items being written
  std::size_t waiting = 0;    // put_row calls that want room
  bool job_posted = false;
  std::exception_ptr full;   // the last attempt found no space
  std::exception_ptr error;  // ends everything

  using Lock = std::unique_lock<std::mutex>;

  void check_error() const {
    if (error) std::rethrow_exception(error);
  }

  // Bytes at the front that may be written now, counted up to `enough`.
  std::size_t writable_bytes(std::size_t enough) const {
    std::size_t bytes = 0;
    for (const ItemPtr& item : queue) {
      if (!item->complete() || item->end_pos > committed || bytes >= enough) break;
      bytes += item->bytes;
    }
    return bytes;
  }

  bool wants_pump() const {
    if (error) return !flushes.empty();
    if (!flushes.empty()) return true;
    if (full) return false;
    const std::size_t bytes = writable_bytes(kKickBytes);
    return bytes >= kKickBytes || (bytes > 0 && waiting > 0);
  }

  // Posts a pump job unless there is one. Releases the lock for the post.
  void kick(Lock& lock) {
    if (job_posted || !wants_pump()) return;
    job_posted = true;
    lock.unlock();
    try {
      // The job alone holds the ticket: if it dies here, it does so without the lock.
      auto ticket = std::make_shared<JobTicket>([self = shared_from_this()] { self->drop_job(); });
      post([self = shared_from_this(), ticket = std::move(ticket)](StoreFile& store) {
        ticket->taken = true;
        self->pump(store);
      });
    } catch (...) {
      // The ticket says that the job is gone.
    }
    lock.lock();
  }

  void drop_job() {
    std::deque<Flush> unanswered;
    {
      const std::lock_guard lock(mutex);
      job_posted = false;
      if (!error) error = stopped();
      unanswered.swap(flushes);
      changed.notify_all();
    }
    for (Flush& flush : unanswered) flush.done(stopped());
  }

  void wait_for_room(Lock& lock, std::size_t bytes) {
    bool retried = false;
    while (pending + bytes > max_pending) {
      check_error();
      // Rows that the journal does not hold yet cannot be waited for: their commit may depend on this very thread.
      if (in_flight == 0 && writable_bytes(1) == 0) return;
      if (full && !job_posted && in_flight == 0) {
        if (retried) std::rethrow_exception(full);
        retried = true;
        full = nullptr;
      }
      ++waiting;
      kick(lock);
      if (job_posted || in_flight > 0) changed.wait(lock);
      --waiting;
    }
  }

  ItemPtr add_item(const ItemKey& key, std::uint64_t end_pos, std::size_t n_images) {
    auto item = std::make_shared<Item>();
    item->key = key;
    item->sequence = ++sequence;
    item->end_pos = end_pos;
    item->images.resize(n_images);
    queue.push_back(item);
    items[key].push_back(item);
    return item;
  }

  void put_image(Item& item, std::size_t layer, ImagePtr image) {
    ImagePtr& slot = item.images[layer];
    const std::size_t old_bytes = slot ? slot->size() : 0;
    if (!slot) ++item.n_images;
    item.bytes += image->size() - old_bytes;
    pending += image->size() - old_bytes;
    slot = std::move(image);
  }

  ImagePtr find_image(const ItemKey& key, std::size_t layer) const {
    const auto found = items.find(key);
    if (found == items.end()) return nullptr;
    for (auto item = found->second.rbegin(); item != found->second.rend(); ++item) {
      if (layer < (*item)->images.size() && (*item)->images[layer]) return (*item)->images[layer];
    }
    return nullptr;
  }

  // The next transaction's items; empty if nothing may be written.
  std::vector<ItemPtr> take_batch() {
    std::vector<ItemPtr> batch;
    std::size_t bytes = 0;
    for (const ItemPtr& item : queue) {
      if (!item->complete() || item->end_pos > committed) break;
      if (!batch.empty() && bytes + item->bytes > kBatchBytes) break;
      bytes += item->bytes;
      batch.push_back(item);
    }
    in_flight = batch.size();
    return batch;
  }

  static CacheBatch to_cache_batch(const std::vector<ItemPtr>& batch) {
    CacheBatch out;
    std::map<ItemKey, std::uint64_t> newest;  // sequence: of rows put again, only the last is written
    for (const ItemPtr& item : batch) newest[item->key] = item->sequence;
    for (const ItemPtr& item : batch) {
      if (item->sequence != newest[item->key]) continue;
      if (item->key.first == ItemKind::index) {
        out.index.push_back({item->key.second, item->images.front()});
        continue;
      }
      const bool initial = item->key.first == ItemKind::initial;
      for (std::size_t layer = 0; layer < item->images.size(); ++layer) {
        const RowKey key{initial ? memory::RowKind::initial : memory::RowKind::unit, item->key.second,
                         static_cast<int>(layer)};
        out.rows.push_back({key, item->images[layer]});
      }
    }
    return out;
  }

  void remove(const std::vector<ItemPtr>& batch) {
    for (const ItemPtr& item : batch) {
      MNEME_CHECK(queue.front() == item);
      queue.pop_front();
      auto& same = items[item->key];
      same.erase(std::find(same.begin(), same.end(), item));
      if (same.empty()) items.erase(item->key);
      pending -= item->bytes;
    }
  }

  // One transaction on the storage thread; posts the next if there is more to do.
  void pump(StoreFile& store) {
    Lock lock(mutex);
    job_posted = false;
    if (!error) {
      const bool flush_first =
          !flushes.empty() && (queue.empty() || queue.front()->sequence > flushes.front().sequence);
      std::vector<ItemPtr> batch;
      if (!flush_first) batch = take_batch();
      if (!batch.empty()) write_batch(lock, store, batch);
      if (batch.empty() && !flushes.empty()) finish_flush(lock, store);
    }
    if (error) fail_flushes(lock, error);
    changed.notify_all();
    kick(lock);
  }

  void write_batch(Lock& lock, StoreFile& store, const std::vector<ItemPtr>& batch) {
    const CacheBatch rows = to_cache_batch(batch);
    lock.unlock();
    std::exception_ptr failure;
    try {
      store.write_cache(agent_id, rows);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    in_flight = 0;
    if (!failure) {
      full = nullptr;
      remove(batch);
    } else if (is_full(failure)) {
      full = failure;
      fail_flushes(lock, failure);
    } else {
      error = failure;
    }
  }

  // Everything writable before the first flush is in the store: its checkpoint, then its callback.
  void finish_flush(Lock& lock, StoreFile& store) {
    Flush flush = std::move(flushes.front());
    flushes.pop_front();
    lock.unlock();
    std::exception_ptr failure;
    try {
      if (flush.checkpoint) {
        CacheBatch batch;
        batch.checkpoint = std::move(flush.checkpoint);
        store.write_cache(agent_id, batch);
      }
    } catch (...) {
      failure = std::current_exception();
    }
    {
      lock.lock();
      if (failure && !is_full(failure) && !error) error = failure;
      lock.unlock();
    }
    flush.done(failure);
    lock.lock();
  }

  void fail_flushes(Lock& lock, const std::exception_ptr& why) {
    std::deque<Flush> failed;
    failed.swap(flushes);
    lock.unlock();
    for (Flush& flush : failed) flush.done(why);
    lock.lock();
  }
};

UnitRows::UnitRows(PostToStorage post, std::int64_t agent_id, std::int64_t n_layers, std::size_t max_pending_bytes)
    : impl_(std::make_shared<Impl>()) {
  impl_->post = std::move(post);
  impl_->agent_id = agent_id;
  impl_->n_layers = static_cast<std::size_t>(n_layers);
  impl_->max_pending = max_pending_bytes;
}

UnitRows::~UnitRows() = default;

void UnitRows::put_row(const RowKey& key, std::uint64_t end_pos, ImagePtr image) {
  MNEME_CHECK(key.layer >= 0 && static_cast<std::size_t>(key.layer) < impl_->n_layers);
  Impl::Lock lock(impl_->mutex);
  impl_->check_error();
  impl_->wait_for_room(lock, image->size());
  impl_->check_error();
  const ItemKey at = item_key(key);
  const auto found = impl_->items.find(at);
  // A complete item is on its way as it is: a row put again starts a new one behind it.
  const bool open = found != impl_->items.end() && !found->second.back()->complete();
  const ItemPtr item = open ? found->second.back() : impl_->add_item(at, end_pos, impl_->n_layers);
  item->end_pos = std::max(item->end_pos, end_pos);
  impl_->put_image(*item, static_cast<std::size_t>(key.layer), std::move(image));
  impl_->kick(lock);
}

void UnitRows::put_index(std::uint64_t unit, std::uint64_t end_pos, ImagePtr image) {
  Impl::Lock lock(impl_->mutex);
  impl_->check_error();
  impl_->wait_for_room(lock, image->size());
  impl_->check_error();
  const ItemPtr item = impl_->add_item({ItemKind::index, unit}, end_pos, 1);
  impl_->put_image(*item, 0, std::move(image));
  impl_->kick(lock);
}

std::unique_ptr<memory::PendingRead> UnitRows::begin_read(std::vector<RowKey> keys) {
  std::vector<ImagePtr> images(keys.size());
  std::vector<std::size_t> holes;
  std::vector<RowKey> missing;
  {
    const Impl::Lock lock(impl_->mutex);
    impl_->check_error();
    for (std::size_t i = 0; i < keys.size(); ++i) {
      images[i] = impl_->find_image(item_key(keys[i]), static_cast<std::size_t>(keys[i].layer));
      if (images[i]) continue;
      holes.push_back(i);
      missing.push_back(keys[i]);
    }
  }
  std::shared_ptr<Answer> answer;
  if (!missing.empty()) {
    answer = ask(impl_->post, [agent = impl_->agent_id, missing = std::move(missing)](StoreFile& store) {
      return store.read_rows(agent, missing);
    });
  }
  return std::make_unique<Reading>(std::move(images), std::move(holes), std::move(answer));
}

std::vector<ImagePtr> UnitRows::read_index(std::uint64_t first_unit, std::size_t n_units) {
  std::vector<ImagePtr> images(n_units);
  std::vector<std::size_t> holes;
  {
    const Impl::Lock lock(impl_->mutex);
    impl_->check_error();
    for (std::size_t i = 0; i < n_units; ++i) {
      images[i] = impl_->find_image({ItemKind::index, first_unit + i}, 0);
      if (!images[i]) holes.push_back(i);
    }
  }
  std::shared_ptr<Answer> answer;
  if (!holes.empty()) {
    answer = ask(impl_->post, [agent = impl_->agent_id, first_unit, holes](StoreFile& store) {
      std::vector<ImagePtr> read;
      for (std::size_t begin = 0; begin < holes.size();) {
        std::size_t end = begin + 1;
        while (end < holes.size() && holes[end] == holes[end - 1] + 1) ++end;
        auto run = store.read_index(agent, first_unit + holes[begin], end - begin);
        std::move(run.begin(), run.end(), std::back_inserter(read));
        begin = end;
      }
      return read;
    });
  }
  return Reading(std::move(images), std::move(holes), std::move(answer)).wait();
}

void UnitRows::set_committed(std::uint64_t pos) {
  Impl::Lock lock(impl_->mutex);
  impl_->committed = std::max(impl_->committed, pos);
  impl_->kick(lock);
}

std::size_t UnitRows::pending_bytes() const {
  const Impl::Lock lock(impl_->mutex);
  return impl_->pending;
}

void UnitRows::flush(std::optional<CheckpointRecord> checkpoint, std::function<void(std::exception_ptr)> done) {
  Impl::Lock lock(impl_->mutex);
  impl_->full = nullptr;
  impl_->flushes.push_back({impl_->sequence, std::move(checkpoint), std::move(done)});
  impl_->kick(lock);
}

}  // namespace mneme::store
