#include "window.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "meeting.h"
#include "problem.h"

namespace distgrad {

// Entries. A shard begins at a multiple, which is a cache line or more, so that no two ranks write into one.
constexpr std::int64_t kShardGrain = 64;
constexpr std::int64_t kSmallTogether = 2 * kSmall;  // bytes of the small vectors of all ranks, each of which adds them
constexpr std::int64_t kMostEntries = std::int64_t{1} << 44;  // of a variable: more than any machine has room for

// ---- memory

bool Window::map(int fd, std::int64_t capacity, int rank, int ranks, int owners, bool between_hosts) {
  const Use use(mutex_);
  if (rank < 0 || rank >= ranks || owners < 1 || owners > ranks) return false;
  auto memory = std::make_shared<SharedMemory>(fd, capacity, ranks);
  if (!memory->mapped()) return false;
  const std::shared_ptr<SharedMemory> old = memory_;
  const char* old_slot = old ? slot() : nullptr;
  memory_ = std::move(memory);
  rank_ = rank, ranks_ = ranks, owners_ = owners, between_hosts_ = between_hosts;
  meetings_ = 0;
  has_others_ = !alone();
  const std::int64_t kept = old ? std::min(old->capacity(), memory_->capacity()) : 0;
  if (kept) std::memcpy(slot(), old_slot, kept);  // what is placed there already
  // Touched now, and by the rank that will use it, rather than within a step.
  if (!alone()) memory_->touch_slot(rank_, kept);
  if (rank_ < owners_) memory_->touch_shard(rank_, owners_);
  return true;
}

void Window::close() {
  const Use use(mutex_);
  held_.clear();
  held_published_.reset();
  memory_.reset();
  published_.reset();
  for (const auto& variable : sparse_variables_) variable->free_memory();
}

SparseVariable* Window::add_sparse_variable(const std::string& name, std::int64_t rows, std::int64_t width) {
  const Use use(mutex_);
  if (rows < 0 || width < 0 || (width && rows > kMostEntries / width)) return nullptr;
  return sparse_variables_.emplace_back(std::make_unique<SparseVariable>(name, rows, width)).get();
}

// ---- threads

namespace {

Problem two_threads(const std::string& what_they_do) {
  return Problem("DG002", "two threads " + what_they_do + " one communicator at once",
                 "let one thread take all steps and sums, in the same order on every worker");
}

}  // namespace

Window::Use Window::use() {
  Use use(mutex_, std::try_to_lock);
  if (!use) {
    if (has_others_) overlapped_ = true;
    require_one_thread();
    use.lock();
  }
  require_one_thread();
  if (!open()) throw Problem("the communicator is closed");
  return use;
}

void Window::require_one_thread() const {
  if (overlapped_) throw two_threads("use");
}

void Window::fill(bool is_first, Caller caller, DataType type) {
  if (is_first) filler_ = caller, filled_type_ = type;
  require_filled_by(caller, type);
}

void Window::require_filled_by(Caller caller, DataType type) const {
  if (filler_ != caller) throw two_threads("take a step with");
  if (filled_type_ != type) throw Problem("gradients of two dtypes are placed in one vector");
}

std::unique_ptr<Lease> Window::lease() {
  return result_number_ == kLendable ? nullptr : std::make_unique<Lease>(memory_, result_number_);
}

void Window::meet() { distgrad::meet(*memory_, rank_, ++meetings_, *page_); }

// ---- the sum

namespace {

// The end of a sum, however it ends.
struct SumEnd {
  const SparseVariables& variables;
  StatusPage* page;

