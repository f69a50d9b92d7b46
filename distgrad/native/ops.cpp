// The window as TensorFlow operations, and as functions that Python calls.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tensorflow.h"
#include "window.h"

namespace distgrad {
namespace {

// TensorFlow's status, for one call.
class Status {
 public:
  Status() : status_(TF_NewStatus()) {}
  ~Status() { TF_DeleteStatus(status_); }
  Status(const Status&) = delete;
  Status& operator=(const Status&) = delete;
  operator TF_Status*() { return status_; }
  bool ok() const { return TF_GetCode(status_) == TF_OK; }

 private:
  TF_Status* status_;
};

struct DeleteTensor {
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<TF_Tensor, DeleteTensor>;

Tensor input(TF_OpKernelContext* context, int index) {
  Status status;
  TF_Tensor* tensor = nullptr;
  TF_GetInput(context, index, &tensor, status);
  return Tensor(tensor);
}

void fail(TF_OpKernelContext* context, const std::string& message) {
  Status status;
  TF_SetStatus(status, TF_ABORTED, message.c_str());
  TF_OpKernelContext_Failure(context, status);
}

template <typename T>
T scalar(const Tensor& tensor) {
  return *static_cast<const T*>(TF_TensorData(tensor.get()));
}

std::int64_t integer(TF_OpKernelConstruction* construction, const char* name) {
  Status status;
  std::int64_t value = 0;
  TF_OpKernelConstruction_GetAttrInt64(construction, name, &value, status);
  if (!status.ok()) TF_OpKernelConstruction_Failure(construction, status);
  return value;
}

std::vector<std::int64_t> integers(TF_OpKernelConstruction* construction, const char* name) {
  Status status;
  std::int32_t count = 0, bytes = 0;
  TF_OpKernelConstruction_GetAttrSize(construction, name, &count, &bytes, status);
  std::vector<std::int64_t> values(count);
  if (status.ok()) TF_OpKernelConstruction_GetAttrInt64List(construction, name, values.data(), count, status);
  if (!status.ok()) TF_OpKernelConstruction_Failure(construction, status);
  return values;
}

template <typename Kernel>
void destroy(void* kernel) {
  delete static_cast<Kernel*>(kernel);
}

template <typename Kernel>
void* create(TF_OpKernelConstruction* construction) {
  return new Kernel(construction);
}

template <typename Kernel>
void compute(void* kernel, TF_OpKernelContext* context) {
  static_cast<Kernel*>(kernel)->compute(context);
}

template <typename T>
void give(TF_OpKernelContext* context, int index, TF_DataType type, const std::vector<T>& values) {
  Status status;
  const std::int64_t count = static_cast<std::int64_t>(values.size());
  const Tensor output(TF_AllocateOutput(context, index, type, &count, 1, count * sizeof(T), status));
  if (count) std::memcpy(TF_TensorData(output.get()), values.data(), count * sizeof(T));
}

// (m, 5): a row each.
void give_moments(TF_OpKernelContext* context, int index, const std::vector<Moments>& rows) {
  Status status;
  const std::int64_t shape[] = {static_cast<std::int64_t>(rows.size()), sizeof(Moments) / sizeof(double)};
  const std::size_t bytes = rows.size() * sizeof(Moments);
  const Tensor output(TF_AllocateOutput(context, index, TF_DOUBLE, shape, 2, bytes, status));
  if (bytes) std::memcpy(TF_TensorData(output.get()), rows.data(), bytes);
}

constexpr int kInputs = 1;  // of every operation, before its own: `order`

// Which window, and a check that it has not been closed.
class WindowKernel {
 public:
  explicit WindowKernel(TF_OpKernelConstruction* construction)
      : window_(reinterpret_cast<Window*>(integer(construction, "window"))) {}

