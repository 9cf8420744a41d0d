// Put before the operators' sources: they are registered for the CPU under a name of their own, and take the path of
// compute capability 9.0.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#define attnzoo attnzoo_emulated
#define CUDA CPU
#define __CUDA_ARCH__ 900
