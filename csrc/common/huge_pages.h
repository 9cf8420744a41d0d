// Memory of large results, before it is first written.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "tensor.h"

namespace attnzoo {

// `tensor`, to which nothing was written yet. Blocks of 32 MiB and more glibc maps anew for every allocation, and then
// the first write to each of their pages of 4 KiB enters the system: for a whole result that takes as long as a good
// part of the kernel. So the system is asked for pages of 2 MiB; it may refuse, which changes nothing else.
inline Tensor with_huge_pages(Tensor tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uint64_t kMapped = uint64_t{32} << 20;
  constexpr uint64_t kPage = uint64_t{2} << 20;
  const uint64_t bytes = tensor.numel() * tensor.element_size();
  if (bytes >= kMapped) {
    const auto begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
    const uintptr_t first = (begin + kPage - 1) / kPage * kPage;
    const uintptr_t last = (begin + bytes) / kPage * kPage;
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#endif
  return tensor;
}

}  // namespace attnzoo
