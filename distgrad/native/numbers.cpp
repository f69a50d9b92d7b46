#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// One copy of a loop for each generation of processors, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DISTGRAD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DISTGRAD_CLONES
#endif
#define DISTGRAD_INLINE inline __attribute__((always_inline))

namespace distgrad {
namespace {

constexpr std::size_t kChunk = 4096;  // entries described at once, and looked at again if they are not finite
constexpr std::size_t kWidth = 8;     // entries in a processor's register, as float64
constexpr std::size_t kBlock = 16;    // bytes that are stored around the cache at once, and their alignment

typedef double Doubles __attribute__((vector_size(8 * kWidth)));
typedef std::int64_t Masks __attribute__((vector_size(8 * kWidth)));
template <typename T>
struct Register {
  typedef T Values __attribute__((vector_size(sizeof(T) * kWidth)));
};
template <typename T>
using Values = typename Register<T>::Values;

template <typename T>
DISTGRAD_INLINE Values<T> load(const T* from) {
  Values<T> values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

DISTGRAD_INLINE void stream_block(void* to, const void* from) {
#if defined(__SSE2__)
  _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  std::memcpy(to, from, kBlock);
#endif
}

// What is stored around the cache must have arrived before another rank is told so.
void finish_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

bool is_aligned(const void* place) { return reinterpret_cast<std::uintptr_t>(place) % kBlock == 0; }

template <bool kStreams, typename T>
DISTGRAD_INLINE void put(T* place, const Values<T>& values) {
  if (!kStreams) {
    std::memcpy(place, &values, sizeof values);
    return;
  }
  for (std::size_t byte = 0; byte < sizeof values; byte += kBlock) {
    stream_block(reinterpret_cast<char*>(place) + byte, reinterpret_cast<const char*>(&values) + byte);
  }
}

// The moments of finite entries, in as many lanes as a register has.
struct Lanes {
  Doubles total{}, squares{}, largest{};

  DISTGRAD_INLINE void add(const Doubles& values) {
    const Doubles size = reinterpret_cast<Doubles>(reinterpret_cast<Masks>(values) & INT64_MAX);
    total += values;
    squares += values * values;
    largest = size > largest ? size : largest;
  }

  DISTGRAD_INLINE Moments sum() const {
    Moments found;
    for (std::size_t lane = 0; lane < kWidth; ++lane) {
      found.total += total[lane];
      found.squares += squares[lane];
      found.largest = std::max(found.largest, largest[lane]);
    }
    return found;
  }
};

// Sums the parts' entries and, perhaps, describes them while they are in a register.
template <bool kStreams, bool kDescribes, typename T>
DISTGRAD_INLINE Moments add_entries(T* out, const T* const* parts, int count, std::size_t first, std::size_t last) {
  Lanes lanes;
  std::size_t i = first;
  for (; i + kWidth <= last; i += kWidth) {
    Values<T> sum = load(parts[0] + i);
    for (int part = 1; part < count; ++part) sum += load(parts[part] + i);
    put<kStreams>(out + i, sum);
    if (kDescribes) lanes.add(__builtin_convertvector(sum, Doubles));
  }
  Moments found = lanes.sum();
  for (; i < last; ++i) {
    T sum = parts[0][i];
    for (int part = 1; part < count; ++part) sum += parts[part][i];
    out[i] = sum;
    const double wide = static_cast<double>(sum);
    if (kDescribes) found.merge({wide, wide * wide, std::fabs(wide), 0});
  }
  return found;
}

template <typename T>
DISTGRAD_INLINE Moments add_chunk_of(T* out, const T* const* parts, int count, std::size_t first, std::size_t last,
                                     bool streams, bool describes) {
  if (streams && describes) return add_entries<true, true>(out, parts, count, first, last);
  if (streams) return add_entries<true, false>(out, parts, count, first, last);
  if (describes) return add_entries<false, true>(out, parts, count, first, last);
  return add_entries<false, false>(out, parts, count, first, last);
}

template <typename T>
DISTGRAD_INLINE Moments describe_chunk_of(const T* values, std::size_t count) {
  Lanes lanes;
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) lanes.add(__builtin_convertvector(load(values + i), Doubles));
  Moments found = lanes.sum();
  for (; i < count; ++i) {
    const double wide = static_cast<double>(values[i]);
    found.merge({wide, wide * wide, std::fabs(wide), 0});
  }
  return found;
}

#define DISTGRAD_FOR(T)                                                                                               \
  DISTGRAD_CLONES Moments add_chunk(T* out, const T* const* parts, int count, std::size_t first, std::size_t last,    \
                                    bool streams, bool describes) {                                                   \
    return add_chunk_of(out, parts, count, first, last, streams, describes);                                          \
  }                                                                                                                   \
  DISTGRAD_CLONES Moments describe_chunk(const T* values, std::size_t count) { return describe_chunk_of(values, count); }
DISTGRAD_FOR(float)
DISTGRAD_FOR(double)
DISTGRAD_FOR(std::int32_t)
DISTGRAD_FOR(std::int64_t)
#undef DISTGRAD_FOR

// The squares tell whether all entries were finite; if not, or if float64 squares overflowed, they are looked at again.
template <typename T>
Moments checked(const T* values, std::size_t count, Moments found) {
  if (std::isfinite(found.squares)) return found;
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
    all.merge(checked(values + start, size, describe_chunk(values + start, size)));
  }
  return all;
}

template <typename T>
void store(T* place, const T* values, std::size_t count, bool streams) {
  std::size_t i = 0;
  if (streams && is_aligned(place)) {
    constexpr std::size_t step = kBlock / sizeof(T);
    for (; i + step <= count; i += step) stream_block(place + i, values + i);
    finish_stream();
  }
  if (i < count) std::memcpy(place + i, values + i, (count - i) * sizeof(T));
}

template <typename T>
void add(T* __restrict place, const T* __restrict values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) place[i] += values[i];
}

template <typename T>
Moments add_parts(T* out, const T* const* parts, int count, std::size_t first, std::size_t last, std::size_t described,
                  bool streams) {
  Moments all;
  const std::size_t split = std::clamp(described, first, last);
  for (std::size_t start = first, stop; start < last; start = stop) {
    stop = std::min(start + kChunk, start < split ? split : last);
    const Moments found =
        add_chunk(out, parts, count, start, stop, streams && is_aligned(out + start), start < split);
    if (start < split) all.merge(checked(out + start, stop - start, found));
  }
  if (streams) finish_stream();
  return all;
}

#define DISTGRAD_FOR(T)                                             \
  template Moments describe(const T*, std::size_t);                 \
  template void store(T*, const T*, std::size_t, bool);             \
  template void add(T*, const T*, std::size_t);                     \
  template Moments add_parts(T*, const T* const*, int, std::size_t, \
                             std::size_t, std::size_t, bool);
DISTGRAD_FOR(float)
DISTGRAD_FOR(double)
DISTGRAD_FOR(std::int32_t)
DISTGRAD_FOR(std::int64_t)

}  // namespace distgrad
