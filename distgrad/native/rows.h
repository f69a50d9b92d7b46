// Gradients of tables of which a step touches few rows: an embedding's. What is done to them grows with those rows.
//
//     a rank's own      Table: which rows its gradients touch, and their sums, in the order in which they came
//     in its part       RowLists: the same, in ascending order, for the other ranks to read
//     in the result     the rows that any rank touches, each with its sum over the ranks
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "numbers.h"

namespace distgrad {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// The sums of one rank's gradients of one table.
class Table {
 public:
  Table(std::int64_t rows, std::int64_t width) : rows_(rows), width_(width) {}

  // Adds to some rows; each may occur several times. False if one is outside the table.
  template <typename T>
  bool add(const std::int64_t* rows, const T* values, std::int64_t count);

  // Copies what was added, in ascending order of the rows.
  template <typename T>
  void copy_to(std::int64_t* rows, T* values);

  // Adds what was added to the whole table (rows, width).
  template <typename T>
  void scatter_to(T* table) const;

  template <typename T>
  Moments describe() const {
    return distgrad::describe(reinterpret_cast<const T*>(values_.data()), touched() * width_);
  }

  void clear();
  void release() { clear(), places_.reset(), values_ = {}; }

  std::int64_t rows() const { return rows_; }
  std::int64_t width() const { return width_; }
  std::int64_t entries() const { return rows_ * width_; }
  std::int64_t touched() const { return static_cast<std::int64_t>(touched_.size()); }

 private:
  template <typename T>
  T* values(std::int64_t place) {
    return reinterpret_cast<T*>(values_.data()) + place * width_;
  }

  std::int64_t rows_, width_;
  // For each row of the table 1 + its place among those touched, or 0. Pages of it that nobody touches cost nothing.
  std::unique_ptr<std::int32_t[], Free> places_;
  std::vector<std::int64_t> touched_;
  std::vector<char> values_;
};

using Tables = std::vector<Table*>;

constexpr std::int64_t kAligned = 64;  // bytes: a cache line, and what TensorFlow aliases without copying
inline std::int64_t aligned(std::int64_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; }

// The touched rows of all tables as they stand in a part: how many of each table, then which, and their values.
class RowLists {
 public:
  RowLists(char* memory, const Tables& tables, std::size_t entry_size)
      : memory_(memory), tables_(tables), entry_size_(static_cast<std::int64_t>(entry_size)) {}

  static std::int64_t bytes(const Tables& tables, std::size_t entry_size);

  // Copies the tables' own sums here.
  template <typename T>
  void fill();

  std::int64_t count(std::size_t table) const { return reinterpret_cast<const std::int64_t*>(memory_)[table]; }
  const std::int64_t* rows(std::size_t table) const { return reinterpret_cast<const std::int64_t*>(start(table)); }
  template <typename T>
  const T* values(std::size_t table) const {
    return reinterpret_cast<const T*>(start(table) + aligned(count(table) * sizeof(std::int64_t)));
  }

 private:
  char* start(std::size_t table) const;

  char* memory_;
  const Tables& tables_;
  std::int64_t entry_size_;
};

// The rows of a table that any of the ranks touches, in ascending order.
std::vector<std::int64_t> union_of(const std::vector<RowLists>& ranks, std::size_t table);

// Adds the ranks' values of the rows first..last of their union into `out`, which begins with the first row of the
// union, in rank order; and finishes them.
template <typename T>
Moments add_rows(T* out, const std::vector<std::int64_t>& rows, std::int64_t first, std::int64_t last,
                 const std::vector<RowLists>& ranks, std::size_t table, std::int64_t width, const Finish& finish);

}  // namespace distgrad