 protected:
  bool is_open(TF_OpKernelContext* context) const {
    if (!window_->open()) fail(context, "the communicator is closed");
    return window_->open();
  }
  Window* window_;
};

// ---- DistgradSum

using Shape = std::vector<std::int64_t>;

class Sum : WindowKernel {
 public:
  explicit Sum(TF_OpKernelConstruction* construction)
      : WindowKernel(construction),
        placed_(integer(construction, "placed")),
        divided_(integer(construction, "divided")),
        described_(integer(construction, "described")),
        starts_(integers(construction, "starts")),
        stops_(integers(construction, "stops")),
        borrow_(integer(construction, "borrow")) {
    for (std::int64_t table : integers(construction, "tables")) tables_.push_back(reinterpret_cast<Table*>(table));
  }

  void compute(TF_OpKernelContext* context) {
    if (!is_open(context)) return;
    std::vector<Tensor> tensors;
    for (int i = kInputs; i < TF_NumInputs(context); ++i) tensors.push_back(input(context, i));
    const std::string problem = window_->sum(order(tensors));
    if (!problem.empty()) return fail(context, problem);
    const TF_DataType type = TF_TensorType(tensors.back().get());
    give_summed(context, 0, type, {window_->entries()}, window_->result());
    const Moments& found = window_->moments();
    give<double>(context, 1, TF_DOUBLE, {window_->divisor()});
    give<double>(context, 2, TF_DOUBLE, {found.total, found.squares, found.largest, found.nonfinite});
    give<float>(context, 3, TF_FLOAT, window_->votes());
    give_moments(context, 4, window_->by_range());
    const int count = static_cast<int>(tables_.size());
    for (int i = 0; i < count; ++i) {
      const Touched& table = window_->touched()[i];
      const std::int64_t rows = table.rows.size();
      give<std::int64_t>(context, 5 + i, TF_INT64, table.rows);
      give_summed(context, 5 + count + i, type, {rows, table.width}, table.values);
    }
  }

 private:
  // Of the inputs `filled`, `divisor`, and the pieces.
  Order order(const std::vector<Tensor>& tensors) const {
    Order order;
    order.type = static_cast<Type>(TF_TensorType(tensors.back().get()));
    order.placed = placed_, order.divided = divided_, order.described = described_, order.tables = tables_;
    order.filled = scalar<bool>(tensors[0]);
    const double* terms = static_cast<const double*>(TF_TensorData(tensors[1].get()));
    order.terms.assign(terms, terms + TF_TensorElementCount(tensors[1].get()));
    for (std::size_t i = 0; i < starts_.size(); ++i) order.ranges.push_back({starts_[i], stops_[i]});
    for (std::size_t i = 2; i < tensors.size(); ++i) {
      order.pieces.push_back({TF_TensorData(tensors[i].get()), TF_TensorElementCount(tensors[i].get())});
    }
    return order;
  }

  // A part of the result.
  void give_summed(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape, char* place) {
    Status status;
    std::size_t bytes = size_of(static_cast<Type>(type));
    for (std::int64_t dimension : shape) bytes *= dimension;
    Lease* lease = borrow_ && bytes ? window_->lease() : nullptr;
    if (lease) return lend(context, index, type, shape, place, bytes, lease);
    const Tensor copy(TF_AllocateOutput(context, index, type, shape.data(), shape.size(), bytes, status));
    if (bytes) std::memcpy(TF_TensorData(copy.get()), place, bytes);
  }

  // The result where it stands. TensorFlow computes in place where it sees the last use of a tensor, and would write
  // into what the other ranks are still reading; until the next sum, the window uses this one, too.
  void lend(TF_OpKernelContext* context, int index, TF_DataType type, const Shape& shape, char* place,
            std::size_t bytes, Lease* lease) {
    Status status;
    const int rank = static_cast<int>(shape.size());
    std::shared_ptr<TF_Tensor> alias(TF_NewTensor(type, shape.data(), rank, place, bytes, release, lease), TF_DeleteTensor);
    TF_SetOutput(context, index, alias.get(), status);
    if (!status.ok()) TF_OpKernelContext_Failure(context, status);
    window_->keep(std::move(alias));
  }

  static void release(void*, std::size_t, void* lease) { static_cast<Lease*>(lease)->release(); }

