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

Moments of_one(double value) { return {value, value * value, std::fabs(value), 0, value == 0 ? 1.0 : 0.0}; }

// The moments of finite entries, in as many lanes as a register has.
struct Lanes {
  Doubles total{}, squares{}, largest{};
  Masks zeros{};

  DISTGRAD_INLINE void add(const Doubles& values) {
    const Doubles size = reinterpret_cast<Doubles>(reinterpret_cast<Masks>(values) & INT64_MAX);
    total += values;
    squares += values * values;
    largest = size > largest ? size : largest;
    zeros -= values == 0;  // a comparison that holds is -1
  }

  DISTGRAD_INLINE Moments sum() const {
    Moments found;
    for (std::size_t lane = 0; lane < kWidth; ++lane) {
      found.total += total[lane];
      found.squares += squares[lane];
      found.largest = std::max(found.largest, largest[lane]);
      found.zeros += static_cast<double>(zeros[lane]);
    }
    return found;
  }
};

// What happens to the entries of a chunk, known before its loop begins.
enum Work { kAdds, kDivides, kDescribesAndDivides };

template <bool kStreams, Work kWork, typename T>
DISTGRAD_INLINE Moments add_entries(T* out, const T* const* parts, int count, std::size_t first, std::size_t last,
                                    T divisor) {
  Lanes lanes;
  std::size_t i = first;
  for (; i + kWidth <= last; i += kWidth) {
    Values<T> sum = load(parts[0] + i);
    for (int part = 1; part < count; ++part) sum += load(parts[part] + i);
    if (kWork == kDescribesAndDivides) lanes.add(__builtin_convertvector(sum, Doubles));
    put<kStreams>(out + i, kWork == kAdds ? sum : sum / divisor);
  }
  Moments found = lanes.sum();
  for (; i < last; ++i) {
    T sum = parts[0][i];
    for (int part = 1; part < count; ++part) sum += parts[part][i];
    const double wide = static_cast<double>(sum);
    if (kWork == kDescribesAndDivides) found.merge(of_one(wide));
    out[i] = kWork == kAdds ? sum : sum / divisor;
  }
  return found;
}

template <bool kStreams, typename T>
DISTGRAD_INLINE Moments work_on(Work work, T* out, const T* const* parts, int count, std::size_t first,
                                std::size_t last, T divisor) {
  if (work == kAdds) return add_entries<kStreams, kAdds>(out, parts, count, first, last, divisor);
  if (work == kDivides) return add_entries<kStreams, kDivides>(out, parts, count, first, last, divisor);
  return add_entries<kStreams, kDescribesAndDivides>(out, parts, count, first, last, divisor);
}

// The sum and the sum of squares alone.
struct Sums {
  Doubles total{}, squares{};

  DISTGRAD_INLINE void add(const Doubles& values) {
    total += values;
    squares += values * values;
  }

  DISTGRAD_INLINE Moments sum() const {
    Moments found;
    for (std::size_t lane = 0; lane < kWidth; ++lane) found.total += total[lane], found.squares += squares[lane];
    return found;
  }
};

enum Way { kAddsTo, kStores, kStreams };

// One pass: what it computes is hidden behind what it waits for.
template <Way kWay, bool kLast, typename T>
DISTGRAD_INLINE Described describe_while_adding(T* place, const T* values, std::size_t count) {
  Sums given, total;
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const Values<T> more = load(values + i);
    const Values<T> sum = kWay == kAddsTo ? load(place + i) + more : more;
    given.add(__builtin_convertvector(more, Doubles));
    if (kLast) total.add(__builtin_convertvector(sum, Doubles));
    put<kWay == kStreams>(place + i, sum);
  }
  Described found{given.sum(), total.sum()};
  for (; i < count; ++i) {
    place[i] = kWay == kAddsTo ? place[i] + values[i] : values[i];
    const double more = static_cast<double>(values[i]), sum = static_cast<double>(place[i]);
    found.values.merge({more, more * more, 0, 0, 0});
    if (kLast) found.total.merge({sum, sum * sum, 0, 0, 0});
  }
  return found;
}

template <bool kLast, typename T>
DISTGRAD_INLINE Described work_on(Way way, T* place, const T* values, std::size_t count) {
  if (way == kAddsTo) return describe_while_adding<kAddsTo, kLast>(place, values, count);
  if (way == kStores) return describe_while_adding<kStores, kLast>(place, values, count);
  return describe_while_adding<kStreams, kLast>(place, values, count);
}

