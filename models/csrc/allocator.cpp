// Tensor memory that is reused instead of returned.
//
// A training step asks for the same few thousand blocks again and again, in sizes that vary a little with the documents.
// glibc either gives such blocks back to the kernel (every page is faulted in anew, twice the time) or, told to keep
// them, fragments until the process is several times its working set. Here large blocks are cut from one pool by best
// fit and join with their free neighbours again, so the pool is little larger than the busiest moment needed and none
// of its pages is ever faulted in twice; small blocks are kept by size.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <vector>

namespace {

// libtorch's kernels want 64-byte alignment; the header takes one such unit in front of the data.
constexpr size_t kHeader = 64;
// Large blocks come in multiples of this: less than a page, or all of them would begin at the same place of one, which
// slows kernels that read one block and write another.
constexpr size_t kStep = 1024;
// What the pool grows by, at least; also the size of a huge page, to which it is aligned.
constexpr size_t kRegion = size_t{64} << 20;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;

// Small blocks have one of so many sizes, four to a doubling.
constexpr size_t kLeast = 256;
constexpr int kSmallClasses = 29;
constexpr size_t kSmall = 32 * 1024;
// What small blocks are cut from.
constexpr size_t kSlab = 256 * 1024;
// A thread keeps so many bytes of each small size for its next tensor, because decoding does little else than asking for
// them.
constexpr size_t kKept = 128 * 1024;

// What stands in front of a block's data.
struct Header {
  size_t bytes;     // of the whole block, where it is large
  int small_class;  // negative for a large one
};

constexpr size_t small_bytes(int index) {
  return size_t{4 + static_cast<size_t>(index) % 4} << (index / 4 + 6);
}
static_assert(small_bytes(0) == kLeast && small_bytes(kSmallClasses - 1) == kSmall);

int small_class_of(size_t bytes) {
  if (bytes <= kLeast) return 0;
  const int shift = 61 - __builtin_clzll(bytes - 1);
  return static_cast<int>((bytes - 1) >> shift) - 3 + 4 * (shift - 6);
}

// Free memory by place and by size; neighbours are joined.
class Pool {
 public:
  // A block of `bytes`, a multiple of kStep; null where the system has no more.
  char* take(size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock_);
    auto fitting = by_size_.lower_bound({bytes, nullptr});
    if (fitting == by_size_.end()) {
      if (!grow(bytes)) return nullptr;
      fitting = by_size_.lower_bound({bytes, nullptr});
    }
    const auto [size, place] = *fitting;
    by_size_.erase(fitting);
    by_place_.erase(place);
    if (size > bytes) add(place + bytes, size - bytes);
    return place;
  }

  void give(char* place, size_t bytes) {
    const std::lock_guard<std::mutex> guard(lock_);
    auto after = by_place_.lower_bound(place);
    if (after != by_place_.end() && place + bytes == after->first) {
      bytes += after->second;
      after = remove(after);
    }
    if (after != by_place_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == place) {
        place = before->first;
        bytes += before->second;
        remove(before);
      }
    }
    add(place, bytes);
  }

  // Lets the kernel have the pages that lie in free memory. Their addresses stay the pool's.
  void release() {
    const std::lock_guard<std::mutex> guard(lock_);
    for (const auto& [place, bytes] : by_place_) {
      const auto from = (reinterpret_cast<uintptr_t>(place) + kPage - 1) / kPage * kPage;
      const auto to = (reinterpret_cast<uintptr_t>(place) + bytes) / kPage * kPage;
      if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
    }
  }

 private:
  using Places = std::map<char*, size_t>;

  void add(char* place, size_t bytes) {
    by_place_.emplace(place, bytes);
    by_size_.emplace(bytes, place);
  }

  Places::iterator remove(Places::iterator free) {
    by_size_.erase({free->second, free->first});
    return by_place_.erase(free);
  }

  bool grow(size_t bytes) {
    const size_t wanted = (std::max(bytes, kRegion) + kHugePage - 1) / kHugePage * kHugePage;
    void* found = mmap(nullptr, wanted + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return false;
    char* start = static_cast<char*>(found);
    char* aligned = start + (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    if (aligned > start) munmap(start, aligned - start);
    munmap(aligned + wanted, start + kHugePage - aligned);
    add(aligned, wanted);
    return true;
  }

  std::mutex lock_;
  Places by_place_;
  std::set<std::pair<size_t, char*>> by_size_;
};

using Blocks = std::array<std::vector<void*>, kSmallClasses>;

// Small blocks that no thread keeps.
struct Common {
  std::mutex lock;
  Blocks free;
};

// Never destroyed: tensors in static storage may outlive any order of destruction.
Pool& pool() {
  static Pool* const held = new Pool();
  return *held;
}

Common& common() {
  static Common* const held = new Common();
  return *held;
}

// The small blocks that a thread has freed last; those of a thread that ends become everybody's.
struct Nearby {
  Blocks free;

  ~Nearby();
};

// Outlives the blocks: tensors may be freed while a thread ends.
thread_local bool ended = false;
thread_local Nearby nearby;

Nearby::~Nearby() {
  ended = true;
  Common& all = common();
  const std::lock_guard<std::mutex> guard(all.lock);
  for (int i = 0; i < kSmallClasses; i++) all.free[i].insert(all.free[i].end(), free[i].begin(), free[i].end());
}

// Cuts a slab into free blocks of one size; under the lock.
bool cut_slab(std::vector<void*>& free, int index) {
  char* slab = pool().take(kSlab);
  if (!slab) return false;
  const size_t bytes = small_bytes(index);
  for (size_t at = kSlab / bytes; at-- > 0;) {
    Header* header = reinterpret_cast<Header*>(slab + at * bytes);
    *header = {bytes, index};
    free.push_back(header);
  }
  return true;
}

void* take_small(int index) {
  if (!ended && !nearby.free[index].empty()) {
    void* block = nearby.free[index].back();
    nearby.free[index].pop_back();
    return block;
  }
  Common& all = common();
  const std::lock_guard<std::mutex> guard(all.lock);
  auto& free = all.free[index];
  if (free.empty() && !cut_slab(free, index)) return nullptr;
  void* block = free.back();
  free.pop_back();
  if (ended) return block;
  // A few more, so that the next ones need no lock.
  const size_t spare = std::min(free.size(), kKept / 4 / small_bytes(index));
  nearby.free[index].insert(nearby.free[index].end(), free.end() - spare, free.end());
  free.resize(free.size() - spare);
  return block;
}

void give_small(void* block, int index) {
  if (!ended && (nearby.free[index].size() + 1) * small_bytes(index) <= kKept) return nearby.free[index].push_back(block);
  Common& all = common();
  const std::lock_guard<std::mutex> guard(all.lock);
  all.free[index].push_back(block);
}

void* take(size_t bytes) {
  const size_t whole = bytes + kHeader;
  if (whole <= kSmall) return take_small(small_class_of(whole));
  const size_t rounded = (whole + kStep - 1) / kStep * kStep;
  char* block = pool().take(rounded);
  if (block) *reinterpret_cast<Header*>(block) = {rounded, -1};
  return block;
}

void give(void* data) {
  if (!data) return;
  char* block = static_cast<char*>(data) - kHeader;
  const Header header = *reinterpret_cast<Header*>(block);
  if (header.small_class >= 0) return give_small(block, header.small_class);
  pool().give(block, header.bytes);
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

// Gives free memory back to the kernel, as after loading or evaluating.
void pipe_release_memory() {
  pool().release();
}
}
