"""What of this machine can be used, what cannot and why, and the command that mends it (`mscope-export doctor`)."""
