// What a step tells of gradients, weights and workers. None of these operations uses a window.
//
//     DistgradMoments            the moments of tensors
//     DistgradStatistics         what a report shows of moments
//     DistgradCopyTo             tensors are copied to a place,
//     DistgradSquaredChange      and compared with what stands there
//     DistgradNoteMicroBatch     a worker's notes of its micro-batches so far
//     DistgradWorkerRow          its row of the table that all workers put together
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels.h"
#include "vector_math.h"

namespace distgrad {
namespace {

// (n, 5) the moments of n tensors.
template <typename T>
class MomentsKernel {
 public:
  explicit MomentsKernel(TF_OpKernelConstruction*) {}

  void compute(TF_OpKernelContext* context) {
    std::vector<Moments> rows;
    for (int i = 0; i < TF_NumInputs(context); ++i) {
      const Tensor tensor = input(context, i);
      rows.push_back(moments_of(data_of<T>(tensor), entries_of(tensor)));
    }
    set_output(context, 0, rows);
  }
};

// (..., m) from as many moments; m is 5, or 4 without the zeros. The total, the root of the squares, and the largest
// are divided. Where nothing but that makes entries of type T overflow, one is not finite.
template <typename T>
class StatisticsKernel {
 public:
  explicit StatisticsKernel(TF_OpKernelConstruction*) {}

  void compute(TF_OpKernelContext* context) {
    const Tensor moments = input(context, kMoments);
    const double divisor = value_of<double>(input(context, kDivisor));
    const Shape shape = shape_of(moments);
    constexpr std::int64_t kColumns = sizeof(Moments) / sizeof(double);
    if (shape.empty() || (shape.back() != kColumns && shape.back() != kColumns - 1)) {
      throw Problem("moments are rows of 4 or 5");
    }
    const std::int64_t count = entries_of(moments), columns = shape.back();
    const Tensor output = allocate_output(context, 0, TF_DOUBLE, shape, count * sizeof(double));
    const double* row = data_of<double>(moments);
    double* shown = data_of<double>(output);
    for (const double* end = row + count; row != end; row += columns, shown += columns) {
      const std::size_t bytes = std::min(columns * sizeof(double), sizeof(Moments));
      Moments found;
      std::memcpy(&found, static_cast<const void*>(row), bytes);
      found.total /= divisor, found.squares = std::sqrt(found.squares) / divisor, found.largest /= divisor;
      if (found.largest > std::numeric_limits<T>::max()) found.nonfinite = std::max(found.nonfinite, 1.0);
      std::memcpy(shown, &found, bytes);
    }
  }

 private:
  enum Input { kMoments, kDivisor };
};

// Inputs of the two operations below. The place is an address with room for `entries`, at which the tensors stand one
// behind the other.
enum PlacedInput { kPlace, kTensors };

// Throws a Problem unless the tensors fill the place.
void require_room(TF_OpKernelContext* context, std::int64_t room) {
  std::int64_t entries = 0;
  for (int i = kTensors; i < TF_NumInputs(context); ++i) entries += entries_of(input(context, i));
  if (entries == room) return;
  throw Problem(std::to_string(entries) + " entries do not fill a place for " + std::to_string(room));
}

// Calls `work` with each tensor's place, values and number of entries.
template <typename T, typename Work>
void for_each_placed(TF_OpKernelContext* context, std::int64_t room, Work work) {
  require_room(context, room);
  T* place = reinterpret_cast<T*>(value_of<std::int64_t>(input(context, kPlace)));
  for (int i = kTensors; i < TF_NumInputs(context); ++i) {
    const Tensor tensor = input(context, i);
    work(place, data_of<T>(tensor), entries_of(tensor));
    place += entries_of(tensor);
  }
}

template <typename T>
class CopyToKernel {
 public:
  explicit CopyToKernel(TF_OpKernelConstruction* construction) : room_(integer(construction, "room")) {}

  void compute(TF_OpKernelContext* context) {
    for_each_placed<T>(context, room_, [](T* place, const T* values, std::int64_t count) {
      store(place, values, count, count * sizeof(T) >= kLarge);
    });
  }

 private:
  std::int64_t room_;
};

// (2, n): of n tensors the sum of squares of each one's changes, and of what was there before.
template <typename T>
class SquaredChangeKernel {
 public:
  explicit SquaredChangeKernel(TF_OpKernelConstruction* construction) : room_(integer(construction, "room")) {}

  void compute(TF_OpKernelContext* context) {
    const std::int64_t count = TF_NumInputs(context) - kTensors;
    const Tensor output = allocate_output(context, 0, TF_DOUBLE, {2, count}, 2 * count * sizeof(double));
    double *change = data_of<double>(output), *before = change + count;
    for_each_placed<T>(context, room_, [&](const T* place, const T* values, std::int64_t entries) {
      const SquaredChange found = squared_change(place, values, entries);
      *change++ = found.change, *before++ = found.before;
    });
  }

