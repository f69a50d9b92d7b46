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
  std::memset(part(), 0, memory_->capacity());
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

std::string Window::sum(Type type, std::int64_t placed, bool filled, const Piece* pieces, int count,
                        std::int64_t described) {
  kept_.reset();
  type_ = type, described_ = described, entries_ = placed;
  for (int i = 0; i < count; ++i) entries_ += pieces[i].entries;
  const std::int64_t bytes = entries_ * static_cast<std::int64_t>(size_of(type));
  const bool fits = bytes <= memory_->capacity();
  if (fits) copy_in(placed, filled, pieces, count);
  std::string problem = agree(entries_, type);
  if (!problem.empty()) return problem;
  if (!fits) {
    if (callback_(kGrow, bytes, 0)) return "no memory for the sum";
    return sum(type, placed, filled, pieces, count, described);
  }
  problem = own_shard();
  if (!problem.empty()) return problem;
  meet();
  moments_ = Moments{};
  for (int rank = 0; rank < owners_; ++rank) moments_.merge(memory_->seat(rank).moments);
  std::fill(votes_.begin(), votes_.end(), 0.0f);
  if (moments_.nonfinite > 0 && callback_(kVote, own_part_is_bad(described), 0)) return "the vote failed";
  return "";
}

void Window::copy_in(std::int64_t placed, bool filled, const Piece* pieces, int count) {
  with_type(type_, [&](auto* place) {
    using T = std::remove_pointer_t<decltype(place)>;
    place = reinterpret_cast<T*>(part());
    if (!filled) std::memset(place, 0, placed * sizeof(T));
    place += placed;
    for (int i = 0; i < count; ++i) {
      store(place, static_cast<const T*>(pieces[i].values), pieces[i].entries, is_large());
      place += pieces[i].entries;
    }
  });
}

// Meets the others and finds out whether all bring the same kind of vector, and which result slot is free.
std::string Window::agree(std::int64_t entries, Type type) {
  Seat& own = memory_->seat(rank_);
  own.entries = entries, own.type = type, own.lent = lent();
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

std::string Window::own_shard() {
  Moments found;
  if (rank_ < owners_) {
    const std::int64_t first = boundary(rank_), last = boundary(rank_ + 1);
    if (across_) {
      if (callback_(kAcross, first, last)) return "the sum between the hosts failed";
      found = describe_shard(first, std::min(last, described_));
    } else {
      found = add_shard(first, last);
    }
  }
  memory_->seat(rank_).moments = found;
  return "";
}

Moments Window::add_shard(std::int64_t first, std::int64_t last) {
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    std::vector<const T*> parts;
    for (int rank = 0; rank < ranks_; ++rank) parts.push_back(reinterpret_cast<const T*>(memory_->part(rank)));
    const std::int64_t described = across_ ? 0 : described_;
    return add_parts(reinterpret_cast<T*>(result_), parts.data(), ranks_, first, last, described, is_large());
  });
}

Moments Window::describe_shard(std::int64_t first, std::int64_t last) const {
  if (last <= first) return Moments{};
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    return describe(reinterpret_cast<const T*>(result_) + first, last - first);
  });
}

bool Window::own_part_is_bad(std::int64_t described) {
  return with_type(type_, [&](auto* none) {
    using T = std::remove_pointer_t<decltype(none)>;
    return describe(reinterpret_cast<const T*>(part()), described).nonfinite > 0;
  });
}

}  // namespace distgrad
