// A vector of which each rank gives a part, and of which all read the whole.
#pragma once

#include <cstdint>
#include <vector>

#include "data_type.h"
#include "sum_request.h"

namespace distgrad {

// Entries of a rank's own.
struct Part {
  std::int64_t first;  // where they stand in the vector
  Piece values;
};

// A rank's share of a vector. What no rank gives is left as it is, and may be anything.
struct Publication {
  DataType type = DataType::kFloat;
  std::int64_t entries = 0;  // of the vector
  Range own{0, 0};           // what this rank gives, of which all its parts are
  std::vector<Part> parts;
};

}  // namespace distgrad
