#include "cuda/launch.cuh"

template int mscope::launch_scan<mscope::Half>(const MscopeScanParams&, const mscope::ScanPlan&, cudaStream_t);
template int mscope::launch_conv<mscope::Half>(const MscopeConvParams&, cudaStream_t);
