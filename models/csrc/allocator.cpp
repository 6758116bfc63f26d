// Tensor memory that is reused instead of returned.
//
// A training step asks for the same few hundred blocks again and again, in sizes that vary a little with the documents.
// glibc either gives such blocks back to the kernel (every page is faulted in anew, twice the time) or, told to keep
// them, fragments until the process is several times its working set. Here each size class keeps a list of free
// blocks. A class is wide, but only touched pages count, so rounding up costs address space rather than memory.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace {

// Blocks below this come from malloc.
constexpr size_t kSmall = 32 * 1024;
// libtorch's kernels want 64-byte alignment; the header takes one such unit in front of the data.
constexpr size_t kHeader = 64;
constexpr int kClasses = 2 * 40;
// Small blocks are sized in powers of two from here on; a thread keeps so many bytes of each for its next tensor, because
// decoding does little else than asking for them.
constexpr size_t kLeast = 256;
constexpr int kSmallClasses = 8;
constexpr size_t kKept = 128 * 1024;
// Free memory that may wait for its next use. Without it, blocks that a layer frees and the next one takes would be
// unmapped in between.
constexpr size_t kSlack = size_t{32} << 20;

// What stands in front of a block: its class, negative for a small one.
struct Header {
  int size_class;
};

// The small blocks that a thread has freed last.
struct Nearby {
  std::array<std::vector<void*>, kSmallClasses> free;

  ~Nearby();
};

// Outlives the blocks: tensors may be freed while a thread ends.
thread_local bool ended = false;
thread_local Nearby nearby;

Nearby::~Nearby() {
  ended = true;
  for (auto& blocks : free)
    for (void* block : blocks) std::free(block);
}

void* take_small(size_t bytes) {
  int index = 0;
  while (kLeast << index < bytes) index++;
  if (!ended && !nearby.free[index].empty()) {
    void* block = nearby.free[index].back();
    nearby.free[index].pop_back();
    return block;
  }
  void* block = nullptr;
  if (posix_memalign(&block, kHeader, kLeast << index) != 0) return nullptr;
  static_cast<Header*>(block)->size_class = -1 - index;
  return block;
}

void give_small(void* block, int index) {
  if (ended || (nearby.free[index].size() + 1) * (kLeast << index) > kKept) return std::free(block);
  nearby.free[index].push_back(block);
}

// Two classes to a doubling. The odd factors keep widths that are common in models, times a few hundred tokens more or
// less, clear of a class's edge.
size_t class_bytes(int index) {
  const size_t power = kSmall << (index / 2);
  return (index % 2 ? power / 64 * 117 : power / 64 * 83) & ~size_t{4095};
}

int class_of(size_t bytes) {
  int index = 0;
  while (index < kClasses && class_bytes(index) < bytes) index++;
  return index;
}

struct Lists {
  std::mutex lock;
  std::array<std::vector<void*>, kClasses> free;
  size_t free_bytes = 0;

  // Unmaps free blocks, from the class that holds most, until `bytes` are gone or only the slack is left: a new block
  // replaces old ones, so the process holds little more than its busiest moment needed.
  void make_room(size_t bytes) {
    const size_t goal = std::max(kSlack, free_bytes - std::min(free_bytes, bytes));
    while (free_bytes > goal) {
      int fullest = 0;
      for (int i = 1; i < kClasses; i++)
        if (free[i].size() * class_bytes(i) > free[fullest].size() * class_bytes(fullest)) fullest = i;
      munmap(free[fullest].back(), class_bytes(fullest));
      free[fullest].pop_back();
      free_bytes -= class_bytes(fullest);
    }
  }
};

// Never destroyed: tensors in static storage may outlive any order of destruction.
Lists& lists() {
  static Lists* const held = new Lists();
  return *held;
}

void* take(size_t bytes) {
  const size_t whole = bytes + kHeader;
  if (whole <= kSmall) return take_small(whole);
  const int size_class = class_of(whole);
  if (size_class >= kClasses) return nullptr;
  {
    Lists& held = lists();
    const std::lock_guard<std::mutex> guard(held.lock);
    auto& free = held.free[size_class];
    if (!free.empty()) {
      // The last one freed is the likeliest to be in the processor's cache.
      void* block = free.back();
      free.pop_back();
      held.free_bytes -= class_bytes(size_class);
      return block;
    }
    held.make_room(class_bytes(size_class));
  }
  void* block = mmap(nullptr, class_bytes(size_class), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return nullptr;
  static_cast<Header*>(block)->size_class = size_class;
  return block;
}

void give(void* data) {
  if (!data) return;
  void* block = static_cast<char*>(data) - kHeader;
  const int size_class = static_cast<Header*>(block)->size_class;
  if (size_class < 0) return give_small(block, -1 - size_class);
  Lists& held = lists();
  const std::lock_guard<std::mutex> guard(held.lock);
  held.free[size_class].push_back(block);
  held.free_bytes += class_bytes(size_class);
}

struct Reuse final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &give, c10::Device(c10::DeviceType::CPU)};
    void* block = take(bytes);
    TORCH_CHECK(block, "out of memory: ", bytes, " bytes could not be had; lower micro_batch_size or sequence_len");
    void* data = static_cast<char*>(block) + kHeader;
    return {data, data, &give, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &give;
  }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

extern "C" {

// Call before the first tensor.
void pipe_reuse_memory() {
  static Reuse* const reuse = new Reuse();
  c10::SetCPUAllocator(reuse, /*priority=*/100);
}

// Returns the free blocks of every class to the kernel, as after loading or evaluating.
void pipe_release_memory() {
  Lists& held = lists();
  const std::lock_guard<std::mutex> guard(held.lock);
  for (int size_class = 0; size_class < kClasses; size_class++) {
    for (void* block : held.free[size_class]) munmap(block, class_bytes(size_class));
    held.free[size_class].clear();
  }
  held.free_bytes = 0;
}
}
