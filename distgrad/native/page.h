// What a process tells the other processes of its host about where it is; peers.py reads and writes the same page.
#pragma once

#include <atomic>
#include <cstdint>

namespace distgrad {

struct Page {
  std::atomic<std::int64_t> turn;    // how far it has come in the sums; all count alike
  std::atomic<std::int64_t> inside;  // whether it is in a sum, and waits there or may do so
  std::atomic<std::int64_t> away;    // whether it sums between hosts
  std::atomic<std::int64_t> left;    // 1 if it needs no more of the others, 2 once its program has ended well

  // Only its own process writes.
  void arrive() {
    inside.store(1, std::memory_order_relaxed);
    turn.store(turn.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  void go_on() { inside.store(0, std::memory_order_release); }
};

}  // namespace distgrad
