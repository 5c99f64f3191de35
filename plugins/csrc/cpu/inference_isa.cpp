// The table of kernels of one instruction set.

#include "cpu/inference.h"
#include "cpu/inference_kernels.h"
#include "scan/vec.h"

namespace mscope {

#define MSCOPE_KERNELS_OF MSCOPE_CONCAT(inference_kernels_, MSCOPE_ISA_NAME)

const inference::Kernels* MSCOPE_KERNELS_OF();
const inference::Kernels* MSCOPE_KERNELS_OF() {
  static constexpr inference::Kernels table = {
      MSCOPE_ISA_STRING, Vec::width, conv_tasks, conv_task, project_tasks, project_task, scan_tasks, scan_task};
  return &table;
}

}  // namespace mscope
