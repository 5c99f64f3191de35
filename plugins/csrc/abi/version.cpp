// In every library: the version of its exported functions, which the Python side compares before it calls any. The number
// comes from the builder (ABI_VERSION in mscope/plugins/build.py), the one place that spells it.
extern "C" __attribute__((visibility("default"))) int mscope_abi_version() noexcept { return MSCOPE_ABI_VERSION; }
