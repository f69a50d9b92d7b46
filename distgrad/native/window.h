// The memory that the ranks of one host share, and the sum that they make through it.
//
//     seats     one a rank: how often it has arrived, what it brings, what it found in its shard
//     parts     one slot a rank: its vector
//     results   a few slots: each rank adds its shard, over all parts in rank order, into one of them
//
// A sum is: fill one's own part, meet, add one's own shard, meet, read the whole result where it stands.
//
// Behind the vector stand the tables of which few rows were touched (rows.h). Between hosts, where all vectors must
// have the same size, they are whole tables; then every row counts as touched.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "numbers.h"
#include "page.h"
#include "rows.h"

namespace distgrad {

enum class Type : std::int32_t { kFloat = 1, kDouble = 2, kInt32 = 3, kInt64 = 9 };  // TensorFlow's numbers
std::size_t size_of(Type type);

// What Python does for a sum; 0 where it succeeded. The numbers are shared with window.py.
enum Event : std::int32_t {
  kGrow = 0,      // a: bytes that a vector needs. Every rank asks alike.
  kAcross = 1,    // sum this rank's shard, entries a..b of the result, over the hosts
  kMismatch = 2,  // local rank a brings b entries, unlike local rank 0
  kVote = 3,      // a: whether this rank's own vector is not finite. Every rank asks alike.
};
using Callback = std::int32_t (*)(std::int32_t event, std::int64_t a, std::int64_t b);

constexpr int kLent = 2;           // result slots that tensors may alias
constexpr int kSlots = kLent + 1;  // the last one is never lent, only copied from

// Where a rank tells the others about itself; each on cache lines of its own.
struct alignas(64) Seat {
  std::atomic<std::uint32_t> arrived;   // counts meetings; what a sleeping rank waits on
  std::atomic<std::uint32_t> sleepers;  // how many wait so
  std::int64_t entries;                 // of the vector it brings
  std::int64_t row_bytes;               // what it brings of tables takes
  Type type;
  std::uint32_t lent;  // a bit for each result slot that its tensors alias
  Moments moments;     // of its shard
};

// One mapping. It lives until the last tensor that aliases a result is gone.
class Memory {
 public:
  Memory(int fd, std::int64_t capacity, int ranks);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  bool mapped() const { return base_ != nullptr; }
  Seat& seat(int rank) { return reinterpret_cast<Seat*>(base_)[rank]; }
  char* part(int rank) { return base_ + seats_ + capacity_ * rank; }
  char* result(int slot) { return base_ + seats_ + capacity_ * (ranks_ + slot); }
  std::int64_t capacity() const { return capacity_; }
  static std::int64_t bytes(std::int64_t capacity, int ranks);

  std::atomic<int> lent[kLent] = {};  // how many tensors of this process alias each slot

 private:
  std::int64_t capacity_, seats_, bytes_;
  int ranks_;
  char* base_ = nullptr;
};

// A result for as long as someone reads it.
struct Lease {
  std::shared_ptr<Memory> memory;
  int slot;
  void release();
};

// Entries first..last of a vector.
struct Range {
  std::int64_t first, last;
};

struct Piece {
  const void* values;
  std::int64_t entries;
};

// A vector to be summed, and what is done to the sum.
struct Order {
  Type type = Type::kFloat;
  std::int64_t placed = 0;  // entries that are in this rank's part already,
  bool filled = true;       // or are zeros; the others are in pieces
  std::vector<Piece> pieces;
  Tables tables;  // whose rows are summed, divided and described with what is divided
  std::int64_t divided = 0, described = 0;  // of how many entries, from the first
  std::vector<Range> ranges;                // in ascending order; described one by one, and the rest not at all
  // The divisor is terms[0] + terms[1] * a + terms[2] * b ..., where a, b, ... are the last entries of the sum.
  std::vector<double> terms;
};

// What came of a table: the rows that any rank touched, and their sums.
struct Touched {
  std::vector<std::int64_t> rows;
  std::int64_t width = 0;
  char* values = nullptr;
};

class Window {
 public:
  // `size` ranks on all hosts together. `page` outlives the window.
  Window(Callback callback, int size, Page* page) : callback_(callback), page_(page), votes_(size) {}

