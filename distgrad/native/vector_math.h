// Adding vectors, and describing their sum while it is in a register. In fixed order, so that the same inputs give the
// same bits; without threads, because the other cores belong to the other ranks.
//
// Entries are float, double, int32 or int64.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "layout.h"

namespace distgrad {

// Bytes. A vector of this size leaves the cache before anyone reads it again. `streams` then stores around the cache,
// which saves reading what is about to be overwritten: a third of the traffic of a copy, a quarter of a sum of two.
constexpr std::size_t kLarge = 4 << 20;

template <typename T>
void store(T* place, const T* values, std::size_t count, bool streams);

template <typename T>
void add(T* place, const T* values, std::size_t count);

template <typename T>
Moments moments_of(const T* values, std::size_t count);

// Adds `values` to `place`, or stores them there where they are the `first` ones, and finds their sums; those of the
// total only where they are the `last` ones. Sums of squares are right within 1e-6 of them.
template <typename T>
AddedSums accumulate(T* place, const T* values, std::size_t count, bool first, bool last, bool streams);

// What is done to the entries of a sum: the first `divided` ones are divided, and the first `described` of those are
// described before that.
struct Finish {
  std::size_t divided = 0, described = 0;
  double divisor = 1;

  static Finish of_all(bool describes, double divisor) { return {SIZE_MAX, describes ? SIZE_MAX : 0, divisor}; }

  // The same for the entries behind the first `count`.
  Finish behind(std::size_t count) const {
    return {divided - std::min(divided, count), described - std::min(described, count), divisor};
  }
};

// out[i] = vectors[0][i] + vectors[1][i] + ... for `count` entries, added in this order, and finished. Returns the
// moments of those that are described. `out` may be one of the vectors where nothing is described.
template <typename T>
Moments sum_vectors(T* out, const T* const* vectors, int vector_count, std::size_t count, const Finish& finish,
                    bool streams);

// The sums of squares of what was changed, and of what was there before.
struct SquaredChange {
  double change = 0, before = 0;
};

template <typename T>
SquaredChange squared_change(const T* before, const T* after, std::size_t count);

}  // namespace distgrad
