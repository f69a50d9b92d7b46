// What Python finds by position or by number in what the core writes, and the other way round. layout.py says the same
// for Python; layout.cpp lists it all, so that the two are compared when the core is loaded.
//
// The status page, which is shared between processes, too, is in status_page.h.
#pragma once

#include <cstdint>

namespace distgrad {

// Bytes: a cache line, and what TensorFlow demands of memory that a tensor aliases.
constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// What the core asks of Python in the midst of a sum. Python returns 0 where it succeeded.
enum Event : std::int32_t {
  kGrow = 0,                 // a: bytes that a vector needs. Every rank asks alike.
  kSumBetweenHosts = 1,      // sum this rank's shard, entries a..b of the result, over the hosts
  kMismatch = 2,             // local rank a brings b entries, unlike local rank 0
  kVote = 3,                 // a: whether this rank's own vector is not finite. Every rank asks alike.
  kOtherParts = 4,           // local rank a describes b ranges and tables, or others, unlike local rank 0
  kPublishBetweenHosts = 5,  // give the other hosts entries a..b of the publication, and get theirs
};
using Callback = std::int32_t (*)(std::int32_t event, std::int64_t a, std::int64_t b);

// The structures below are vectors of float64 in TensorFlow and NumPy.

// Of some entries: their sum, the sum of their squares, the largest magnitude, how many are NaN or infinite, how many
// are zero.
struct Moments {
  double total = 0, squares = 0, largest = 0, nonfinite = 0, zeros = 0;

  // Adds those of other entries. A largest that is NaN stays NaN.
  void merge(const Moments& other);
};

// What is found while gradients are added up: the sum of their squares; and once the last ones are added, of the totals
// the sum and the sum of squares, which are 0 before.
struct AddedSums {
  double squares = 0, total = 0, total_squares = 0;

  void merge(const AddedSums& other);
  void set_total(const Moments& totals) { total = totals.total, total_squares = totals.squares; }
};

// What a worker notes of its micro-batches: Σ |gradient|²/N over them, how many had an N, and of the totals of its
// gradients the sum and the sum of squares.
struct MicroBatchNotes {
  double between, count, total, total_squares;
};

// A worker's row in the table of workers.
struct WorkerRow {
  double gradient_sum, gradient_norm, between, micro_batches, weight, seconds;
};

}  // namespace distgrad
