"""The project's native code: `build` compiles it, `find` locates and checks it, `cpu` calls the training kernels."""
