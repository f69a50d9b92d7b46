// DistgradSum: the sum of the ranks' vectors, divided and described.
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "window_kernel.h"

namespace distgrad {
namespace {

class SumKernel : WindowKernel {
 public:
  explicit SumKernel(TF_OpKernelConstruction* construction)
      : WindowKernel(construction),
        placed_(integer(construction, "placed")),
        divided_(integer(construction, "divided")),
        described_(integer(construction, "described")),
        starts_(integers(construction, "starts")),
        stops_(integers(construction, "stops")),
        compression_(static_cast<std::int32_t>(integer(construction, "compression"))),
        borrow_(integer(construction, "borrow")) {
    if (starts_.size() != stops_.size()) throw Problem("attributes of different lengths");
    for (std::int64_t address : integers(construction, "sparse")) {
      sparse_.push_back(reinterpret_cast<SparseVariable*>(address));
    }
  }

  void compute(TF_OpKernelContext* context) {
    const Window::Use use = window_->use();
    std::vector<Tensor> pieces;  // they must live until the sum is made
    for (int i = kPieces; i < TF_NumInputs(context); ++i) pieces.push_back(input(context, i));
    window_->sum(request(context, pieces));
    set_outputs(context, TF_TensorType(pieces[0].get()));
  }

 private:
  enum Input { kFilled = kFirstInput, kDivisor, kPieces };
  enum Output { kFlat, kDividedBy, kMoments, kVotes, kByRange, kRows };  // and behind the rows the values

  SumRequest request(TF_OpKernelContext* context, const std::vector<Tensor>& pieces) const {
    SumRequest request;
    request.type = static_cast<DataType>(TF_TensorType(pieces[0].get()));
    request.placed = placed_, request.divided = divided_, request.described = described_, request.sparse = sparse_;
    request.filled = value_of<bool>(input(context, kFilled));
    request.compression = compression_;
    request.caller = caller(context);
    const Tensor divisor = input(context, kDivisor);
    const double* terms = data_of<double>(divisor);
    request.terms.assign(terms, terms + entries_of(divisor));
    for (std::size_t i = 0; i < starts_.size(); ++i) request.ranges.push_back({starts_[i], stops_[i]});
    for (const Tensor& piece : pieces) request.pieces.push_back({TF_TensorData(piece.get()), entries_of(piece)});
    return request;
  }

  void set_outputs(TF_OpKernelContext* context, TF_DataType type) {
    set_summed(context, kFlat, type, {window_->entries()}, window_->result(), "the sum of all gradients");
    const Moments& found = window_->moments();
    set_output<double>(context, kDividedBy, TF_DOUBLE, {window_->divisor()});
    set_output<double>(context, kMoments, TF_DOUBLE, {found.total, found.squares, found.largest, found.nonfinite});
    set_output<float>(context, kVotes, TF_FLOAT, window_->votes());
    set_output(context, kByRange, window_->range_moments());
    const int count = static_cast<int>(sparse_.size());
    for (int i = 0; i < count; ++i) {
      const SparseSum& sum = window_->sparse_sums()[i];
      set_output<std::int64_t>(context, kRows + i, TF_INT64, sum.rows);
      const std::int64_t rows = sum.rows.size();
      const std::string what = times(rows, sum.width) + " of variable " + sparse_[i]->name();
      set_summed(context, kRows + count + i, type, {rows, sum.width}, sum.values, what);
    }
  }

  // A part of the result: lent, until the next sum, which uses this one, too; or copied.
  void set_summed(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape, char* place,
                  std::string_view what) {
    std::size_t bytes = size_of(static_cast<DataType>(type));
    for (std::int64_t dimension : shape) bytes *= dimension;
    std::unique_ptr<Lease> lease = borrow_ && bytes ? window_->lease() : nullptr;
    if (lease) return window_->hold(lend(context, index, type, shape, place, bytes, std::move(lease)));
    const Tensor copy = allocate_output(context, index, type, shape, bytes, what);
    if (bytes) std::memcpy(TF_TensorData(copy.get()), place, bytes);
  }

  std::int64_t placed_, divided_, described_;
  std::vector<std::int64_t> starts_, stops_;
  std::int32_t compression_;
  bool borrow_;
  SparseVariables sparse_;
};

const bool registered = [] {
  Definition("DistgradSum")
      .on_window()
      .attr("T: {float, double, int32, int64}")
      .attr("N: int >= 1")
      .attr("placed: int")
      .attr("divided: int")
      .attr("described: int")
      .attr("starts: list(int)")
      .attr("stops: list(int)")
      .attr("compression: int")
      .attr("borrow: int")
      .attr("sparse: list(int)")
      .attr("K: int >= 0")
      .in("filled: bool")
      .in("divisor: double")
      .in("pieces: N * T")
      .out("flat: T")
      .out("divided_by: double")
      .out("moments: double")
      .out("votes: float")
      .out("by_range: double")
      .out("rows: K * int64")
      .out("values: K * T")
      .register_it();
  for (TF_DataType type : {TF_FLOAT, TF_DOUBLE, TF_INT32, TF_INT64}) register_kernel<SumKernel>("DistgradSum", &type);
  return true;
}();

}  // namespace
}  // namespace distgrad
