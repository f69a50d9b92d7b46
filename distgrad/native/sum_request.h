// What is asked of a sum, and what comes of its sparse variables.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data_type.h"
#include "sparse_variable.h"

namespace distgrad {

// Entries first..last of a vector.
struct Range {
  std::int64_t first, last;
};

struct Piece {
  const void* values;
  std::int64_t entries;
};

// Who fills a slot and sums it: a run of a graph by TensorFlow's number of it, or else a thread.
using Caller = std::int64_t;

// A rank's vector, and what is done to the sum.
//
// The vector is `placed` entries that are in this rank's slot already, and then the pieces. Sparse variables are
// summed, divided and described with what of it is divided.
struct SumRequest {
  DataType type = DataType::kFloat;
  std::int64_t placed = 0;
  bool filled = true;  // else the placed entries count as zeros, whatever stands there, and no row is touched
  std::vector<Piece> pieces;
  SparseVariables sparse;
  std::int64_t divided = 0, described = 0;  // of how many entries, from the first
  std::vector<Range> ranges;                // in ascending order; described one by one, and the rest not at all
  // The divisor is terms[0] + terms[1] * a + terms[2] * b ..., where a, b, ... are the last entries of the sum; but 1
  // where that is 0.
  std::vector<double> terms;
  // Of what is divided, between hosts: 0 sums it as it is, any other number is Python's name of a way to compress it.
  std::int32_t compression = 0;
  Caller caller = 0;

  // A number for all that must be the same on every rank besides the size and dtype of the vector.
  std::uint64_t digest() const;

  std::size_t described_one_by_one() const { return ranges.size() + sparse.size(); }
};

// The sum of a sparse variable: the rows that any rank touched, and their (rows, width) values.
struct SparseSum {
  std::vector<std::int64_t> rows;
  std::int64_t width = 0;
  char* values = nullptr;

  std::int64_t entries() const { return static_cast<std::int64_t>(rows.size()) * width; }
};

}  // namespace distgrad
