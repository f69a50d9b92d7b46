// The end of MPI, at the end of a process. MPI's own functions come from Python, since the core is built without MPI.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "export.h"
#include "status_page.h"

extern "C" {

// Ends MPI, unless that is done already. `names`, a line each, are files that must be there for as long as `finalize`
// takes, which complains if it cannot remove them.
EXPORT void distgrad_end_mpi(int (*finalize)(), int (*finalized)(int*), const char* names) {
  int done = 0;
  finalized(&done);
  if (done) return;
  std::istringstream lines(names);
  std::vector<std::string> files;
  for (std::string line; std::getline(lines, line);) files.push_back(line);
  for (const std::string& file : files) close(open(file.c_str(), O_CREAT | O_RDWR, 0600));
  finalize();
  for (const std::string& file : files) unlink(file.c_str());
}

// Does so if the process ends well. Otherwise that would wait for ranks that wait for this one in a sum; and only here,
// after Python, is the status known.
EXPORT void distgrad_at_exit(distgrad::StatusPage* page, int (*finalize)(), int (*finalized)(int*), const char* names) {
  static std::function<void()> end;
  if (end) return;  // once a process is enough
  end = [page, finalize, finalized, kept = std::string(names)] {
    page->end_well();
    distgrad_end_mpi(finalize, finalized, kept.c_str());
  };
  on_exit([](int status, void*) { status == 0 ? end() : void(); }, nullptr);
}
}
