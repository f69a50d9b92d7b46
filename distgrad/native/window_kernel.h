// What operations on a window have in common.
#pragma once

#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "kernels.h"
#include "window.h"

namespace distgrad {

// Gives out memory where it stands, as an output that has a lease of it. Returns a second reference to the output, to be
// held for as long as the memory must not change: TensorFlow computes in place where it sees the last use of a tensor,
// and would write into what the other ranks are still reading.
inline std::shared_ptr<void> lend(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape,
                                  char* place, std::size_t bytes, std::unique_ptr<Lease> lease) {
  Status status;
  const auto release = [](void*, std::size_t, void* lease) { delete static_cast<Lease*>(lease); };
  const int rank = static_cast<int>(shape.size());
  TF_Tensor* tensor = TF_NewTensor(type, shape.data(), rank, place, bytes, release, lease.get());
  if (!tensor) throw no_memory("a tensor");
  static_cast<void>(lease.release());  // it is the tensor's now
  std::shared_ptr<TF_Tensor> alias(tensor, TF_DeleteTensor);
  TF_SetOutput(context, index, alias.get(), status);
  if (!status.ok()) throw Problem(status.message());
  return alias;
}

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
