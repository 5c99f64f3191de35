// What the kernels' translation units of one instruction set offer each other; inference_isa.cpp makes the table of them.
#pragma once

#include "cpu/inference.h"
#include "scan/hd.h"

namespace mscope {
inline namespace MSCOPE_ISA_NAME {

int64_t conv_tasks(const inference::ConvProblem& problem);
void conv_task(const inference::ConvProblem& problem, int64_t task);
int64_t project_tasks(const inference::ProjectProblem& problem);
void project_task(const inference::ProjectProblem& problem, int64_t task);
int64_t scan_tasks(const inference::ScanProblem& problem);
void scan_task(const inference::ScanProblem& problem, int64_t task);

}  // namespace MSCOPE_ISA_NAME
}  // namespace mscope
