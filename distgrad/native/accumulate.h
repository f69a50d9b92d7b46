// The gradients of a micro-batch, checked against their variables and added to what the micro-batches before left.
//
// Whatever is wrong with any of them is a Problem that names its variable, before an entry is written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout.h"
#include "sparse_variable.h"
#include "sum_request.h"
#include "window.h"

namespace distgrad {

// Where a variable's gradient is added up: entries start..start+entries of this rank's slot. What lies between their end
// and `stop` is filled with zeros.
struct GradientPlace {
  std::string variable;
  std::int64_t start, stop, entries;
};

struct MicroBatch {
  bool is_first, is_last;
  bool describes;  // whether the sums are asked for
  Caller caller;
};

// Dense gradients, one a place. One without entries stands for zeros.
template <typename T>
AddedSums add_dense(Window& window, const std::vector<GradientPlace>& places, const std::vector<Piece>& gradients,
                    const MicroBatch& batch);

// A sparse gradient of a variable of `rows` rows. Where it is described, no row comes twice.
template <typename T>
AddedSums add_rows(Window& window, const GradientPlace& place, std::int64_t rows, const TouchedRows<T>& gradient,
                   const MicroBatch& batch);

// The same, among the touched rows of a sparse variable.
template <typename T>
AddedSums collect_rows(Window& window, SparseVariable& variable, const TouchedRows<T>& gradient,
                       const MicroBatch& batch);

}  // namespace distgrad