  ~SumEnd() {
    for (SparseVariable* variable : variables) variable->clear();
    page->go_on();
  }
};

}  // namespace

void Window::sum(const SumRequest& request) {
  held_.clear();
  const SumEnd end{request.sparse, page_};
  try_sum(request);
}

void Window::try_sum(const SumRequest& request) {
  require_possible(request);
  bring(request);
  if (is_small_) {
    sum_small(request);
  } else {
    sum_shard(request);
    meet();
    gather_moments(request);
  }
  require_one_thread();
  std::fill(votes_.begin(), votes_.end(), 0.0f);
  if (moments_.nonfinite > 0 && callback_(kVote, own_vector_is_bad(request), 0)) throw Problem("the vote failed");
}

void Window::require_possible(const SumRequest& request) const {
  const std::int64_t room = memory_->capacity() / static_cast<std::int64_t>(size_of(request.type));
  std::int64_t entries = request.placed;
  for (const Piece& piece : request.pieces) entries += piece.entries;
  const auto terms = static_cast<std::int64_t>(request.terms.size());
  if (request.placed < 0 || request.placed > (request.filled ? room : kMostEntries) || terms < 1 ||
      terms - 1 > entries || request.divided < 0 || request.divided > entries || request.described < 0 ||
      request.described > entries) {
    throw Problem("a sum of " + std::to_string(entries) + " entries does not fit what is asked of it");
  }
  if (!request.filled || (!request.placed && request.sparse.empty())) return;
  require_filled_by(request.caller, request.type);
  for (const SparseVariable* variable : request.sparse) variable->require_type(request.type);
}

// Brings this rank's vector to where the others find theirs, in more memory if that is needed.
void Window::bring(const SumRequest& request) {
  for (;;) {
    turn_ = (turn_ + 1) % kTurns;
    lay_out(request);
    if (is_small_ || sparse_offset_ + sparse_bytes_ <= memory_->capacity()) copy_in(request);
    agree(request);
    if (is_small_) return;
    const std::int64_t bytes = needed(request);
    if (bytes <= memory_->capacity()) return;
    // The number of rows varies from step to step.
    const std::int64_t spare = request.sparse.empty() ? 0 : (bytes - sparse_offset_) / 2;
    if (callback_(kGrow, bytes + spare, 0) || bytes > memory_->capacity()) throw Problem("no memory for the sum");
  }
}

// How large everything is: the vector, and behind it the lists of rows, or between hosts whole variables.
void Window::lay_out(const SumRequest& request) {
  const std::int64_t size = size_of(type_ = request.type);
  entries_ = request.placed;
  for (const Piece& piece : request.pieces) entries_ += piece.entries;
  sharded_ = entries_, sparse_bytes_ = 0, sparse_offset_ = entries_ * size;
  sparse_sums_.clear();
  is_small_ = !alone() && !between_hosts_ && request.sparse.empty() && sparse_offset_ * ranks_ <= kSmallTogether;
  if (request.sparse.empty()) return;
  sparse_offset_ = aligned(sparse_offset_);
  for (SparseVariable* variable : request.sparse) {
    if (!request.filled) variable->clear();  // what stands there is an earlier, failed step's
    sparse_sums_.push_back({{}, variable->width(), nullptr});
  }
  if (!between_hosts_) {
    sparse_bytes_ = RowLists::bytes(request.sparse, size);
    return;
  }
  for (const SparseVariable* variable : request.sparse) sparse_bytes_ += aligned(variable->entries() * size);
  sharded_ = (sparse_offset_ + sparse_bytes_) / size;
}

void Window::copy_in(const SumRequest& request) {
  with_type(type_, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    T* place = reinterpret_cast<T*>(vector_of(rank_));
    if (!request.filled) {
      std::memset(place, 0, request.placed * sizeof(T));
    } else if (is_small_) {
      std::memcpy(place, slot(), request.placed * sizeof(T));
    }
    copy_in_sparse<T>(request);
    if (alone()) return;  // nobody else reads the slot: the pieces may stay where they are
    place += request.placed;
    for (const Piece& piece : request.pieces) {
      store(place, static_cast<const T*>(piece.values), piece.entries, is_large());
      place += piece.entries;
    }
  });
}

template <typename T>
void Window::copy_in_sparse(const SumRequest& request) {
  if (request.sparse.empty()) return;
  if (!between_hosts_) return lists_of(rank_, request.sparse).fill<T>();
  char* place = slot() + sparse_offset_;
  for (const SparseVariable* variable : request.sparse) {
    const std::int64_t bytes = aligned(variable->entries() * sizeof(T));
    std::memset(place, 0, bytes);
    variable->scatter_to(reinterpret_cast<T*>(place));
    place += bytes;
  }
}

namespace {

// The first result that no tensor of any rank aliases; the one that is never lent, if there is no other.
int free_result(std::uint32_t lent) {
  int number = 0;
  while (number < kLendable && lent >> number & 1) ++number;
  return number;
}

}  // namespace

