#include "sparse_variable.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "problem.h"

namespace distgrad {

void require_values(const std::string& variable, std::int64_t width, std::int64_t count, std::int64_t entries) {
  if (width ? entries % width == 0 && entries / width == count : entries == 0) return;
  throw gradient_mismatch(variable, "has " + std::to_string(entries) + " values for " + times(count, width));
}

void require_rows(const std::string& variable, std::int64_t rows, const std::int64_t* touched, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (touched[i] >= 0 && touched[i] < rows) continue;
    const std::string last = std::to_string(rows - 1), row = std::to_string(touched[i]);
    throw gradient_mismatch(variable, "is of row " + row + ", and the variable's are 0 to " + last);
  }
}

// Room for so many more rows. What fails here leaves no row with a position that has no sum.
void SparseVariable::reserve(std::int64_t more) {
  const std::int64_t most = std::min(rows_, touched() + more);
  if (!positions_) positions_.reset(static_cast<std::int32_t*>(std::calloc(rows_, sizeof(std::int32_t))));
  if (!positions_ || most > INT32_MAX) throw std::bad_alloc();
}

template <typename T>
void SparseVariable::add(const TouchedRows<T>& gradient) {
  if (!gradient.count) return;
  if (touched_.empty()) type_ = type_of<T>();
  require_type(type_of<T>());
  try {
    add_each(gradient);
  } catch (const std::bad_alloc&) {
    throw no_memory(times(rows_, width_) + " of variable " + name_);
  }
}

template <typename T>
void SparseVariable::add_each(const TouchedRows<T>& gradient) {
  reserve(gradient.count);
  const T* values = gradient.values;
  const std::size_t bytes = width_ * sizeof(T);
  for (std::int64_t i = 0; i < gradient.count; ++i, values += width_) {
    std::int32_t& position = positions_[gradient.rows[i]];
    if (position) {
      distgrad::add(sum_at<T>(position - 1), values, width_);
      continue;
    }
    const char* begin = reinterpret_cast<const char*>(values);
    values_.insert(values_.end(), begin, begin + bytes);
    touched_.push_back(gradient.rows[i]);
    position = static_cast<std::int32_t>(touched_.size());
  }
}

void SparseVariable::require_type(DataType type) const {
  if (!touched_.empty() && type_ != type) throw gradient_mismatch(name_, "comes in two dtypes");
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
  template void SparseVariable::add(const TouchedRows<T>&);                           \
  template void SparseVariable::copy_to(std::int64_t*, T*);                           \
  template void SparseVariable::scatter_to(T*) const;
DISTGRAD_FOR_EACH_TYPE(DISTGRAD_DEFINE)
#undef DISTGRAD_DEFINE

}  // namespace distgrad
