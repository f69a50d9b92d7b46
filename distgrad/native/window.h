// One rank's window on the memory that the ranks of its host share, and the sum that they make through it.
//
// A sum is: fill one's own slot, meet, add one's own shard over all slots in rank order, meet, read the whole result
// where it stands. Of small vectors every rank adds all by itself, which takes less time than a second meeting.
//
// In a slot, lists of the sparse variables' touched rows stand behind the vector. Between hosts, where all vectors must
// have the same size, whole variables stand there; then every row counts as touched.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "data_type.h"
#include "layout.h"
#include "publication.h"
#include "row_lists.h"
#include "shared_memory.h"
#include "sparse_variable.h"
#include "status_page.h"
#include "sum_request.h"
#include "vector_math.h"

namespace distgrad {

constexpr int kNotChosen = -1;  // of the vectors for a publication

class Window {
 public:
  using Use = std::unique_lock<std::recursive_mutex>;

  // `size` ranks on all hosts together. `page` outlives the window.
  Window(Callback callback, int size, StatusPage* page) : callback_(callback), page_(page), votes_(size) {}

  // Use another piece of memory, and from now on be this rank of so many; `owners` of them have a shard. False, and all
  // is as before, where there is no such memory.
  bool map(int fd, std::int64_t capacity, int rank, int ranks, int owners, bool between_hosts);
  void close();
  bool open() const { return memory_ != nullptr; }

  // The use of this window by one operation: while it lasts, no other thread has one. Throws a Problem where the window
  // is closed, or where another rank could meet the wrong one of two threads.
  Use use();

  // Gradients of the variable are collected for sums in this window. It lives as long. Null where there is none so large.
  SparseVariable* add_sparse_variable(const std::string& name, std::int64_t rows, std::int64_t width);

  // Where this rank's vector stands for the others to read, and how many bytes there are.
  char* slot() const { return memory_->slot(rank_); }
  template <typename T>
  T* slot_of() const {
    return reinterpret_cast<T*>(slot());
  }
  std::int64_t capacity() const { return memory_->capacity(); }

  // Notes that gradients are placed in the slot, beginning with the `is_first` ones. Throws a Problem unless those that
  // are there already are of the same caller and type.
  void fill(bool is_first, Caller caller, DataType type);

  // Makes the result: lease() it, or copy it. Throws a Problem.
  void sum(const SumRequest& request);

  // Adds the host's slots into entries first..last of the result; within kSumBetweenHosts only. False where there are no
  // such entries.
  bool sum_slots(std::int64_t first, std::int64_t last);

  // Use this memory, of results alone, for publications of so many bytes. Every rank of the host does, between two sums.
  // False where there is no such memory.
  bool map_published(int fd, std::int64_t capacity);

  // Gives this rank's part of a vector, and waits for the others' parts. Throws a Problem. A sum must have been made
  // since the last publication.
  void publish(const Publication& publication);

  // Within kSumBetweenHosts only: how what is divided is compressed, how many entries that are, and by what this host's
  // part of them would be divided, 0 for nothing.
  std::int32_t compression() const { return compression_; }
  std::int64_t divided() const { return divided_; }
  double host_divisor() const { return host_divisor_; }

  // Bytes that are needed behind a vector so many of whose ranges are described one by one.
  static std::int64_t range_moments_bytes(std::size_t ranges, int ranks);

  // ---- what came of the last sum

  char* result() const { return result_; }
  const std::vector<SparseSum>& sparse_sums() const { return sparse_sums_; }
  std::int64_t entries() const { return entries_; }
  DataType type() const { return type_; }
  double divisor() const { return divisor_; }
  const Moments& moments() const { return moments_; }
  // Of each range, and then of each sparse variable.
  const std::vector<Moments>& range_moments() const { return range_moments_; }
  // 1 for each rank whose own vector was not finite; kVote writes them.
  std::vector<float>& votes() { return votes_; }
  // Null where the result is the one that is never lent.
  std::unique_ptr<Lease> lease();
  // Keeps something until the next sum.
  void hold(std::shared_ptr<void> thing) { held_.push_back(std::move(thing)); }

  // ---- what came of the last publication

  char* published() const { return published_place_; }
  DataType published_type() const { return published_type_; }
  // Null where the vector is the one that is never lent.
  std::unique_ptr<Lease> lease_published();
  // Keeps something until the end of the next publication.
  void hold_published(std::shared_ptr<void> thing) { held_published_ = std::move(thing); }