  std::int64_t placed_, divided_, described_;
  std::vector<std::int64_t> starts_, stops_;
  bool borrow_;
  Tables tables_;
};

// ---- DistgradAdd, DistgradAddRows: one micro-batch's gradients into this rank's part

template <typename T>
T* entries_of(Window* window, std::int64_t start) {
  return reinterpret_cast<T*>(window->part()) + start;
}

// Adding, with or without a description of what is added and of the total.
class Adding : protected WindowKernel {
 public:
  explicit Adding(TF_OpKernelConstruction* construction)
      : WindowKernel(construction), describes_(integer(construction, "describes")) {}

 protected:
  void begin(TF_OpKernelContext* context) {
    first_ = scalar<bool>(input(context, kInputs)), last_ = scalar<bool>(input(context, kInputs + 1));
    found_ = Described{};
  }

  template <typename T>
  void work(T* place, const T* values, std::int64_t count, bool streams) {
    if (describes_) {
      merge(describe_and_add(place, values, count, first_, last_, streams));
    } else {
      first_ ? store(place, values, count, streams) : add(place, values, count);
    }
  }

  void merge(const Described& found) {
    found_.squares += found.squares;
    found_.total.merge(found.total);
  }

  // (3,): of what was added Σ², of the total Σ and Σ²; (0,) where nothing is described.
  void end(TF_OpKernelContext* context) const {
    std::vector<double> found{found_.squares, found_.total.total, found_.total.squares};
    give<double>(context, 0, TF_DOUBLE, describes_ ? found : std::vector<double>{});
  }

  bool describes_, first_ = false, last_ = false;
  Described found_;
};

template <typename T>
class Add : Adding {
 public:
  explicit Add(TF_OpKernelConstruction* construction)
      : Adding(construction), starts_(integers(construction, "starts")), stops_(integers(construction, "stops")) {}

  // A gradient without entries stands for zeros. What lies between its end and `stop` is filled with zeros, too.
  void compute(TF_OpKernelContext* context) {
    if (!is_open(context)) return;
    begin(context);
    for (std::size_t i = 0; i < starts_.size(); ++i) {
      const Tensor tensor = input(context, kInputs + 2 + static_cast<int>(i));
      const T* values = static_cast<const T*>(TF_TensorData(tensor.get()));
      const std::int64_t count = TF_TensorElementCount(tensor.get());
      T* place = entries_of<T>(window_, starts_[i]);
      work(place, values, count, stops_.back() * sizeof(T) >= kStream);
      if (first_) std::memset(place + count, 0, (stops_[i] - starts_[i] - count) * sizeof(T));
    }
    end(context);
  }

 private:
  std::vector<std::int64_t> starts_, stops_;
};

template <typename T>
class AddRows : Adding {
 public:
  explicit AddRows(TF_OpKernelConstruction* construction)
      : Adding(construction), start_(integer(construction, "start")), stop_(integer(construction, "stop")) {}

  // Where they are described, no row comes twice.
  void compute(TF_OpKernelContext* context) {
    if (!is_open(context)) return;
    begin(context);
    T* table = entries_of<T>(window_, start_);
    if (first_) std::memset(table, 0, (stop_ - start_) * sizeof(T));
    const Tensor values = input(context, kInputs + 2), rows = input(context, kInputs + 3);
    const std::int64_t entries = TF_TensorElementCount(values.get()), count = TF_TensorElementCount(rows.get());
    const std::int64_t* row = static_cast<const std::int64_t*>(TF_TensorData(rows.get()));
    const T* value = static_cast<const T*>(TF_TensorData(values.get()));
    if (describes_) found_.squares = describe(value, entries).squares;
    for (std::int64_t i = 0, width = count ? entries / count : 0; i < count; ++i, value += width) {
      if (row[i] < 0 || (row[i] + 1) * width > stop_ - start_) return fail(context, "a row is outside its variable");
      add(table + row[i] * width, value, width);
    }
    if (describes_ && last_) found_.total = describe(table, stop_ - start_);
    end(context);
  }

