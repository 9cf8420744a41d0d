// Huge pages for large output tensors.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "tensor.h"

namespace attnzoo {

// Returns `tensor`, which must not have been written yet. glibc calls mmap for every allocation of 32 MiB or more, so
// the first write to each 4 KiB page causes a page fault. For a large output these faults take a good part of the run
// time of the operator. madvise requests 2 MiB pages instead, which the operating system may not grant.
inline Tensor with_huge_pages(Tensor tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uint64_t kMmapThreshold = uint64_t{32} << 20;
  constexpr uint64_t kHugePage = uint64_t{2} << 20;  // bytes
  const uint64_t bytes = tensor.numel() * tensor.element_size();
  if (bytes >= kMmapThreshold) {
    const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace attnzoo
