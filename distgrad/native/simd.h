// Vectors of a few entries in registers, in the notation that GCC and Clang share, and memory around the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

// Loops are compiled for several generations of processors: DEFINE(name, attribute) defines them for one. What the
// newer ones must have is listed, and each of it asked for, since older compilers have no names for them. A loop must
// have inlined into it what it calls, else that would be compiled for the oldest processor. DISTGRAD_NEWEST(...) is what
// was so defined for the newest generation that runs here: its name, followed by `...`.
#if defined(__x86_64__)
#define DISTGRAD_AVX2 "avx2,bmi,bmi2,fma"
#define DISTGRAD_AVX512 DISTGRAD_AVX2 ",avx512f,avx512bw,avx512dq,avx512vl"
#define DISTGRAD_FOR_EACH_GENERATION(DEFINE)           \
  DEFINE(Baseline, )                                   \
  DEFINE(Avx2, __attribute__((target(DISTGRAD_AVX2)))) \
  DEFINE(Avx512, __attribute__((target(DISTGRAD_AVX512))))
#define DISTGRAD_NEWEST(...) (has_avx512() ? Avx512 __VA_ARGS__ : has_avx2() ? Avx2 __VA_ARGS__ : Baseline __VA_ARGS__)
#else
#define DISTGRAD_FOR_EACH_GENERATION(DEFINE) DEFINE(Baseline, )
#define DISTGRAD_NEWEST(...) Baseline __VA_ARGS__
#endif
#define DISTGRAD_INLINE inline __attribute__((always_inline))
// GCC warns, in all of the file that includes this, that processors differ in how a function returns a vector as wide
// as these. All such functions are inlined, and return nothing then.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace distgrad {

#if defined(__x86_64__)
inline bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

constexpr std::size_t kRegisterBytes = 32;  // wider registers, where there are any, gain nothing here
constexpr std::size_t kStreamedBytes = 16;  // that are stored around the cache at once, and their alignment
constexpr std::size_t kFetchedBytes = 64;   // that are fetched at once: a cache line
constexpr std::size_t kBytesAhead = 2048;   // to fetch ahead, since the processor itself stops at each page's end

template <typename T, std::size_t kEntries>
struct Register {
  typedef T Values __attribute__((vector_size(sizeof(T) * kEntries)));
};
template <typename T, std::size_t kEntries>
using Values = typename Register<T, kEntries>::Values;

template <std::size_t kEntries, typename T>
DISTGRAD_INLINE Values<T, kEntries> load(const T* from) {
  Values<T, kEntries> values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

// Entry `i` of a vector that is read in order will soon be read, `kBytesAhead` further on.
template <typename T>
DISTGRAD_INLINE void fetch_ahead(const T* values, std::size_t i) {
  if (i * sizeof(T) % kFetchedBytes == 0) {
    __builtin_prefetch(reinterpret_cast<const char*>(values + i) + kBytesAhead);
  }
}

DISTGRAD_INLINE void stream_block(void* to, const void* from) {
#if defined(__SSE2__)
  _mm_stream_si128(static_cast<__m128i*>(to), _mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  std::memcpy(to, from, kStreamedBytes);
#endif
}

// Stores around the cache are not kept in order with the stores that follow, not even with a release. What was stored
// so must have arrived before another rank is told that it is there.
inline void finish_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline bool can_stream_to(const void* place) { return reinterpret_cast<std::uintptr_t>(place) % kStreamedBytes == 0; }

template <bool kStreams, typename T, typename V>
DISTGRAD_INLINE void put(T* place, const V& values) {
  if (!kStreams) {
    std::memcpy(place, &values, sizeof values);
    return;
  }
  for (std::size_t byte = 0; byte < sizeof values; byte += kStreamedBytes) {
    stream_block(reinterpret_cast<char*>(place) + byte, reinterpret_cast<const char*>(&values) + byte);
  }
}

}  // namespace distgrad