 private:
  std::int64_t start_, stop_;
};

// ---- DistgradCollect: one micro-batch's gradient of a table

template <typename T>
class Collect : Adding {
 public:
  explicit Collect(TF_OpKernelConstruction* construction)
      : Adding(construction), table_(reinterpret_cast<Table*>(integer(construction, "table"))) {}

  // Where they are described, no row comes twice.
  void compute(TF_OpKernelContext* context) {
    if (!is_open(context)) return;
    begin(context);
    if (first_) table_->clear();
    const Tensor values = input(context, kInputs + 2), rows = input(context, kInputs + 3);
    const std::int64_t* row = static_cast<const std::int64_t*>(TF_TensorData(rows.get()));
    const T* value = static_cast<const T*>(TF_TensorData(values.get()));
    if (describes_) found_.squares = describe(value, TF_TensorElementCount(values.get())).squares;
    if (!table_->add(row, value, TF_TensorElementCount(rows.get()))) fail(context, "a row is outside its variable");
    if (describes_ && last_) found_.total = table_->describe<T>();
    end(context);
  }

 private:
  Table* table_;
};

// ---- DistgradDescribe: (n, 5) the moments of n tensors

template <typename T>
class Describe {
 public:
  explicit Describe(TF_OpKernelConstruction*) {}

  void compute(TF_OpKernelContext* context) {
    std::vector<Moments> rows;
    for (int i = 0; i < TF_NumInputs(context); ++i) {
      const Tensor tensor = input(context, i);
      rows.push_back(describe(static_cast<const T*>(TF_TensorData(tensor.get())), TF_TensorElementCount(tensor.get())));
    }
    give_moments(context, 0, rows);
  }
};

// ---- DistgradShow: (..., m) the statistics of a report, from as many moments; see statistics.py

// T is the type of the divided entries.
template <typename T>
class Show {
 public:
  explicit Show(TF_OpKernelConstruction*) {}

  // Of the inputs `moments`, `divisor`.
  void compute(TF_OpKernelContext* context) {
    Status status;
    const Tensor moments = input(context, 0);
    const double divisor = scalar<double>(input(context, 1));
    const Shape shape = shape_of(moments);
    const std::int64_t count = TF_TensorElementCount(moments.get());
    const std::size_t bytes = count * sizeof(double);
    const Tensor output(TF_AllocateOutput(context, 0, TF_DOUBLE, shape.data(), shape.size(), bytes, status));
    const double* row = static_cast<const double*>(TF_TensorData(moments.get()));
    double* shown = static_cast<double*>(TF_TensorData(output.get()));
    for (const double* end = row + count; row != end; row += shape.back(), shown += shape.back()) {
      std::copy(row, row + shape.back(), shown);
      shown[0] /= divisor, shown[1] = std::sqrt(shown[1]) / divisor, shown[2] /= divisor;
      if (shown[2] > std::numeric_limits<T>::max()) shown[3] = std::max(shown[3], 1.0);
    }
  }

 private:
  static Shape shape_of(const Tensor& tensor) {
    Shape shape(TF_NumDims(tensor.get()));
    for (std::size_t i = 0; i < shape.size(); ++i) shape[i] = TF_Dim(tensor.get(), i);
    return shape;
  }
};

// ---- DistgradKeep, DistgradCompare: tensors are copied to a place, and later compared with what stands there

template <typename T>
class Placed {
 public:
  explicit Placed(TF_OpKernelConstruction*) {}

 protected:
  // Calls `work` with each tensor's place, values and number of entries.
  template <typename Work>
  void each(TF_OpKernelContext* context, Work work) const {
    T* place = reinterpret_cast<T*>(scalar<std::int64_t>(input(context, 0)));
    for (int i = 1; i < TF_NumInputs(context); ++i) {
      const Tensor tensor = input(context, i);
      const std::int64_t count = TF_TensorElementCount(tensor.get());
      work(place, static_cast<const T*>(TF_TensorData(tensor.get())), count);
      place += count;
    }
  }
};

template <typename T>
class Keep : Placed<T> {
 public:
  using Placed<T>::Placed;