// Meets the others and finds out whether all bring the same kind of vector, and which result is free, and which vector
// for a publication.
void Window::agree(const SumRequest& request) {
  Brought& own = memory_->seat(rank_).brought[turn_];
  own.entries = entries_, own.sparse_bytes = sparse_bytes_, own.type = type_;
  own.digest = request.digest(), own.parts = static_cast<std::int64_t>(request.described_one_by_one());
  own.lent_results = memory_->lent_results();
  own.lent_published = published_ ? published_->lent_results() : 0;
  meet();
  const Brought& first = memory_->seat(0).brought[turn_];
  std::uint32_t lent = 0, lent_published = 0;
  for (int rank = 0; rank < ranks_; ++rank) {
    const Brought& brought = memory_->seat(rank).brought[turn_];
    if (brought.entries != first.entries || brought.type != first.type) refuse(kMismatch, rank, brought.entries);
    if (brought.digest != first.digest) refuse(kOtherParts, rank, brought.parts);
    lent |= brought.lent_results;
    lent_published |= brought.lent_published;
  }
  // The same on every rank, since all have read the same seats.
  result_number_ = is_small_ ? kLendable : free_result(lent);
  result_ = is_small_ ? small_result_ : memory_->result(result_number_);
  published_number_ = free_result(lent_published);
}

void Window::refuse(Event event, int rank, std::int64_t brought) {
  meet();
  callback_(event, rank, brought);
  throw Problem("the ranks of this host bring vectors of different size, dtype or parts");
}

// Bytes for the vector, all rows that any rank touches, each perhaps another one's, and the moments of the ranges.
std::int64_t Window::needed(const SumRequest& request) const {
  std::int64_t bytes = sparse_offset_ + range_moments_bytes(request.described_one_by_one(), ranks_);
  if (between_hosts_) return bytes + sparse_bytes_;
  for (int rank = 0; rank < ranks_; ++rank) bytes += memory_->seat(rank).brought[turn_].sparse_bytes;
  return bytes;
}

// ---- the sum itself

// All of it, as every other rank does.
void Window::sum_small(const SumRequest& request) {
  set_divisor(find_divisor(request, true));
  range_moments_.assign(request.ranges.size(), Moments{});
  moments_ = finish_vector(request, {0, entries_}, range_moments_.data());
}


// Sums and finishes what this rank owns. Between hosts the sum is made first, the divisor is read from it, and then it
// is divided where it stands; within one host the divisor is summed first, and everything else is done in one pass.
void Window::sum_shard(const SumRequest& request) {
  const bool owns = rank_ < owners_;
  const Range shard = owns ? Range{boundary(rank_), boundary(rank_ + 1)} : Range{0, 0};
  if (between_hosts_) {
    compression_ = request.compression, divided_ = request.divided, host_divisor_ = find_divisor(request, true);
    sum_between_hosts(shard.first, shard.last);
  }
  set_divisor(find_divisor(request, !between_hosts_));
  locate_sparse_sums(request);
  if (!owns) return;
  Moments* of_ranges = moments_of_owner(rank_, request.described_one_by_one());
  Moments found = finish_vector(request, shard, of_ranges);
  for (std::size_t variable = 0; variable < request.sparse.size(); ++variable) {
    Moments& of_variable = of_ranges[request.ranges.size() + variable];
    of_variable = finish_sparse(request, variable, shard);
    found.merge(of_variable);
  }
  memory_->seat(rank_).shard_moments = found;
}

std::int64_t Window::boundary(int shard) const {
  return shard == owners_ ? sharded_ : sharded_ * shard / owners_ / kShardGrain * kShardGrain;
}

// Behind it the whole result is there.
void Window::sum_between_hosts(std::int64_t first, std::int64_t last) {
  page_->sum_between_hosts(true);
  if (rank_ < owners_ && callback_(kSumBetweenHosts, first, last)) throw Problem("the sum between the hosts failed");
  page_->sum_between_hosts(false);
  meet();
}

bool Window::sum_slots(std::int64_t first, std::int64_t last) {
  if (first < 0 || first > last || last > sharded_ || !open()) return false;
  sum_slots(first, last, Finish{});
  return true;
}

