#include "kernels.h"

namespace distgrad {

Tensor input(TF_OpKernelContext* context, int index) {
  Status status;
  TF_Tensor* tensor = nullptr;
  TF_GetInput(context, index, &tensor, status);
  if (!status.ok()) throw Problem(status.message());
  return Tensor(tensor);
}

Shape shape_of(const Tensor& tensor) {
  Shape shape(TF_NumDims(tensor.get()));
  for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = TF_Dim(tensor.get(), static_cast<int>(i));
  return shape;
}

Tensor allocate_output(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape, std::size_t bytes,
                       std::string_view what) {
  Status status;
  const int rank = static_cast<int>(shape.size());
  Tensor output(TF_AllocateOutput(context, index, type, shape.data(), rank, bytes, status));
  if (!status.ok() || !output) throw no_memory(std::string(what) + " (" + status.message() + ")");
  return output;
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

void fail(TF_OpKernelConstruction* construction, const std::string& message) {
  Status status;
  TF_SetStatus(status, TF_ABORTED, message.c_str());
  TF_OpKernelConstruction_Failure(construction, status);
}

std::int64_t integer(TF_OpKernelConstruction* construction, const char* name) {
  Status status;
  std::int64_t value = 0;
  TF_OpKernelConstruction_GetAttrInt64(construction, name, &value, status);
  if (!status.ok()) throw Problem(status.message());
  return value;
}

std::vector<std::int64_t> integers(TF_OpKernelConstruction* construction, const char* name) {
  Status status;
  std::int32_t count = 0, bytes = 0;
  TF_OpKernelConstruction_GetAttrSize(construction, name, &count, &bytes, status);
  std::vector<std::int64_t> values(count);
  if (status.ok()) TF_OpKernelConstruction_GetAttrInt64List(construction, name, values.data(), count, status);
  if (!status.ok()) throw Problem(status.message());
  return values;
}

std::vector<std::string> texts(TF_OpKernelConstruction* construction, const char* name) {
  Status status;
  std::int32_t count = 0, bytes = 0;
  TF_OpKernelConstruction_GetAttrSize(construction, name, &count, &bytes, status);
  std::vector<char*> starts(count);
  std::vector<std::size_t> lengths(count);
  std::vector<char> storage(bytes);
  if (status.ok()) {
    TF_OpKernelConstruction_GetAttrStringList(construction, name, starts.data(), lengths.data(), count, storage.data(),
                                              storage.size(), status);
  }
  if (!status.ok()) throw Problem(status.message());
  std::vector<std::string> values;
  for (std::size_t i = 0; i < starts.size(); ++i) values.emplace_back(starts[i], lengths[i]);
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
