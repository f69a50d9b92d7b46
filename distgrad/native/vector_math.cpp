#include "vector_math.h"

#include <cmath>
#include <cstring>

#include "data_type.h"
#include "simd.h"

namespace distgrad {
namespace {

constexpr std::size_t kChunk = 4096;  // entries described at once, and looked at again if they are not finite
constexpr std::size_t kQuad = 4;      // entries that fill a register as float64
constexpr std::size_t kWidth = 8;     // entries described together: two registers, so that one need not wait for itself

using Doubles = Values<double, kQuad>;
using Masks = Values<std::int64_t, kQuad>;

// ---- moments in registers

Moments moments_of_one(double value) { return {value, value * value, std::fabs(value), 0, value == 0 ? 1.0 : 0.0}; }

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

// Those of `kWidth` entries at a time.
struct LanePair {
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

template <typename T>
DISTGRAD_INLINE Moments moments_in_registers(const T* values, std::size_t count) {
  LanePair lanes;
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) lanes.add(load<kWidth>(values + i));
  Moments found = lanes.sum();
  for (; i < count; ++i) found.merge(moments_of_one(static_cast<double>(values[i])));
  return found;
}

// ---- the sum of vectors

// What happens to the entries of a chunk, known before its loop begins.
enum Work { kAdd, kDivide, kDescribeAndDivide };

template <bool kStreams, Work kWork, typename T>
DISTGRAD_INLINE Moments sum_entries(T* out, const T* const* vectors, int vector_count, std::size_t first,
                                    std::size_t last, T divisor) {
  LanePair lanes;
  std::size_t i = first;
  for (; i + kWidth <= last; i += kWidth) {
    for (int vector = 0; vector < vector_count; ++vector) fetch_ahead(vectors[vector], i);
    auto sum = load<kWidth>(vectors[0] + i);
    for (int vector = 1; vector < vector_count; ++vector) sum += load<kWidth>(vectors[vector] + i);
    if (kWork == kDescribeAndDivide) lanes.add(sum);
    put<kStreams>(out + i, kWork == kAdd ? sum : sum / divisor);
  }
  Moments found = lanes.sum();
  for (; i < last; ++i) {
    T sum = vectors[0][i];
    for (int vector = 1; vector < vector_count; ++vector) sum += vectors[vector][i];
    const double wide = static_cast<double>(sum);
    if (kWork == kDescribeAndDivide) found.merge(moments_of_one(wide));
    out[i] = kWork == kAdd ? sum : sum / divisor;
  }
  return found;
}

template <bool kStreams, typename T>
DISTGRAD_INLINE Moments sum_by_work(Work work, T* out, const T* const* vectors, int vector_count, std::size_t first,
                                    std::size_t last, T divisor) {
  if (work == kAdd) return sum_entries<kStreams, kAdd>(out, vectors, vector_count, first, last, divisor);
  if (work == kDivide) return sum_entries<kStreams, kDivide>(out, vectors, vector_count, first, last, divisor);
  return sum_entries<kStreams, kDescribeAndDivide>(out, vectors, vector_count, first, last, divisor);
}

// ---- accumulation

enum Way { kAddTo, kStore, kStream };

// Entries whose squares are added up in their own type. So few, in so many accumulators, take 10 roundings: of float32,
// less than 1e-6 of the sum.
constexpr std::size_t kFew = 256, kAccumulators = 4;

// AddedSums in lanes.
struct AddedLanes {
  Doubles squares{}, total{}, total_squares{};