// The same on every rank: of this host from the slots, added in rank order, and of all hosts from the result.
double Window::find_divisor(const SumRequest& request, bool of_host) const {
  double divisor = request.terms.empty() ? 1 : request.terms[0];
  const std::int64_t others = static_cast<std::int64_t>(request.terms.size()) - 1;
  with_type(type_, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    for (std::int64_t term = 1; term <= others; ++term) {
      if (request.terms[term] == 0) continue;  // whose entry may be NaN
      const std::int64_t entry = entries_ - others + term - 1;
      T sum = of_host ? T{} : reinterpret_cast<const T*>(result_)[entry];
      for (int rank = 0; rank < ranks_ && of_host; ++rank) {
        sum += alone() ? own_entry<T>(request, entry) : reinterpret_cast<const T*>(vector_of(rank))[entry];
      }
      divisor += request.terms[term] * static_cast<double>(sum);
    }
  });
  return divisor;
}

// Finds the union of the ranks' rows, on every rank alike, and where in the result their sums will stand.
void Window::locate_sparse_sums(const SumRequest& request) {
  std::int64_t place = sparse_offset_;
  for (std::size_t i = 0; i < sparse_sums_.size(); ++i) {
    SparseSum& sum = sparse_sums_[i];
    if (between_hosts_) {
      sum.rows.resize(request.sparse[i]->rows());
      std::iota(sum.rows.begin(), sum.rows.end(), 0);
    } else {
      sum.rows = union_of(lists_of_all(request.sparse), i);
    }
    sum.values = result_ + place;
    place += aligned(sum.entries() * size_of(type_));
  }
}

// What of the vector is in the shard, as a whole, or range by range and what lies between the ranges without describing
// it. Writes the moments of each range, and returns those of all.
Moments Window::finish_vector(const SumRequest& request, Range shard, Moments* of_ranges) {
  const std::int64_t end = std::min(shard.last, entries_);
  if (request.ranges.empty()) return finish_range(request, {shard.first, end}, true);
  Moments found;
  std::int64_t done = shard.first;
  for (const Range& range : request.ranges) {
    const std::int64_t start = std::clamp(range.first, done, std::max(done, end));
    const std::int64_t stop = std::clamp(range.last, start, std::max(start, end));
    finish_range(request, {done, start}, false);
    *of_ranges = finish_range(request, {start, stop}, true);
    found.merge(*of_ranges++);
    done = stop;
  }
  finish_range(request, {done, end}, false);
  return found;
}

Moments Window::finish_range(const SumRequest& request, Range range, bool describes) {
  if (range.first >= range.last) return {};
  const std::size_t divided = request.divided, described = describes ? request.described : 0;
  const Finish finish = Finish{divided, described, divisor_}.behind(range.first);
  if (alone()) return finish_pieces(request, range.first, range.last, finish);
  if (between_hosts_) return finish_in_place(range.first, range.last, finish);
  return sum_slots(range.first, range.last, finish);
}

// What of a sparse variable is this rank's: between hosts what lies in its shard, else its share of the touched rows.
Moments Window::finish_sparse(const SumRequest& request, std::size_t variable, Range shard) {
  const Finish finish = Finish::of_all(request.described == request.divided, divisor_);
  if (!between_hosts_) return sum_own_rows(request, variable, finish);
  const std::int64_t start = (sparse_sums_[variable].values - result_) / static_cast<std::int64_t>(size_of(type_));
  const std::int64_t stop = start + request.sparse[variable]->entries();
  const std::int64_t first = std::max(shard.first, start), last = std::min(shard.last, stop);
  return first < last ? finish_in_place(first, last, finish) : Moments{};
}

Moments Window::sum_own_rows(const SumRequest& request, std::size_t variable, const Finish& finish) {
  return with_type(type_, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const SparseSum& sum = sparse_sums_[variable];
    const std::int64_t count = sum.rows.size(), first = count * rank_ / owners_, last = count * (rank_ + 1) / owners_;
    T* out = reinterpret_cast<T*>(sum.values);
    return sum_rows(out, sum.rows, first, last, lists_of_all(request.sparse), variable, sum.width, finish);
  });
}

// ---- entries first..last of the result; `finish` counts from `first`

Moments Window::sum_slots(std::int64_t first, std::int64_t last, const Finish& finish) {
  return with_type(type_, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    std::vector<const T*> slots;
    for (int rank = 0; rank < ranks_; ++rank) slots.push_back(reinterpret_cast<const T*>(vector_of(rank)) + first);
    T* out = reinterpret_cast<T*>(result_) + first;
    return sum_vectors(out, slots.data(), ranks_, last - first, finish, is_large());
  });
}

