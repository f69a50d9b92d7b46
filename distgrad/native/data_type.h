// The types of entries that are summed, and the way from TensorFlow's number of a type to the C++ type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

// All of them, for what must be defined once a type.
#define DISTGRAD_FOR_EACH_TYPE(DEFINE) DEFINE(float) DEFINE(double) DEFINE(std::int32_t) DEFINE(std::int64_t)

namespace distgrad {

enum class DataType : std::int32_t { kFloat = 1, kDouble = 2, kInt32 = 3, kInt64 = 9 };  // TensorFlow's numbers

template <typename T>
struct TypeTag {
  using Type = T;
};

// Calls `body(tag)`, where `typename decltype(tag)::Type` is the C++ type.
template <typename Body>
auto with_type(DataType type, Body body) {
  switch (type) {
    case DataType::kDouble:
      return body(TypeTag<double>{});
    case DataType::kInt32:
      return body(TypeTag<std::int32_t>{});
    case DataType::kInt64:
      return body(TypeTag<std::int64_t>{});
    default:
      return body(TypeTag<float>{});
  }
}

template <typename T>
constexpr DataType type_of() {
  if (std::is_same_v<T, float>) return DataType::kFloat;
  if (std::is_same_v<T, double>) return DataType::kDouble;
  return std::is_same_v<T, std::int32_t> ? DataType::kInt32 : DataType::kInt64;
}

inline std::size_t size_of(DataType type) {
  return with_type(type, [](auto tag) { return sizeof(typename decltype(tag)::Type); });
}

}  // namespace distgrad
