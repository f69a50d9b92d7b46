#include "window.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstring>
#include <numeric>

namespace distgrad {
namespace {

constexpr std::int64_t kPage = 4096;
constexpr std::int64_t kLine = 64;  // entries; a shard begins on a cache line, so that no two ranks write into one

std::int64_t whole_pages(std::int64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

bool has_arrived(const Seat& seat, std::uint32_t turn) {
  // The difference stays right when the count wraps around.
  return static_cast<std::int32_t>(seat.arrived.load(std::memory_order_acquire) - turn) >= 0;
}

int usable_cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof cores, &cores) ? 1 : CPU_COUNT(&cores);
}

void futex(std::atomic<std::uint32_t>* word, int operation, std::uint32_t value, const timespec* limit) {
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(word), operation, value, limit, nullptr, 0);
}

// Bytes behind a result, for what each owner finds in each range; one more, so that they stand aligned.
std::size_t room_for_notes(std::size_t ranges, int ranks) {
  return ranges ? (ranges * ranks + 1) * sizeof(Moments) : 0;
}

// Calls `body` with a null pointer of the type's own C++ type.
template <typename Body>
auto with_type(Type type, Body body) {
  switch (type) {
    case Type::kDouble:
      return body(static_cast<double*>(nullptr));
    case Type::kInt32:
      return body(static_cast<std::int32_t*>(nullptr));
    case Type::kInt64:
      return body(static_cast<std::int64_t*>(nullptr));
    default:
      return body(static_cast<float*>(nullptr));
  }
}

}  // namespace

std::size_t size_of(Type type) {
  return with_type(type, [](auto* none) { return sizeof *none; });
}

// ---- memory

std::int64_t Memory::bytes(std::int64_t capacity, int ranks) {
  return whole_pages(ranks * static_cast<std::int64_t>(sizeof(Seat))) + whole_pages(capacity) * (ranks + kSlots);
}

Memory::Memory(int fd, std::int64_t capacity, int ranks)
    : capacity_(whole_pages(capacity)),
      seats_(whole_pages(ranks * static_cast<std::int64_t>(sizeof(Seat)))),
      bytes_(bytes(capacity, ranks)),
      ranks_(ranks) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (base != MAP_FAILED) base_ = static_cast<char*>(base);
}

Memory::~Memory() {
  if (base_) munmap(base_, bytes_);
}

void Lease::release() {
  memory->lent[slot].fetch_sub(1, std::memory_order_release);
  delete this;
}

bool Window::map(int fd, std::int64_t capacity, int rank, int ranks, int owners, bool across) {
  auto memory = std::make_shared<Memory>(fd, capacity, ranks);
  if (!memory->mapped()) return false;
  const std::shared_ptr<Memory> old = memory_;
  const char* old_part = old ? part() : nullptr;
  memory_ = std::move(memory);
  rank_ = rank, ranks_ = ranks, owners_ = owners, across_ = across;
  turn_ = 0;
  // Touched now, and by the rank that will use it, rather than within a step.
  const std::int64_t kept = old ? std::min(old->capacity(), memory_->capacity()) : 0;
  if (kept) std::memcpy(part(), old_part, kept);  // what is placed there already
  if (!alone()) std::memset(part() + kept, 0, memory_->capacity() - kept);
  if (rank_ < owners_) {
    const std::int64_t share = whole_pages(memory_->capacity() / owners_);
    const std::int64_t start = std::min(share * rank_, memory_->capacity());
    std::memset(memory_->result(0) + start, 0, std::min(share, memory_->capacity() - start));
  }
  return true;
}

void Window::close() {
  kept_.clear();
  memory_.reset();
  for (const auto& table : tables_) table->release();
}

Table* Window::add_table(std::int64_t rows, std::int64_t width) {
  return tables_.emplace_back(std::make_unique<Table>(rows, width)).get();
}

