// The list of all that layout.h and status_page.h share with Python.
#include "layout.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "export.h"
#include "status_page.h"

namespace distgrad {
namespace {

struct LayoutEntry {
  const char* name;
  std::int64_t value;
};

// A structure's size and its fields' offsets, in bytes.
#define SIZE(Structure) {#Structure, sizeof(Structure)}
#define FIELD(Structure, field) {#Structure "." #field, offsetof(Structure, field)}

constexpr LayoutEntry kLayout[] = {
    {"ALIGNMENT", kAlignment},
    {"Event.GROW", kGrow},
    {"Event.SUM_BETWEEN_HOSTS", kSumBetweenHosts},
    {"Event.MISMATCH", kMismatch},
    {"Event.VOTE", kVote},
    {"Event.OTHER_PARTS", kOtherParts},
    {"Event.PUBLISH_BETWEEN_HOSTS", kPublishBetweenHosts},
    SIZE(StatusPage),
    FIELD(StatusPage, sum_count),
    FIELD(StatusPage, waiting),
    FIELD(StatusPage, between_hosts),
    FIELD(StatusPage, finished),
    FIELD(StatusPage, dumps_stacks),
    FIELD(StatusPage, at_work),
    FIELD(StatusPage, heartbeat),
    FIELD(StatusPage, call),
    SIZE(Moments),
    FIELD(Moments, total),
    FIELD(Moments, squares),
    FIELD(Moments, largest),
    FIELD(Moments, nonfinite),
    FIELD(Moments, zeros),
    SIZE(AddedSums),
    FIELD(AddedSums, squares),
    FIELD(AddedSums, total),
    FIELD(AddedSums, total_squares),
    SIZE(MicroBatchNotes),
    FIELD(MicroBatchNotes, between),
    FIELD(MicroBatchNotes, count),
    FIELD(MicroBatchNotes, total),
    FIELD(MicroBatchNotes, total_squares),
    SIZE(WorkerRow),
    FIELD(WorkerRow, gradient_sum),
    FIELD(WorkerRow, gradient_norm),
    FIELD(WorkerRow, between),
    FIELD(WorkerRow, micro_batches),
    FIELD(WorkerRow, weight),
    FIELD(WorkerRow, seconds),
    {nullptr, 0},  // the end
};

// They are copied into tensors and out of them as they are.
static_assert(std::is_trivially_copyable_v<Moments> && std::is_standard_layout_v<Moments>);
static_assert(std::is_trivially_copyable_v<AddedSums> && std::is_standard_layout_v<AddedSums>);
static_assert(std::is_trivially_copyable_v<MicroBatchNotes> && std::is_standard_layout_v<MicroBatchNotes>);
static_assert(std::is_trivially_copyable_v<WorkerRow> && std::is_standard_layout_v<WorkerRow>);
static_assert(std::is_standard_layout_v<StatusPage>);

}  // namespace
}  // namespace distgrad

// Names and values, up to a name that is null.
extern "C" EXPORT const distgrad::LayoutEntry* distgrad_layout() { return distgrad::kLayout; }