  // Use another piece of memory, and from now on be this rank of so many; `owners` of them have a shard.
  bool map(int fd, std::int64_t capacity, int rank, int ranks, int owners, bool across);
  void close();
  // A table whose gradients are collected for sums in this window. It lives as long.
  Table* add_table(std::int64_t rows, std::int64_t width);

  char* part() const { return memory_->part(rank_); }

  // Returns an error, or "" and the result: `lease()` it, or copy it.
  std::string sum(const Order& order);

  // Adds the host's parts into entries first..last of the result; within kAcross only.
  void fill(std::int64_t first, std::int64_t last) { add_shard(first, last, Finish{}); }

  char* result() const { return result_; }
  const std::vector<Touched>& touched() const { return touched_; }
  std::int64_t entries() const { return entries_; }
  Type type() const { return type_; }
  double divisor() const { return finish_.divisor; }
  const Moments& moments() const { return moments_; }
  const std::vector<Moments>& by_range() const { return by_range_; }  // and then by table
  // 1 for each rank whose own vector was not finite; kVote writes them.
  std::vector<float>& votes() { return votes_; }
  bool open() const { return memory_ != nullptr; }
  // Null where the result stands in the slot that is never lent.
  Lease* lease();
  // Keeps something until the next sum.
  void keep(std::shared_ptr<void> thing) { kept_.push_back(std::move(thing)); }

 private:
  std::string try_sum(const Order& order);
  void lay_out(const Order& order);
  std::string agree();
  std::int64_t needed(const Order& order) const;
  void copy_in(const Order& order);
  template <typename T>
  void copy_in_tables(const Order& order);
  void meet();
  void wait_for(Seat& seat);
  std::uint32_t lent() const;
  std::int64_t boundary(int shard) const;
  std::string own_shard(const Order& order);
  void work_on_shard(const Order& order, std::int64_t first, std::int64_t last);
  void collect(const Order& order);
  Moments* notes(int owner, std::size_t ranges) const;
  Moments add_shard(std::int64_t first, std::int64_t last, const Finish& finish);
  Moments finish_shard(std::int64_t first, std::int64_t last, const Finish& finish);
  Moments finish_pieces(const Order& order, std::int64_t first, std::int64_t last, const Finish& finish);
  std::vector<Piece> all_of(const Order& order) const;
  template <typename T>
  T own_entry(const Order& order, std::int64_t entry) const;
  void find_touched(const Order& order);
  Moments work_on_table(const Order& order, std::size_t table, std::int64_t first, std::int64_t last);
  Moments add_own_rows(const Order& order, std::size_t table, const Finish& finish);
  double divisor(const Order& order, bool summed) const;
  bool own_part_is_bad(const Order& order) const;
  bool alone() const { return ranks_ == 1 && !across_; }
  RowLists lists_of(int rank, const Tables& tables) const;
  std::vector<RowLists> lists_of_all(const Tables& tables) const;
  bool is_large() const { return entries_ * size_of(type_) >= kStream; }

  Callback callback_;
  Page* page_;
  std::vector<float> votes_;
  std::shared_ptr<Memory> memory_;
  std::vector<std::shared_ptr<void>> kept_;
  std::vector<std::unique_ptr<Table>> tables_;
  int rank_ = 0, ranks_ = 1, owners_ = 1;
  bool across_ = false;
  std::uint32_t turn_ = 0;

  // The sum that is under way, or the last one.
  Type type_ = Type::kFloat;
  std::int64_t entries_ = 0;    // of the vector,
  std::int64_t tables_at_ = 0;  // the byte where the tables begin behind it,
  std::int64_t row_bytes_ = 0;  // how many bytes they take in this rank's part,
  std::int64_t whole_ = 0;      // and entries with what of them is summed as part of the vector
  std::vector<Touched> touched_;
  Finish finish_;
  int slot_ = 0;
  char* result_ = nullptr;
  Moments moments_;
  std::vector<Moments> by_range_;
};

}  // namespace distgrad
