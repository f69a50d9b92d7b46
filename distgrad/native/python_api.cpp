// A window as Python uses it, through ctypes; collectives/window.py says what each function is for. No exception may
// cross it: where there is no memory, the address is null.
#include <cstdint>
#include <exception>

#include "export.h"
#include "window.h"

using distgrad::SparseVariable;
using distgrad::StatusPage;
using distgrad::Window;

extern "C" {

// Never freed: a graph that outlives the communicator must still be told that it is closed.
EXPORT Window* distgrad_window_new(distgrad::Callback callback, std::int32_t size, StatusPage* page) try {
  return size < 1 ? nullptr : new Window(callback, size, page);
} catch (const std::exception&) {
  return nullptr;
}

EXPORT std::int64_t distgrad_window_bytes(std::int64_t capacity, std::int32_t ranks) {
  return distgrad::SharedMemory::bytes(capacity, ranks);
}

EXPORT std::int64_t distgrad_window_range_moments_bytes(std::int64_t ranges, std::int32_t ranks) {
  return Window::range_moments_bytes(ranges, ranks);
}

EXPORT bool distgrad_window_map(Window* window, std::int32_t fd, std::int64_t capacity, std::int32_t rank,
                                std::int32_t ranks, std::int32_t owners, bool between_hosts) try {
  return window->map(fd, capacity, rank, ranks, owners, between_hosts);
} catch (const std::exception&) {
  return false;
}

EXPORT bool distgrad_window_map_published(Window* window, std::int32_t fd, std::int64_t capacity) try {
  return window->map_published(fd, capacity);
} catch (const std::exception&) {
  return false;
}

EXPORT void distgrad_window_close(Window* window) { window->close(); }

EXPORT SparseVariable* distgrad_window_sparse_variable(Window* window, const char* name, std::int64_t rows,
                                                       std::int64_t width) try {
  return window->add_sparse_variable(name, rows, width);
} catch (const std::exception&) {
  return nullptr;
}

EXPORT bool distgrad_window_sum_slots(Window* window, std::int64_t first, std::int64_t last) try {
  return window->sum_slots(first, last);
} catch (const std::exception&) {
  return false;
}

EXPORT const void* distgrad_window_result(Window* window) { return window->result(); }
EXPORT const void* distgrad_window_published(Window* window) { return window->published(); }
EXPORT std::int32_t distgrad_window_published_type(Window* window) {
  return static_cast<std::int32_t>(window->published_type());
}
EXPORT std::int32_t distgrad_window_type(Window* window) { return static_cast<std::int32_t>(window->type()); }
EXPORT std::int32_t distgrad_window_compression(Window* window) { return window->compression(); }
EXPORT std::int64_t distgrad_window_divided(Window* window) { return window->divided(); }
EXPORT double distgrad_window_host_divisor(Window* window) { return window->host_divisor(); }
EXPORT float* distgrad_window_votes(Window* window) { return window->votes().data(); }
}
