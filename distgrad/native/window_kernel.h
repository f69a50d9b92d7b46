// What operations on a window have in common.
#pragma once

#include <functional>
#include <thread>

#include "kernels.h"
#include "window.h"

namespace distgrad {

class WindowKernel {
 public:
  explicit WindowKernel(TF_OpKernelConstruction* construction)
      : window_(reinterpret_cast<Window*>(integer(construction, "window"))),
        in_graph_(integer(construction, "in_graph")) {}

 protected:
  static constexpr int kFirstInput = 1;  // behind the resource `order`

  // All operations of one run of a graph, functions and loops in it included, have TensorFlow's number of that run,
  // which is below 0. Outside a graph each has a run of its own, but runs on the thread that calls it.
  Caller caller(TF_OpKernelContext* context) const {
    if (in_graph_) return TF_StepId(context);
    return static_cast<Caller>(std::hash<std::thread::id>{}(std::this_thread::get_id()) >> 1);
  }

  Window* window_;

 private:
  bool in_graph_;
};

}  // namespace distgrad
