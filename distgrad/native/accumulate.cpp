#include "accumulate.h"

#include <cstring>

#include "problem.h"
#include "vector_math.h"

namespace distgrad {
namespace {

void require_in_slot(const Window& window, const GradientPlace& place, std::size_t entry_size) {
  const std::int64_t room = window.capacity() / static_cast<std::int64_t>(entry_size);
  if (place.entries < 0 || place.start < 0 || place.start > place.stop || place.stop > room ||
      place.entries > place.stop - place.start) {
    throw Problem("variable " + place.variable + " has no place in the window");
  }
}

void require_entries(const GradientPlace& place, std::int64_t entries) {
  if (entries == 0 || entries == place.entries) return;
  throw gradient_mismatch(place.variable, "has " + std::to_string(entries) + " entries instead of " +
                                              std::to_string(place.entries));
}

}  // namespace

template <typename T>
AddedSums add_dense(Window& window, const std::vector<GradientPlace>& places, const std::vector<Piece>& gradients,
                    const MicroBatch& batch) {
  for (std::size_t i = 0; i < places.size(); ++i) {
    require_in_slot(window, places[i], sizeof(T));
    require_entries(places[i], gradients[i].entries);
  }
  window.fill(batch.is_first, batch.caller, type_of<T>());
  const bool streams = static_cast<std::size_t>(places.back().stop) * sizeof(T) >= kLarge;
  AddedSums found;
  for (std::size_t i = 0; i < places.size(); ++i) {
    const T* values = static_cast<const T*>(gradients[i].values);
    const std::int64_t count = gradients[i].entries, length = places[i].stop - places[i].start;
    T* sum = window.slot_of<T>() + places[i].start;
    if (batch.describes) {
      found.merge(accumulate(sum, values, count, batch.is_first, batch.is_last, streams));
    } else {
      batch.is_first ? store(sum, values, count, streams) : add(sum, values, count);
    }
    if (batch.is_first) std::memset(sum + count, 0, (length - count) * sizeof(T));
  }
  return found;
}

template <typename T>
AddedSums add_rows(Window& window, const GradientPlace& place, std::int64_t rows, const TouchedRows<T>& gradient,
                   const MicroBatch& batch) {
  require_in_slot(window, place, sizeof(T));
  const std::int64_t width = rows ? place.entries / rows : 0;
  require_rows(place.variable, rows, width, gradient);
  window.fill(batch.is_first, batch.caller, type_of<T>());
  T* variable = window.slot_of<T>() + place.start;
  if (batch.is_first) std::memset(variable, 0, (place.stop - place.start) * sizeof(T));
  for (std::int64_t i = 0; i < gradient.count; ++i) {
    add(variable + gradient.rows[i] * width, gradient.values + i * width, width);
  }
  AddedSums found;
  if (batch.describes) found.squares = moments_of(gradient.values, gradient.entries).squares;
  if (batch.describes && batch.is_last) found.set_total(moments_of(variable, place.stop - place.start));
  return found;
}

template <typename T>
AddedSums collect_rows(Window& window, SparseVariable& variable, const TouchedRows<T>& gradient,
                       const MicroBatch& batch) {
  require_rows(variable.name(), variable.rows(), variable.width(), gradient);
  window.fill(batch.is_first, batch.caller, type_of<T>());
  if (batch.is_first) variable.clear();
  variable.add(gradient);
  AddedSums found;
  if (batch.describes) found.squares = moments_of(gradient.values, gradient.entries).squares;
  if (batch.describes && batch.is_last) found.set_total(variable.moments<T>());
  return found;
}

#define DISTGRAD_DEFINE(T)                                                                                          \
  template AddedSums add_dense<T>(Window&, const std::vector<GradientPlace>&, const std::vector<Piece>&,            \
                                  const MicroBatch&);                                                               \
  template AddedSums add_rows(Window&, const GradientPlace&, std::int64_t, const TouchedRows<T>&, const MicroBatch&); \
  template AddedSums collect_rows(Window&, SparseVariable&, const TouchedRows<T>&, const MicroBatch&);
DISTGRAD_DEFINE(float)
DISTGRAD_DEFINE(double)
#undef DISTGRAD_DEFINE

}  // namespace distgrad
