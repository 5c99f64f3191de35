#include "cuda/launch.cuh"

template int mscope::launch_scan<mscope::BFloat>(const MscopeScanParams&, const mscope::ScanPlan&, cudaStream_t);
template int mscope::launch_conv<mscope::BFloat>(const MscopeConvParams&, cudaStream_t);
