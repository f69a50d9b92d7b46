// The gradients of a variable of which a step touches few rows: an embedding's. What is done to them grows with those
// rows.
//
//     a rank's own      SparseVariable: which rows its gradients touch, and their sums, in the order in which they came
//     in its slot       RowLists (row_lists.h): the same, in ascending order, for the other ranks to read
//     in the result     SparseSum (window.h): the rows that any rank touches, each with its sum over the ranks
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "vector_math.h"

namespace distgrad {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// The sums of one rank's gradients of one variable, (rows, width).
class SparseVariable {
 public:
  SparseVariable(std::int64_t rows, std::int64_t width) : rows_(rows), width_(width) {}

  // Adds to some rows; each may occur several times. False if one is outside the variable.
  template <typename T>
  bool add(const std::int64_t* rows, const T* values, std::int64_t count);

  // Copies the touched rows' numbers and sums, in ascending order.
  template <typename T>
  void copy_to(std::int64_t* rows, T* sums);

  // Adds the sums to (rows, width) entries, all of the variable's.
  template <typename T>
  void scatter_to(T* all) const;

  template <typename T>
  Moments moments() const {
    return moments_of(reinterpret_cast<const T*>(values_.data()), touched() * width_);
  }

  void clear();
  void free_memory() { clear(), positions_.reset(), values_ = {}; }

  std::int64_t rows() const { return rows_; }
  std::int64_t width() const { return width_; }
  std::int64_t entries() const { return rows_ * width_; }
  std::int64_t touched() const { return static_cast<std::int64_t>(touched_.size()); }

 private:
  template <typename T>
  T* sum_at(std::int64_t position) {
    return reinterpret_cast<T*>(values_.data()) + position * width_;
  }

  std::int64_t rows_, width_;
  // For each row 1 + its position among those touched, or 0. Pages of it that nobody touches cost nothing.
  std::unique_ptr<std::int32_t[], Free> positions_;
  std::vector<std::int64_t> touched_;
  std::vector<char> values_;
};

using SparseVariables = std::vector<SparseVariable*>;

}  // namespace distgrad
