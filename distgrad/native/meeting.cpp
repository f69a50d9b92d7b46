#include "meeting.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <ctime>

namespace distgrad {
namespace {

constexpr int kSpins = 400;                        // looks before a rank lets others have its core
constexpr std::chrono::milliseconds kPatience{2};  // before it sleeps
constexpr timespec kSleep{1, 0};                   // after which it looks again by itself

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int usable_cores() {
  cpu_set_t cores;
  return sched_getaffinity(0, sizeof cores, &cores) ? 1 : CPU_COUNT(&cores);
}

void futex(std::atomic<std::uint32_t>* word, int operation, std::uint32_t value, const timespec* limit) {
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(word), operation, value, limit, nullptr, 0);
}

// The difference stays right when the count wraps around.
bool is_before(std::uint32_t arrived, std::uint32_t meeting) {
  return static_cast<std::int32_t>(arrived - meeting) < 0;
}

// Acquire, for the release that the store of `arrived` is: behind this, what the rank wrote before it arrived is there
// to read. That is all a meeting needs; the stronger order of the loads and stores below only decides who wakes whom.
bool has_arrived(const Seat& seat, std::uint32_t meeting) {
  return !is_before(seat.arrived.load(std::memory_order_acquire), meeting);
}

// Tells the others that this rank is there, and wakes those that sleep.
//
// This store of `arrived` and load of `sleepers` pair with the sleeper's fetch_add of `sleepers` and load of `arrived`:
// each side writes one word and then reads the one that the other writes. One of them must see the other, else a rank
// would sleep while nobody wakes it. Acquire and release do not promise that, since with them a load may be done before
// the store that precedes it. All four are sequentially consistent, and so in one order on which all ranks agree: if
// the fetch_add is before the load of `sleepers`, that sees it, and wakes; if not, then the store of `arrived` is before
// the fetch_add, and the sleeper's load, which comes after that, sees the arrival.
void announce(Seat& own, std::uint32_t meeting, StatusPage& page) {
  own.arrived.store(meeting, std::memory_order_seq_cst);
  page.arrive();
  if (own.sleepers.load(std::memory_order_seq_cst)) futex(&own.arrived, FUTEX_WAKE, INT_MAX, nullptr);
}

// The other rank may arrive, and wake nobody, between that load and the system call. So the kernel compares the word
// with what was seen, in one step with noting that this rank is to be woken, and returns at once if they differ.
void sleep_until_arrived(Seat& seat, std::uint32_t meeting) {
  seat.sleepers.fetch_add(1, std::memory_order_seq_cst);
  while (!has_arrived(seat, meeting)) {
    const std::uint32_t seen = seat.arrived.load(std::memory_order_seq_cst);
    if (is_before(seen, meeting)) futex(&seat.arrived, FUTEX_WAIT, seen, &kSleep);
  }
  // No order is needed here: seen late, it costs a call that wakes nobody.
  seat.sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

// Spins while the other rank may be about to arrive, then lets others have the core, then sleeps.
void wait_for(Seat& seat, std::uint32_t meeting, int ranks) {
  using Clock = std::chrono::steady_clock;
  static const int cores = usable_cores();
  for (int spin = 0; spin < (ranks > cores ? 1 : kSpins); ++spin) {
    if (has_arrived(seat, meeting)) return;
    pause_briefly();
  }
  const auto patience = Clock::now() + kPatience;
  while (Clock::now() < patience) {
    for (int look = 0; look < 16; ++look) {
      if (has_arrived(seat, meeting)) return;
      sched_yield();
    }
  }
  sleep_until_arrived(seat, meeting);
}

}  // namespace

void meet(SharedMemory& memory, int rank, std::uint32_t number, StatusPage& page) {
  announce(memory.seat(rank), number, page);
  for (int other = 0; other < memory.ranks(); ++other) wait_for(memory.seat(other), number, memory.ranks());
}

}  // namespace distgrad
