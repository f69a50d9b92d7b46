#include "kernels.h"

namespace distgrad {

Tensor input(TF_OpKernelContext* context, int index) {
  Status status;
  TF_Tensor* tensor = nullptr;
  TF_GetInput(context, index, &tensor, status);
  return Tensor(tensor);
}

Shape shape_of(const Tensor& tensor) {
  Shape shape(TF_NumDims(tensor.get()));
  for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = TF_Dim(tensor.get(), static_cast<int>(i));
  return shape;
}

Tensor allocate_output(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape,
                       std::size_t bytes) {
  Status status;
  const int rank = static_cast<int>(shape.size());
  return Tensor(TF_AllocateOutput(context, index, type, shape.data(), rank, bytes, status));
}

void set_output(TF_OpKernelContext* context, int index, const std::vector<Moments>& rows) {
  const Shape shape{static_cast<std::int64_t>(rows.size()), sizeof(Moments) / sizeof(double)};
  const std::size_t bytes = rows.size() * sizeof(Moments);
  const Tensor output = allocate_output(context, index, TF_DOUBLE, shape, bytes);
  if (bytes) std::memcpy(TF_TensorData(output.get()), rows.data(), bytes);
}

void fail(TF_OpKernelContext* context, const std::string& message) {
  Status status;
  TF_SetStatus(status, TF_ABORTED, message.c_str());
  TF_OpKernelContext_Failure(context, status);
}

std::int64_t integer(TF_OpKernelConstruction* construction, const char* name) {
  Status status;
  std::int64_t value = 0;
  TF_OpKernelConstruction_GetAttrInt64(construction, name, &value, status);
  if (!status.ok()) TF_OpKernelConstruction_Failure(construction, status);
  return value;
}

std::vector<std::int64_t> integers(TF_OpKernelConstruction* construction, const char* name) {
  Status status;
  std::int32_t count = 0, bytes = 0;
  TF_OpKernelConstruction_GetAttrSize(construction, name, &count, &bytes, status);
  std::vector<std::int64_t> values(count);
  if (status.ok()) TF_OpKernelConstruction_GetAttrInt64List(construction, name, values.data(), count, status);
  if (!status.ok()) TF_OpKernelConstruction_Failure(construction, status);
  return values;
}

// Shapes are set in Python, which knows them.
Definition::Definition(const char* name) : builder_(TF_NewOpDefinitionBuilder(name)) {
  TF_OpDefinitionBuilderSetShapeInferenceFunction(builder_, [](TF_ShapeInferenceContext* context, TF_Status* status) {
    TF_ShapeInferenceContextSetUnknownShape(context, status);
  });
}

void Definition::register_it() {
  Status status;
  TF_RegisterOpDefinition(builder_, status);
}

void register_kernel(const char* op, const TF_DataType* type, void* (*create)(TF_OpKernelConstruction*),
                     void (*compute)(void* kernel, TF_OpKernelContext*), void (*destroy)(void* kernel)) {
  Status status;
  TF_KernelBuilder* builder = TF_NewKernelBuilder(op, "CPU", create, compute, destroy);
  if (type) TF_KernelBuilder_TypeConstraint(builder, "T", *type, status);
  TF_RegisterKernelBuilder(op, builder, status);
}

}  // namespace distgrad
