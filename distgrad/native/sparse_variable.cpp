#include "sparse_variable.h"

#include <algorithm>
#include <cstring>

#include "data_type.h"

namespace distgrad {

template <typename T>
bool SparseVariable::add(const std::int64_t* rows, const T* values, std::int64_t count) {
  if (!positions_) positions_.reset(static_cast<std::int32_t*>(std::calloc(rows_, sizeof(std::int32_t))));
  const std::size_t bytes = width_ * sizeof(T);
  for (std::int64_t i = 0; i < count; ++i, values += width_) {
    if (rows[i] < 0 || rows[i] >= rows_) return false;
    std::int32_t& position = positions_[rows[i]];
    if (position) {
      distgrad::add(sum_at<T>(position - 1), values, width_);
      continue;
    }
    touched_.push_back(rows[i]);
    position = static_cast<std::int32_t>(touched_.size());
    const char* begin = reinterpret_cast<const char*>(values);
    values_.insert(values_.end(), begin, begin + bytes);
  }
  return true;
}

template <typename T>
void SparseVariable::copy_to(std::int64_t* rows, T* sums) {
  std::copy(touched_.begin(), touched_.end(), rows);
  std::sort(rows, rows + touched());
  for (std::int64_t i = 0; i < touched(); ++i) {
    std::memcpy(sums + i * width_, sum_at<T>(positions_[rows[i]] - 1), width_ * sizeof(T));
  }
}

template <typename T>
void SparseVariable::scatter_to(T* all) const {
  const T* sums = reinterpret_cast<const T*>(values_.data());
  for (std::int64_t row : touched_) {
    distgrad::add(all + row * width_, sums, width_);
    sums += width_;
  }
}

void SparseVariable::clear() {
  for (std::int64_t row : touched_) positions_[row] = 0;
  touched_.clear();
  values_.clear();
}

#define DISTGRAD_DEFINE(T)                                                            \
  template bool SparseVariable::add(const std::int64_t*, const T*, std::int64_t);     \
  template void SparseVariable::copy_to(std::int64_t*, T*);                           \
  template void SparseVariable::scatter_to(T*) const;
DISTGRAD_FOR_EACH_TYPE(DISTGRAD_DEFINE)
#undef DISTGRAD_DEFINE

}  // namespace distgrad
