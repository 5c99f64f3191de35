"""What a bundle costs on this machine: latency by stage, path and layer, memory, cold start, energy, break-even."""