  void compute(TF_OpKernelContext* context) {
    this->each(context, [](T* place, const T* values, std::int64_t count) {
      store(place, values, count, count * sizeof(T) >= kStream);
    });
  }
};

// (2, n): the sum of squares of each one's changes, and of what was kept.
template <typename T>
class Compare : Placed<T> {
 public:
  using Placed<T>::Placed;

  void compute(TF_OpKernelContext* context) {
    Status status;
    const std::int64_t shape[] = {2, TF_NumInputs(context) - 1};
    const std::size_t bytes = 2 * shape[1] * sizeof(double);
    const Tensor output(TF_AllocateOutput(context, 0, TF_DOUBLE, shape, 2, bytes, status));
    double* change = static_cast<double*>(TF_TensorData(output.get()));
    this->each(context, [&change, &shape](const T* kept, const T* values, std::int64_t count) {
      const Moved moved = compare(kept, values, count);
      change[0] = moved.change, change[shape[1]] = moved.weights;
      ++change;
    });
  }
};

// ---- DistgradNote: a worker notes a micro-batch

// Σ_micro-batches Σ²/N, how many of them had an N, and of the sums Σ and Σ².
struct Noted {
  double between, count, total, squares;
};

class Note {
 public:
  explicit Note(TF_OpKernelConstruction*) {}

  // Of the inputs `noted`, `weight`, and what each operation found that added its gradients.
  void compute(TF_OpKernelContext* context) {
    Noted noted = scalar<Noted>(input(context, 0));
    const double weight = scalar<double>(input(context, 1));
    double squares = 0;
    for (int i = 2; i < TF_NumInputs(context); ++i) {
      const Tensor found = input(context, i);
      const double* numbers = static_cast<const double*>(TF_TensorData(found.get()));
      squares += numbers[0], noted.total += numbers[1], noted.squares += numbers[2];
    }
    if (weight > 0) noted.between += squares / weight, noted.count += 1;
    give<double>(context, 0, TF_DOUBLE, {noted.between, noted.count, noted.total, noted.squares});
  }
};

// ---- DistgradOwn: what a worker noted, as its row of the table that all workers put together; see seeing/own.py

template <typename T>
class Own {
 public:
  explicit Own(TF_OpKernelConstruction* construction) : workers_(integer(construction, "workers")) {}

  // Of the inputs `noted`, `weight`, `began`, `worker`.
  void compute(TF_OpKernelContext* context) {
    const Noted noted = scalar<Noted>(input(context, 0));
    const double weight = scalar<double>(input(context, 1)), seconds = now() - scalar<double>(input(context, 2));
    const double row[] = {noted.total, std::sqrt(noted.squares), std::sqrt(noted.between), noted.count, weight, seconds};
    constexpr std::size_t columns = sizeof row / sizeof *row;
    std::vector<T> table(2 * columns * workers_);
    T* high = table.data() + 2 * columns * scalar<std::int32_t>(input(context, 3));
    for (std::size_t i = 0; i < columns; ++i) {
      high[i] = static_cast<T>(row[i]);
      if (std::isfinite(high[i])) high[columns + i] = static_cast<T>(row[i] - static_cast<double>(high[i]));
    }
    give<T>(context, 0, sizeof(T) == sizeof(float) ? TF_FLOAT : TF_DOUBLE, table);
  }

 private:
  // As TensorFlow's Timestamp tells it.
  static double now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }

  std::int64_t workers_;
};

// ---- DistgradMark: the sum of another engine begins or ends

class Mark {
 public:
  explicit Mark(TF_OpKernelConstruction* construction)
      : page_(reinterpret_cast<Page*>(integer(construction, "page"))), begins_(integer(construction, "begins")) {}

  void compute(TF_OpKernelContext*) { begins_ ? page_->arrive() : page_->go_on(); }

