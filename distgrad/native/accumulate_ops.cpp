// A micro-batch's gradients are added to what those before it left.
//
//     DistgradAdd            dense gradients, in this rank's slot
//     DistgradAddRows        a sparse gradient, there, too
//     DistgradCollectRows    a sparse gradient, among the touched rows of a sparse variable
//
// Each gives (3,) AddedSums; where the attribute `describes` is 0, (0,).
#include <cstring>
#include <vector>

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
  bool is_first(TF_OpKernelContext* context) const { return value_of<bool>(input(context, kIsFirst)); }
  bool is_last(TF_OpKernelContext* context) const { return value_of<bool>(input(context, kIsLast)); }

  template <typename T>
  T* place(std::int64_t start) const {
    return reinterpret_cast<T*>(window_->slot()) + start;
  }

  void set_sums(TF_OpKernelContext* context, const AddedSums& sums) const {
    const std::vector<double> found{sums.squares, sums.total, sums.total_squares};
    set_output<double>(context, 0, TF_DOUBLE, describes_ ? found : std::vector<double>{});
  }

  bool describes_;
};

template <typename T>
class AddKernel : AccumulateKernel {
 public:
  explicit AddKernel(TF_OpKernelConstruction* construction)
      : AccumulateKernel(construction),
        starts_(integers(construction, "starts")),
        stops_(integers(construction, "stops")) {}

  // A gradient without entries stands for zeros. What lies between its end and `stop` is filled with zeros, too.
  void compute(TF_OpKernelContext* context) {
    if (!is_open(context)) return;
    const bool first = is_first(context), last = is_last(context);
    const bool streams = stops_.back() * sizeof(T) >= kLarge;
    AddedSums found;
    for (std::size_t i = 0; i < starts_.size(); ++i) {
      const Tensor gradient = input(context, kValues + static_cast<int>(i));
      const T* values = data_of<T>(gradient);
      const std::int64_t count = entries_of(gradient);
      T* sum = place<T>(starts_[i]);
      if (describes_) {
        found.merge(accumulate(sum, values, count, first, last, streams));
      } else {
        first ? store(sum, values, count, streams) : add(sum, values, count);
      }
      if (first) std::memset(sum + count, 0, (stops_[i] - starts_[i] - count) * sizeof(T));
    }
    set_sums(context, found);
  }

 private:
  std::vector<std::int64_t> starts_, stops_;
};

// Where it describes, no row comes twice.
template <typename T>
class AddRowsKernel : AccumulateKernel {
 public:
  explicit AddRowsKernel(TF_OpKernelConstruction* construction)
      : AccumulateKernel(construction),
        start_(integer(construction, "start")),
        stop_(integer(construction, "stop")) {}

  void compute(TF_OpKernelContext* context) {
    if (!is_open(context)) return;
    T* variable = place<T>(start_);
    if (is_first(context)) std::memset(variable, 0, (stop_ - start_) * sizeof(T));
    const Tensor values = input(context, kValues), rows = input(context, kRows);
    const std::int64_t entries = entries_of(values), count = entries_of(rows);
    const std::int64_t* row = data_of<std::int64_t>(rows);
    const T* value = data_of<T>(values);
    AddedSums found;
    if (describes_) found.squares = moments_of(value, entries).squares;
    for (std::int64_t i = 0, width = count ? entries / count : 0; i < count; ++i, value += width) {
      if (row[i] < 0 || (row[i] + 1) * width > stop_ - start_) return fail(context, "a row is outside its variable");
      add(variable + row[i] * width, value, width);
    }
    if (describes_ && is_last(context)) {
      const Moments total = moments_of(variable, stop_ - start_);
      found.total = total.total, found.total_squares = total.squares;
    }
    set_sums(context, found);
  }

 private:
  std::int64_t start_, stop_;
};

// Where it describes, no row comes twice.
template <typename T>
class CollectRowsKernel : AccumulateKernel {
 public:
  explicit CollectRowsKernel(TF_OpKernelConstruction* construction)
      : AccumulateKernel(construction),
        variable_(reinterpret_cast<SparseVariable*>(integer(construction, "variable"))) {}

  void compute(TF_OpKernelContext* context) {
    if (!is_open(context)) return;
    if (is_first(context)) variable_->clear();
    const Tensor values = input(context, kValues), rows = input(context, kRows);
    AddedSums found;
    if (describes_) found.squares = moments_of(data_of<T>(values), entries_of(values)).squares;
    if (!variable_->add(data_of<std::int64_t>(rows), data_of<T>(values), entries_of(rows))) {
      return fail(context, "a row is outside its variable");
    }
    if (describes_ && is_last(context)) {
      const Moments total = variable_->moments<T>();
      found.total = total.total, found.total_squares = total.squares;
    }
    set_sums(context, found);
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

const bool registered = [] {
  accumulation("DistgradAdd")
      .attr("N: int >= 1")
      .attr("starts: list(int)")
      .attr("stops: list(int)")
      .in("gradients: N * T")
      .register_it();
  accumulation("DistgradAddRows").attr("start: int").attr("stop: int").in("values: T").in("rows: int64").register_it();
  accumulation("DistgradCollectRows").attr("variable: int").in("values: T").in("rows: int64").register_it();
  register_float_kernels<AddKernel>("DistgradAdd");
  register_float_kernels<AddRowsKernel>("DistgradAddRows");
  register_float_kernels<CollectRowsKernel>("DistgradCollectRows");
  return true;
}();

}  // namespace
}  // namespace distgrad