// What is summed there already.
Moments Window::finish_in_place(std::int64_t first, std::int64_t last, const Finish& finish) {
  return with_type(type_, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    T* sum = reinterpret_cast<T*>(result_) + first;
    const std::size_t count = last - first;
    const Moments found = moments_of(sum, std::min(finish.described, count));
    sum_vectors(sum, &sum, 1, std::min(finish.divided, count), Finish{finish.divided, 0, finish.divisor}, false);
    return found;
  });
}

// A lone rank's sum is its own vector.
Moments Window::finish_pieces(const SumRequest& request, std::int64_t first, std::int64_t last, const Finish& finish) {
  Moments all;
  with_type(type_, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    std::int64_t start = 0;
    for (const Piece& piece : own_pieces(request)) {
      const std::int64_t from = std::max(first, start), to = std::min(last, start + piece.entries);
      if (from < to) {
        const T* values = static_cast<const T*>(piece.values) + (from - start);
        T* out = reinterpret_cast<T*>(result_) + from;
        all.merge(sum_vectors(out, &values, 1, to - from, finish.behind(from - first), is_large()));
      }
      start += piece.entries;
    }
  });
  return all;
}

// A lone rank's vector: what is placed, and the pieces.
std::vector<Piece> Window::own_pieces(const SumRequest& request) const {
  std::vector<Piece> pieces{{slot(), request.placed}};
  pieces.insert(pieces.end(), request.pieces.begin(), request.pieces.end());
  return pieces;
}

template <typename T>
T Window::own_entry(const SumRequest& request, std::int64_t entry) const {
  for (const Piece& piece : own_pieces(request)) {
    if (entry < piece.entries) return static_cast<const T*>(piece.values)[entry];
    entry -= piece.entries;
  }
  return T{};
}

// ---- what was found

// What each owner found in its shard, taken together. Rows that nobody touched are zeros.
void Window::gather_moments(const SumRequest& request) {
  moments_ = Moments{};
  range_moments_.assign(request.described_one_by_one(), Moments{});
  for (int owner = 0; owner < owners_; ++owner) {
    moments_.merge(memory_->seat(owner).shard_moments);
    const Moments* found = moments_of_owner(owner, range_moments_.size());
    for (Moments& range : range_moments_) range.merge(*found++);
  }
  for (std::size_t i = 0; i < request.sparse.size(); ++i) {
    const std::int64_t untouched = request.sparse[i]->entries() - sparse_sums_[i].entries();
    range_moments_[request.ranges.size() + i].zeros += static_cast<double>(untouched);
  }
}

// Where an owner writes down what it finds in each range: at the end of the result's memory, behind the sum.
Moments* Window::moments_of_owner(int owner, std::size_t ranges) const {
  return reinterpret_cast<Moments*>(result_ + memory_->capacity()) - ranges * (owner + 1);
}

// One more than there are, since the end of the sum need not be where one of them may begin.
std::int64_t Window::range_moments_bytes(std::size_t ranges, int ranks) {
  return ranges ? (ranges * ranks + 1) * sizeof(Moments) : 0;
}

bool Window::own_vector_is_bad(const SumRequest& request) const {
  if (alone()) return true;  // whose else
  return with_type(type_, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    double bad = moments_of(reinterpret_cast<const T*>(vector_of(rank_)), request.described).nonfinite;
    if (between_hosts_) {
      bad += moments_of(reinterpret_cast<const T*>(slot() + sparse_offset_), sparse_bytes_ / sizeof(T)).nonfinite;
      return bad > 0;
    }
    const RowLists own = lists_of(rank_, request.sparse);
    for (std::size_t i = 0; i < sparse_sums_.size(); ++i) {
      bad += moments_of(own.values<T>(i), own.count(i) * sparse_sums_[i].width).nonfinite;
    }
    return bad > 0;
  });
}

RowLists Window::lists_of(int rank, const SparseVariables& sparse) const {
  return {memory_->slot(rank) + sparse_offset_, sparse, size_of(type_)};
}

std::vector<RowLists> Window::lists_of_all(const SparseVariables& sparse) const {
  std::vector<RowLists> ranks;
  for (int rank = 0; rank < ranks_; ++rank) ranks.push_back(lists_of(rank, sparse));
  return ranks;
}

}  // namespace distgrad
