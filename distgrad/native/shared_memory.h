// The memory that the ranks of one host share.
//
//     seats     one a rank: how often it has arrived, what it brings, what it found in its shard
//     small     two a rank, for sums in turn: its vector, if that is small
//     slots     one a rank: its vector, if not
//     results   a few: each rank writes its shard of the sum into one of them
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "data_type.h"
#include "layout.h"

namespace distgrad {

constexpr int kLendable = 2;             // results that tensors may alias
constexpr int kResults = kLendable + 1;  // the last one is never lent, only copied from
constexpr int kTurns = 2;                // sums in turn write to other places
constexpr std::int64_t kSmall = 16384;   // bytes of the largest vector that is small

// What a rank brings to a sum.
struct Brought {
  std::int64_t entries;       // of the vector
  std::int64_t sparse_bytes;  // that its lists of rows take
  std::uint64_t digest;       // of what else must be the same on all ranks
  std::int64_t parts;         // how many ranges and tables it describes one by one
  DataType type;
  std::uint32_t lent_results;    // a bit for each result that its tensors alias
  std::uint32_t lent_published;  // likewise of the vectors that are published
};

// Where a rank tells the others about itself, on cache lines of its own. Memory is new when it is mapped, so that all
// of it is zeros at first.
//
// The fields that are not atomic are written by the seat's own rank alone, before it arrives, and read by the others
// after they have seen that it has arrived. The store of `arrived` is a release, among other things, and the load that
// sees it an acquire (meeting.cpp), so that whoever has met the rank sees what it wrote. What stands in its slot and in
// its shard of the result is published in the same way.
//
// Nor does a rank overwrite what another still reads. Every sum has a meeting behind which `brought` and small vectors are
// read: what a rank read of one sum, it has read before it arrives at the next sum's meeting, so before anybody writes for
// the sum after that, which takes the same turn. A sum of vectors that are not small has a second meeting: slots are read
// between the two, and written between the second and the next first one; `shard_moments` and shards are the other way
// round, but for results that are lent. A publication has one meeting, behind which `publications` is read; it is written
// before the next one, which a sum's meeting precedes.
struct alignas(kAlignment) Seat {
  std::atomic<std::uint32_t> arrived;   // counts meetings; what a sleeping rank waits on
  std::atomic<std::uint32_t> sleepers;  // how many ranks sleep until this one arrives, or are about to
  Brought brought[kTurns];
  std::uint64_t publications;  // how many it has made
  Moments shard_moments;
};

// The kernel waits on `arrived` as a plain word, and locks would be each process's own.
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));
static_assert(sizeof(Seat) % kAlignment == 0);

// One mapping. It lives until the last tensor that aliases a result is gone. A child that is forked inherits the results
// alone.
class SharedMemory {
 public:
  // Of a file, or without one (`fd` -1) of this process alone. `capacity`: bytes of a vector; `ranks`: 0 for results
  // alone. Nothing is mapped where there is too little memory, or the file is too short.
  SharedMemory(int fd, std::int64_t capacity, int ranks);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  bool mapped() const { return base_ != nullptr; }
  int ranks() const { return ranks_; }
  std::int64_t capacity() const { return capacity_; }
  Seat& seat(int rank) { return reinterpret_cast<Seat*>(base_)[rank]; }
  char* small(int rank, int turn) { return base_ + sizeof(Seat) * ranks_ + kSmall * (kTurns * rank + turn); }
  char* slot(int rank) { return base_ + seat_bytes_ + capacity_ * rank; }
  char* result(int number) { return base_ + seat_bytes_ + capacity_ * (ranks_ + number); }

  // How much of it there must be; -1 where that is more than any machine has.
  static std::int64_t bytes(std::int64_t capacity, int ranks);

  // Touches the pages of a rank's slot behind its first `kept` bytes and those of its shard of the first result.
  void touch_slot(int rank, std::int64_t kept);
  void touch_shard(int owner, int owners);

  // A bit for each result that tensors of this process alias.
  std::uint32_t lent_results() const;

 private:
  friend class Lease;

  std::int64_t bytes_;
  int ranks_;
  std::int64_t capacity_ = 0, seat_bytes_ = 0;
  char* base_ = nullptr;
  std::atomic<int> leases_[kLendable] = {};  // how many tensors of this process alias each result
};

// The use of a result by a tensor, until the tensor is gone.
class Lease {
 public:
  Lease(std::shared_ptr<SharedMemory> memory, int result);
  ~Lease();
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

 private:
  std::shared_ptr<SharedMemory> memory_;
  int result_;
};

}  // namespace distgrad
