// The touched rows of sparse variables as a rank shows them to the others, and their sum over the ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "layout.h"
#include "sparse_variable.h"
#include "vector_math.h"

namespace distgrad {

// In memory: how many rows of each variable; then for each of them which ones, in ascending order, and their values.
class RowLists {
 public:
  RowLists(char* memory, const SparseVariables& variables, std::size_t entry_size)
      : memory_(memory), variables_(variables), entry_size_(static_cast<std::int64_t>(entry_size)) {}

  // How much memory the variables' own sums take.
  static std::int64_t bytes(const SparseVariables& variables, std::size_t entry_size);

  // Copies the variables' own sums here.
  template <typename T>
  void fill();

  std::int64_t count(std::size_t variable) const { return reinterpret_cast<const std::int64_t*>(memory_)[variable]; }
  const std::int64_t* rows(std::size_t variable) const {
    return reinterpret_cast<const std::int64_t*>(start(variable));
  }
  template <typename T>
  const T* values(std::size_t variable) const {
    return reinterpret_cast<const T*>(start(variable) + aligned(count(variable) * sizeof(std::int64_t)));
  }

 private:
  char* start(std::size_t variable) const;

  char* memory_;
  const SparseVariables& variables_;
  std::int64_t entry_size_;
};

// The rows of a variable that any of the ranks touches, in ascending order.
std::vector<std::int64_t> union_of(const std::vector<RowLists>& ranks, std::size_t variable);

// Adds the ranks' values of rows[first..last], in rank order, and finishes the sums. `rows` is the ranks' union, and
// `out` has room for all of it.
template <typename T>
Moments sum_rows(T* out, const std::vector<std::int64_t>& rows, std::int64_t first, std::int64_t last,
                 const std::vector<RowLists>& ranks, std::size_t variable, std::int64_t width, const Finish& finish);

}  // namespace distgrad
