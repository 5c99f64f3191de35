"""Vision Mamba (ViM) and MambaScope in PyTorch: the networks, their checkpoints and their training."""