 private:
  // One sum, in order.
  void try_sum(const SumRequest& request);
  void require_possible(const SumRequest& request) const;
  void bring(const SumRequest& request);
  void lay_out(const SumRequest& request);
  void copy_in(const SumRequest& request);
  template <typename T>
  void copy_in_sparse(const SumRequest& request);
  void agree(const SumRequest& request);
  std::int64_t needed(const SumRequest& request) const;
  void sum_shard(const SumRequest& request);
  void sum_small(const SumRequest& request);
  void gather_moments(const SumRequest& request);
  bool own_vector_is_bad(const SumRequest& request) const;

  // One publication.
  void require_possible(const Publication& publication) const;
  void copy_in(const Publication& publication);
  void publish_between_hosts(Range own);

  // This rank's shard.
  std::int64_t boundary(int shard) const;
  void sum_between_hosts(std::int64_t first, std::int64_t last);
  double find_divisor(const SumRequest& request, bool of_host) const;
  // Nothing is divided by 0.
  void set_divisor(double found) { divisor_ = found == 0 ? 1 : found; }
  void locate_sparse_sums(const SumRequest& request);
  Moments finish_range(const SumRequest& request, Range range, bool describes);
  Moments finish_vector(const SumRequest& request, Range shard, Moments* of_ranges);
  Moments finish_sparse(const SumRequest& request, std::size_t variable, Range shard);
  Moments sum_own_rows(const SumRequest& request, std::size_t variable, const Finish& finish);

  // Entries of the result.
  Moments sum_slots(std::int64_t first, std::int64_t last, const Finish& finish);
  Moments finish_in_place(std::int64_t first, std::int64_t last, const Finish& finish);
  Moments finish_pieces(const SumRequest& request, std::int64_t first, std::int64_t last, const Finish& finish);
  std::vector<Piece> own_pieces(const SumRequest& request) const;
  template <typename T>
  T own_entry(const SumRequest& request, std::int64_t entry) const;

  // Meets the others once more, so that none still reads what this rank writes for its next sum, and then fails; all
  // ranks find the same.
  [[noreturn]] void refuse(Event event, int rank, std::int64_t brought);
  void require_one_thread() const;
  void require_filled_by(Caller caller, DataType type) const;
  void meet();
  Moments* moments_of_owner(int owner, std::size_t ranges) const;
  RowLists lists_of(int rank, const SparseVariables& sparse) const;
  std::vector<RowLists> lists_of_all(const SparseVariables& sparse) const;
  // Where a rank's vector stands.
  char* vector_of(int rank) const { return is_small_ ? memory_->small(rank, turn_) : memory_->slot(rank); }
  bool alone() const { return ranks_ == 1 && !between_hosts_; }
  bool is_large() const { return entries_ * size_of(type_) >= kLarge; }

  std::recursive_mutex mutex_;  // recursive, because Python maps new memory in the midst of a sum
  std::atomic<bool> has_others_{false}, overlapped_{false};  // whether threads have, where there are other ranks
  Callback callback_;
  StatusPage* page_;
  std::vector<float> votes_;
  std::shared_ptr<SharedMemory> memory_;
  std::vector<std::shared_ptr<void>> held_;
  std::vector<std::unique_ptr<SparseVariable>> sparse_variables_;
  int rank_ = 0, ranks_ = 1, owners_ = 1;
  bool between_hosts_ = false;
  std::uint32_t meetings_ = 0;
  Caller filler_ = 0;  // whose gradients stand in the slot, and of which type they are
  DataType filled_type_ = DataType::kFloat;

  // Publications.
  std::shared_ptr<SharedMemory> published_;
  int published_rank_ = 0, published_ranks_ = 1;  // what this rank was when that was mapped
  int published_number_ = kNotChosen;             // the vector in it that the next publication is to take
  int last_published_number_ = 0;
  char* published_place_ = nullptr;
  DataType published_type_ = DataType::kFloat;
  std::uint64_t publications_ = 0;
  std::shared_ptr<void> held_published_;

  // The sum that is under way, or the last one.
  DataType type_ = DataType::kFloat;
  bool is_small_ = false;
  int turn_ = 0;
  std::int64_t entries_ = 0;        // of the vector
  std::int64_t sparse_offset_ = 0;  // the byte of the slot where the sparse variables begin behind it
  std::int64_t sparse_bytes_ = 0;   // how many bytes they take in this rank's slot
  std::int64_t sharded_ = 0;        // entries that the owners share out: the vector, between hosts the variables, too
  double divisor_ = 1;
  std::int32_t compression_ = 0;
  std::int64_t divided_ = 0;
  double host_divisor_ = 1;
  int result_number_ = 0;
  char* result_ = nullptr;
  alignas(kAlignment) char small_result_[kSmall];
  std::vector<SparseSum> sparse_sums_;
  Moments moments_;
  std::vector<Moments> range_moments_;
};

}  // namespace distgrad