template <typename T>
DISTGRAD_INLINE Moments describe_chunk_of(const T* values, std::size_t count) {
  Lanes lanes;
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) lanes.add(__builtin_convertvector(load(values + i), Doubles));
  Moments found = lanes.sum();
  for (; i < count; ++i) found.merge(of_one(static_cast<double>(values[i])));
  return found;
}

#define DISTGRAD_FOR(T)                                                                                               \
  DISTGRAD_CLONES Moments add_chunk(Work work, T* out, const T* const* parts, int count, std::size_t first,           \
                                    std::size_t last, T divisor, bool streams) {                                      \
    return streams ? work_on<true>(work, out, parts, count, first, last, divisor)                                     \
                   : work_on<false>(work, out, parts, count, first, last, divisor);                                   \
  }                                                                                                                   \
  DISTGRAD_CLONES void add_to(T* __restrict place, const T* __restrict values, std::size_t count) {                   \
    for (std::size_t i = 0; i < count; ++i) place[i] += values[i];                                                    \
  }                                                                                                                   \
  DISTGRAD_CLONES Described add_described(Way way, T* place, const T* values, std::size_t count, bool last) {           \
    return last ? work_on<true>(way, place, values, count) : work_on<false>(way, place, values, count);               \
  }                                                                                                                   \
  DISTGRAD_CLONES Moments describe_chunk(const T* values, std::size_t count) { return describe_chunk_of(values, count); }
DISTGRAD_FOR(float)
DISTGRAD_FOR(double)
DISTGRAD_FOR(std::int32_t)
DISTGRAD_FOR(std::int64_t)
#undef DISTGRAD_FOR

// Looks again at entries that are not finite, or whose float64 squares overflowed; the squares told so.
template <typename At>
Moments look_again(Moments found, std::size_t first, std::size_t last, At at) {
  found.largest = 0;
  for (std::size_t i = first; i < last; ++i) {
    const double size = std::fabs(at(i));
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
  zeros += other.zeros;
}

template <typename T>
Moments describe(const T* values, std::size_t count) {
  Moments all;
  for (std::size_t start = 0; start < count; start += kChunk) {
    const std::size_t size = std::min(kChunk, count - start);
    Moments found = describe_chunk(values + start, size);
    if (!std::isfinite(found.squares)) {
      found = look_again(found, start, start + size, [&](std::size_t i) { return static_cast<double>(values[i]); });
    }
    all.merge(found);
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
void add(T* place, const T* values, std::size_t count) {
  add_to(place, values, count);
}

template <typename T>
Described describe_and_add(T* place, const T* values, std::size_t count, bool first, bool last, bool streams) {
  const Way way = !first ? kAddsTo : streams && is_aligned(place) ? kStreams : kStores;
  const Described found = add_described(way, place, values, count, last);
  if (way == kStreams) finish_stream();
  return found;
}

template <typename T>
Moments add_parts(T* out, const T* const* parts, int count, std::size_t first, std::size_t last, const Finish& finish,
                  bool streams) {
  Moments all;
  const T divisor = static_cast<T>(finish.divisor);
  const auto sum_at = [&](std::size_t i) {
    T sum = parts[0][i];
    for (int part = 1; part < count; ++part) sum += parts[part][i];
    return static_cast<double>(sum);
  };
  for (std::size_t start = first, stop; start < last; start = stop) {
    const bool describes = start < finish.described, divides = start < finish.divided;
    stop = std::min({start + kChunk, last, describes ? finish.described : divides ? finish.divided : last});
    const Work work = describes ? kDescribesAndDivides : divides ? kDivides : kAdds;
    Moments found = add_chunk(work, out, parts, count, start, stop, divisor, streams && is_aligned(out + start));
    if (!std::isfinite(found.squares)) found = look_again(found, start, stop, sum_at);
    all.merge(found);
  }
  if (streams) finish_stream();
  return all;
}

#define DISTGRAD_FOR(T)                                             \
  template Moments describe(const T*, std::size_t);                 \
  template void store(T*, const T*, std::size_t, bool);             \
  template void add(T*, const T*, std::size_t);                     \
  template Described describe_and_add(T*, const T*, std::size_t,    \
                                      bool, bool, bool);            \
  template Moments add_parts(T*, const T* const*, int, std::size_t, \
                             std::size_t, const Finish&, bool);
DISTGRAD_FOR(float)
DISTGRAD_FOR(double)
DISTGRAD_FOR(std::int32_t)
DISTGRAD_FOR(std::int64_t)

}  // namespace distgrad