Lease* Window::lease() {
  if (slot_ == kLent) return nullptr;
  memory_->lent[slot_].fetch_add(1, std::memory_order_relaxed);
  return new Lease{memory_, slot_};
}

std::uint32_t Window::lent() const {
  std::uint32_t bits = 0;
  for (int slot = 0; slot < kLent; ++slot) {
    if (memory_->lent[slot].load(std::memory_order_acquire)) bits |= 1u << slot;
  }
  return bits;
}

// ---- meeting

// Returns when every rank of the host has come here as often as this one.
void Window::meet() {
  Seat& own = memory_->seat(rank_);
  own.arrived.store(++turn_, std::memory_order_seq_cst);
  page_->arrive();
  if (own.sleepers.load(std::memory_order_seq_cst)) futex(&own.arrived, FUTEX_WAKE, INT_MAX, nullptr);
  for (int rank = 0; rank < ranks_; ++rank) wait_for(memory_->seat(rank));
}

// Spins while the other rank may be about to arrive, then lets others have the core, then sleeps.
void Window::wait_for(Seat& seat) {
  using Clock = std::chrono::steady_clock;
  static const int cores = usable_cores();
  for (int spin = 0; spin < (ranks_ > cores ? 1 : 400); ++spin) {
    if (has_arrived(seat, turn_)) return;
    pause_briefly();
  }
  const auto patience = Clock::now() + std::chrono::milliseconds(2);
  while (Clock::now() < patience) {
    for (int turn = 0; turn < 16; ++turn) {
      if (has_arrived(seat, turn_)) return;
      sched_yield();
    }
  }
  seat.sleepers.fetch_add(1, std::memory_order_seq_cst);
  const timespec limit{1, 0};
  while (!has_arrived(seat, turn_)) {
    const std::uint32_t seen = seat.arrived.load(std::memory_order_seq_cst);
    // The kernel looks again whether it is still what was seen, so that no arrival is missed.
    if (static_cast<std::int32_t>(seen - turn_) < 0) futex(&seat.arrived, FUTEX_WAIT, seen, &limit);
  }
  seat.sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

// ---- the sum

std::string Window::sum(const Order& order) {
  kept_.clear();
  const std::string problem = try_sum(order);
  for (Table* table : order.tables) table->clear();
  page_->go_on();
  return problem;
}

std::string Window::try_sum(const Order& order) {
  lay_out(order);
  const bool fits = tables_at_ + row_bytes_ <= memory_->capacity();
  if (fits) copy_in(order);
  std::string problem = agree();
  if (!problem.empty()) return problem;
  const std::int64_t bytes = needed(order);
  if (bytes > memory_->capacity()) {
    const std::int64_t spare = (bytes - tables_at_) / 2;  // the number of rows varies from step to step
    return callback_(kGrow, order.tables.empty() ? bytes : bytes + spare, 0) ? "no memory for the sum" : try_sum(order);
  }
  problem = own_shard(order);
  if (!problem.empty()) return problem;
  meet();
  collect(order);
  std::fill(votes_.begin(), votes_.end(), 0.0f);
  if (moments_.nonfinite > 0 && callback_(kVote, own_part_is_bad(order), 0)) return "the vote failed";
  return "";
}

// How large everything is: the vector, and behind it the lists of rows, or between hosts whole tables.
void Window::lay_out(const Order& order) {
  const std::int64_t size = size_of(type_ = order.type);
  entries_ = order.placed;
  for (const Piece& piece : order.pieces) entries_ += piece.entries;
  whole_ = entries_, row_bytes_ = 0, tables_at_ = entries_ * size;
  touched_.clear();
  if (order.tables.empty()) return;
  tables_at_ = aligned(tables_at_);
  for (Table* table : order.tables) {
    if (!order.filled) table->clear();  // what stands there is an earlier, failed step's
    touched_.push_back({{}, table->width(), nullptr});
  }
  if (!across_) {
    row_bytes_ = RowLists::bytes(order.tables, size);
    return;
  }
  for (const Table* table : order.tables) row_bytes_ += aligned(table->entries() * size);
  whole_ = (tables_at_ + row_bytes_) / size;
}

// Bytes for the vector, all rows that any rank touches, each perhaps another one's, and the notes.
std::int64_t Window::needed(const Order& order) const {
  std::int64_t bytes = tables_at_ + room_for_notes(order.ranges.size() + order.tables.size(), ranks_);
  if (across_) return bytes + row_bytes_;
  for (int rank = 0; rank < ranks_; ++rank) bytes += memory_->seat(rank).row_bytes;
  return bytes;
}

void Window::copy_in(const Order& order) {
  with_type(type_, [&](auto* place) {
    using T = std::remove_pointer_t<decltype(place)>;
    place = reinterpret_cast<T*>(part());
    if (!order.filled) std::memset(place, 0, order.placed * sizeof(T));
    copy_in_tables<T>(order);
    if (alone()) return;  // nobody else reads the part: the pieces may stay where they are
    place += order.placed;
    for (const Piece& piece : order.pieces) {
      store(place, static_cast<const T*>(piece.values), piece.entries, is_large());
      place += piece.entries;
    }
  });
}

template <typename T>
void Window::copy_in_tables(const Order& order) {
  if (order.tables.empty()) return;
  if (!across_) return lists_of(rank_, order.tables).fill<T>();
  char* place = part() + tables_at_;
  for (const Table* table : order.tables) {
    const std::int64_t bytes = aligned(table->entries() * sizeof(T));
    std::memset(place, 0, bytes);
    table->scatter_to(reinterpret_cast<T*>(place));
    place += bytes;
  }
}

RowLists Window::lists_of(int rank, const Tables& tables) const {
  return {memory_->part(rank) + tables_at_, tables, size_of(type_)};
}

std::vector<RowLists> Window::lists_of_all(const Tables& tables) const {
  std::vector<RowLists> ranks;
  for (int rank = 0; rank < ranks_; ++rank) ranks.push_back(lists_of(rank, tables));
  return ranks;
}

// Meets the others and finds out whether all bring the same kind of vector, and which result slot is free.
std::string Window::agree() {
  Seat& own = memory_->seat(rank_);
  own.entries = entries_, own.row_bytes = row_bytes_, own.type = type_, own.lent = lent();
  meet();
  const Seat& first = memory_->seat(0);
  std::uint32_t busy = 0;
  for (int rank = 0; rank < ranks_; ++rank) {
    const Seat& seat = memory_->seat(rank);
    if (seat.entries != first.entries || seat.type != first.type) {
      callback_(kMismatch, rank, seat.entries);
      return "the ranks of this host bring vectors of different size or dtype";
    }
    busy |= seat.lent;
  }
  // The same on every rank, since all have read the same notes.
  for (slot_ = 0; slot_ < kLent && busy >> slot_ & 1; ++slot_) {
  }
  result_ = memory_->result(slot_);
  return "";
}

std::int64_t Window::boundary(int shard) const {
  return shard == owners_ ? whole_ : whole_ * shard / owners_ / kLine * kLine;
}

// Each rank that owns a shard sums it, and finishes it; between hosts, the sum is there before its divisor is known.
std::string Window::own_shard(const Order& order) {
  const bool owns = rank_ < owners_;
  const std::int64_t first = owns ? boundary(rank_) : 0, last = owns ? boundary(rank_ + 1) : 0;
  if (across_) {
    page_->away.store(1);
    if (owns && callback_(kAcross, first, last)) return "the sum between the hosts failed";
    page_->away.store(0);
    meet();
  }
  finish_ = {static_cast<std::size_t>(order.divided), static_cast<std::size_t>(order.described), divisor(order, across_)};
  find_touched(order);
  if (owns) work_on_shard(order, first, last);
  return "";
}

// The union of the ranks' rows, on every rank alike, and where in the result their sums will stand.
void Window::find_touched(const Order& order) {
  std::int64_t place = tables_at_;
  for (std::size_t i = 0; i < touched_.size(); ++i) {
    Touched& table = touched_[i];
    if (across_) {
      table.rows.resize(order.tables[i]->rows());
      std::iota(table.rows.begin(), table.rows.end(), 0);
    } else {
      table.rows = union_of(lists_of_all(order.tables), i);
    }
    table.values = result_ + place;
    place += aligned(table.rows.size() * table.width * size_of(type_));
  }
}

// Adds, divides and describes: as a whole, or range by range, and what lies between the ranges without describing it;
// then the tables.
void Window::work_on_shard(const Order& order, std::int64_t first, std::int64_t last) {
  const std::int64_t end = std::min(last, entries_);
  const auto work = [&](std::int64_t start, std::int64_t stop, bool describes) {
    const Finish finish{finish_.divided, describes ? finish_.described : 0, finish_.divisor};
    if (start >= stop) return Moments{};
    return alone()   ? finish_pieces(order, start, stop, finish)
           : across_ ? finish_shard(start, stop, finish)
                     : add_shard(start, stop, finish);
  };
  Moments* found = notes(rank_, order.ranges.size() + order.tables.size());
  Moments whole;
  if (order.ranges.empty()) whole = work(first, end, true);
  std::int64_t done = order.ranges.empty() ? end : first;
  for (const Range& range : order.ranges) {
    const std::int64_t start = std::clamp(range.first, done, std::max(done, end));
    const std::int64_t stop = std::clamp(range.last, start, std::max(start, end));
    work(done, start, false);
    *found = work(start, stop, true);
    whole.merge(*found++);
    done = stop;
  }
  work(done, end, false);
  for (std::size_t table = 0; table < order.tables.size(); ++table) {
    *found = work_on_table(order, table, first, last);
    whole.merge(*found++);
  }
  memory_->seat(rank_).moments = whole;
}

// What of a table is this rank's to add: between hosts what lies in its shard, else its share of the touched rows.
Moments Window::work_on_table(const Order& order, std::size_t table, std::int64_t first, std::int64_t last) {
  const bool describes = order.described == order.divided;
  if (!across_) return add_own_rows(order, table, {SIZE_MAX, describes ? SIZE_MAX : 0, finish_.divisor});
  const std::int64_t start = (touched_[table].values - result_) / static_cast<std::int64_t>(size_of(type_));
  const std::int64_t from = std::max(first, start), to = std::min(last, start + order.tables[table]->entries());
  const std::size_t end = std::max(from, to);
  return from < to ? finish_shard(from, to, {end, describes ? end : 0, finish_.divisor}) : Moments{};
}

Moments Window::add_own_rows(const Order& order, std::size_t table, const Finish& finish) {
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    const Touched& found = touched_[table];
    const std::int64_t count = found.rows.size(), first = count * rank_ / owners_, last = count * (rank_ + 1) / owners_;
    T* out = reinterpret_cast<T*>(found.values);
    return add_rows(out, found.rows, first, last, lists_of_all(order.tables), table, found.width, finish);
  });
}

