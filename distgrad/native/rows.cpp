#include "rows.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace distgrad {

// ---- one rank's own sums

template <typename T>
bool Table::add(const std::int64_t* rows, const T* gradient, std::int64_t count) {
  if (!places_) places_.reset(static_cast<std::int32_t*>(std::calloc(rows_, sizeof(std::int32_t))));
  const std::size_t bytes = width_ * sizeof(T);
  for (std::int64_t i = 0; i < count; ++i, gradient += width_) {
    if (rows[i] < 0 || rows[i] >= rows_) return false;
    std::int32_t& place = places_[rows[i]];
    if (place) {
      distgrad::add(values<T>(place - 1), gradient, width_);
      continue;
    }
    touched_.push_back(rows[i]);
    place = static_cast<std::int32_t>(touched_.size());
    const char* begin = reinterpret_cast<const char*>(gradient);
    values_.insert(values_.end(), begin, begin + bytes);
  }
  return true;
}

template <typename T>
void Table::copy_to(std::int64_t* rows, T* sums) {
  std::copy(touched_.begin(), touched_.end(), rows);
  std::sort(rows, rows + touched());
  for (std::int64_t i = 0; i < touched(); ++i) {
    std::memcpy(sums + i * width_, values<T>(places_[rows[i]] - 1), width_ * sizeof(T));
  }
}

template <typename T>
void Table::scatter_to(T* table) const {
  const T* sums = reinterpret_cast<const T*>(values_.data());
  for (std::int64_t row : touched_) {
    distgrad::add(table + row * width_, sums, width_);
    sums += width_;
  }
}

void Table::clear() {
  for (std::int64_t row : touched_) places_[row] = 0;
  touched_.clear();
  values_.clear();
}

// ---- in a part

std::int64_t RowLists::bytes(const Tables& tables, std::size_t entry_size) {
  std::int64_t bytes = aligned(tables.size() * sizeof(std::int64_t));
  for (const Table* table : tables) {
    bytes += aligned(table->touched() * sizeof(std::int64_t)) + aligned(table->touched() * table->width() * entry_size);
  }
  return bytes;
}

char* RowLists::start(std::size_t table) const {
  char* place = memory_ + aligned(tables_.size() * sizeof(std::int64_t));
  for (std::size_t before = 0; before < table; ++before) {
    place += aligned(count(before) * sizeof(std::int64_t));
    place += aligned(count(before) * tables_[before]->width() * entry_size_);
  }
  return place;
}

template <typename T>
void RowLists::fill() {
  for (std::size_t table = 0; table < tables_.size(); ++table) {
    reinterpret_cast<std::int64_t*>(memory_)[table] = tables_[table]->touched();
    tables_[table]->copy_to(const_cast<std::int64_t*>(rows(table)), const_cast<T*>(values<T>(table)));
  }
}

// ---- over the ranks

std::vector<std::int64_t> union_of(const std::vector<RowLists>& ranks, std::size_t table) {
  std::vector<std::int64_t> all, more;
  for (const RowLists& rank : ranks) {
    const std::int64_t* rows = rank.rows(table);
    more.clear();
    std::set_union(all.begin(), all.end(), rows, rows + rank.count(table), std::back_inserter(more));
    std::swap(all, more);
  }
  return all;
}

namespace {

// One rank's list of a table, and how far it has been read.
template <typename T>
struct Cursor {
  const std::int64_t *row, *end;
  const T* values;

  // Stands at `from`, or at the first row behind it.
  Cursor(const RowLists& lists, std::size_t table, std::int64_t from, std::int64_t width) {
    const std::int64_t* begin = lists.rows(table);
    end = begin + lists.count(table);
    row = std::lower_bound(begin, end, from);
    values = lists.values<T>(table) + (row - begin) * width;
  }
  bool is_at(std::int64_t wanted) const { return row != end && *row == wanted; }
  void go_on(std::int64_t width) { ++row, values += width; }
};

}  // namespace

// Rows that follow one another in the union and are touched by the same ranks do so in those ranks' lists, too, and are
// added at once.
template <typename T>
Moments add_rows(T* out, const std::vector<std::int64_t>& rows, std::int64_t first, std::int64_t last,
                 const std::vector<RowLists>& ranks, std::size_t table, std::int64_t width, const Finish& finish) {
  Moments found;
  if (first == last) return found;
  std::vector<Cursor<T>> all;
  for (const RowLists& rank : ranks) all.emplace_back(rank, table, rows[first], width);
  std::vector<const T*> parts;
  std::vector<bool> touches(ranks.size());
  const auto same_ranks = [&](std::int64_t row) {
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      if (all[rank].is_at(row) != touches[rank]) return false;
    }
    return true;
  };
  for (std::int64_t start = first, stop; start < last; start = stop) {
    parts.clear();
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      touches[rank] = all[rank].is_at(rows[start]);
      if (touches[rank]) parts.push_back(all[rank].values);
    }
    for (stop = start; stop < last && same_ranks(rows[stop]); ++stop) {
      for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        if (touches[rank]) all[rank].go_on(width);
      }
    }
    T* place = out + start * width;
    found.merge(add_parts(place, parts.data(), parts.size(), 0, (stop - start) * width, finish, false));
  }
  return found;
}

#define DISTGRAD_FOR(T)                                                                                        \
  template bool Table::add(const std::int64_t*, const T*, std::int64_t);                                       \
  template void Table::copy_to(std::int64_t*, T*);                                                             \
  template void Table::scatter_to(T*) const;                                                                   \
  template void RowLists::fill<T>();                                                                           \
  template Moments add_rows(T*, const std::vector<std::int64_t>&, std::int64_t, std::int64_t,                  \
                            const std::vector<RowLists>&, std::size_t, std::int64_t, const Finish&);
DISTGRAD_FOR(float)
DISTGRAD_FOR(double)
DISTGRAD_FOR(std::int32_t)
DISTGRAD_FOR(std::int64_t)
#undef DISTGRAD_FOR

}  // namespace distgrad
