#include "shared_memory.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace distgrad {
namespace {

std::int64_t whole_pages(std::int64_t bytes) {
  static const std::int64_t page = sysconf(_SC_PAGESIZE);
  return (bytes + page - 1) / page * page;
}

constexpr std::int64_t kMost = std::int64_t{1} << 47;  // bytes that a process can address

bool is_shorter(int file, std::int64_t bytes) {
  struct stat status;
  return fstat(file, &status) || status.st_size < bytes;
}

// And of small vectors.
std::int64_t bytes_of_seats(int ranks) {
  return whole_pages(ranks * (static_cast<std::int64_t>(sizeof(Seat)) + kTurns * kSmall));
}

}  // namespace

std::int64_t SharedMemory::bytes(std::int64_t capacity, int ranks) {
  if (ranks < 0 || capacity < 0 || capacity > kMost / (ranks + kResults)) return -1;
  return bytes_of_seats(ranks) + whole_pages(capacity) * (ranks + kResults);
}

SharedMemory::SharedMemory(int fd, std::int64_t capacity, int ranks)
    : bytes_(bytes(capacity, ranks)), ranks_(ranks) {
  if (bytes_ < 0 || (fd >= 0 && is_shorter(fd, bytes_))) return;
  capacity_ = whole_pages(capacity), seat_bytes_ = bytes_of_seats(ranks);
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (base == MAP_FAILED) return;
  base_ = static_cast<char*>(base);
  // A process that is forked from this one is no rank, and must not write where the others read. It may read results,
  // which tensors alias. Where this is not possible, nothing else changes.
  if (fd >= 0) madvise(base_, result(0) - base_, MADV_DONTFORK);
}

SharedMemory::~SharedMemory() {
  if (base_) munmap(base_, bytes_);
}

void SharedMemory::touch_slot(int rank, std::int64_t kept) { std::memset(slot(rank) + kept, 0, capacity_ - kept); }

void SharedMemory::touch_shard(int owner, int owners) {
  const std::int64_t share = whole_pages(capacity_ / owners);
  const std::int64_t start = std::min(share * owner, capacity_);
  std::memset(result(0) + start, 0, std::min(share, capacity_ - start));
}

std::uint32_t SharedMemory::lent_results() const {
  std::uint32_t bits = 0;
  for (int result = 0; result < kLendable; ++result) {
    // Acquire, for the release in ~Lease: where it sees 0, all that read the result are done with it, and so are they
    // for the ranks that learn of it through this rank's seat and overwrite the result.
    if (leases_[result].load(std::memory_order_acquire)) bits |= 1u << result;
  }
  return bits;
}

// Relaxed: the count is read when the next sum begins, which TensorFlow lets happen after this operation.
Lease::Lease(std::shared_ptr<SharedMemory> memory, int result) : memory_(std::move(memory)), result_(result) {
  memory_->leases_[result_].fetch_add(1, std::memory_order_relaxed);
}

// Release: on whatever thread the last reader of a tensor runs, its reads come before. The count is only ever changed
// by reading and writing at once, so that an acquire which sees the last such change sees what came before all of them.
Lease::~Lease() { memory_->leases_[result_].fetch_sub(1, std::memory_order_release); }

}  // namespace distgrad
