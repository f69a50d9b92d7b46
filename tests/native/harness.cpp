// Sums by the core's own sources, without Python and TensorFlow, against results that are known exactly.
//
//     harness threads N      N ranks, threads of one process, on the same memory: for ThreadSanitizer
//     harness processes N    N ranks, processes that are forked
//     harness checks         what operations are given, and two threads that use one window
//
// Each round is a sum, and then, in some rounds, a publication.
//
// All entries are small integers and all divisors powers of two, so that every sum is exact in every type. Each rank
// draws the same plan of a round from the round's number, and knows so what every other rank brings.
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "accumulate.h"
#include "problem.h"
#include "window.h"

using namespace distgrad;

// ---- memory: threads map a file at one address, since ThreadSanitizer knows memory by its address

namespace {
bool shares_addresses = false;

struct Mapping {
  void* address;
  int users;
};
std::mutex mappings_lock;
std::map<int, Mapping> mappings;  // by file
}  // namespace

extern "C" void* __real_mmap(void*, std::size_t, int, int, int, off_t);
extern "C" int __real_munmap(void*, std::size_t);

extern "C" void* __wrap_mmap(void* at, std::size_t bytes, int protection, int flags, int file, off_t offset) {
  if (!shares_addresses || file < 0) return __real_mmap(at, bytes, protection, flags, file, offset);
  const std::lock_guard<std::mutex> lock(mappings_lock);
  Mapping& mapping = mappings[file];
  if (!mapping.users++) mapping.address = __real_mmap(at, bytes, protection, flags, file, offset);
  return mapping.address;
}

extern "C" int __wrap_munmap(void* address, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(mappings_lock);
  for (auto& [file, mapping] : mappings) {
    if (mapping.users && mapping.address == address) return --mapping.users ? 0 : __real_munmap(address, bytes);
  }
  return __real_munmap(address, bytes);
}

namespace {

[[noreturn]] void fail_test(const char* what, int round) {
  std::fprintf(stderr, "FAIL: %s, round %d\n", what, round);
  std::_Exit(1);
}

void require(bool holds, const char* what, int round = 0) {
  if (!holds) fail_test(what, round);
}

// ---- ranks

constexpr int kMostRanks = 8, kFiles = 12;
constexpr std::int64_t kPublished = 3000;  // entries

// What all ranks share besides the core's memory.
struct World {
  std::array<StatusPage, kMostRanks> pages;
  std::array<std::atomic<std::uint32_t>, kMostRanks> votes;  // 2 * how many there were, + the last one
};

struct Rank {
  World* world;
  const int* files;
  int rank, ranks;
  int file = 0;
  std::uint32_t votes = 0;
  std::unique_ptr<Window> window;

  void map(std::int64_t capacity) {
    require(!ftruncate(files[file], SharedMemory::bytes(capacity, ranks)), "the file grows");
    require(window->map(files[file], capacity, rank, ranks, ranks, false), "memory is mapped");
  }

  // In the last of the files, which the window does not grow into.
  void map_published() {
    const std::int64_t bytes = kPublished * sizeof(double);
    require(!ftruncate(files[kFiles - 1], SharedMemory::bytes(bytes, 0)), "the file for publications grows");
    require(window->map_published(files[kFiles - 1], bytes), "memory for publications is mapped");
  }

  void grow(std::int64_t bytes) {
    require(++file < kFiles - 1, "there are files for so much growth");
    map(bytes);
  }

  void vote(std::int64_t is_bad) {
    ++votes;
    world->votes[rank] = 2 * votes + static_cast<std::uint32_t>(is_bad);
    for (int other = 0; other < ranks; ++other) {
      std::uint32_t seen;
      while ((seen = world->votes[other]) / 2 < votes) std::this_thread::yield();
      window->votes()[other] = seen & 1 ? 1.0f : 0.0f;
    }
  }
};

thread_local Rank* current = nullptr;

std::int32_t answer(std::int32_t event, std::int64_t a, std::int64_t) {
  if (event == kGrow) return current->grow(a), 0;
  if (event == kVote) return current->vote(a), 0;
  return 1;
}

// ---- rounds

constexpr int kRows = 40, kWidth = 3;

// A round as every rank draws it.
struct Plan {
  DataType type;
  bool is_filled;  // gradients are placed in the slot first, in micro-batches, and rows of two tables
  std::int64_t placed = 0, pieces = 0, entries = 0, large = 0;
  int micro_batches = 1;
  bool describes, by_range, has_nan, grows;
  std::vector<double> terms;

