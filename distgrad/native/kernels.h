// Kernels and definitions of TensorFlow operations, on its C API.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "layout.h"
#include "tensorflow.h"

namespace distgrad {

// TensorFlow's status, for one call.
class Status {
 public:
  Status() : status_(TF_NewStatus()) {}
  ~Status() { TF_DeleteStatus(status_); }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;
  operator TF_Status*() { return status_; }
  bool ok() const { return TF_GetCode(status_) == TF_OK; }

 private:
  TF_Status* status_;
};

// ---- tensors

struct DeleteTensor {
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<TF_Tensor, DeleteTensor>;
using Shape = std::vector<std::int64_t>;

Tensor input(TF_OpKernelContext* context, int index);
Shape shape_of(const Tensor& tensor);

template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(TF_TensorData(tensor.get()));
}

inline std::int64_t entries_of(const Tensor& tensor) { return TF_TensorElementCount(tensor.get()); }

// The value of a () tensor; of a structure of float64, of a vector.
template <typename T>
T value_of(const Tensor& tensor) {
  T value;
  std::memcpy(&value, TF_TensorData(tensor.get()), sizeof value);
  return value;
}

Tensor allocate_output(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape, std::size_t bytes);

// (n,) the values.
template <typename T>
void set_output(TF_OpKernelContext* context, int index, TF_DataType type, const std::vector<T>& values) {
  const std::size_t bytes = values.size() * sizeof(T);
  const Tensor output = allocate_output(context, index, type, {static_cast<std::int64_t>(values.size())}, bytes);
  if (bytes) std::memcpy(TF_TensorData(output.get()), values.data(), bytes);
}

// (m, 5): a row each.
void set_output(TF_OpKernelContext* context, int index, const std::vector<Moments>& rows);

// The operation raises an error with this message.
void fail(TF_OpKernelContext* context, const std::string& message);

// ---- attributes

std::int64_t integer(TF_OpKernelConstruction* construction, const char* name);
std::vector<std::int64_t> integers(TF_OpKernelConstruction* construction, const char* name);

// ---- registration, which each file of operations does when TensorFlow loads this library

class Definition {
 public:
  explicit Definition(const char* name);
  Definition& attr(const char* spec) { return TF_OpDefinitionBuilderAddAttr(builder_, spec), *this; }
  Definition& in(const char* spec) { return TF_OpDefinitionBuilderAddInput(builder_, spec), *this; }
  Definition& out(const char* spec) { return TF_OpDefinitionBuilderAddOutput(builder_, spec), *this; }
  // TensorFlow neither leaves it out nor does it twice.
  Definition& stateful() { return TF_OpDefinitionBuilderSetIsStateful(builder_, true), *this; }
  // An operation on a window. What uses the same resource, TensorFlow runs in the order in which it is written, across
  // loops, too. The window itself is not one, because the ranks make it together and a graph does not; any variable
  // will do.
  Definition& on_window() { return stateful().attr("window: int").in("order: resource"); }
  void register_it();

 private:
  TF_OpDefinitionBuilder* builder_;
};

void register_kernel(const char* op, const TF_DataType* type, void* (*create)(TF_OpKernelConstruction*),
                     void (*compute)(void* kernel, TF_OpKernelContext*), void (*destroy)(void* kernel));

// A kernel is constructed from its attributes, and `compute` may run on several threads at once.
template <typename Kernel>
void register_kernel(const char* op, const TF_DataType* type = nullptr) {
  register_kernel(
      op, type, [](TF_OpKernelConstruction* construction) -> void* { return new Kernel(construction); },
      [](void* kernel, TF_OpKernelContext* context) { static_cast<Kernel*>(kernel)->compute(context); },
      [](void* kernel) { delete static_cast<Kernel*>(kernel); });
}

// One for each value of the attribute "T: {float, double}".
template <template <typename> class Kernel>
void register_float_kernels(const char* op) {
  constexpr TF_DataType kFloat = TF_FLOAT, kDouble = TF_DOUBLE;
  register_kernel<Kernel<float>>(op, &kFloat);
  register_kernel<Kernel<double>>(op, &kDouble);
}

}  // namespace distgrad
