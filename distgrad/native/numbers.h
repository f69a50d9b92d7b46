// Adding vectors, and describing them while they are in the cache. Fixed order, so that the same inputs give the same
// bits; no threads, because the other cores belong to the other ranks.
#pragma once

#include <cstddef>

namespace distgrad {

constexpr std::size_t kChunk = 4096;  // entries: several parts of this size fit into a core's first cache

// Of some entries: their sum, the sum of their squares, the largest magnitude, how many are NaN or infinite.
struct Moments {
  double total = 0, squares = 0, largest = 0, nonfinite = 0;

  // Adds those of other entries. A largest that is NaN stays NaN.
  void merge(const Moments& other);
};

template <typename T>
void store(T* place, const T* values, std::size_t count);

template <typename T>
void add(T* place, const T* values, std::size_t count);

// out = parts[0] + parts[1] + ..., in this order, from `first` to `last`; describes the entries before `described`.
template <typename T>
Moments add_parts(T* out, const T* const* parts, int count, std::size_t first, std::size_t last,
                  std::size_t described);

template <typename T>
Moments describe(const T* values, std::size_t count);

}  // namespace distgrad
