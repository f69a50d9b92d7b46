#include "sum_request.h"

namespace distgrad {
namespace {

// FNV-1a, by words.
void mix(std::uint64_t& digest, std::int64_t number) {
  digest = (digest ^ static_cast<std::uint64_t>(number)) * 0x100000001b3u;
}

}  // namespace

std::uint64_t SumRequest::digest() const {
  std::uint64_t digest = 0xcbf29ce484222325u;
  for (std::int64_t number : {divided, described, static_cast<std::int64_t>(terms.size()),
                              static_cast<std::int64_t>(ranges.size()), static_cast<std::int64_t>(sparse.size()),
                              static_cast<std::int64_t>(compression)}) {
    mix(digest, number);
  }
  for (const Range& range : ranges) mix(digest, range.first), mix(digest, range.last);
  for (const SparseVariable* variable : sparse) mix(digest, variable->rows()), mix(digest, variable->width());
  return digest;
}

}  // namespace distgrad
