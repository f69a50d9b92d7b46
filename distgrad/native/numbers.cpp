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

constexpr std::size_t kChunk = 4096;   // entries described at once, and looked at again if they are not finite
constexpr std::size_t kRegister = 32;  // bytes; wider registers, where there are any, gain nothing here
constexpr std::size_t kQuad = 4;       // entries that fill a register as float64
constexpr std::size_t kWidth = 8;      // entries described together: two registers, so that one need not wait for itself
constexpr std::size_t kBlock = 16;     // bytes that are stored around the cache at once, and their alignment
constexpr std::size_t kLine = 64;      // bytes that are fetched at once
constexpr std::size_t kAhead = 2048;   // bytes that are fetched ahead, since the processor itself stops at each page's end

template <typename T, std::size_t kEntries>
struct Register {
  typedef T Values __attribute__((vector_size(sizeof(T) * kEntries)));
};
template <typename T, std::size_t kEntries>
using Values = typename Register<T, kEntries>::Values;
using Doubles = Values<double, kQuad>;
using Masks = Values<std::int64_t, kQuad>;

template <std::size_t kEntries, typename T>
DISTGRAD_INLINE Values<T, kEntries> load(const T* from) {
  Values<T, kEntries> values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

// Entry `i` of a vector that is read in order will soon be read, `kAhead` further on.
template <typename T>
DISTGRAD_INLINE void fetch_ahead(const T* values, std::size_t i) {
  if (i * sizeof(T) % kLine == 0) __builtin_prefetch(reinterpret_cast<const char*>(values + i) + kAhead);
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

template <bool kStreams, typename T, typename V>
DISTGRAD_INLINE void put(T* place, const V& values) {
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
    for (std::size_t lane = 0; lane < kQuad; ++lane) {
      found.total += total[lane];
      found.squares += squares[lane];
      found.largest = std::max(found.largest, largest[lane]);
      found.zeros += static_cast<double>(zeros[lane]);
    }
    return found;
  }
};

// Two of them.
struct Pair {
  Lanes low, high;

  template <typename V>
  DISTGRAD_INLINE void add(const V& values) {
    const auto wide = __builtin_convertvector(values, Values<double, kWidth>);
    Doubles half;
    std::memcpy(&half, &wide, sizeof half), low.add(half);
    std::memcpy(&half, reinterpret_cast<const char*>(&wide) + sizeof half, sizeof half), high.add(half);
  }

  DISTGRAD_INLINE Moments sum() const {
    Moments found = low.sum();
    found.merge(high.sum());
    return found;
  }
};

// What happens to the entries of a chunk, known before its loop begins.
enum Work { kAdds, kDivides, kDescribesAndDivides };

template <bool kStreams, Work kWork, typename T>
DISTGRAD_INLINE Moments add_entries(T* out, const T* const* parts, int count, std::size_t first, std::size_t last,
                                    T divisor) {
  Pair lanes;
  std::size_t i = first;
  for (; i + kWidth <= last; i += kWidth) {
    for (int part = 0; part < count; ++part) fetch_ahead(parts[part], i);
    auto sum = load<kWidth>(parts[0] + i);
    for (int part = 1; part < count; ++part) sum += load<kWidth>(parts[part] + i);
    if (kWork == kDescribesAndDivides) lanes.add(sum);
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

enum Way { kAddsTo, kStores, kStreams };

// Entries whose squares are added up in their own type. So few, in so many places, take 10 roundings: of float32, less
// than 1e-6 of the sum.
constexpr std::size_t kFew = 256, kPlaces = 4;

// In doubles, which add up to the moments.
struct Sums {
  Doubles given{}, total{}, squares{};  // Σ values², and of what they were added to Σ and Σ²

  DISTGRAD_INLINE Described found() const {
    Described found;
    for (std::size_t lane = 0; lane < kQuad; ++lane) {
      found.squares += given[lane];
      found.total.total += total[lane], found.total.squares += squares[lane];
    }
    return found;
  }
};

template <std::size_t kEntries, typename V>
DISTGRAD_INLINE Doubles folded(const V& values) {
  const auto wide = __builtin_convertvector(values, Values<double, kEntries>);
  Doubles sum{};
  for (std::size_t i = 0; i < kEntries; i += kQuad) {
    Doubles quad;
    std::memcpy(&quad, reinterpret_cast<const double*>(&wide) + i, sizeof quad);
    sum += quad;
  }
  return sum;
}

// One pass: what it computes is hidden behind what it waits for.
template <Way kWay, bool kLast, typename T>
DISTGRAD_INLINE void add_few(T* place, const T* values, Sums& sums) {
  constexpr std::size_t kEntries = kRegister / sizeof(T);
  Values<T, kEntries> given[kPlaces]{}, squares[kPlaces]{};
  for (std::size_t i = 0; i < kFew;) {
    for (std::size_t k = 0; k < kPlaces; ++k, i += kEntries) {
      fetch_ahead(values, i);
      if (kWay == kAddsTo) fetch_ahead(place, i);
      const auto more = load<kEntries>(values + i);
      const auto sum = kWay == kAddsTo ? load<kEntries>(place + i) + more : more;
      put<kWay == kStreams>(place + i, sum);
      given[k] += more * more;
      if (kLast) sums.total += folded<kEntries>(sum), squares[k] += sum * sum;
    }
  }
  sums.given += folded<kEntries>((given[0] + given[1]) + (given[2] + given[3]));
  if (kLast) sums.squares += folded<kEntries>((squares[0] + squares[1]) + (squares[2] + squares[3]));
}

template <Way kWay, bool kLast, typename T>
DISTGRAD_INLINE Described describe_while_adding(T* place, const T* values, std::size_t count) {
  Sums sums;
  std::size_t i = 0;
  for (; i + kFew <= count; i += kFew) add_few<kWay, kLast>(place + i, values + i, sums);
  Described found = sums.found();
  for (; i < count; ++i) {
    place[i] = kWay == kAddsTo ? place[i] + values[i] : values[i];
    const double more = static_cast<double>(values[i]), sum = static_cast<double>(place[i]);
    found.squares += more * more;
    if (kLast) found.total.total += sum, found.total.squares += sum * sum;
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
  Pair lanes;
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) lanes.add(load<kWidth>(values + i));
  Moments found = lanes.sum();
  for (; i < count; ++i) found.merge(of_one(static_cast<double>(values[i])));
  return found;
}

template <typename T>
DISTGRAD_INLINE Moved compare_all_of(const T* before, const T* after, std::size_t count) {
  Pair change, weights;  // of which only the squares are used, and made
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    fetch_ahead(before, i), fetch_ahead(after, i);
    const auto old = load<kWidth>(before + i);
    change.add(load<kWidth>(after + i) - old), weights.add(old);
  }
  Moved found{change.sum().squares, weights.sum().squares};
  for (; i < count; ++i) {
    const double old = static_cast<double>(before[i]), more = static_cast<double>(after[i] - before[i]);
    found.change += more * more, found.weights += old * old;
  }
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
  DISTGRAD_CLONES Moments describe_chunk(const T* values, std::size_t count) { return describe_chunk_of(values, count); } \
  DISTGRAD_CLONES Moved compare_all(const T* before, const T* after, std::size_t count) {                             \
    return compare_all_of(before, after, count);                                                                    \
  }
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

// Whether the squares of a chunk may be too large or too small for float32.
bool is_lost(double squares) { return !std::isfinite(squares) || squares < 1e-27; }

template <typename T>
Described describe_and_add(T* place, const T* values, std::size_t count, bool first, bool last, bool streams) {
  const Way way = !first ? kAddsTo : streams && is_aligned(place) ? kStreams : kStores;
  Described found;
  for (std::size_t start = 0; start < count; start += kChunk) {
    const std::size_t size = std::min(kChunk, count - start);
    Described more = add_described(way, place + start, values + start, size, last);
    if (is_lost(more.squares)) more.squares = describe_chunk(values + start, size).squares;
    if (last && is_lost(more.total.squares)) more.total = describe_chunk((first ? values : place) + start, size);
    found.squares += more.squares;
    found.total.merge(more.total);
  }
  if (way == kStreams) finish_stream();
  return found;
}

template <typename T>
Moved compare(const T* before, const T* after, std::size_t count) {
  return compare_all(before, after, count);
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
  template Moved compare(const T*, const T*, std::size_t);          \
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
