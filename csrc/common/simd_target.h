// ATTNZOO_BEGIN_TARGET and ATTNZOO_END_TARGET enclose the code of a source file that is compiled for more than the
// baseline instruction set.
//
// Include shared headers before ATTNZOO_BEGIN_TARGET. The linker keeps a single copy of an inline function from such a
// header, and that copy must run on every machine.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#define ATTNZOO_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#define ATTNZOO_BEGIN_TARGET(names) \
  ATTNZOO_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define ATTNZOO_END_TARGET ATTNZOO_PRAGMA(clang attribute pop)
#else
#define ATTNZOO_BEGIN_TARGET(names) ATTNZOO_PRAGMA(GCC push_options) ATTNZOO_PRAGMA(GCC target(names))
#define ATTNZOO_END_TARGET ATTNZOO_PRAGMA(GCC pop_options)
#endif
