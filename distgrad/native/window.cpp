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
  memory_ = std::move(memory);
  rank_ = rank, ranks_ = ranks, owners_ = owners, across_ = across;
  turn_ = 0;
  // Touched now, and by the rank that will use it, rather than within a step.
  if (!alone()) std::memset(part(), 0, memory_->capacity());
  if (rank_ < owners_) {
    const std::int64_t share = whole_pages(memory_->capacity() / owners_);
    const std::int64_t start = std::min(share * rank_, memory_->capacity());
    std::memset(memory_->result(0) + start, 0, std::min(share, memory_->capacity() - start));
  }
  return true;
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
  kept_.reset();
  type_ = order.type, entries_ = order.placed;
  for (const Piece& piece : order.pieces) entries_ += piece.entries;
  const std::int64_t bytes = entries_ * size_of(type_) + room_for_notes(order.ranges.size(), ranks_);
  const bool fits = bytes <= memory_->capacity();
  if (fits) copy_in(order);
  std::string problem = agree();
  if (!problem.empty()) return problem;
  if (!fits) return callback_(kGrow, bytes, 0) ? "no memory for the sum" : sum(order);
  problem = own_shard(order);
  if (!problem.empty()) return problem;
  meet();
  collect(order);
  std::fill(votes_.begin(), votes_.end(), 0.0f);
  if (moments_.nonfinite > 0 && callback_(kVote, own_part_is_bad(), 0)) return "the vote failed";
  return "";
}

void Window::copy_in(const Order& order) {
  with_type(type_, [&](auto* place) {
    using T = std::remove_pointer_t<decltype(place)>;
    place = reinterpret_cast<T*>(part());
    if (!order.filled) std::memset(place, 0, order.placed * sizeof(T));
    if (alone()) return;  // nobody else reads the part: the pieces may stay where they are
    place += order.placed;
    for (const Piece& piece : order.pieces) {
      store(place, static_cast<const T*>(piece.values), piece.entries, is_large());
      place += piece.entries;
    }
  });
}

// Meets the others and finds out whether all bring the same kind of vector, and which result slot is free.
std::string Window::agree() {
  Seat& own = memory_->seat(rank_);
  own.entries = entries_, own.type = type_, own.lent = lent();
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
  return shard == owners_ ? entries_ : entries_ * shard / owners_ / kLine * kLine;
}

// Each rank that owns a shard sums it, and finishes it; between hosts, the sum is there before its divisor is known.
std::string Window::own_shard(const Order& order) {
  const bool owns = rank_ < owners_;
  const std::int64_t first = owns ? boundary(rank_) : 0, last = owns ? boundary(rank_ + 1) : 0;
  if (across_) {
    if (owns && callback_(kAcross, first, last)) return "the sum between the hosts failed";
    meet();
  }
  finish_ = {static_cast<std::size_t>(order.divided), static_cast<std::size_t>(order.described), divisor(order, across_)};
  if (owns) work_on_shard(order, first, last);
  return "";
}

// Adds, divides and describes: as a whole, or range by range, and what lies between the ranges without describing it.
void Window::work_on_shard(const Order& order, std::int64_t first, std::int64_t last) {
  const auto work = [&](std::int64_t start, std::int64_t stop, bool describes) {
    const Finish finish{finish_.divided, describes ? finish_.described : 0, finish_.divisor};
    return alone()   ? finish_pieces(order, start, stop, finish)
           : across_ ? finish_shard(start, stop, finish)
                     : add_shard(start, stop, finish);
  };
  Moments& whole = memory_->seat(rank_).moments;
  if (order.ranges.empty()) {
    whole = work(first, last, true);
    return;
  }
  whole = Moments{};
  Moments* found = notes(rank_, order.ranges.size());
  std::int64_t done = first;
  for (const Range& range : order.ranges) {
    const std::int64_t start = std::clamp(range.first, done, last), stop = std::clamp(range.last, start, last);
    work(done, start, false);
    *found = work(start, stop, true);
    whole.merge(*found++);
    done = stop;
  }
  work(done, last, false);
}

// What each owner found in its shard, taken together.
void Window::collect(const Order& order) {
  moments_ = Moments{};
  by_range_.assign(order.ranges.size(), Moments{});
  for (int owner = 0; owner < owners_; ++owner) {
    moments_.merge(memory_->seat(owner).moments);
    const Moments* found = notes(owner, by_range_.size());
    for (Moments& range : by_range_) range.merge(*found++);
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

bool Window::own_part_is_bad() const {
  if (alone()) return true;  // whose else
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    return describe(reinterpret_cast<const T*>(part()), finish_.described).nonfinite > 0;
  });
}

}  // namespace distgrad