 private:
  std::int64_t room_;
};

// (4,) MicroBatchNotes, with one more micro-batch: its N, and the AddedSums of each operation that added its gradients.
class NoteMicroBatchKernel {
 public:
  explicit NoteMicroBatchKernel(TF_OpKernelConstruction*) {}

  void compute(TF_OpKernelContext* context) {
    auto notes = value_of<MicroBatchNotes>(input(context, kNotes));
    const double weight = value_of<double>(input(context, kWeight));
    double squares = 0;
    for (int i = kFound; i < TF_NumInputs(context); ++i) {
      const auto found = value_of<AddedSums>(input(context, i));
      squares += found.squares, notes.total += found.total, notes.total_squares += found.total_squares;
    }
    if (weight > 0) notes.between += squares / weight, notes.count += 1;
    set_output<double>(context, 0, TF_DOUBLE, {notes.between, notes.count, notes.total, notes.total_squares});
  }

 private:
  enum Input { kNotes, kWeight, kFound };
};

// (workers * 2 * 6,) the table of workers with zeros in place of the others' rows. A number is two entries of type T:
// one row of itself, and one of what that rounded away.
template <typename T>
class WorkerRowKernel {
 public:
  explicit WorkerRowKernel(TF_OpKernelConstruction* construction) : workers_(integer(construction, "workers")) {}

  void compute(TF_OpKernelContext* context) {
    const auto notes = value_of<MicroBatchNotes>(input(context, kNotes));
    const double weight = value_of<double>(input(context, kWeight));
    const double seconds = now() - value_of<double>(input(context, kBegan));
    const double norm = std::sqrt(notes.total_squares), between = std::sqrt(notes.between);
    const WorkerRow row{notes.total, norm, between, notes.count, weight, seconds};
    constexpr std::size_t kColumns = sizeof row / sizeof(double);
    double numbers[kColumns];
    std::memcpy(numbers, &row, sizeof row);
    const auto worker = value_of<std::int32_t>(input(context, kWorker));
    if (worker < 0 || worker >= workers_) throw Problem("there is no worker " + std::to_string(worker));
    std::vector<T> table(2 * kColumns * workers_);
    T* rounded = table.data() + 2 * kColumns * worker;
    T* rest = rounded + kColumns;
    for (std::size_t i = 0; i < kColumns; ++i) {
      rounded[i] = static_cast<T>(numbers[i]);
      if (std::isfinite(rounded[i])) rest[i] = static_cast<T>(numbers[i] - static_cast<double>(rounded[i]));
    }
    set_output<T>(context, 0, sizeof(T) == sizeof(float) ? TF_FLOAT : TF_DOUBLE, table);
  }

 private:
  enum Input { kNotes, kWeight, kBegan, kWorker };

  // As TensorFlow's Timestamp tells it.
  static double now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }

  std::int64_t workers_;
};

Definition on_place(const char* name) {
  return Definition(name)
      .stateful()
      .attr("T: {float, double}")
      .attr("N: int >= 1")
      .attr("room: int")
      .in("place: int64")
      .in("tensors: N * T");
}

const bool registered = [] {
  Definition("DistgradMoments")
      .attr("T: {float, double}")
      .attr("N: int >= 1")
      .in("tensors: N * T")
      .out("moments: double")
      .register_it();
  Definition("DistgradStatistics")
      .attr("T: {float, double}")
      .in("moments: double")
      .in("divisor: double")
      .out("statistics: double")
      .register_it();
  on_place("DistgradCopyTo").register_it();
  on_place("DistgradSquaredChange").out("squares: double").register_it();
  Definition("DistgradNoteMicroBatch")
      .attr("N: int >= 1")
      .in("notes: double")
      .in("weight: double")
      .in("found: N * double")
      .out("now: double")
      .register_it();
  Definition("DistgradWorkerRow")
      .stateful()  // it reads the clock
      .attr("T: {float, double}")
      .attr("workers: int")
      .in("notes: double")
      .in("weight: double")
      .in("began: double")
      .in("worker: int32")
      .out("table: T")
      .register_it();
  register_float_kernels<MomentsKernel>("DistgradMoments");
  register_float_kernels<StatisticsKernel>("DistgradStatistics");
  register_float_kernels<CopyToKernel>("DistgradCopyTo");
  register_float_kernels<SquaredChangeKernel>("DistgradSquaredChange");
  register_kernel<NoteMicroBatchKernel>("DistgradNoteMicroBatch");
  register_float_kernels<WorkerRowKernel>("DistgradWorkerRow");
  return true;
}();

}  // namespace
}  // namespace distgrad