  explicit Plan(int round) {
    std::mt19937 draw(static_cast<unsigned>(round));
    const DataType types[]{DataType::kFloat, DataType::kDouble, DataType::kInt32, DataType::kInt64};
    type = types[draw() % 4];
    const bool is_float = type == DataType::kFloat || type == DataType::kDouble;
    is_filled = is_float && draw() % 2;
    const std::int64_t sizes[]{0, 1, 63, 64, 65, 500, 3001, 9000};
    placed = is_filled ? sizes[draw() % 8] / 16 * 16 : 0;
    pieces = sizes[draw() % 8];
    grows = draw() % 40 == 0;
    if (grows) pieces += 20'000 + 9000 * static_cast<std::int64_t>(draw() % 8);
    entries = placed + pieces + 2;  // and two that the divisor is made of
    micro_batches = 1 + static_cast<int>(draw() % 3);
    describes = draw() % 3 > 0;
    by_range = is_filled && draw() % 2;
    has_nan = is_float && describes && draw() % 8 == 0;
    terms = is_float ? std::vector<double>{0, 1, 0} : std::vector<double>{1};  // the first of the last two entries
  }
};

// What a rank brings at a place of its vector: small integers. The two last ones make the divisor, 4 in all.
std::int64_t brought(int rank, int round, std::int64_t i) { return (i * 7 + rank * 5 + round * 3) % 17 - 8; }
std::int64_t lane(int rank, int ranks) { return rank == 0 ? 4 - (ranks - 1) * 2 : 2; }
bool touches(int rank, int round, int table, std::int64_t row) { return (row * 5 + rank * 3 + round + table) % 7 == 0; }
bool is_idle(int rank, int round) { return (rank + round) % 5 == 0; }

template <typename T>
class Round {
 public:
  Round(Rank& rank, int number, const std::array<SparseVariable*, 2>& tables)
      : rank_(rank), window_(*rank.window), number_(number), plan_(number), tables_(tables) {}

  void run() {
    if constexpr (std::is_floating_point_v<T>) {
      if (plan_.is_filled && !is_idle(rank_.rank, number_)) place();
    }
    sum();
    check();
  }

  const std::vector<T>& expected() const { return expected_; }
  const Plan& plan() const { return plan_; }

 private:
  // Places the gradient in micro-batches that add up to what is brought.
  void place() {
    if constexpr (std::is_floating_point_v<T>) {
      const GradientPlace where{"dense", 0, plan_.placed, plan_.placed};
      for (int part = 0; part < plan_.micro_batches; ++part) {
        const MicroBatch batch{part == 0, part + 1 == plan_.micro_batches, plan_.describes, number_};
        std::vector<T> values(plan_.placed);
        for (std::int64_t i = 0; i < plan_.placed; ++i) {
          values[i] = static_cast<T>(brought(rank_.rank, number_, i) - (part ? 0 : plan_.micro_batches - 1));
          if (part) values[i] = 1;
        }
        if (plan_.placed) add_dense<T>(window_, {where}, {{values.data(), plan_.placed}}, batch);
        for (int table = 0; table < 2; ++table) collect(table, batch);
      }
    }
  }

  // Each micro-batch touches the same rows, each of them twice.
  void collect(int table, const MicroBatch& batch) {
    if constexpr (std::is_floating_point_v<T>) {
      std::vector<std::int64_t> rows;
      std::vector<T> values;
      for (std::int64_t row = kRows; row-- > 0;) {
        if (!touches(rank_.rank, number_, table, row)) continue;
        for (int time = 0; time < 2; ++time) {
          rows.push_back(row);
          for (int i = 0; i < kWidth; ++i) values.push_back(static_cast<T>(row + i));
        }
      }
      const auto count = static_cast<std::int64_t>(rows.size());
      collect_rows<T>(window_, *tables_[table], {rows.data(), count, values.data(), count * kWidth}, batch);
    }
  }

