// Workspace memory that is kept between calls.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#include "huge_pages.h"

namespace attnzoo {

// Freed blocks of at least kMinBytes, at most kMaxKept bytes in all. The allocator would return them to the operating
// system, or fill them with smaller blocks; new pages cost page faults, and the tokens of a large map more pages than
// the TLB has entries for. While another thread holds the lock, perhaps one that a fork left behind, nothing is kept;
// `release` waits for a second.
class WorkspaceCache {
 public:
  static constexpr int64_t kMinBytes = int64_t{1} << 20;
  static constexpr int64_t kMaxKept = int64_t{64} << 20;

  static WorkspaceCache& instance() {
    static auto* const cache = new WorkspaceCache;  // never destroyed: other threads may still run at exit
    return *cache;
  }

  // Returns a block of at least `bytes` bytes and sets `bytes` to its size.
  void* allocate(int64_t& bytes) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      for (size_t i = 0; i < blocks_.size(); ++i) {
        const Block block = blocks_[i];
        if (block.bytes >= bytes && block.bytes / 2 <= bytes) {
          blocks_.erase(blocks_.begin() + i);
          kept_ -= block.bytes;
          bytes = block.bytes;
          return block.data;
        }
      }
    }
    void* const data = ::operator new(bytes, kAlignment);
    advise_huge_pages(data, bytes);
    return data;
  }

  void free(void* data, int64_t bytes) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock && bytes <= kMaxKept) {
      while (kept_ + bytes > kMaxKept) {
        ::operator delete(blocks_.front().data, kAlignment);
        kept_ -= blocks_.front().bytes;
        blocks_.erase(blocks_.begin());
      }
      blocks_.push_back({data, bytes});
      kept_ += bytes;
      return;
    }
    ::operator delete(data, kAlignment);
  }

  void release() {
    if (const std::unique_lock lock(mutex_, std::chrono::seconds(1)); lock) {
      for (const Block& block : blocks_) {
        ::operator delete(block.data, kAlignment);
      }
      blocks_.clear();
      kept_ = 0;
    }
  }

 private:
  static constexpr std::align_val_t kAlignment{kHugePage};
  struct Block {
    void* data;
    int64_t bytes;
  };

  std::timed_mutex mutex_;
  std::vector<Block> blocks_;  // the oldest first
  int64_t kept_ = 0;
};

// Uninitialized memory, aligned for vectors.
template <typename T, int64_t kAlignment>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size) : bytes_(size * sizeof(T)) {
    void* const memory = bytes_ < WorkspaceCache::kMinBytes ? ::operator new(bytes_, std::align_val_t(kAlignment))
                                                            : WorkspaceCache::instance().allocate(bytes_);
    data = static_cast<T*>(memory);
  }
  ~AlignedBuffer() {
    if (bytes_ < WorkspaceCache::kMinBytes) {
      ::operator delete(data, std::align_val_t(kAlignment));
    } else {
      WorkspaceCache::instance().free(data, bytes_);
    }
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  T* data;

 private:
  int64_t bytes_;
};

}  // namespace attnzoo
