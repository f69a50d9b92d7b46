// The end of MPI, at the end of a process. MPI's own functions come from Python, since the core is built without MPI.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "export.h"
#include "status_page.h"

namespace {

// A file, empty and new, that is there until this object ends. Where every user may write, another one may have put a
// file or a link of this name there before; that is neither opened nor removed.
class NewFile {
 public:
  explicit NewFile(const std::string& name)
      : name_(name), fd_(open(name.c_str(), O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_RDWR, 0600)) {}
  ~NewFile() {
    if (fd_ < 0) return;
    if (is_there()) unlink(name_.c_str());
    close(fd_);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

 private:
  bool is_there() const {
    struct stat made, named;
    return !fstat(fd_, &made) && !lstat(name_.c_str(), &named) && made.st_dev == named.st_dev &&
           made.st_ino == named.st_ino;
  }

  std::string name_;
  int fd_;
};

}  // namespace

extern "C" {

// Ends MPI, unless that is done already. `names`, a line each, are files that must be there for as long as `finalize`
// takes, which complains if it cannot remove them.
EXPORT void distgrad_end_mpi(int (*finalize)(), int (*finalized)(int*), const char* names) {
  int done = 0;
  finalized(&done);
  if (done) return;
  std::istringstream lines(names);
  std::vector<std::unique_ptr<NewFile>> files;
  for (std::string line; std::getline(lines, line);) files.push_back(std::make_unique<NewFile>(line));
  finalize();
}

// Does so if the process ends well. Otherwise that would wait for ranks that wait for this one in a sum; and only here,
// after Python, is the status known. A process that was forked from this one inherits the function, but no part in MPI.
EXPORT void distgrad_at_exit(distgrad::StatusPage* page, int (*finalize)(), int (*finalized)(int*), const char* names) {
  static std::function<void()> end;
  if (end) return;  // once a process is enough
  end = [page, finalize, finalized, kept = std::string(names), owner = getpid()] {
    if (getpid() != owner) return;
    page->end_well();
    distgrad_end_mpi(finalize, finalized, kept.c_str());
  };
  on_exit([](int status, void*) { status == 0 ? end() : void(); }, nullptr);
}
}