  void sum() {
    std::vector<T> values(plan_.pieces);
    for (std::int64_t i = 0; i < plan_.pieces; ++i) {
      values[i] = static_cast<T>(brought(rank_.rank, number_, plan_.placed + i));
    }
    if (plan_.has_nan && rank_.rank == number_ % rank_.ranks && plan_.pieces) values[0] = static_cast<T>(NAN);
    const T lanes[2]{static_cast<T>(lane(rank_.rank, rank_.ranks)), static_cast<T>(brought(rank_.rank, number_, 5))};
    SumRequest request;
    request.type = plan_.type, request.placed = plan_.placed, request.caller = number_;
    request.filled = plan_.is_filled && !is_idle(rank_.rank, number_);
    request.divided = plan_.entries - 2, request.described = plan_.describes ? request.divided : 0;
    request.pieces = {{values.data(), plan_.pieces}, {lanes, 2}};
    request.terms = plan_.terms;
    if (plan_.is_filled) request.sparse = {tables_[0], tables_[1]};
    if (plan_.by_range) request.ranges = {{0, plan_.placed}, {plan_.placed, request.divided}};
    window_.sum(request);
  }

  std::int64_t total_of(std::int64_t i) const {
    std::int64_t total = 0;
    for (int rank = 0; rank < rank_.ranks; ++rank) {
      const bool counts = i >= plan_.placed || (plan_.is_filled && !is_idle(rank, number_));
      if (counts) total += brought(rank, number_, i);
    }
    return total;
  }

  void check() {
    const double divisor = plan_.terms.size() > 1 ? 4 : 1;
    require(window_.divisor() == divisor, "the divisor", number_);
    require(window_.entries() == plan_.entries, "the size", number_);
    const T* found = reinterpret_cast<const T*>(window_.result());
    Moments wanted;
    const bool nan = plan_.has_nan && plan_.pieces;
    for (std::int64_t i = 0; i < plan_.entries - 2; ++i) {
      if (nan && i == plan_.placed) {
        require(std::isnan(static_cast<double>(found[i])), "a NaN", number_);
        expected_.push_back(0);
        continue;
      }
      const double total = static_cast<double>(total_of(i));
      expected_.push_back(static_cast<T>(total / divisor));
      require(found[i] == expected_.back(), "an entry of the sum", number_);
      wanted.merge({total, total * total, std::fabs(total), 0, total == 0 ? 1.0 : 0.0});
    }
    require(found[plan_.entries - 2] == static_cast<T>(plan_.terms.size() > 1 || rank_.ranks > 0 ? 4 : 0), "N", number_);
    if (plan_.is_filled) check_tables(divisor, wanted);
    if (plan_.describes) check_moments(nan, wanted);
    for (int rank = 0; rank < rank_.ranks && plan_.describes; ++rank) {
      require(window_.votes()[rank] == (nan && rank == number_ % rank_.ranks ? 1 : 0), "a vote", number_);
    }
  }

  void check_moments(bool nan, const Moments& wanted) const {
    const Moments& found = window_.moments();
    if (nan) return require(found.nonfinite == 1, "one entry is not finite", number_);
    require(found.nonfinite == 0 && found.total == wanted.total && found.squares == wanted.squares &&
                found.largest == wanted.largest,
            "the moments", number_);
    Moments all;
    for (const Moments& range : window_.range_moments()) all.merge(range);
    if (plan_.by_range) require(all.total == wanted.total && all.squares == wanted.squares, "by range", number_);
  }

  void check_tables(double divisor, Moments& wanted) const {
    for (int table = 0; table < 2; ++table) {
      const SparseSum& sum = window_.sparse_sums()[table];
      const T* values = reinterpret_cast<const T*>(sum.values);
      std::size_t place = 0;
      for (std::int64_t row = 0; row < kRows; ++row) {
        int times_touched = 0;
        for (int rank = 0; rank < rank_.ranks; ++rank) {
          if (!is_idle(rank, number_) && touches(rank, number_, table, row)) times_touched += 2 * plan_.micro_batches;
        }
        if (!times_touched) continue;
        require(place < sum.rows.size() && sum.rows[place++] == row, "a touched row", number_);
        for (int i = 0; i < kWidth; ++i) {
          const double total = static_cast<double>(times_touched * (row + i));
          require(*values++ == static_cast<T>(total / divisor), "an entry of a row", number_);
          wanted.merge({total, total * total, total, 0, total == 0 ? 1.0 : 0.0});
        }
      }
      require(place == sum.rows.size(), "no other row", number_);
    }
  }

