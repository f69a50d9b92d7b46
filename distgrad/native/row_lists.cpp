#include "row_lists.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "data_type.h"

namespace distgrad {

std::int64_t RowLists::bytes(const SparseVariables& variables, std::size_t entry_size) {
  std::int64_t bytes = aligned(variables.size() * sizeof(std::int64_t));
  for (const SparseVariable* variable : variables) {
    bytes += aligned(variable->touched() * sizeof(std::int64_t));
    bytes += aligned(variable->touched() * variable->width() * entry_size);
  }
  return bytes;
}

char* RowLists::start(std::size_t variable) const {
  char* place = memory_ + aligned(variables_.size() * sizeof(std::int64_t));
  for (std::size_t before = 0; before < variable; ++before) {
    place += aligned(count(before) * sizeof(std::int64_t));
    place += aligned(count(before) * variables_[before]->width() * entry_size_);
  }
  return place;
}

template <typename T>
void RowLists::fill() {
  for (std::size_t i = 0; i < variables_.size(); ++i) {
    reinterpret_cast<std::int64_t*>(memory_)[i] = variables_[i]->touched();
    variables_[i]->copy_to(const_cast<std::int64_t*>(rows(i)), const_cast<T*>(values<T>(i)));
  }
}

std::vector<std::int64_t> union_of(const std::vector<RowLists>& ranks, std::size_t variable) {
  std::vector<std::int64_t> all, more;
  for (const RowLists& rank : ranks) {
    const std::int64_t* rows = rank.rows(variable);
    more.clear();
    std::set_union(all.begin(), all.end(), rows, rows + rank.count(variable), std::back_inserter(more));
    std::swap(all, more);
  }
  return all;
}

namespace {

// One rank's list of a variable, and how far it has been read.
template <typename T>
struct Cursor {
  const std::int64_t *row, *end;
  const T* values;

  // Stands at row `from`, or at the first one behind it.
  Cursor(const RowLists& lists, std::size_t variable, std::int64_t from, std::int64_t width) {
    const std::int64_t* begin = lists.rows(variable);
    end = begin + lists.count(variable);
    row = std::lower_bound(begin, end, from);
    values = lists.values<T>(variable) + (row - begin) * width;
  }
  bool is_at(std::int64_t wanted) const { return row != end && *row == wanted; }
  void go_on(std::int64_t width) { ++row, values += width; }
};

// Those of all ranks, which go through the union of their rows together.
template <typename T>
class Cursors {
 public:
  Cursors(const std::vector<RowLists>& ranks, std::size_t variable, std::int64_t from, std::int64_t width)
      : touches_(ranks.size()), width_(width) {
    for (const RowLists& rank : ranks) cursors_.emplace_back(rank, variable, from, width);
  }

  // The values of the ranks that touch this row, good until the next call.
  const std::vector<const T*>& values_at(std::int64_t row) {
    values_.clear();
    for (std::size_t rank = 0; rank < cursors_.size(); ++rank) {
      touches_[rank] = cursors_[rank].is_at(row);
      if (touches_[rank]) values_.push_back(cursors_[rank].values);
    }
    return values_;
  }

  // Whether the ranks that touch this row are those that touched the last one asked for; if so, goes on behind it.
  bool go_on_if_same_ranks(std::int64_t row) {
    for (std::size_t rank = 0; rank < cursors_.size(); ++rank) {
      if (cursors_[rank].is_at(row) != touches_[rank]) return false;
    }
    for (std::size_t rank = 0; rank < cursors_.size(); ++rank) {
      if (touches_[rank]) cursors_[rank].go_on(width_);
    }
    return true;
  }

 private:
  std::vector<Cursor<T>> cursors_;
  std::vector<bool> touches_;
  std::vector<const T*> values_;
  std::int64_t width_;
};

}  // namespace

// Rows that follow one another in the union and are touched by the same ranks do so in those ranks' lists, too, and are
// added at once.
template <typename T>
Moments sum_rows(T* out, const std::vector<std::int64_t>& rows, std::int64_t first, std::int64_t last,
                 const std::vector<RowLists>& ranks, std::size_t variable, std::int64_t width, const Finish& finish) {
  Moments found;
  if (first == last) return found;
  Cursors<T> cursors(ranks, variable, rows[first], width);
  for (std::int64_t start = first, stop; start < last; start = stop) {
    const std::vector<const T*>& values = cursors.values_at(rows[start]);
    for (stop = start; stop < last && cursors.go_on_if_same_ranks(rows[stop]);) ++stop;
    const std::int64_t count = (stop - start) * width;
    const int touching = static_cast<int>(values.size());
    found.merge(sum_vectors(out + start * width, values.data(), touching, count, finish, false));
  }
  return found;
}

#define DISTGRAD_DEFINE(T)                                                                                        \
  template void RowLists::fill<T>();                                                                              \
  template Moments sum_rows(T*, const std::vector<std::int64_t>&, std::int64_t, std::int64_t,                     \
                            const std::vector<RowLists>&, std::size_t, std::int64_t, const Finish&);
DISTGRAD_FOR_EACH_TYPE(DISTGRAD_DEFINE)
#undef DISTGRAD_DEFINE

}  // namespace distgrad
