// Huge pages for large output tensors.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "tensor.h"

namespace attnzoo {

constexpr uint64_t kHugePage = uint64_t{2} << 20;  // bytes

// Requests huge pages for memory that has not been written yet. The operating system may not grant them.
inline void advise_huge_pages(void* memory, uint64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
}

// Returns `tensor`, which must not have been written yet. glibc calls mmap for every allocation of 32 MiB or more, and
// returns the end of its heap to the system when several smaller ones are freed. The first write to each 4 KiB page then
// causes a page fault. For a large output these faults take a good part of the run time of the operator.
inline Tensor with_huge_pages(Tensor tensor) {
  constexpr uint64_t kMinBytes = uint64_t{4} << 20;
  const uint64_t bytes = tensor.numel() * tensor.element_size();
  if (bytes >= kMinBytes) {
    advise_huge_pages(tensor.mutable_data_ptr(), bytes);
  }
  return tensor;
}

}  // namespace attnzoo
