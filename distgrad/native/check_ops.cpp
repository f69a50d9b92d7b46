// Gradients that do not go through a window are checked against their variables.
//
//     DistgradRequireShape    of this shape, a dense gradient is its variable's
//     DistgradRequireRows     these rows, and the shape of their values, are the variable's
#include <sstream>
#include <string>
#include <vector>

#include "kernels.h"
#include "sparse_variable.h"

namespace distgrad {
namespace {

std::string shown(const Shape& shape) {
  std::ostringstream text;
  for (std::size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
  return "(" + text.str() + (shape.size() == 1 ? ",)" : ")");
}

// Attributes: `variables`, a single name, and `shape`, of that variable.
class ShapeKernel {
 public:
  explicit ShapeKernel(TF_OpKernelConstruction* construction)
      : variables_(texts(construction, "variables")), shape_(integers(construction, "shape")) {}

 protected:
  const std::string& variable() const { return variables_.at(0); }

  void require_shape(const Tensor& given, const Shape& wanted) const {
    const std::int64_t* sizes = data_of<std::int64_t>(given);
    const Shape found(sizes, sizes + entries_of(given));
    if (found == wanted) return;
    throw gradient_mismatch(variable(), "has the shape " + shown(found) + " instead of " + shown(wanted));
  }

  std::vector<std::string> variables_;
  Shape shape_;
};

class RequireShapeKernel : ShapeKernel {
 public:
  using ShapeKernel::ShapeKernel;

  void compute(TF_OpKernelContext* context) { require_shape(input(context, 0), shape_); }
};

class RequireRowsKernel : ShapeKernel {
 public:
  using ShapeKernel::ShapeKernel;

  void compute(TF_OpKernelContext* context) {
    const Tensor rows = input(context, 0);
    Shape of_values = shape_;
    of_values.at(0) = entries_of(rows);
    require_shape(input(context, 1), of_values);
    require_rows(variable(), shape_[0], data_of<std::int64_t>(rows), entries_of(rows));
  }
};

const bool registered = [] {
  Definition("DistgradRequireShape")
      .stateful()
      .attr("variables: list(string)")
      .attr("shape: list(int)")
      .in("found: int64")
      .register_it();
  Definition("DistgradRequireRows")
      .stateful()
      .attr("variables: list(string)")
      .attr("shape: list(int)")
      .in("rows: int64")
      .in("values: int64")
      .register_it();
  register_kernel<RequireShapeKernel>("DistgradRequireShape");
  register_kernel<RequireRowsKernel>("DistgradRequireRows");
  return true;
}();

}  // namespace
}  // namespace distgrad
