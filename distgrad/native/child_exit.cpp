// The end of processes that are forked from a worker.
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>

#include "export.h"

extern "C" {

// Lets children that leave with `exit` end at once, without what libraries do then: a child has none of their threads,
// so that it would wait for them for ever, and takes their connections out of what it shares with the worker. Only
// what was registered before this call is left out.
EXPORT void distgrad_end_children_at_once() {
  static pid_t worker = 0;
  if (worker == getpid()) return;  // once a process is enough
  worker = getpid();
  on_exit(
      [](int status, void*) {
        if (getpid() == worker) return;
        std::fflush(nullptr);
        _exit(status);
      },
      nullptr);
}
}
