// Entries of float32 as bfloat16, the upper half of their bits, in which they cross the wire between hosts.
//
// Rounding is to the nearest, and to the even one of two that are as near. NaN and infinities stay what they are. What
// rounding takes away is kept, and added to the same entry of the next vector; but nothing of an entry that is not
// finite, or no longer is when it is rounded.
#pragma once

#include <cstddef>
#include <cstdint>

namespace distgrad {

using BFloat16 = std::uint16_t;  // its bits

// What roundings took away, entry by entry, in units of the mean: what was lost, divided by the divisor of its step.
// So it keeps its weight where steps are divided by different numbers.
struct Feedback {
  const float* before;  // of the last vector
  float* after;         // of this one; another place
  float divisor;        // of this step. Unless it is more than 0, nothing is added, and all stays as it was.
};

// rounded[i] = values[i] + what was lost before.
void round_with_feedback(BFloat16* rounded, const float* values, std::size_t count, const Feedback& feedback);

// rounded[i] = parts[i] + parts[count + i] + ... + what was lost before, for `part_count` parts, added in this order.
void round_sum_with_feedback(BFloat16* rounded, const BFloat16* parts, int part_count, std::size_t count,
                             const Feedback& feedback);

void widen(float* values, const BFloat16* rounded, std::size_t count);

}  // namespace distgrad
