// The publication of a window: the memory for it, and one publication.
//
// It follows a sum. Where the ranks met in that, they told one another which of the vectors in this memory their tensors
// alias. So all take the same free one, and no meeting is needed before they write.
#include "publication.h"

#include <string>
#include <utility>

#include "problem.h"
#include "vector_math.h"
#include "window.h"

namespace distgrad {
namespace {

// The end of a publication, however it ends.
struct PublicationEnd {
  StatusPage* page;
  int* number;

  ~PublicationEnd() {
    *number = kNotChosen;
    page->go_on();
  }
};

}  // namespace

bool Window::map_published(int fd, std::int64_t capacity) {
  const Use use(mutex_);
  auto memory = std::make_shared<SharedMemory>(fd, capacity, 0);
  if (!memory->mapped()) return false;
  published_ = std::move(memory);
  published_rank_ = rank_, published_ranks_ = ranks_;
  published_number_ = kNotChosen;
  return true;
}

void Window::publish(const Publication& publication) {
  require_possible(publication);
  published_place_ = published_->result(published_number_);
  last_published_number_ = published_number_, published_type_ = publication.type;
  const PublicationEnd end{page_, &published_number_};
  copy_in(publication);
  memory_->seat(rank_).publications = ++publications_;
  publish_between_hosts(publication.own);
  meet();
  require_one_thread();
  for (int rank = 0; rank < ranks_; ++rank) {
    if (memory_->seat(rank).publications != publications_) throw Problem("the ranks do not publish together");
  }
}

void Window::require_possible(const Publication& publication) const {
  if (!published_) throw Problem("there is no memory for a publication");
  if (published_rank_ != rank_ || published_ranks_ != ranks_) {
    throw Problem("the ranks of this host no longer share memory, and a publication needs it");
  }
  if (published_number_ == kNotChosen) throw Problem("a publication follows a sum");
  const Range own = publication.own;
  const std::int64_t room = published_->capacity() / static_cast<std::int64_t>(size_of(publication.type));
  bool fits = publication.entries <= room && 0 <= own.first && own.first <= own.last && own.last <= publication.entries;
  for (const Part& part : publication.parts) {
    fits = fits && own.first <= part.first && part.first <= own.last && part.values.entries <= own.last - part.first;
  }
  if (!fits) {
    throw Problem("a publication of " + std::to_string(publication.entries) + " entries has no place for its parts");
  }
}

void Window::copy_in(const Publication& publication) {
  with_type(publication.type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const bool streams = publication.entries * sizeof(T) >= kLarge;
    for (const Part& part : publication.parts) {
      T* place = reinterpret_cast<T*>(published_place_) + part.first;
      store(place, static_cast<const T*>(part.values.values), part.values.entries, streams);
    }
  });
}

// What the ranks of other hosts give: each owner gets what those give that own the same shard.
void Window::publish_between_hosts(Range own) {
  if (!between_hosts_ || rank_ >= owners_) return;
  page_->sum_between_hosts(true);
  const bool failed = callback_(kPublishBetweenHosts, own.first, own.last);
  page_->sum_between_hosts(false);
  if (failed) throw Problem("the publication between the hosts failed");
}

std::unique_ptr<Lease> Window::lease_published() {
  return last_published_number_ == kLendable ? nullptr : std::make_unique<Lease>(published_, last_published_number_);
}

}  // namespace distgrad