  Rank& rank_;
  Window& window_;
  int number_;
  Plan plan_;
  const std::array<SparseVariable*, 2>& tables_;
  std::vector<T> expected_;
};

// ---- publications: each rank gives a slice, in two parts

bool publishes(int round) { return round % 3 > 0; }
std::int64_t boundary(int slice, int ranks) { return kPublished * slice / ranks; }
std::int64_t published_value(int round, std::int64_t i) { return (i * 3 + round * 7) % 101; }

bool is_published(const double* found, int round) {
  for (std::int64_t i = 0; i < kPublished; ++i) {
    if (found[i] != static_cast<double>(published_value(round, i))) return false;
  }
  return true;
}

void publish(Rank& rank, int round) {
  const std::int64_t first = boundary(rank.rank, rank.ranks), last = boundary(rank.rank + 1, rank.ranks);
  std::vector<double> values;
  for (std::int64_t i = first; i < last; ++i) values.push_back(static_cast<double>(published_value(round, i)));
  const std::int64_t half = (last - first) / 2;
  const Part parts[]{{first, {values.data(), half}}, {first + half, {values.data() + half, last - first - half}}};
  rank.window->publish({DataType::kDouble, kPublished, {first, last}, {parts[0], parts[1]}});
  require(is_published(reinterpret_cast<const double*>(rank.window->published()), round), "what is published", round);
}

// ---- results that are lent: another thread reads them while the rank goes on

struct Loan {
  std::unique_ptr<Lease> lease, lease_published;
  std::function<bool()> is_intact;
};

// The only way from the rank to the reader is a slot each round, and there is none back: whether the memory may be
// written again, nothing but the lease tells.
struct Loans {
  explicit Loans(int rounds) : slots(rounds) {}
  std::vector<std::atomic<Loan*>> slots;
  static Loan* nothing() {
    static Loan none;
    return &none;
  }
};

void read_loans(Loans& loans) {
  for (std::size_t round = 0; round < loans.slots.size(); ++round) {
    Loan* loan;
    while (!(loan = loans.slots[round].load(std::memory_order_acquire))) std::this_thread::yield();
    if (loan == Loans::nothing()) continue;
    require(loan->is_intact(), "a result that is lent stays as it is", static_cast<int>(round));
    loan->lease.reset(), loan->lease_published.reset();
    delete loan;
  }
}

template <typename T>
Loan* run_round(Rank& rank, int number, const std::array<SparseVariable*, 2>& tables) {
  Round<T> round(rank, number, tables);
  round.run();
  if (publishes(number)) publish(rank, number);
  std::unique_ptr<Lease> lease = number % 2 && !round.plan().has_nan ? rank.window->lease() : nullptr;
  std::unique_ptr<Lease> published = publishes(number) ? rank.window->lease_published() : nullptr;
  if (!lease && !published) return Loans::nothing();
  const T* place = lease ? reinterpret_cast<const T*>(rank.window->result()) : nullptr;
  const double* all = published ? reinterpret_cast<const double*>(rank.window->published()) : nullptr;
  return new Loan{std::move(lease), std::move(published), [place, all, number, expected = round.expected()] {
                    return (!place || std::equal(expected.begin(), expected.end(), place)) &&
                           (!all || is_published(all, number));
                  }};
}

void run_rank(World* world, const int* files, int number, int ranks, int rounds) {
  Rank rank{world, files, number, ranks, 0, 0, nullptr};
  current = &rank;
  rank.window = std::make_unique<Window>(answer, ranks, &world->pages[number]);
  rank.map(4096);
  rank.map_published();
  const std::array<SparseVariable*, 2> tables{rank.window->add_sparse_variable("a", kRows, kWidth),
                                              rank.window->add_sparse_variable("b", kRows, kWidth)};
  Loans loans(rounds);
  std::thread reader([&loans] { read_loans(loans); });
  for (int round = 0; round < rounds; ++round) {
    const Window::Use use = rank.window->use();
    Loan* loan = nullptr;
    with_type(Plan(round).type, [&](auto tag) { loan = run_round<typename decltype(tag)::Type>(rank, round, tables); });
    loans.slots[round].store(loan, std::memory_order_release);
  }
  reader.join();
  rank.window->close();
}

template <typename Start>
void with_world(Start start) {
  void* memory = mmap(nullptr, sizeof(World), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  require(memory != MAP_FAILED, "memory for the world");
  int files[kFiles];
  for (int& file : files) file = memfd_create("harness", 0);
  start(new (memory) World{}, files);
  for (int file : files) close(file);
}

void run_threads(int ranks, int rounds) {
  shares_addresses = true;
  with_world([&](World* world, const int* files) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(run_rank, world, files, rank, ranks, rounds);
    for (std::thread& thread : threads) thread.join();
  });
}

void run_processes(int ranks, int rounds) {
  with_world([&](World* world, const int* files) {
    std::vector<pid_t> children;
    for (int rank = 0; rank < ranks; ++rank) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_rank(world, files, rank, ranks, rounds);
        std::exit(0);
      }
      children.push_back(child);
    }
    int failed = 0;
    for (pid_t child : children) {
      int status;
      waitpid(child, &status, 0);
      failed += status != 0;
    }
    require(!failed, "a rank ended badly");
  });
}