  DISTGRAD_INLINE AddedSums sum() const {
    AddedSums found;
    for (std::size_t lane = 0; lane < kQuad; ++lane) {
      found.squares += squares[lane];
      found.total += total[lane], found.total_squares += total_squares[lane];
    }
    return found;
  }
};

// The sum of the quads of a register, as float64.
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
DISTGRAD_INLINE void accumulate_few(T* place, const T* values, AddedLanes& sums) {
  constexpr std::size_t kEntries = kRegisterBytes / sizeof(T);
  Values<T, kEntries> squares[kAccumulators]{}, total_squares[kAccumulators]{};
  for (std::size_t i = 0; i < kFew;) {
    for (std::size_t k = 0; k < kAccumulators; ++k, i += kEntries) {
      fetch_ahead(values, i);
      if (kWay == kAddTo) fetch_ahead(place, i);
      const auto more = load<kEntries>(values + i);
      const auto sum = kWay == kAddTo ? load<kEntries>(place + i) + more : more;
      put<kWay == kStream>(place + i, sum);
      squares[k] += more * more;
      if (kLast) sums.total += folded<kEntries>(sum), total_squares[k] += sum * sum;
    }
  }
  sums.squares += folded<kEntries>((squares[0] + squares[1]) + (squares[2] + squares[3]));
  if (kLast) {
    sums.total_squares +=
        folded<kEntries>((total_squares[0] + total_squares[1]) + (total_squares[2] + total_squares[3]));
  }
}

template <Way kWay, bool kLast, typename T>
DISTGRAD_INLINE AddedSums accumulate_entries(T* place, const T* values, std::size_t count) {
  AddedLanes sums;
  std::size_t i = 0;
  for (; i + kFew <= count; i += kFew) accumulate_few<kWay, kLast>(place + i, values + i, sums);
  AddedSums found = sums.sum();
  for (; i < count; ++i) {
    place[i] = kWay == kAddTo ? place[i] + values[i] : values[i];
    const double more = static_cast<double>(values[i]), sum = static_cast<double>(place[i]);
    found.squares += more * more;
    if (kLast) found.total += sum, found.total_squares += sum * sum;
  }
  return found;
}

template <bool kLast, typename T>
DISTGRAD_INLINE AddedSums accumulate_by_way(Way way, T* place, const T* values, std::size_t count) {
  if (way == kAddTo) return accumulate_entries<kAddTo, kLast>(place, values, count);
  if (way == kStore) return accumulate_entries<kStore, kLast>(place, values, count);
  return accumulate_entries<kStream, kLast>(place, values, count);
}

// ---- a change

template <typename T>
DISTGRAD_INLINE SquaredChange change_in_registers(const T* before, const T* after, std::size_t count) {
  LanePair change, weights;  // of which only the squares are used, and made
  std::size_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    fetch_ahead(before, i), fetch_ahead(after, i);
    const auto old = load<kWidth>(before + i);
    change.add(load<kWidth>(after + i) - old), weights.add(old);
  }
  SquaredChange found{change.sum().squares, weights.sum().squares};
  for (; i < count; ++i) {
    const double old = static_cast<double>(before[i]), more = static_cast<double>(after[i] - before[i]);
    found.change += more * more, found.before += old * old;
  }
  return found;
}

// ---- the loops, compiled for each generation of processors and chosen when the library is loaded

template <typename T>
struct Loops {
  Moments (*sum_chunk)(Work work, T* out, const T* const* vectors, int vector_count, std::size_t first,
                       std::size_t last, T divisor, bool streams);
  void (*add_all)(T* place, const T* values, std::size_t count);
  AddedSums (*accumulate_chunk)(Way way, T* place, const T* values, std::size_t count, bool last);
  Moments (*moments_of_chunk)(const T* values, std::size_t count);
  SquaredChange (*change_of_all)(const T* before, const T* after, std::size_t count);
};

#define DISTGRAD_DEFINE_LOOPS(Generation, TARGET)                                                                      \
  template <typename T>                                                                                                \
  struct Generation {                                                                                                  \
    TARGET static Moments sum_chunk(Work work, T* out, const T* const* vectors, int vector_count, std::size_t first,   \
                                    std::size_t last, T divisor, bool streams) {                                       \
      return streams ? sum_by_work<true>(work, out, vectors, vector_count, first, last, divisor)                       \
                     : sum_by_work<false>(work, out, vectors, vector_count, first, last, divisor);                     \
    }                                                                                                                  \
    TARGET static void add_all(T* __restrict place, const T* __restrict values, std::size_t count) {                   \
      for (std::size_t i = 0; i < count; ++i) place[i] += values[i];                                                   \
    }                                                                                                                  \
    TARGET static AddedSums accumulate_chunk(Way way, T* place, const T* values, std::size_t count, bool last) {       \
      return last ? accumulate_by_way<true>(way, place, values, count)                                                 \
                  : accumulate_by_way<false>(way, place, values, count);                                               \
    }                                                                                                                  \
    TARGET static Moments moments_of_chunk(const T* values, std::size_t count) {                                       \
      return moments_in_registers(values, count);                                                                      \
    }                                                                                                                  \
    TARGET static SquaredChange change_of_all(const T* before, const T* after, std::size_t count) {                    \
      return change_in_registers(before, after, count);                                                                \
    }                                                                                                                  \
    static constexpr Loops<T> kLoops{sum_chunk, add_all, accumulate_chunk, moments_of_chunk, change_of_all};           \
  };

DISTGRAD_FOR_EACH_GENERATION(DISTGRAD_DEFINE_LOOPS)
#undef DISTGRAD_DEFINE_LOOPS

template <typename T>
const Loops<T>& loops_for_this_processor() {
  return DISTGRAD_NEWEST(<T>::kLoops);
}

template <typename T>
const Loops<T>& kLoopsFor = loops_for_this_processor<T>();

// ---- what is not finite

// Counts entries that are NaN or infinite, and finds the largest again: the registers know neither. It is called where
// the sum of squares is not finite, which is so as well where the squares of finite entries overflow.
template <typename EntryAt>
Moments with_nonfinite(Moments found, std::size_t first, std::size_t last, EntryAt entry_at) {
  found.largest = 0;
  for (std::size_t i = first; i < last; ++i) {
    const double size = std::fabs(entry_at(i));
    found.nonfinite += !std::isfinite(size);
    found.largest = std::isnan(size) || std::isnan(found.largest) ? NAN : std::max(found.largest, size);
  }
  return found;
}

// Whether the squares of a chunk may have been too large or too small for float32.
bool is_lost(double squares) { return !std::isfinite(squares) || squares < 1e-27; }

}  // namespace

