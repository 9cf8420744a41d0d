// Included before the CUDA sources: registers the operators for the CPU as attnzoo_emulated, with the code path of
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
