#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

// One copy of a loop for each generation of processors, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DISTGRAD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DISTGRAD_CLONES
#endif

namespace distgrad {
namespace {

constexpr std::size_t kWidth = 8;  // entries described at once
typedef double Doubles __attribute__((vector_size(8 * kWidth)));
typedef std::int64_t Masks __attribute__((vector_size(8 * kWidth)));

// Finite entries only: whoever calls looks at the squares to see whether they were.
template <typename T>
inline __attribute__((always_inline)) Moments describe_chunk(const T* values, std::size_t count) {
  typedef T Values __attribute__((vector_size(sizeof(T) * kWidth)));
  Doubles total{}, squares{}, largest{};
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    Values narrow;
    std::memcpy(&narrow, values + i, sizeof narrow);
    const Doubles wide = __builtin_convertvector(narrow, Doubles);
    const Doubles size = reinterpret_cast<Doubles>(reinterpret_cast<Masks>(wide) & INT64_MAX);
    total += wide;
    squares += wide * wide;
    largest = size > largest ? size : largest;
  }
  Moments found;
  for (std::size_t lane = 0; lane < kWidth; ++lane) {
    found.total += total[lane];
    found.squares += squares[lane];
    found.largest = std::max(found.largest, largest[lane]);
  }
  for (; i < count; ++i) {
    const double wide = static_cast<double>(values[i]);
    found.total += wide;
    found.squares += wide * wide;
    found.largest = std::max(found.largest, std::fabs(wide));
  }
  return found;
}

DISTGRAD_CLONES Moments quick(const float* values, std::size_t count) { return describe_chunk(values, count); }
DISTGRAD_CLONES Moments quick(const double* values, std::size_t count) { return describe_chunk(values, count); }
DISTGRAD_CLONES Moments quick(const std::int32_t* values, std::size_t count) { return describe_chunk(values, count); }
DISTGRAD_CLONES Moments quick(const std::int64_t* values, std::size_t count) { return describe_chunk(values, count); }

// Some entries are NaN or infinite, or float64 squares overflowed.
template <typename T>
Moments careful(const T* values, std::size_t count, Moments found) {
  found.largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double size = std::fabs(static_cast<double>(values[i]));
    found.nonfinite += !std::isfinite(size);
    found.largest = std::isnan(size) || std::isnan(found.largest) ? NAN : std::max(found.largest, size);
  }
  return found;
}

}  // namespace

void Moments::merge(const Moments& other) {
  total += other.total;
  squares += other.squares;
  largest = std::isnan(largest) || std::isnan(other.largest) ? NAN : std::max(largest, other.largest);
  nonfinite += other.nonfinite;
}

template <typename T>
Moments describe(const T* values, std::size_t count) {
  Moments all;
  for (std::size_t start = 0; start < count; start += kChunk) {
    const std::size_t size = std::min(kChunk, count - start);
    const Moments found = quick(values + start, size);
    all.merge(std::isfinite(found.squares) ? found : careful(values + start, size, found));
  }
  return all;
}

template <typename T>
void store(T* place, const T* values, std::size_t count) {
  if (place != values && count) std::memcpy(place, values, count * sizeof(T));
}

template <typename T>
void add(T* __restrict place, const T* __restrict values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) place[i] += values[i];
}

template <typename T>
void add_two(T* __restrict out, const T* __restrict one, const T* __restrict other, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = one[i] + other[i];
}

template <typename T>
Moments add_parts(T* out, const T* const* parts, int count, std::size_t first, std::size_t last,
                  std::size_t described) {
  Moments all;
  for (std::size_t start = first; start < last; start += kChunk) {
    const std::size_t size = std::min(kChunk, last - start);
    if (count == 1) {
      store(out + start, parts[0] + start, size);
    } else {
      add_two(out + start, parts[0] + start, parts[1] + start, size);
    }
    for (int part = 2; part < count; ++part) add(out + start, parts[part] + start, size);
    if (start < described) all.merge(describe(out + start, std::min(size, described - start)));
  }
  return all;
}

#define DISTGRAD_FOR(T)                                                                                  \
  template Moments describe(const T*, std::size_t);                                                      \
  template void store(T*, const T*, std::size_t);                                                        \
  template void add(T*, const T*, std::size_t);                                                          \
  template Moments add_parts(T*, const T* const*, int, std::size_t, std::size_t, std::size_t);
DISTGRAD_FOR(float)
DISTGRAD_FOR(double)
DISTGRAD_FOR(std::int32_t)
DISTGRAD_FOR(std::int64_t)

}  // namespace distgrad
