// Adding vectors, and describing their sum while it is in a register. In fixed order, so that the same inputs give the
// same bits; without threads, because the other cores belong to the other ranks.
#pragma once

#include <cstddef>

namespace distgrad {

// Of some entries: their sum, the sum of their squares, the largest magnitude, how many are NaN or infinite, how many
// are zero.
struct Moments {
  double total = 0, squares = 0, largest = 0, nonfinite = 0, zeros = 0;

  // Adds those of other entries. A largest that is NaN stays NaN.
  void merge(const Moments& other);
};

// Bytes. A vector of this size leaves the cache before anyone reads it again. `streams` then stores around the cache,
// which saves reading what is about to be overwritten: a third of the traffic of a copy, a quarter of a sum of two.
constexpr std::size_t kStream = 4 << 20;

template <typename T>
void store(T* place, const T* values, std::size_t count, bool streams);

template <typename T>
void add(T* place, const T* values, std::size_t count);

// What is done to the entries of a sum: the first ones are divided, and some of those, before that, described.
struct Finish {
  std::size_t divided = 0, described = 0;
  double divisor = 1;
};

// out = parts[0] + parts[1] + ..., in this order, and finished, from `first` to `last`. Where nothing is described, `out`
// may be a part.
template <typename T>
Moments add_parts(T* out, const T* const* parts, int count, std::size_t first, std::size_t last, const Finish& finish,
                  bool streams);

template <typename T>
Moments describe(const T* values, std::size_t count);

// The sum of some values' squares, and of the total that they were added to the sum and the sum of squares. The squares
// within 1e-6.
struct Described {
  double squares = 0;
  Moments total;
};

// Adds as `add` does, or stores as `store` does where the values are the first ones, and describes them; the total only
// where they are the last ones.
template <typename T>
Described describe_and_add(T* place, const T* values, std::size_t count, bool first, bool last, bool streams);

// The sum of squares of what changed, and of what was there before.
struct Moved {
  double change = 0, weights = 0;
};

template <typename T>
Moved compare(const T* before, const T* after, std::size_t count);

}  // namespace distgrad
