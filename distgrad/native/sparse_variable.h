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
#include <string>
#include <utility>
#include <vector>

#include "data_type.h"
#include "vector_math.h"

namespace distgrad {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// A gradient of some rows: their numbers, and their values one after the other.
template <typename T>
struct TouchedRows {
  const std::int64_t* rows;
  std::int64_t count;
  const T* values;
  std::int64_t entries;
};

// Throws a Problem unless each of these rows is one of the variable's, and there are as many values as they have.
void require_rows(const std::string& variable, std::int64_t rows, const std::int64_t* touched, std::int64_t count);
void require_values(const std::string& variable, std::int64_t width, std::int64_t count, std::int64_t entries);
template <typename T>
void require_rows(const std::string& variable, std::int64_t rows, std::int64_t width, const TouchedRows<T>& gradient) {
  require_values(variable, width, gradient.count, gradient.entries);
  require_rows(variable, rows, gradient.rows, gradient.count);
}

// The sums of one rank's gradients of one variable, (rows, width).
class SparseVariable {
 public:
  SparseVariable(std::string name, std::int64_t rows, std::int64_t width)
      : name_(std::move(name)), rows_(rows), width_(width) {}

  // Adds to some rows, for which `require_rows` holds; each may occur several times. Throws a Problem where there is no
  // memory, or where the rows so far have another type.
  template <typename T>
  void add(const TouchedRows<T>& gradient);

  // Throws a Problem unless the sums are of this type.
  void require_type(DataType type) const;

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

  const std::string& name() const { return name_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t width() const { return width_; }
  std::int64_t entries() const { return rows_ * width_; }
  std::int64_t touched() const { return static_cast<std::int64_t>(touched_.size()); }

 private:
  template <typename T>
  T* sum_at(std::int64_t position) {
    return reinterpret_cast<T*>(values_.data()) + position * width_;
  }
  template <typename T>
  void add_each(const TouchedRows<T>& gradient);
  void reserve(std::int64_t more);

  std::string name_;
  std::int64_t rows_, width_;
  DataType type_ = DataType::kFloat;  // of the sums, if there are any
  // For each row 1 + its position among those touched, or 0. Pages of it that nobody touches cost nothing.
  std::unique_ptr<std::int32_t[], Free> positions_;
  std::vector<std::int64_t> touched_;
  std::vector<char> values_;
};

using SparseVariables = std::vector<SparseVariable*>;

}  // namespace distgrad