// ---- checks

template <typename Run>
void refused(const std::string& message, Run run) {
  try {
    run();
  } catch (const Problem& problem) {
    if (std::string(problem.what()).find(message) == std::string::npos) {
      std::fprintf(stderr, "instead of %s: %s", message.c_str(), problem.what());
      fail_test("a message", 0);
    }
    return;
  }
  std::fprintf(stderr, "not refused: %s\n", message.c_str());
  fail_test("a check", 0);
}

std::int32_t grow_alone(std::int32_t event, std::int64_t bytes, std::int64_t);

Window& lone_window() {
  static StatusPage page{};
  static Window window(grow_alone, 1, &page);
  return window;
}

std::int32_t grow_alone(std::int32_t event, std::int64_t bytes, std::int64_t) {
  return event == kGrow && !lone_window().map(-1, bytes, 0, 1, 1, false);
}

void check_gradients() {
  Window& window = lone_window();
  window.map(-1, 4096, 0, 1, 1, false);
  const std::vector<float> ones(1024, 1);
  const std::vector<GradientPlace> places{{"'a'", 0, 16, 6}, {"'b'", 16, 32, 6}};
  const MicroBatch first{true, false, false, 1}, more{false, true, false, 1};
  const auto add = [&](std::int64_t a, std::int64_t b, const MicroBatch& batch) {
    add_dense<float>(window, places, {{ones.data(), a}, {ones.data(), b}}, batch);
  };
  add(6, 6, first);
  const std::vector<char> before(window.slot(), window.slot() + 4096);
  for (std::int64_t size : {5, 7, 16, 1024}) refused("'b' has", [&] { add(6, size, more); });
  const std::vector<GradientPlace> behind{{"'c'", 1020, 1040, 6}};
  refused("'c' has no place", [&] { add_dense<float>(window, behind, {{ones.data(), 6}}, more); });
  refused("dtypes", [&] { add_dense<double>(window, {places[0]}, {{ones.data(), 6}}, more); });
  refused("two threads", [&] { add(6, 6, {false, true, false, 2}); });
  SparseVariable* table = window.add_sparse_variable("'t'", 3, 2);
  require(!window.add_sparse_variable("'t'", std::int64_t{1} << 40, 1 << 10), "a table of 2^50 entries");
  for (std::int64_t row : {std::int64_t{3}, std::int64_t{-1}, (std::int64_t{1} << 60) - 1, INT64_MAX, INT64_MIN}) {
    const std::int64_t rows[]{1, row};
    refused("'t' is of row", [&] { collect_rows<float>(window, *table, {rows, 2, ones.data(), 4}, more); });
    refused("'a' is of row", [&] { add_rows<float>(window, places[0], 3, {rows, 2, ones.data(), 4}, more); });
    refused("'t' has 2 values", [&] { collect_rows<float>(window, *table, {rows, 2, ones.data(), 2}, more); });
    refused("'a' has 6 values", [&] { add_rows<float>(window, places[0], 3, {rows, 2, ones.data(), 6}, more); });
  }
  require(!table->touched(), "no row is touched");
  require(std::equal(before.begin(), before.end(), window.slot()), "nothing is written");
  require(!window.map(-1, std::int64_t{1} << 50, 0, 1, 1, false), "more memory than there is");
  const int file = memfd_create("short", 0);
  require(!ftruncate(file, 4096) && !window.map(file, 1 << 20, 0, 1, 1, false), "a file that is too short");
  close(file);
}