 private:
  Page* page_;
  bool begins_;
};

// ---- registration, when TensorFlow loads this library

void any_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
}

class Definition {
 public:
  explicit Definition(const char* name) : builder_(TF_NewOpDefinitionBuilder(name)) {
    TF_OpDefinitionBuilderSetShapeInferenceFunction(builder_, any_shape);
  }
  Definition& on_window() {
    // What uses the same resource, TensorFlow runs in the order in which it is written, across loops, too. The window
    // itself is not one, because the ranks make it together and a graph does not; any variable will do.
    return stateful().attr("window: int").in("order: resource");
  }
  Definition& stateful() { return TF_OpDefinitionBuilderSetIsStateful(builder_, true), *this; }
  // Of all that add a micro-batch's gradients.
  Definition& adding() {
    on_window().attr("T: {float, double}").attr("describes: int");
    return in("first: bool").in("last: bool").out("found: double");
  }
  Definition& kept() {
    return stateful().attr("T: {float, double}").attr("N: int >= 1").in("place: int64").in("tensors: N * T");
  }
  Definition& attr(const char* spec) { return TF_OpDefinitionBuilderAddAttr(builder_, spec), *this; }
  Definition& in(const char* spec) { return TF_OpDefinitionBuilderAddInput(builder_, spec), *this; }
  Definition& out(const char* spec) { return TF_OpDefinitionBuilderAddOutput(builder_, spec), *this; }
  void register_it() {
    Status status;
    TF_RegisterOpDefinition(builder_, status);
  }

 private:
  TF_OpDefinitionBuilder* builder_;
};

constexpr TF_DataType kNoType = static_cast<TF_DataType>(0);

template <typename Kernel>
void register_kernel(const char* op, TF_DataType type) {
  Status status;
  TF_KernelBuilder* builder = TF_NewKernelBuilder(op, "CPU", create<Kernel>, compute<Kernel>, destroy<Kernel>);
  if (type != kNoType) TF_KernelBuilder_TypeConstraint(builder, "T", type, status);
  TF_RegisterKernelBuilder(op, builder, status);
}

const bool registered = [] {
  Definition("DistgradSum")
      .on_window()
      .attr("T: {float, double, int32, int64}")
      .attr("N: int >= 1")
      .attr("placed: int")
      .attr("divided: int")
      .attr("described: int")
      .attr("starts: list(int)")
      .attr("stops: list(int)")
      .attr("borrow: int")
      .attr("tables: list(int)")
      .attr("K: int >= 0")
      .in("filled: bool")
      .in("divisor: double")
      .in("pieces: N * T")
      .out("flat: T")
      .out("divided_by: double")
      .out("moments: double")
      .out("votes: float")
      .out("by_range: double")
      .out("rows: K * int64")
      .out("values: K * T")
      .register_it();
  Definition("DistgradAdd")
      .adding()
      .attr("N: int >= 1")
      .attr("starts: list(int)")
      .attr("stops: list(int)")
      .in("gradients: N * T")
      .register_it();
  Definition("DistgradAddRows")
      .adding()
      .attr("start: int")
      .attr("stop: int")
      .in("values: T")
      .in("rows: int64")
      .register_it();
  Definition("DistgradCollect").adding().attr("table: int").in("values: T").in("rows: int64").register_it();
  Definition("DistgradDescribe")
      .attr("T: {float, double}")
      .attr("N: int >= 1")
      .in("tensors: N * T")
      .out("moments: double")
      .register_it();
  Definition("DistgradShow")
      .attr("T: {float, double}")
      .in("moments: double")
      .in("divisor: double")
      .out("shown: double")
      .register_it();
  Definition("DistgradKeep").kept().register_it();
  Definition("DistgradCompare").kept().out("squares: double").register_it();
  Definition("DistgradNote")
      .attr("N: int >= 1")
      .in("noted: double")
      .in("weight: double")
      .in("found: N * double")
      .out("now_noted: double")
      .register_it();
  Definition("DistgradOwn")
      .stateful()  // it reads the clock
      .attr("T: {float, double}")
      .attr("workers: int")
      .in("noted: double")
      .in("weight: double")
      .in("began: double")
      .in("worker: int32")
      .out("table: T")
      .register_it();
  Definition("DistgradMark").stateful().attr("page: int").attr("begins: int").register_it();
  for (TF_DataType type : {TF_FLOAT, TF_DOUBLE, TF_INT32, TF_INT64}) register_kernel<Sum>("DistgradSum", type);
  register_kernel<Add<float>>("DistgradAdd", TF_FLOAT);
  register_kernel<Add<double>>("DistgradAdd", TF_DOUBLE);
  register_kernel<AddRows<float>>("DistgradAddRows", TF_FLOAT);
  register_kernel<AddRows<double>>("DistgradAddRows", TF_DOUBLE);
  register_kernel<Collect<float>>("DistgradCollect", TF_FLOAT);
  register_kernel<Collect<double>>("DistgradCollect", TF_DOUBLE);
  register_kernel<Describe<float>>("DistgradDescribe", TF_FLOAT);
  register_kernel<Describe<double>>("DistgradDescribe", TF_DOUBLE);
  register_kernel<Show<float>>("DistgradShow", TF_FLOAT);
  register_kernel<Show<double>>("DistgradShow", TF_DOUBLE);
  register_kernel<Keep<float>>("DistgradKeep", TF_FLOAT);
  register_kernel<Keep<double>>("DistgradKeep", TF_DOUBLE);
  register_kernel<Compare<float>>("DistgradCompare", TF_FLOAT);
  register_kernel<Compare<double>>("DistgradCompare", TF_DOUBLE);
  register_kernel<Note>("DistgradNote", kNoType);
  register_kernel<Own<float>>("DistgradOwn", TF_FLOAT);
  register_kernel<Own<double>>("DistgradOwn", TF_DOUBLE);
  register_kernel<Mark>("DistgradMark", kNoType);
  return true;
}();

}  // namespace
}  // namespace distgrad

