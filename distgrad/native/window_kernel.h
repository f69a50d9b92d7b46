// What operations on a window have in common.
#pragma once

#include "kernels.h"
#include "window.h"

namespace distgrad {

class WindowKernel {
 public:
  explicit WindowKernel(TF_OpKernelConstruction* construction)
      : window_(reinterpret_cast<Window*>(integer(construction, "window"))) {}

 protected:
  static constexpr int kFirstInput = 1;  // behind the resource `order`

  // Whether there is memory to work on; if not, the operation fails.
  bool is_open(TF_OpKernelContext* context) const {
    if (!window_->open()) fail(context, "the communicator is closed");
    return window_->open();
  }

  Window* window_;
};

}  // namespace distgrad
