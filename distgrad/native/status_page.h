// Where a process is in the sums, for all processes of its host to see: a page of shared memory that the core and
// Python write, and that the watchdogs read (liveness/peers.py).
#pragma once

#include <atomic>
#include <cstdint>

namespace distgrad {

// Only its own process writes a page: the core in a sum, Python (StatusPage in layout.py) where the process waits for
// the others in another way, and never both at once. The readers are Python code, of this process and of others, which
// looks a few times a second with plain 8-byte loads. On x86-64 and aarch64 these are never torn, and every store is
// seen soon.
//
// In which order the fields are seen: the writer's stores are ordered by the orders below. On x86-64, where loads keep
// their order, too, a reader that sees a new `sum_count` and then looks at `waiting` sees what was stored before. On
// aarch64 it may still see the field as it was. Readers must not rely on it, and the watchdog does not: it ends a job
// only for what has looked the same for seconds, so that a mixture of old and new costs it one more look.
struct StatusPage {
  std::atomic<std::int64_t> sum_count;      // how often it has come to where all meet: more than once a sum, all alike
  std::atomic<std::int64_t> waiting;        // 1 while it is in a sum, and waits for the others or may do so
  std::atomic<std::int64_t> between_hosts;  // 1 while it sums between hosts
  std::atomic<std::int64_t> finished;       // 1 if it needs no more of the others, 2 once its program has ended well
  std::atomic<std::int64_t> dumps_stacks;   // 1 if it prints its stacks at a signal; Python's alone, as what follows
  std::atomic<std::int64_t> at_work;        // 1 while it does what takes as long as it takes, outside a step
  std::atomic<std::int64_t> heartbeat;      // changes several times a second, unless the process is stopped
  std::atomic<std::int64_t> call;           // what it has called that all must call; 0 for a step

  void arrive() {
    // Relaxed, because the release below publishes it: whoever sees the new count may see that the process waits.
    waiting.store(1, std::memory_order_relaxed);
    // The load is relaxed because nobody else writes. The release has no acquire to pair with but the order of loads on
    // x86-64, as said above.
    sum_count.store(sum_count.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  // A release, so that it does not become visible before what was done in the sum.
  void go_on() { waiting.store(0, std::memory_order_release); }
  // Sequentially consistent, since once a sum that costs nothing; a release would do, as above.
  void sum_between_hosts(bool begins) { between_hosts.store(begins); }
  // The same, once a process.
  void end_well() { finished.store(2); }
};

// Other processes read the fields without a lock that they would have to share, and Python takes them for int64.
static_assert(std::atomic<std::int64_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::int64_t>) == sizeof(std::int64_t));

}  // namespace distgrad