// What each owner found in its shard, taken together. Rows that nobody touched are zeros.
void Window::collect(const Order& order) {
  const std::size_t ranges = order.ranges.size();
  moments_ = Moments{};
  by_range_.assign(ranges + order.tables.size(), Moments{});
  for (int owner = 0; owner < owners_; ++owner) {
    moments_.merge(memory_->seat(owner).moments);
    const Moments* found = notes(owner, by_range_.size());
    for (Moments& range : by_range_) range.merge(*found++);
  }
  for (std::size_t table = 0; table < order.tables.size(); ++table) {
    const std::int64_t touched = touched_[table].rows.size() * touched_[table].width;
    by_range_[ranges + table].zeros += static_cast<double>(order.tables[table]->entries() - touched);
  }
}

// Where an owner notes what it found in each range: behind the result, at the end of its slot.
Moments* Window::notes(int owner, std::size_t ranges) const {
  return reinterpret_cast<Moments*>(result_ + memory_->capacity()) - ranges * (owner + 1);
}

// The same on every rank: from the parts, added in rank order, or from the result, if they are summed already.
double Window::divisor(const Order& order, bool summed) const {
  double divisor = order.terms.empty() ? 1 : order.terms[0];
  const std::int64_t others = static_cast<std::int64_t>(order.terms.size()) - 1;
  with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    for (std::int64_t term = 1; term <= others; ++term) {
      if (order.terms[term] == 0) continue;  // whose entry may be NaN
      const std::int64_t entry = entries_ - others + term - 1;
      T sum = summed ? reinterpret_cast<const T*>(result_)[entry] : T{};
      for (int rank = 0; rank < ranks_ && !summed; ++rank) {
        sum += alone() ? own_entry<T>(order, entry) : reinterpret_cast<const T*>(memory_->part(rank))[entry];
      }
      divisor += order.terms[term] * static_cast<double>(sum);
    }
  });
  return divisor == 0 ? 1 : divisor;
}