void check_publications() {
  Window& window = lone_window();
  const std::vector<float> ones(1024, 1);
  const auto publish = [&](std::int64_t entries, Range own, std::int64_t first, std::int64_t size) {
    window.publish({DataType::kFloat, entries, own, {{first, {ones.data(), size}}}});
  };
  const auto sum = [&] {
    SumRequest request;
    request.pieces = {{ones.data(), 1}}, request.terms = {1};
    window.sum(request);
  };
  refused("no memory for a publication", [&] { publish(1024, {0, 1024}, 0, 1024); });
  require(window.map_published(-1, 4096), "memory for publications");
  refused("follows a sum", [&] { publish(1024, {0, 1024}, 0, 1024); });
  sum();
  refused("has no place", [&] { publish(1025, {0, 1024}, 0, 1024); });
  refused("has no place", [&] { publish(1024, {-1, 1024}, -1, 1024); });
  refused("has no place", [&] { publish(1024, {512, 1024}, 0, 512); });
  refused("has no place", [&] { publish(1024, {0, 512}, 1, 512); });
  refused("has no place", [&] { publish(1024, {0, 512}, INT64_MAX, 1); });
  publish(1024, {0, 1024}, 0, 1024);
  require(std::equal(ones.begin(), ones.end(), reinterpret_cast<float*>(window.published())), "what is published");
  refused("follows a sum", [&] { publish(1024, {0, 1024}, 0, 1024); });
  require(!window.map_published(-1, std::int64_t{1} << 50), "more memory than there is");
  sum();
  publish(1024, {0, 1024}, 0, 1024);
}

void check_threads() {
  Window& window = lone_window();
  const auto sums = [&window](int thread) {
    for (int round = 0; round < 300; ++round) {
      const std::int64_t size = 1 + (round * 997 + thread * 401) % 20'000;
      const std::vector<float> values(size, static_cast<float>(thread));
      SumRequest request;
      request.pieces = {{values.data(), size}}, request.terms = {1};
      const Window::Use use = window.use();
      window.sum(request);
      const float* found = reinterpret_cast<const float*>(window.result());
      require(window.entries() == size && std::equal(values.begin(), values.end(), found), "a thread's sum", round);
    }
  };
  std::thread other(sums, 1);
  sums(2);
  other.join();
}

// A rank of two: while one thread waits in a sum for the other rank, a second thread comes.
void check_threads_of_ranks() {
  shares_addresses = true;
  with_world([](World* world, const int* files) {
    std::array<Rank, 2> ranks{{{world, files, 0, 2, 0, 0, nullptr}, {world, files, 1, 2, 0, 0, nullptr}}};
    for (Rank& rank : ranks) {
      rank.window = std::make_unique<Window>(answer, 2, &world->pages[rank.rank]);
      rank.map(4096);
    }
    const auto sum = [](Rank& rank) {
      current = &rank;
      const float one = 1;
      SumRequest request;
      request.pieces = {{&one, 1}}, request.terms = {1};
      const Window::Use use = rank.window->use();
      rank.window->sum(request);
    };
    std::thread first([&] { refused("DG002", [&] { sum(ranks[0]); }); });
    while (!world->pages[0].waiting) std::this_thread::yield();
    refused("two threads use one communicator", [&] { sum(ranks[0]); });
    sum(ranks[1]);
    first.join();
    refused("two threads use one communicator", [&] { sum(ranks[0]); });
  });
  shares_addresses = false;
}

}  // namespace

int main(int count, char** words) {
  const std::string mode = count > 1 ? words[1] : "";
  const int ranks = count > 2 ? std::atoi(words[2]) : 1, rounds = count > 3 ? std::atoi(words[3]) : 300;
  alarm(120);
  if (mode == "threads") run_threads(ranks, rounds);
  if (mode == "processes") run_processes(ranks, rounds);
  if (mode == "checks") check_gradients(), check_publications(), check_threads(), check_threads_of_ranks();
  std::printf("ok %s\n", mode.c_str());
}
