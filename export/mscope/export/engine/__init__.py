"""TensorRT and TensorRT-RTX engines from a bundle's ONNX files: one builder, the flavour a parameter. docs/engines.md.

`wish` is what was asked for, `plan` what that comes to here; `flavour` finds the library, `device` the GPU, `request`
says what to build, `process` builds it in a child process,
`worker` is that child, `network` and `layers` read what was parsed and built, `proof` holds it to what was asked,
`cache` keeps it, `derive` adds the engines to a bundle. Nothing here imports torch.
"""