// ---- what the header declares

void Moments::merge(const Moments& other) {
  total += other.total;
  squares += other.squares;
  largest = std::isnan(largest) || std::isnan(other.largest) ? NAN : std::max(largest, other.largest);
  nonfinite += other.nonfinite;
  zeros += other.zeros;
}

void AddedSums::merge(const AddedSums& other) {
  squares += other.squares;
  total += other.total;
  total_squares += other.total_squares;
}

template <typename T>
void store(T* place, const T* values, std::size_t count, bool streams) {
  std::size_t i = 0;
  if (streams && can_stream_to(place)) {
    constexpr std::size_t step = kStreamedBytes / sizeof(T);
    for (; i + step <= count; i += step) stream_block(place + i, values + i);
    finish_stream();
  }
  if (i < count) std::memcpy(place + i, values + i, (count - i) * sizeof(T));
}

template <typename T>
void add(T* place, const T* values, std::size_t count) {
  kLoopsFor<T>.add_all(place, values, count);
}

template <typename T>
Moments moments_of(const T* values, std::size_t count) {
  Moments all;
  for (std::size_t start = 0; start < count; start += kChunk) {
    const std::size_t size = std::min(kChunk, count - start);
    Moments found = kLoopsFor<T>.moments_of_chunk(values + start, size);
    if (!std::isfinite(found.squares)) {
      found = with_nonfinite(found, start, start + size, [&](std::size_t i) { return static_cast<double>(values[i]); });
    }
    all.merge(found);
  }
  return all;
}

template <typename T>
AddedSums accumulate(T* place, const T* values, std::size_t count, bool first, bool last, bool streams) {
  const Way way = !first ? kAddTo : streams && can_stream_to(place) ? kStream : kStore;
  AddedSums found;
  for (std::size_t start = 0; start < count; start += kChunk) {
    const std::size_t size = std::min(kChunk, count - start);
    AddedSums more = kLoopsFor<T>.accumulate_chunk(way, place + start, values + start, size, last);
    if (is_lost(more.squares)) more.squares = kLoopsFor<T>.moments_of_chunk(values + start, size).squares;
    if (last && is_lost(more.total_squares)) {
      const Moments total = kLoopsFor<T>.moments_of_chunk((first ? values : place) + start, size);
      more.total = total.total, more.total_squares = total.squares;
    }
    found.merge(more);
  }
  if (way == kStream) finish_stream();
  return found;
}

template <typename T>
Moments sum_vectors(T* out, const T* const* vectors, int vector_count, std::size_t count, const Finish& finish,
                    bool streams) {
  Moments all;
  const T divisor = static_cast<T>(finish.divisor);
  const auto sum_at = [&](std::size_t i) {
    T sum = vectors[0][i];
    for (int vector = 1; vector < vector_count; ++vector) sum += vectors[vector][i];
    return static_cast<double>(sum);
  };
  for (std::size_t start = 0, stop; start < count; start = stop) {
    const bool describes = start < finish.described, divides = start < finish.divided;
    stop = std::min({start + kChunk, count, describes ? finish.described : divides ? finish.divided : count});
    const Work work = describes ? kDescribeAndDivide : divides ? kDivide : kAdd;
    const bool around = streams && can_stream_to(out + start);
    Moments found = kLoopsFor<T>.sum_chunk(work, out, vectors, vector_count, start, stop, divisor, around);
    if (!std::isfinite(found.squares)) found = with_nonfinite(found, start, stop, sum_at);
    all.merge(found);
  }
  if (streams) finish_stream();
  return all;
}

template <typename T>
SquaredChange squared_change(const T* before, const T* after, std::size_t count) {
  return kLoopsFor<T>.change_of_all(before, after, count);
}

#define DISTGRAD_DEFINE(T)                                                                  \
  template void store(T*, const T*, std::size_t, bool);                                     \
  template void add(T*, const T*, std::size_t);                                             \
  template Moments moments_of(const T*, std::size_t);                                       \
  template AddedSums accumulate(T*, const T*, std::size_t, bool, bool, bool);               \
  template Moments sum_vectors(T*, const T* const*, int, std::size_t, const Finish&, bool); \
  template SquaredChange squared_change(const T*, const T*, std::size_t);
DISTGRAD_FOR_EACH_TYPE(DISTGRAD_DEFINE)
#undef DISTGRAD_DEFINE

}  // namespace distgrad
