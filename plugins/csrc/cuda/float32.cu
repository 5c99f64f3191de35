#include "cuda/launch.cuh"

template int mscope::launch_scan<float>(const MscopeScanParams&, const mscope::ScanPlan&, cudaStream_t);
template int mscope::launch_conv<float>(const MscopeConvParams&, cudaStream_t);
