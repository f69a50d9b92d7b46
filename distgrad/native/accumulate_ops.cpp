// A micro-batch's gradients are added to what those before it left.
//
//     DistgradAdd            dense gradients, in this rank's slot
//     DistgradAddRows        a sparse gradient, there, too
//     DistgradCollectRows    a sparse gradient, among the touched rows of a sparse variable
//
// Each gives (3,) AddedSums; where the attribute `describes` is 0, (0,).
#include <vector>

#include "accumulate.h"
#include "window_kernel.h"

namespace distgrad {
namespace {

// Inputs, as all three have them; of the gradients in `kValues` DistgradAdd has several.
enum Input { kIsFirst = 1, kIsLast, kValues, kRows };

class AccumulateKernel : protected WindowKernel {
 public:
  explicit AccumulateKernel(TF_OpKernelConstruction* construction)
      : WindowKernel(construction), describes_(integer(construction, "describes")) {}

 protected:
  MicroBatch micro_batch(TF_OpKernelContext* context) const {
    const bool first = value_of<bool>(input(context, kIsFirst)), last = value_of<bool>(input(context, kIsLast));
    return {first, last, describes_, caller(context)};
  }

  void set_sums(TF_OpKernelContext* context, const AddedSums& sums) const {
    const std::vector<double> found{sums.squares, sums.total, sums.total_squares};
    set_output<double>(context, 0, TF_DOUBLE, describes_ ? found : std::vector<double>{});
  }

 private:
  bool describes_;
};

// Attributes, one each of every gradient: the variable's name and number of entries, and where it stands in the slot.
std::vector<GradientPlace> places_of(TF_OpKernelConstruction* construction) {
  const std::vector<std::string> variables = texts(construction, "variables");
  const std::vector<std::int64_t> starts = integers(construction, "starts"), stops = integers(construction, "stops"),
                                  sizes = integers(construction, "sizes");
  if (starts.size() != variables.size() || stops.size() != variables.size() || sizes.size() != variables.size()) {
    throw Problem("attributes of different lengths");
  }
  std::vector<GradientPlace> places;
  for (std::size_t i = 0; i < variables.size(); ++i) places.push_back({variables[i], starts[i], stops[i], sizes[i]});
  return places;
}

template <typename T>
class AddKernel : AccumulateKernel {
 public:
  explicit AddKernel(TF_OpKernelConstruction* construction)
      : AccumulateKernel(construction), places_(places_of(construction)) {}

  void compute(TF_OpKernelContext* context) {
    if (TF_NumInputs(context) != kValues + static_cast<int>(places_.size())) throw Problem("not a gradient a place");
    const Window::Use use = window_->use();
    std::vector<Tensor> tensors;  // they must live until they are added
    std::vector<Piece> gradients;
    for (int i = kValues; i < TF_NumInputs(context); ++i) {
      tensors.push_back(input(context, i));
      gradients.push_back({TF_TensorData(tensors.back().get()), entries_of(tensors.back())});
    }
    set_sums(context, add_dense<T>(*window_, places_, gradients, micro_batch(context)));
  }

 private:
  std::vector<GradientPlace> places_;
};

// The tensors of a sparse gradient, which must live until it is added.
template <typename T>
class SparseInput {
 public:
  explicit SparseInput(TF_OpKernelContext* context) : values_(input(context, kValues)), rows_(input(context, kRows)) {}

  TouchedRows<T> get() const {
    return {data_of<std::int64_t>(rows_), entries_of(rows_), data_of<T>(values_), entries_of(values_)};
  }

 private:
  Tensor values_, rows_;
};

template <typename T>
class AddRowsKernel : AccumulateKernel {
 public:
  explicit AddRowsKernel(TF_OpKernelConstruction* construction)
      : AccumulateKernel(construction), places_(places_of(construction)), height_(integer(construction, "height")) {
    if (places_.size() != 1) throw Problem("not a place for the gradient");
  }

  void compute(TF_OpKernelContext* context) {
    const Window::Use use = window_->use();
    const SparseInput<T> gradient(context);
    set_sums(context, add_rows(*window_, places_[0], height_, gradient.get(), micro_batch(context)));
  }

 private:
  std::vector<GradientPlace> places_;
  std::int64_t height_;
};

template <typename T>
class CollectRowsKernel : AccumulateKernel {
 public:
  explicit CollectRowsKernel(TF_OpKernelConstruction* construction)
      : AccumulateKernel(construction),
        variable_(reinterpret_cast<SparseVariable*>(integer(construction, "variable"))) {}

  void compute(TF_OpKernelContext* context) {
    const Window::Use use = window_->use();
    const SparseInput<T> gradient(context);
    set_sums(context, collect_rows(*window_, *variable_, gradient.get(), micro_batch(context)));
  }

 private:
  SparseVariable* variable_;
};

Definition accumulation(const char* name) {
  return Definition(name)
      .on_window()
      .attr("T: {float, double}")
      .attr("describes: int")
      .in("first: bool")
      .in("last: bool")
      .out("found: double");
}

Definition in_slot(const char* name) {
  return accumulation(name)
      .attr("variables: list(string)")
      .attr("starts: list(int)")
      .attr("stops: list(int)")
      .attr("sizes: list(int)");
}

const bool registered = [] {
  in_slot("DistgradAdd").attr("N: int >= 1").in("gradients: N * T").register_it();
  in_slot("DistgradAddRows").attr("height: int").in("values: T").in("rows: int64").register_it();
  accumulation("DistgradCollectRows").attr("variable: int").in("values: T").in("rows: int64").register_it();
  register_float_kernels<AddKernel>("DistgradAdd");
  register_float_kernels<AddRowsKernel>("DistgradAddRows");
  register_float_kernels<CollectRowsKernel>("DistgradCollectRows");
  return true;
}();

}  // namespace
}  // namespace distgrad
