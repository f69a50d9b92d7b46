// DistgradPublish: a vector of which each rank gives a part.
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "window_kernel.h"

namespace distgrad {
namespace {

class PublishKernel : WindowKernel {
 public:
  explicit PublishKernel(TF_OpKernelConstruction* construction)
      : WindowKernel(construction),
        entries_(integer(construction, "entries")),
        first_(integer(construction, "first")),
        last_(integer(construction, "last")),
        starts_(integers(construction, "starts")) {}

  void compute(TF_OpKernelContext* context) {
    const Window::Use use = window_->use();
    std::vector<Tensor> values;  // they must live until they are published
    for (int i = kFirstInput; i < TF_NumInputs(context); ++i) values.push_back(input(context, i));
    if (values.empty() || values.size() != starts_.size()) throw Problem("as many parts as places are published");
    const TF_DataType type = TF_TensorType(values[0].get());
    Publication publication{static_cast<DataType>(type), entries_, {first_, last_}, {}};
    for (std::size_t i = 0; i < values.size(); ++i) {
      publication.parts.push_back({starts_[i], {TF_TensorData(values[i].get()), entries_of(values[i])}});
    }
    window_->publish(publication);
    set_published(context, type);
  }

 private:
  // The whole vector: lent, until the next publication, which takes another one; or copied.
  void set_published(TF_OpKernelContext* context, TF_DataType type) {
    const std::size_t bytes = entries_ * size_of(static_cast<DataType>(type));
    std::unique_ptr<Lease> lease = bytes ? window_->lease_published() : nullptr;
    if (lease) {
      return window_->hold_published(lend(context, 0, type, {entries_}, window_->published(), bytes, std::move(lease)));
    }
    const Tensor copy = allocate_output(context, 0, type, {entries_}, bytes, "what is published");
    if (bytes) std::memcpy(TF_TensorData(copy.get()), window_->published(), bytes);
  }

  std::int64_t entries_, first_, last_;
  std::vector<std::int64_t> starts_;
};

const bool registered = [] {
  Definition("DistgradPublish")
      .on_window()
      .attr("T: {float, double}")
      .attr("N: int >= 1")
      .attr("entries: int")
      .attr("first: int")
      .attr("last: int")
      .attr("starts: list(int)")
      .in("parts: N * T")
      .out("published: T")
      .register_it();
  for (TF_DataType type : {TF_FLOAT, TF_DOUBLE}) register_kernel<PublishKernel>("DistgradPublish", &type);
  return true;
}();

}  // namespace
}  // namespace distgrad