// A lone rank's vector: what is placed, and the pieces.
std::vector<Piece> Window::all_of(const Order& order) const {
  std::vector<Piece> pieces{{part(), order.placed}};
  pieces.insert(pieces.end(), order.pieces.begin(), order.pieces.end());
  return pieces;
}

template <typename T>
T Window::own_entry(const Order& order, std::int64_t entry) const {
  for (const Piece& piece : all_of(order)) {
    if (entry < piece.entries) return static_cast<const T*>(piece.values)[entry];
    entry -= piece.entries;
  }
  return T{};
}

Moments Window::finish_pieces(const Order& order, std::int64_t first, std::int64_t last, const Finish& finish) {
  Moments all;
  with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    std::int64_t start = 0;
    for (const Piece& piece : all_of(order)) {
      const std::int64_t from = std::max(first, start), to = std::min(last, start + piece.entries);
      const T* values = static_cast<const T*>(piece.values) - start;  // as if the whole vector stood there
      if (from < to) all.merge(add_parts(reinterpret_cast<T*>(result_), &values, 1, from, to, finish, is_large()));
      start += piece.entries;
    }
  });
  return all;
}

Moments Window::add_shard(std::int64_t first, std::int64_t last, const Finish& finish) {
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    std::vector<const T*> parts;
    for (int rank = 0; rank < ranks_; ++rank) parts.push_back(reinterpret_cast<const T*>(memory_->part(rank)));
    return add_parts(reinterpret_cast<T*>(result_), parts.data(), ranks_, first, last, finish, is_large());
  });
}

Moments Window::finish_shard(std::int64_t first, std::int64_t last, const Finish& finish) {
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    T* result = reinterpret_cast<T*>(result_);
    const std::int64_t described = std::clamp<std::int64_t>(finish.described, first, last) - first;
    const Moments found = describe(result + first, described);
    const Finish division{finish.divided, 0, finish.divisor};
    add_parts(result, &result, 1, first, std::clamp<std::int64_t>(finish.divided, first, last), division, false);
    return found;
  });
}

bool Window::own_part_is_bad(const Order& order) const {
  if (alone()) return true;  // whose else
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    double bad = describe(reinterpret_cast<const T*>(part()), finish_.described).nonfinite;
    if (across_) return bad + describe(reinterpret_cast<const T*>(part() + tables_at_), row_bytes_ / sizeof(T)).nonfinite > 0;
    const RowLists own = lists_of(rank_, order.tables);
    for (std::size_t i = 0; i < touched_.size(); ++i) {
      bad += describe(own.values<T>(i), own.count(i) * touched_[i].width).nonfinite;
    }
    return bad > 0;
  });
}

}  // namespace distgrad
