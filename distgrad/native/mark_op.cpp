// DistgradMarkSum: the sum of another engine begins or ends, for the status page to tell.
#include "kernels.h"
#include "status_page.h"

namespace distgrad {
namespace {

class MarkSumKernel {
 public:
  explicit MarkSumKernel(TF_OpKernelConstruction* construction)
      : page_(reinterpret_cast<StatusPage*>(integer(construction, "page"))), begins_(integer(construction, "begins")) {}

  void compute(TF_OpKernelContext*) { begins_ ? page_->arrive() : page_->go_on(); }

 private:
  StatusPage* page_;
  bool begins_;
};

const bool registered = [] {
  Definition("DistgradMarkSum").stateful().attr("page: int").attr("begins: int").register_it();
  register_kernel<MarkSumKernel>("DistgradMarkSum");
  return true;
}();

}  // namespace
}  // namespace distgrad
