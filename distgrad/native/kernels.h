// Kernels and definitions of TensorFlow operations, on its C API.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "layout.h"
#include "problem.h"
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
  std::string message() const { return TF_Message(status_); }

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

// The value of a () tensor; of a structure of float64, of a vector. Throws a Problem for any other size.
template <typename T>
T value_of(const Tensor& tensor) {
  if (TF_TensorByteSize(tensor.get()) != sizeof(T)) throw Problem("an input of another size than the operation takes");
  T value;
  std::memcpy(&value, TF_TensorData(tensor.get()), sizeof value);
  return value;
}

// Throws a Problem that says what for where there is no memory.
Tensor allocate_output(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape, std::size_t bytes,
                       std::string_view what = "the results of an operation");

// (n,) the values.
template <typename T>
void set_output(TF_OpKernelContext* context, int index, TF_DataType type, const std::vector<T>& values) {
  const std::size_t bytes = values.size() * sizeof(T);
  const Tensor output = allocate_output(context, index, type, {static_cast<std::int64_t>(values.size())}, bytes);
  if (bytes) std::memcpy(TF_TensorData(output.get()), values.data(), bytes);
}

// (m, 5): a row each.
void set_output(TF_OpKernelContext* context, int index, const std::vector<Moments>& rows);

// The operation raises an error with this message; or, while it is constructed, there is no such operation.
void fail(TF_OpKernelContext* context, const std::string& message);
void fail(TF_OpKernelConstruction* construction, const std::string& message);

// ---- attributes

std::int64_t integer(TF_OpKernelConstruction* construction, const char* name);
std::vector<std::int64_t> integers(TF_OpKernelConstruction* construction, const char* name);
std::vector<std::string> texts(TF_OpKernelConstruction* construction, const char* name);

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
  //
  // `in_graph`: 1 where it runs in a graph, so that all operations of one run have the same caller.
  Definition& on_window() { return stateful().attr("window: int").attr("in_graph: int").in("order: resource"); }
  void register_it();

 private:
  TF_OpDefinitionBuilder* builder_;
};

void register_kernel(const char* op, const TF_DataType* type, void* (*create)(TF_OpKernelConstruction*),
                     void (*compute)(void* kernel, TF_OpKernelContext*), void (*destroy)(void* kernel));

// A kernel is constructed from its attributes, and `compute` may run on several threads at once. What either throws
// becomes the operation's error, since no exception may cross TensorFlow's C API.
template <typename Kernel>
void register_kernel(const char* op, const TF_DataType* type = nullptr) {
  register_kernel(
      op, type,
      [](TF_OpKernelConstruction* construction) -> void* {
        try {
          return new Kernel(construction);
        } catch (const std::exception& error) {
          fail(construction, error.what());
          return nullptr;
        }
      },
      [](void* kernel, TF_OpKernelContext* context) {
        try {
          static_cast<Kernel*>(kernel)->compute(context);
        } catch (const Problem& problem) {
          fail(context, problem.what());
        } catch (const std::exception& error) {  // there is no memory for something small
          fail(context, no_memory(std::string("an operation (") + error.what() + ")").what());
        }
      },
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
