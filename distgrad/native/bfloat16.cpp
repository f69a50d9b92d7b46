#include "bfloat16.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "export.h"
#include "simd.h"

namespace distgrad {
namespace {

constexpr std::size_t kChunk = 1024;  // entries that are added up before they are rounded: they stay in the cache

constexpr int kHalf = 16;                         // bits that are cut off
constexpr std::uint32_t kAlmostHalf = 0x7fff;     // of the last bit that stays; with that bit added, ties go to even
constexpr std::uint32_t kInfinity = 0x7f800000;   // and above it NaN, without the sign
constexpr std::uint32_t kMagnitude = 0x7fffffff;  // all bits but the sign
constexpr std::uint32_t kQuiet = 0x40;            // a bit of a NaN that stays one whatever else is cut off

DISTGRAD_INLINE BFloat16 rounded_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const std::uint32_t nearest = (bits + kAlmostHalf + (bits >> kHalf & 1)) >> kHalf;
  const std::uint32_t nan = bits >> kHalf | kQuiet;
  return static_cast<BFloat16>((bits & kMagnitude) > kInfinity ? nan : nearest);
}

DISTGRAD_INLINE float wide(BFloat16 rounded) {
  const std::uint32_t bits = static_cast<std::uint32_t>(rounded) << kHalf;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

DISTGRAD_INLINE void round_entries(BFloat16* __restrict rounded, const float* __restrict values, std::size_t count,
                                   const float* __restrict before, float* __restrict after, float divisor) {
  for (std::size_t i = 0; i < count; ++i) {
    const float value = values[i] + before[i] * divisor;
    rounded[i] = rounded_bits(value);
    const float lost = value - wide(rounded[i]);
    after[i] = lost - lost == 0 ? lost / divisor : 0;
  }
}

DISTGRAD_INLINE void add_wide(float* __restrict sum, const BFloat16* __restrict part, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) sum[i] += wide(part[i]);
}

DISTGRAD_INLINE void store_wide(float* __restrict values, const BFloat16* __restrict rounded, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = wide(rounded[i]);
}

// One of each for every generation of processors.
struct Loops {
  void (*round)(BFloat16* rounded, const float* values, std::size_t count, const float* before, float* after,
                float divisor);
  void (*add)(float* sum, const BFloat16* part, std::size_t count);
  void (*widen)(float* values, const BFloat16* rounded, std::size_t count);
};

#define DISTGRAD_DEFINE_LOOPS(Generation, TARGET)                                                                     \
  struct Generation {                                                                                                 \
    TARGET static void round(BFloat16* rounded, const float* values, std::size_t count, const float* before,          \
                             float* after, float divisor) {                                                           \
      round_entries(rounded, values, count, before, after, divisor);                                                  \
    }                                                                                                                 \
    TARGET static void add(float* sum, const BFloat16* part, std::size_t count) { add_wide(sum, part, count); }       \
    TARGET static void widen(float* values, const BFloat16* rounded, std::size_t count) {                             \
      store_wide(values, rounded, count);                                                                             \
    }                                                                                                                 \
    static constexpr Loops kLoops{round, add, widen};                                                                 \
  };

DISTGRAD_FOR_EACH_GENERATION(DISTGRAD_DEFINE_LOOPS)
#undef DISTGRAD_DEFINE_LOOPS

const Loops& loops() {
  static const Loops& found = DISTGRAD_NEWEST(::kLoops);
  return found;
}

}  // namespace

void round_with_feedback(BFloat16* rounded, const float* values, std::size_t count, const Feedback& feedback) {
  if (feedback.divisor > 0 && std::isfinite(feedback.divisor)) {
    return loops().round(rounded, values, count, feedback.before, feedback.after, feedback.divisor);
  }
  for (std::size_t i = 0; i < count; ++i) rounded[i] = rounded_bits(values[i]);
  std::copy_n(feedback.before, count, feedback.after);
}

void round_sum_with_feedback(BFloat16* rounded, const BFloat16* parts, int part_count, std::size_t count,
                             const Feedback& feedback) {
  float sum[kChunk];
  for (std::size_t start = 0; start < count; start += kChunk) {
    const std::size_t size = std::min(kChunk, count - start);
    std::fill_n(sum, size, 0.0f);
    for (int part = 0; part < part_count; ++part) loops().add(sum, parts + part * count + start, size);
    round_with_feedback(rounded + start, sum, size,
                        {feedback.before + start, feedback.after + start, feedback.divisor});
  }
}

void widen(float* values, const BFloat16* rounded, std::size_t count) {
  loops().widen(values, rounded, count);
}

}  // namespace distgrad

// For Python, see collectives/rounded_sums.py.
extern "C" {

EXPORT void distgrad_round(distgrad::BFloat16* rounded, const float* values, std::int64_t count, const float* before,
                           float* after, float divisor) {
  distgrad::round_with_feedback(rounded, values, count, {before, after, divisor});
}

EXPORT void distgrad_round_sum(distgrad::BFloat16* rounded, const distgrad::BFloat16* parts, std::int32_t part_count,
                               std::int64_t count, const float* before, float* after, float divisor) {
  distgrad::round_sum_with_feedback(rounded, parts, part_count, count, {before, after, divisor});
}

EXPORT void distgrad_widen(float* values, const distgrad::BFloat16* rounded, std::int64_t count) {
  distgrad::widen(values, rounded, count);
}
}
