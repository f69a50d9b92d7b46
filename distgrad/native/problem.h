// What an operation fails with.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace distgrad {

// An error. Python raises one of its own for it where the message holds a line of the form below, which errors.py reads.
class Problem : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  Problem(const std::string& code, const std::string& cause, const std::string& fix)
      : std::runtime_error("distgrad: error[" + code + "]: " + cause + "; " + fix + "\n") {}
};

// A gradient that is not like its variable. `is`: in what.
inline Problem gradient_mismatch(const std::string& variable, const std::string& is) {
  return Problem("DG024", "the gradient of variable " + variable + " " + is,
                 "give it the variable's shape, where a tf.custom_gradient or code of your own makes it");
}

inline Problem no_memory(const std::string& wanted) {
  return Problem("DG070", "no memory for " + wanted, "give the job more memory or train a smaller model");
}

inline std::string times(std::int64_t rows, std::int64_t width) {
  return std::to_string(rows) + " rows of " + std::to_string(width);
}

}  // namespace distgrad
