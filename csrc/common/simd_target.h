// Opens and closes the part of a source file that is compiled for more than the baseline instruction set.
//
// Headers shared with other source files come before that part: a function of theirs that the compiler does not
// inline exists once in the library, and must run on every machine.
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