// ---- for Python, through ctypes; window.py says what each is for

#define EXPORT __attribute__((visibility("default")))

extern "C" {

using distgrad::Window;

// Never freed: a graph that outlives the communicator must still be told that it is closed.
EXPORT Window* distgrad_window_new(distgrad::Callback callback, int size, distgrad::Page* page) {
  return new Window(callback, size, page);
}

EXPORT std::int64_t distgrad_window_bytes(std::int64_t capacity, int ranks) {
  return distgrad::Memory::bytes(capacity, ranks);
}

EXPORT bool distgrad_window_map(Window* window, int fd, std::int64_t capacity, int rank, int ranks, int owners, bool across) {
  return window->map(fd, capacity, rank, ranks, owners, across);
}

EXPORT distgrad::Table* distgrad_window_table(Window* window, std::int64_t rows, std::int64_t width) {
  return window->add_table(rows, width);
}

EXPORT void distgrad_window_close(Window* window) { window->close(); }
EXPORT void* distgrad_window_part(Window* window) { return window->part(); }
EXPORT const void* distgrad_window_result(Window* window) { return window->result(); }
EXPORT std::int32_t distgrad_window_type(Window* window) { return static_cast<std::int32_t>(window->type()); }
EXPORT float* distgrad_window_votes(Window* window) { return window->votes().data(); }

EXPORT void distgrad_window_fill(Window* window, std::int64_t first, std::int64_t last) { window->fill(first, last); }

EXPORT bool distgrad_window_sum(Window* window, std::int32_t type, std::int64_t placed) {
  distgrad::Order order;
  order.type = static_cast<distgrad::Type>(type), order.placed = placed;
  return window->sum(order).empty();
}

// Names files for as long as `finalize` takes, which complains if it cannot remove them.
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
EXPORT void distgrad_at_exit(distgrad::Page* page, int (*finalize)(), int (*finalized)(int*), const char* names) {
  static std::function<void()> end;
  if (end) return;  // once a process is enough
  end = [page, finalize, finalized, kept = std::string(names)] {
    page->left.store(2);
    distgrad_end_mpi(finalize, finalized, kept.c_str());
  };
  on_exit([](int status, void*) { status == 0 ? end() : void(); }, nullptr);
}

// Float vectors, for the benchmark's limit.
EXPORT void distgrad_add_parts(float* out, const float* const* parts, int count, std::int64_t entries) {
  distgrad::add_parts(out, parts, count, 0, entries, distgrad::Finish{}, entries * sizeof(float) >= distgrad::kStream);
}
}
